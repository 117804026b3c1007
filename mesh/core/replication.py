"""How copies of a shard stay equal: one log orders the writes, each entry names the one before it,
and a copy applies an entry only when it has applied all before.

Entries say what becomes of documents, by id, not what somebody wished: any copy can apply one, none
can refuse it, and applying one again while its followers are applied again too changes nothing.
Source: state machine replication (Schneider, 1990), with compare-and-set on a shared log for order.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from mesh.errors import ConflictError, MeshError, TooLargeError
from mesh.wire import codec
from mesh.wire.messages import Change, Document, LoggedWrite, WriteEntry

MOST_ENTRY_BYTES = 1_900_000
"""A page with one entry has to fit a message too."""
PACKED_FROM_BYTES = 64 * 1024
_MOST_PLAIN_BYTES = 64 * 1024 * 1024
_MOST_LISTED_IDS = 10_000


# -- entries ---------------------------------------------------------------------------------------


def packed(entry: WriteEntry) -> WriteEntry:
    """With its change deflated, where that is long.

    Raises:
        TooLargeError: It cannot be logged.
    """
    plain = codec.encode(entry.change)
    if len(plain) > PACKED_FROM_BYTES:
        entry = msgspec.structs.replace(entry, change=None, packed=zlib.compress(plain, 1))
    if len(codec.encode(entry)) > MOST_ENTRY_BYTES:
        raise TooLargeError(
            "this write is too large for the log of its shard, where it stands document by "
            "document, also what a filter chose: write less at once"
        )
    return entry


def change_of(entry: WriteEntry) -> Change | None:
    """What it does; None: nothing, or nothing that could be read: then no copy does anything."""
    if not entry.packed:
        return entry.change
    try:
        plain = zlib.decompressobj().decompress(entry.packed, _MOST_PLAIN_BYTES)
        return codec.decode(plain, Change)
    except (zlib.error, MeshError):
        return None


def equality(contents: str, columns: Mapping[str, str]) -> str:
    """A hash that is equal where copies of a collection are: the digest of their documents, and
    what can be filtered by.
    """
    named = codec.encode([contents, sorted(columns.items())])
    return hashlib.sha256(named).hexdigest()


def linked(entries: Sequence[LoggedWrite], after: int) -> list[LoggedWrite]:
    """A part of the log without gaps, for every reader alike: what does not name the entry before
    it was written by nobody of ours, and stands there as one that changes nothing.

    Args:
        entries: In order.
        after: The entry before the first one; 0: not known, and the first one is left as it is.
    """
    found: list[LoggedWrite] = []
    for logged in entries:
        if after and not logged.entry.begin and logged.entry.prev != after:
            logged = msgspec.structs.replace(logged, entry=WriteEntry(prev=after))  # noqa: PLW2901
        found.append(logged)
        after = logged.sequence
    return found


def result_of(entry: WriteEntry, change: Change, data_version: int) -> dict[str, Any]:
    """What the action answers, on whichever copy it is asked for."""
    match entry.action:
        case "index":
            ids = [document.id for document in change.puts]
            found = {"indexed": len(ids), "changed": entry.changed, "ids": ids}
        case "update":
            found = {"updated": entry.changed, "id": change.puts[0].id if change.puts else ""}
        case "delete":
            found = {"deleted": entry.changed, "ids": change.deletes[:_MOST_LISTED_IDS]}
        case _:
            return {"dropped": change.collection}
    return found | {"data_version": data_version}


@dataclass(slots=True)
class Effect:
    """What several changes one after another come to, for one collection."""

    drop: bool = False
    made: bool = False
    """The collection is there afterwards, be it empty."""
    columns: dict[str, str] = field(default_factory=dict)
    """What can be filtered by afterwards, besides what there was; also of what is gone again."""
    puts: dict[str, Document] = field(default_factory=dict)
    deletes: dict[str, None] = field(default_factory=dict)

    def then(self, change: Change) -> None:
        """One more change."""
        if change.drop:
            self.drop, self.made = True, False
            self.puts.clear()
            self.deletes.clear()
            self.columns.clear()
        self.columns = dict(change.columns) | self.columns
        for name in change.deletes:
            self.puts.pop(name, None)
            self.deletes[name] = None
        for document in change.puts:
            self.made = True
            self.deletes.pop(document.id, None)
            self.puts.pop(document.id, None)
            self.puts[document.id] = document


def effects(changes: Iterable[Change]) -> dict[str, Effect]:
    """By collection, what the changes come to: to be applied in one go."""
    found: dict[str, Effect] = {}
    for change in changes:
        found.setdefault(change.collection, Effect()).then(change)
    return found


def check_same(action_id: str, digest: str, known: str) -> None:
    """Raises ConflictError if the id was used for another write."""
    if digest != known:
        raise ConflictError(
            f"the id {action_id!r} was used for another action or other parameters; choose a new "
            "one"
        )


# -- positions -------------------------------------------------------------------------------------


class Position(NamedTuple):
    """The last entry a copy has applied; sequence 0: it has no place in the order yet. The greater
    one is the later one: a log is named by the time when it was made.
    """

    log: str = ""
    sequence: int = 0


class Copy(NamedTuple):
    """A copy of the shard, as far as it is known."""

    node: str
    position: Position
    has_data: bool
    following: bool = False
    reachable: bool = True
    own: bool = False
    """Its documents came from no replica of the shard and no log: nothing may replace them unasked.
    """
    founder: bool = False
    """The shard is named like it: it held it alone."""


class LogView(NamedTuple):
    """The shard's part of the log."""

    log: str
    last: int
    """0: no entry is left, or none ever was."""
    next: WriteEntry | None
    """The first entry after a copy's position; after none, if that is of another log."""


