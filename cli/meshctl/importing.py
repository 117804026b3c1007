"""Documents from files into a collection, batch by batch, each batch once.

A batch's action id follows from what is imported, where to, and what the batch holds, so that an
import that was cut off goes on where it ended: the node answers from memory what it has done. An
import that came to its end counts as done; the same one again is a new round with new ids, or it
would silently do nothing after a drop or a change.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mesh
from cli import connection
from mesh.types import ActionState

if TYPE_CHECKING:
    from mesh import ImportReport, MeshClient

Progress = Callable[[int, int, int], None]
"""Told bytes read, bytes in all, documents indexed."""

_BATCH_TIMEOUT_S = 120.0
_READ_BYTES = 1024 * 1024
_FIRST = "first"
_END = "end"
_UNSETTLED = frozenset({None, ActionState.ACCEPTED, ActionState.RUNNING})


@dataclass(frozen=True, kw_only=True)
class Imported:
    """How an import went."""

    collection: str
    node: str
    report: ImportReport
    seconds: float

    @property
    def documents_per_s(self) -> float:
        """Speed of the whole import."""
        return self.report.documents / self.seconds if self.seconds else 0.0

    def summary(self) -> str:
        """One line for people."""
        report = self.report
        return (
            f"{report.documents} documents ({report.changed} new or changed) in {report.batches}"
            f" batches to {self.collection} on {self.node or 'no node'} in {self.seconds:.1f} s"
            f" ({self.documents_per_s:.0f} a second), {report.bad} bad"
        )

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "collection": self.collection,
            "node": self.node,
            "documents": self.report.documents,
            "changed": self.report.changed,
            "batches": self.report.batches,
            "bad": self.report.bad,
            "bad_lines": [
                {"source": bad.source, "line": bad.line, "reason": bad.reason}
                for bad in self.report.bad_lines
            ],
            "seconds": round(self.seconds, 3),
            "documents_per_s": round(self.documents_per_s, 1),
        }


@dataclass(frozen=True, kw_only=True)
class Import:
    """One import, as it was asked for."""

    path: Path
    collection: str
    node: str | None
    batch: int
    id_column: str | None
    content_column: str | None
    warn: Callable[[str], None]

    async def run(self, client: MeshClient, progress: Progress) -> Imported:
        """Read, index, and tell how it went.

        Raises:
            MeshError: The mesh refuses or is away; what was indexed until then stays.
        """
        began = time.perf_counter()
        node = None if self.node is None else await connection.slug_of(client, self.node)
        names = await self._names(client)
        items = mesh.read_documents(
            self.path, id_column=self.id_column, content_column=self.content_column
        )

        async def index(params: Mapping[str, Any], batch: str) -> Mapping[str, Any]:
            nonlocal node
            answer = await client.run_action(
                "index",
                dict(params),
                node=node,
                id=await names.of(client, batch, params),
                timeout_s=_BATCH_TIMEOUT_S,
            )
            node = answer.node  # the one that took the first batch takes them all
            result: Mapping[str, Any] = answer.result
            return result

        report = await mesh.import_documents(
            names.watch(items),
            index,
            collection=self.collection,
            batch=self.batch,
            progress=progress,
        )
        return Imported(
            collection=self.collection,
            node=node or "",
            report=report,
            seconds=time.perf_counter() - began,
        )

    async def _names(self, client: MeshClient) -> Names:
        seed = self.seed()
        try:
            return await Names.find(client, seed)
        except connection.NoMasterError:
            self.warn(
                "no master answers, so nobody knows of earlier imports: if this very import came"
                " to its end within the last day, it does nothing now"
            )
            return Names(seed, round_=0, resumed=False)

    def seed(self) -> str:
        """Digest of all that decides what the batches hold and where they go."""
        digest = hashlib.sha256()
        choices = (self.collection, self.node, self.batch, self.id_column, self.content_column)
        digest.update(repr((self.path.name, *choices)).encode())
        for path in _files(self.path):
            digest.update(f"\0{path.relative_to(self.path)}\0".encode(errors="surrogateescape"))
            with path.open("rb") as file:
                while block := file.read(_READ_BYTES):
                    digest.update(block)
        return digest.hexdigest()[:20]


def _files(path: Path) -> Iterable[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file())


def _encode(value: Any) -> bytes:
    import msgspec

    return msgspec.json.encode(value)


class Names:
    """Action ids of one round of an import."""

    def __init__(self, seed: str, *, round_: int, resumed: bool) -> None:
        """Args:
        seed: Names the import.
        round_: How often it came to its end before.
        resumed: Whether this round was begun before and cut off.
        """
        self._prefix = f"import-{seed}-r{round_}"
        self._resumed = resumed
        self._read_all = self._begun = self._ended = False
        self._given: dict[str, str] = {}

    @classmethod
    async def find(cls, client: MeshClient, seed: str) -> Names:
        """The first round that has not come to its end, by doubling, then halving.

        Raises:
            connection.NoMasterError
        """

        async def over(round_: int) -> bool:
            return await _state(client, f"import-{seed}-r{round_}-{_END}") not in _UNSETTLED

        last_over, unknown = -1, 0
        while await over(unknown):
            last_over, unknown = unknown, 2 * unknown + 1
        while unknown - last_over > 1:
            middle = (last_over + unknown) // 2
            if await over(middle):
                last_over = middle
            else:
                unknown = middle
        begun = await _state(client, f"import-{seed}-r{unknown}-{_FIRST}")
        return cls(seed, round_=unknown, resumed=begun is not None)

    def watch(self, items: Iterable[Any]) -> Iterator[Any]:
        """Pass `items` on; what is sent after the last of them is the import's end."""
        yield from items
        self._read_all = True

    async def of(self, client: MeshClient, batch: str, params: Mapping[str, Any]) -> str:
        """The action id of a batch, the same however often it is tried within this run.

        One that failed before an import was cut off gets a new id: the old one would only bring
        its old failure back.
        """
        if batch not in self._given:
            self._given = {batch: await self._new(client, params)}  # batches come one by one
        return self._given[batch]

    async def _new(self, client: MeshClient, params: Mapping[str, Any]) -> str:
        base = name = f"{self._prefix}-{self._place(params)}"
        attempt = 1
        while self._resumed and await _state(client, name) is ActionState.FAILED:
            attempt += 1
            name = f"{base}-t{attempt}"
        return name

    def _place(self, params: Mapping[str, Any]) -> str:
        """`first` and `end` are the marks by which a later run knows how far this one came."""
        if self._read_all and not self._ended:
            self._ended = self._begun = True
            return _END
        if not self._begun:
            self._begun = True
            return _FIRST
        return hashlib.sha256(_encode(params)).hexdigest()[:16]


async def _state(client: MeshClient, action_id: str) -> ActionState | None:
    page = await connection.ask_master(client.history(action_id=action_id, limit=1))
    return page.actions[0].state if page.actions else None
