"""Documents from files into a collection of one node, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mesh
from cli import connection
from mesh import bootstrap
from mesh.errors import InvalidError, MeshError, TooLargeError
from mesh.types import Health

if TYPE_CHECKING:
    from mesh import ImportReport, MeshClient
    from mesh.bootstrap import ImportPlace

Progress = Callable[[int, int, int], None]
"""Told bytes read, bytes in all (0: unknown), documents indexed."""

_BATCH_TIMEOUT_S = 120.0
_IN_FLIGHT = 4


@dataclass(frozen=True, kw_only=True)
class Imported:
    """How an import of one file went."""

    path: Path
    collection: str
    node: str
    report: ImportReport
    seconds: float
    documents_before: int
    """Indexed by earlier runs."""
    resumed: bool
    rejects: Path | None
    """Where bad lines are; None if there are none."""

    @property
    def documents_per_s(self) -> float:
        """Speed of this run."""
        return (self.report.documents - self.documents_before) / self.seconds if self.seconds else 0

    def summary(self) -> str:
        """One line for people."""
        report = self.report
        return (
            f"{report.documents} documents ({report.changed} new or changed) in {report.batches}"
            f" batches to {self.collection} on {self.node or 'no node'} in {self.seconds:.1f} s"
            f" ({self.documents_per_s:.0f} a second), {report.bad} bad"
            + (f", put aside in {self.rejects}" if self.rejects else "")
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
            "rejects": str(self.rejects) if self.rejects else None,
            "resumed": self.resumed,
            "stopped": self.report.stopped,
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
    form: str | None
    id_column: str | None
    content_column: str | None
    rejects: Path | None
    restart: bool
    most_bad: int | None
    state_dir: Path

    def place(self) -> ImportPlace:
        """How far earlier runs came; a context manager."""
        return bootstrap.ImportPlace(
            self.path,
            collection=self.collection,
            node=self.node or "",
            options=[self.form or "", self.id_column or "", self.content_column or ""],
            rejects=self.rejects,
            fallback=self.state_dir / "imports",
        )

    async def run(
        self,
        client: MeshClient,
        place: ImportPlace,
        progress: Progress,
        note: Callable[[str], None],
    ) -> Imported:
        """Read, index, and tell how it went; begin where an earlier run ended.

        Raises:
            MeshError: The mesh refuses or is away; what was indexed until then stays, and the place
                knows of it.
        """
        began = time.perf_counter()
        node = None if self.node is None else await connection.slug_of(client, self.node)
        node = place.holder or node
        if place.resumed and not self.restart and not await _holds(client, node, self.collection):
            place.begin_anew()
            note(f"{node} no longer holds {self.collection}: beginning anew")
        elif place.resumed and self.restart:
            place.begin_anew()
        elif place.notice:
            note(place.notice)
        if place.resumed:
            note(f"going on after line {place.mark.line} of {self.path}")

        failed: dict[str, int] = {}

        async def index(params: Mapping[str, Any], batch: str) -> Mapping[str, Any]:
            known = failed.get(batch, 0)
            try:
                answer = await client.run_action(
                    "index",
                    dict(params),
                    node=place.holder or node,
                    id=batch,
                    timeout_s=_BATCH_TIMEOUT_S,
                    retry=known,
                )
            except (InvalidError, TooLargeError):
                raise  # as it would every time
            except MeshError as error:
                failed[batch] = max(error.attempt, known)
                if known or not error.attempt:
                    raise
                # It may be remembered from an earlier run: what was in the way then may be gone.
                return await index(params, batch)
            place.holder = answer.node  # the one that took the first batch takes them all
            result: Mapping[str, Any] = answer.result
            return result

        before = place.counts
        report = mesh.ImportReport(
            documents=before.documents,
            changed=before.changed,
            batches=before.batches,
            bad=before.bad,
        )
        await mesh.import_documents(
            mesh.read_documents(
                self.path,
                id_column=self.id_column,
                content_column=self.content_column,
                form=self.form,
                after=place.mark,
            ),
            index,
            collection=self.collection,
            batch=self.batch,
            progress=progress,
            in_flight=_IN_FLIGHT,
            keeper=place,
            report=report,
            import_id=place.import_id,
            most_bad=self.most_bad,
        )
        if not report.stopped:
            place.finish()
        return Imported(
            path=self.path,
            collection=self.collection,
            node=place.holder,
            report=report,
            seconds=time.perf_counter() - began,
            documents_before=before.documents,
            resumed=place.resumed,
            rejects=place.rejects if report.bad else None,
        )


def as_json(done: list[Imported]) -> dict[str, Any]:
    """One file's figures; of several their sums, with each one's under `files`."""
    if len(done) == 1:
        return done[0].as_json()
    files = [{"file": str(imported.path), **imported.as_json()} for imported in done]
    seconds = sum(imported.seconds for imported in done)
    now = sum(imported.report.documents - imported.documents_before for imported in done)
    sums = {
        name: sum(file[name] for file in files)
        for name in ("documents", "changed", "batches", "bad")
    }
    return {
        "collection": done[0].collection,
        "node": done[0].node,
        **sums,
        "seconds": round(seconds, 3),
        "documents_per_s": round(now / seconds, 1) if seconds else 0.0,
        "files": files,
    }


async def _holds(client: MeshClient, node: str | None, collection: str) -> bool:
    """Whether a node that is well still has what earlier runs put there; True if nobody knows."""
    if node is None:
        return True
    try:
        (record,) = (await client.nodes(node=node)).nodes
    except MeshError:
        return True
    held = any(info.name == collection for info in record.collections)
    return held or record.health is not Health.HEALTHY