def continues(copy: Copy, entry: WriteEntry, log: str) -> bool:
    """Whether the copy has applied all that comes before the entry."""
    if entry.begin:
        same = (entry.before, entry.prev) == copy.position
        return same and (copy.position.sequence > 0 or not (entry.base or copy.has_data))
    return entry.prev > 0 and copy.position == (log, entry.prev)


@dataclass(frozen=True, slots=True)
class Follow:
    """Apply what comes next."""


@dataclass(frozen=True, slots=True)
class CopyFrom:
    """Something is missing that the log no longer has: that node has it."""

    node: str


@dataclass(frozen=True, slots=True)
class Begin:
    """No copy has more than this one: let the order begin with it."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done yet."""

    why: str


Standing = Follow | CopyFrom | Begin | Wait


def standing(me: Copy, view: LogView, others: Sequence[Copy] | None) -> Standing:
    """How a copy gets, or keeps, its place in the order.

    Args:
        me: This copy.
        view: The log.
        others: All other copies that count; None: not asked yet.
    """
    if me.position.sequence and me.position == (view.log, view.last):
        return Follow()
    if view.next is not None and continues(me, view.next, view.log):
        return Follow()
    if others is None:
        return Wait("the other replicas have not been asked")
    if ahead := [copy for copy in others if _is_ahead(copy, me, view)]:
        source = min(ahead, key=lambda copy: (-copy.position.sequence, copy.node)).node
        return Wait(own_documents(source)) if me.own else CopyFrom(source)
    if missing := [copy.node for copy in others if not copy.reachable]:
        # One of them may have what nobody else has.
        return Wait(f"not all replicas can be asked: {', '.join(missing)}")

    def rank(copy: Copy) -> tuple[bool, Position, bool, bool]:
        log, sequence = copy.position
        fits = log == view.log and 0 < sequence <= view.last
        return fits, copy.position, copy.has_data and copy.founder, copy.has_data

    # Of equals the first by name, wherever this is asked.
    best = max(sorted((me, *others), key=lambda copy: copy.node), key=rank)
    return Begin() if best is me else Wait(f"{best.node} has more")


def own_documents(source: str) -> str:
    """Why a copy with documents of its own waits."""
    return (
        f"it holds documents that are not of this shard, and copying {source} would remove them: "
        f"to have that, run sync from {source} here; else start it on an empty state folder, or "
        "without this shard"
    )


def _is_ahead(copy: Copy, me: Copy, view: LogView) -> bool:
    """Whether it has what `me` lacks. That it follows is its own word, and may be of before the log
    was cut: then whoever has more must not copy from it.
    """
    mine = me.position.sequence if me.position.log == view.log else 0
    log, sequence = copy.position
    belongs = copy.reachable and copy.following and log == view.log
    return belongs and (sequence > mine or sequence == view.last > 0)
