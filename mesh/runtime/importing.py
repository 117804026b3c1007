"""Documents from files into a collection: bounded batches, the good ones in, the bad ones named.

Several batches are on their way at once. Two that hold the same id go one after the other, so that
the later line wins; and they are committed in the order of the file, so that what an import has
done is at any time everything up to one place in it. Whoever keeps that place can go on from there:
a batch that was sent but not committed before a crash is sent again under the same action id, and
`index` upserts by id.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import msgspec
from uuid_utils import uuid7

from mesh.errors import InvalidError, MeshError, TooLargeError
from mesh.runtime.import_batches import Batch, Entry, Item, Mark, Rejected, batches, without
from mesh.runtime.own_threads import in_own_thread

SHOWN_BAD_LINES = 20
_PLACE = re.compile(r"(?:params\.)?documents\[(\d+)\](.*)")
_WHOLE_BATCH = re.compile(r"(?:params\.)?documents$")
_PAUSE_S, _MOST_PAUSE_S = 0.5, 5.0
_PATIENCE_FIRST_S = 30.0
"""With a mesh that has taken nothing yet: perhaps it never will."""
_PATIENCE_S = 300.0
"""With one that took something: brokers, masters and nodes come back."""
_MOST_UNEXPLAINED = 20
_sleep = asyncio.sleep

Index = Callable[[Mapping[str, Any], str], Awaitable[Mapping[str, Any]]]
"""Runs the action `index` with parameters under an id; its result."""

Progress = Callable[[int, int, int], None]
"""Told bytes read, bytes in all (0: unknown), documents indexed."""


class BadLine(NamedTuple):
    """Something that could not be imported."""

    source: str
    line: int
    reason: str


@dataclass(kw_only=True)
class ImportReport:
    """How an import went, over all its runs."""

    documents: int = 0
    changed: int = 0
    batches: int = 0
    bad: int = 0
    bad_lines: list[BadLine] = field(default_factory=list)
    """The first `SHOWN_BAD_LINES` of them, of this run."""
    stopped: bool = False
    """Whether it ended before its time, because too much was bad."""


class Keeper(Protocol):
    """Remembers how far an import is."""

    def commit(self, report: ImportReport, mark: Mark, rejected: Sequence[Rejected]) -> None:
        """Keep what was rejected since the last call, and that everything before `mark` is done.
        Called in a thread.
        """
        ...


class _Nowhere:
    def commit(self, report: ImportReport, mark: Mark, rejected: Sequence[Rejected]) -> None:
        """Nothing is kept."""


async def import_documents(
    items: Iterable[Item],
    index: Index,
    *,
    collection: str,
    batch: int = 500,
    progress: Progress | None = None,
    in_flight: int = 1,
    keeper: Keeper | None = None,
    report: ImportReport | None = None,
    import_id: str = "",
    most_bad: int | None = None,
) -> ImportReport:
    """Index everything that is a document.

    Args:
        items: From `read_documents`; read in a thread.
        index: How to run the action.
        collection: Where to.
        batch: Most documents in one action.
        progress: Called after every batch.
        in_flight: Most actions at once, when the first one has succeeded.
        keeper: Told how far it is, batch by batch.
        report: What earlier runs of this import did; it is added to.
        import_id: What the ids of its actions begin with; the same for all runs of one import, and
            for no other. Default: a new one.
        most_bad: Stop when more than so many could not be imported.

    Raises:
        MeshError: The mesh refuses, or is away for too long; what was indexed until then stays.
    """
    job = _Import(
        index,
        collection=collection,
        report=report or ImportReport(),
        import_id=import_id or str(uuid7()),
        keeper=keeper or _Nowhere(),
        progress=progress or (lambda _position, _total, _documents: None),
        most_bad=most_bad,
    )
    return await job.run(batches(items, limit=batch), in_flight=in_flight)


class _Sent(NamedTuple):
    batch: Batch
    task: asyncio.Task[int]
    """How many of its documents changed something."""


class _Import:
    """One run."""

    def __init__(
        self,
        index: Index,
        *,
        collection: str,
        report: ImportReport,
        import_id: str,
        keeper: Keeper,
        progress: Progress,
        most_bad: int | None,
    ) -> None:
        self._index = index
        self._collection = collection
        self._report = report
        self._import_id = import_id
        self._keeper = keeper
        self._progress = progress
        self._most_bad = most_bad
        self._window: deque[_Sent] = deque()
        self._taken = False
        """Whether the mesh took any batch in this run."""
        self._unexplained = 0

    async def run(self, every: Iterable[Batch], *, in_flight: int) -> ImportReport:
        """Until everything is in, or too much was bad."""
        coming = iter(every)
        number = self._report.batches
        try:
            while not self._report.stopped and (
                # nobody waits for it at the end: reading standard input may block for ever
                batch := await in_own_thread("import reader", next, coming, None)
            ):
                while self._must_wait(batch, in_flight if self._taken else 1):
                    await self._commit_first()
                # Its number and text name a batch: another run sends the same again.
                send = self._send(list(batch.entries.values()), batch, number)
                self._window.append(_Sent(batch, asyncio.create_task(send)))
                number += 1
            while self._window and not self._report.stopped:
                await self._commit_first()
        finally:
            for sent in self._window:
                sent.task.cancel()
            await asyncio.gather(*(sent.task for sent in self._window), return_exceptions=True)
        return self._report

    def _must_wait(self, batch: Batch, in_flight: int) -> bool:
        return len(self._window) >= in_flight or any(
            not batch.entries.keys().isdisjoint(sent.batch.entries) for sent in self._window
        )

    async def _commit_first(self) -> None:
        """Await the oldest batch: what is committed is all of the file up to its end."""
        batch, task = self._window[0]
        changed = await task
        self._window.popleft()
        report, rejected = self._report, sorted(batch.rejected, key=lambda bad: bad.line)
        report.batches += 1
        report.changed += changed
        report.documents += batch.documents
        report.bad += len(rejected)
        left = SHOWN_BAD_LINES - len(report.bad_lines)
        report.bad_lines += [BadLine(bad.source, bad.line, bad.reason) for bad in rejected[:left]]
        await asyncio.shield(asyncio.to_thread(self._keeper.commit, report, batch.mark, rejected))
        if self._most_bad is not None and report.bad > self._most_bad:
            report.stopped = True
        self._progress(batch.position, batch.total, report.documents)

    async def _send(self, entries: Sequence[Entry], batch: Batch, number: int) -> int:
        """How many changed something. When a batch is refused: without the documents to blame, or
        halved if none is named.
        """
        if not entries:
            return 0
        try:
            result = await self._run(entries, number)
        except (InvalidError, TooLargeError) as error:
            blamed = self._blamed(error, entries)
            for at, why in blamed.items():
                batch.rejected.append(entries[at].rejected(why))
                batch.documents -= 1
            good = without(entries, blamed)
            middle = len(good) if blamed else len(good) // 2
            changed = await self._send(good[:middle], batch, number)
            return changed + await self._send(good[middle:], batch, number)
        self._taken = True
        return int(result.get("changed", 0))

    def _blamed(self, error: MeshError, entries: Sequence[Entry]) -> dict[int, str]:
        """Places of the documents a refusal names, and what is wrong with each; none if it may be
        any of several.

        Raises:
            MeshError: It is not the documents' fault.
        """
        blamed: dict[int, str] = {}
        for name, messages in error.fields.items():
            if (found := _PLACE.match(name)) and int(found.group(1)) < len(entries):
                why = f"{found.group(2).strip('.')} {messages[0]}".strip()
                blamed.setdefault(int(found.group(1)), why)
            elif not found and not _WHOLE_BATCH.match(name):
                raise error
        if not blamed and len(entries) == 1:
            self._unexplained += 1
            if not self._taken and self._unexplained >= _MOST_UNEXPLAINED:
                raise error
            blamed[0] = str(error)
        return blamed

    async def _run(self, entries: Sequence[Entry], number: int) -> Mapping[str, Any]:
        """Tried again under one id while its answer may only have been lost."""
        documents = [entry.document for entry in entries]
        params = {"collection": self._collection, "documents": documents}
        digest = hashlib.sha256(msgspec.json.encode(params)).hexdigest()[:16]
        action_id = f"{self._import_id}-{number}-{digest}"
        time = asyncio.get_running_loop().time
        began, pause_s = time(), _PAUSE_S
        while True:
            try:
                return await self._index(params, action_id)
            except MeshError as error:
                wait_s = max(pause_s, (error.retry_after_ms or 0) / 1000)
                patience_s = _PATIENCE_S if self._taken else _PATIENCE_FIRST_S
                if not error.retryable or time() + wait_s > began + patience_s:
                    raise
            await _sleep(wait_s)
            pause_s = min(2 * pause_s, _MOST_PAUSE_S)
