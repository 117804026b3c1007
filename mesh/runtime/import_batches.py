"""What an import sends together: bounded batches of what a file gives, in the order of the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import msgspec

MOST_BATCH_BYTES = 512 * 1024
"""Of documents as JSON, or of lines that are none: what waits in memory is a few of these."""
_ENCODER = msgspec.json.Encoder()

Mark = tuple[int, int]
"""Where reading goes on, as `read_documents(after=…)` takes it."""


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
    @property
    def mark(self) -> Mark: ...
    @property
    def raw(self) -> bytes: ...


class Rejected(NamedTuple):
    """Something that could not be imported."""

    source: str
    line: int
    reason: str
    raw: bytes
    """What stands in the file; the document as JSON where that is not text of its own."""
    whole: bool
    """Whether `raw` is all of it."""


@dataclass(kw_only=True)
class Entry:
    """A document on its way."""

    document: dict[str, Any]
    item: Item
    earlier: Entry | None = None
    """The one with the same id that it takes the place of, within the batch."""

    def rejected(self, reason: str) -> Rejected:
        """It, as something that was refused."""
        raw = self.item.raw or _ENCODER.encode(self.document)
        return Rejected(self.item.source, self.item.line, reason, raw, whole=True)


@dataclass(kw_only=True)
class Batch:
    """What is sent and acknowledged at once."""

    entries: dict[str, Entry] = field(default_factory=dict)
    """By id: the node too would take the last of several."""
    rejected: list[Rejected] = field(default_factory=list)
    """Lines among them that are no documents; refusals come on top."""
    documents: int = 0
    """Entries, those that others took the place of among them."""
    bytes: int = 0
    mark: Mark = (0, 0)
    """After all of it."""
    position: int = 0
    total: int = 0


def batches(items: Iterable[Item], *, limit: int) -> Iterator[Batch]:
    """Everything in bounded batches: at most `limit` documents and as many lines that are none."""
    batch = Batch()
    for item in items:
        entry, rejected, size = _judged(item)
        count = batch.documents if entry else len(batch.rejected)
        if count and (count >= limit or batch.bytes + size > MOST_BATCH_BYTES):
            yield batch
            batch = Batch()
        if entry is not None:
            name = str(entry.document.get("id") or f"#{batch.documents}")
            entry.earlier = batch.entries.pop(name, None)
            batch.entries[name] = entry
            batch.documents += 1
        if rejected is not None:
            batch.rejected.append(rejected)
        batch.bytes += size
        batch.mark = getattr(item, "mark", (0, 0))
        batch.position, batch.total = item.position, item.total
    if batch.documents or batch.rejected:
        yield batch


def _judged(item: Item) -> tuple[Entry | None, Rejected | None, int]:
    """A document or why it is none, and how many bytes that takes."""
    raw = getattr(item, "raw", b"")
    reason = str(getattr(item, "reason", "unreadable"))
    if item.document is not None:
        try:
            size = len(_ENCODER.encode(item.document))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            reason = f"cannot be written as JSON: {error}"
        else:
            return Entry(document=item.document, item=item), None, size
    whole = getattr(item, "whole", True)
    return None, Rejected(item.source, item.line, reason, raw, whole), len(raw)


def without(entries: Sequence[Entry], blamed: Iterable[int]) -> list[Entry]:
    """The rest of a batch; where one to blame had taken the place of another, that one is back."""
    refused = set(blamed)
    rest = []
    for at, entry in enumerate(entries):
        if at not in refused:
            rest.append(entry)
        elif entry.earlier is not None:
            rest.append(entry.earlier)
    return rest
