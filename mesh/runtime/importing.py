"""Documents from files into a collection: bounded batches, the good ones in, the bad ones named.

Nothing has to be remembered to resume an import that was cut off: `index` upserts by id and leaves
equal documents alone, so importing again costs a read and changes only what is missing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import msgspec
from uuid_utils import uuid7

from mesh.errors import InvalidError, MeshError, TooLargeError

SHOWN_BAD_LINES = 20
MOST_BATCH_BYTES = 512 * 1024
_PLACE = re.compile(r"params\.documents\[(\d+)\](.*)")
_ATTEMPTS = 8
_PAUSE_S = 0.5

Index = Callable[[Mapping[str, Any], str], Awaitable[Mapping[str, Any]]]
"""Runs the action `index` with parameters under an id; its result."""

Progress = Callable[[int, int, int], None]
"""Told bytes read, bytes in all, documents indexed."""


class Item(Protocol):
    """What `read_documents` yields: a document, or (`document` None) what is none and why."""

    @property
    def document(self) -> dict[str, Any] | None: ...
    @property
    def source(self) -> str: ...
    @property
    def line(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def total(self) -> int: ...


class BadLine(NamedTuple):
    """Something that could not be imported."""

    source: str
    line: int
    reason: str


@dataclass(kw_only=True)
class ImportReport:
    """How an import went."""

    documents: int = 0
    changed: int = 0
    batches: int = 0
    bad: int = 0
    bad_lines: list[BadLine] = field(default_factory=list)
    """The first `SHOWN_BAD_LINES` of them."""

    def reject(self, bad: BadLine) -> None:
        """Count something that could not be imported."""
        self.bad += 1
        if self.bad <= SHOWN_BAD_LINES:
            self.bad_lines.append(bad)


async def import_documents(
    items: Iterable[Item],
    index: Index,
    *,
    collection: str,
    batch: int = 500,
    progress: Progress | None = None,
) -> ImportReport:
    """Index everything that is a document.

    Args:
        items: From `read_documents`.
        index: How to run the action.
        collection: Where to.
        batch: Most documents in one action.
        progress: Called after every batch.

    Raises:
        MeshError: The mesh refuses or is away; what was indexed until then stays.
    """
    report = ImportReport()
    for chunk in _batches(items, report, limit=batch):
        await _send(chunk.entries, index, collection, report)
        report.batches += 1
        if progress is not None:
            progress(chunk.position, chunk.total, report.documents)
    return report


class _Entry(NamedTuple):
    document: dict[str, Any]
    source: str
    line: int


class _Batch(NamedTuple):
    entries: Sequence[_Entry]
    position: int
    total: int


def _batches(items: Iterable[Item], report: ImportReport, *, limit: int) -> Iterator[_Batch]:
    encoder = msgspec.json.Encoder()
    waiting: list[_Entry] = []
    size = position = total = 0
    for item in items:
        if item.document is None:
            report.reject(BadLine(item.source, item.line, getattr(item, "reason", "unreadable")))
        else:
            needed = len(encoder.encode(item.document))
            if waiting and (len(waiting) == limit or size + needed > MOST_BATCH_BYTES):
                yield _Batch(waiting, position, total)
                waiting, size = [], 0
            waiting.append(_Entry(item.document, item.source, item.line))
            size += needed
        position, total = item.position, item.total
    if waiting:
        yield _Batch(waiting, total, total)


async def _send(
    entries: Sequence[_Entry], index: Index, collection: str, report: ImportReport
) -> None:
    """One batch; when it is refused, without the documents to blame, or halved if none is named."""
    try:
        result = await _run(entries, index, collection)
    except (InvalidError, TooLargeError) as error:
        if not report.documents and report.bad >= SHOWN_BAD_LINES:
            raise  # it is not the documents' fault
        blamed = _blamed(error) or ({0: str(error)} if len(entries) == 1 else {})
        for at, why in blamed.items():
            report.reject(BadLine(entries[at].source, entries[at].line, why))
        good = [entry for at, entry in enumerate(entries) if at not in blamed]
        middle = len(good) if blamed else len(good) // 2
        for half in (good[:middle], good[middle:]):
            if half:
                await _send(half, index, collection, report)
    else:
        report.documents += len(entries)
        report.changed += int(result.get("changed", 0))


def _blamed(error: MeshError) -> dict[int, str]:
    """Places in the batch of the documents a refusal names, and what is wrong with each."""
    blamed: dict[int, str] = {}
    for name, messages in error.fields.items():
        if found := _PLACE.match(name):
            blamed.setdefault(int(found.group(1)), f"{found.group(2).strip('.')} {messages[0]}")
    return blamed


async def _run(entries: Sequence[_Entry], index: Index, collection: str) -> Mapping[str, Any]:
    """Tried again under one id while its answer may only have been lost."""
    params = {"collection": collection, "documents": [entry.document for entry in entries]}
    action_id = str(uuid7())
    pause_s = _PAUSE_S
    for _ in range(_ATTEMPTS - 1):
        try:
            return await index(params, action_id)
        except MeshError as error:
            if not error.retryable:
                raise
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, 5.0)
    return await index(params, action_id)
