"""The route table: who is there, how well, and what each one holds.

The leading master owns the table and publishes it; callers keep a copy. Tables are ordered by
(epoch, version). What travels is a delta, which fits exactly one version, or the pages of a
snapshot, which replace everything. A caller that misses an update notices at the next delta and
asks for a snapshot; snapshots also go out every few seconds, so it gets well by itself too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from mesh.types import Health, Status
from mesh.wire.messages import CollectionInfo, RouteNode, RouteUpdate

MAX_PAGE_BYTES = 256 * 1024

_ASKED = frozenset({Health.HEALTHY, Health.SUSPECT, Health.OVERLOADED})
_HUGE = 2**63 - 1


class Holder(NamedTuple):
    """A node and the shard of a collection that it holds."""

    node: RouteNode
    info: CollectionInfo


class RouteTable:
    """One version of the table. Immutable; the index of collections is made on first use."""

    __slots__ = ("_holders", "blind", "epoch", "nodes", "version")

    def __init__(
        self,
        *,
        epoch: int = 0,
        version: int = 0,
        nodes: Iterable[RouteNode] = (),
        blind: bool = False,
    ) -> None:
        """Version 0 is the empty table of who has heard nothing yet."""
        self.epoch = epoch
        self.version = version
        self.blind = blind
        """The master cannot see the broker: health is what it was."""
        self.nodes: Mapping[str, RouteNode] = MappingProxyType(
            {node.slug: node for node in sorted(nodes, key=lambda node: node.slug)}
        )
        """All registered nodes by slug, in order, whatever their status and health."""
        self._holders: dict[str, tuple[Holder, ...]] | None = None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, RouteTable)
            and (self.order, self.blind) == (other.order, other.blind)
            and self.nodes == other.nodes
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RouteTable(epoch={self.epoch}, version={self.version}, nodes={list(self.nodes)})"

    @property
    def order(self) -> tuple[int, int]:
        """(epoch, version): the greater one is the newer table."""
        return self.epoch, self.version

    def node(self, slug: str) -> RouteNode | None:
        """The node of that name, or None."""
        return self.nodes.get(slug)

    def refusal(self, slug: str) -> str:
        """Why no request goes to the node of that name; empty if it may be asked."""
        node = self.nodes.get(slug)
        return "it is not registered" if node is None else refusal(node)

    def collections(self) -> tuple[str, ...]:
        """Names of all collections that any registered node holds or held, in order."""
        return tuple(self._index())

    def holders(self, collection: str) -> tuple[Holder, ...]:
        """All holders of a collection, by shard and slug, also those that cannot be asked now:
        `refusal(holder.node)` says why. Empty: no such collection.
        """
        return self._index().get(collection, ())

    def shards(self, collection: str) -> dict[str, tuple[Holder, ...]]:
        """Shard → its replicas, the ones to prefer first (see `preference`)."""
        shards: dict[str, list[Holder]] = {}
        for holder in self.holders(collection):
            shards.setdefault(holder.info.shard, []).append(holder)
        return {
            shard: tuple(sorted(replicas, key=lambda holder: preference(holder.node)))
            for shard, replicas in shards.items()
        }

    def succeed(self, nodes: Iterable[RouteNode], *, blind: bool) -> RouteTable:
        """The owner's next version; the same table where nothing has changed."""
        new = RouteTable(epoch=self.epoch, version=self.version + 1, nodes=nodes, blind=blind)
        unchanged = self.version > 0 and (new.nodes, blind) == (self.nodes, self.blind)
        return self if unchanged else new

    def _index(self) -> dict[str, tuple[Holder, ...]]:
        if self._holders is None:
            found: dict[str, list[Holder]] = {}
            for node in self.nodes.values():
                for info in node.collections:
                    found.setdefault(info.name, []).append(Holder(node, info))
            self._holders = {
                name: tuple(sorted(found[name], key=lambda holder: holder.info.shard))
                for name in sorted(found)
            }
        return self._holders


# -- whom to ask -----------------------------------------------------------------------------------


def refusal(node: RouteNode) -> str:
    """Why no request goes to the node; empty if it may be asked."""
    if node.status is not Status.ACTIVE:
        return f"status is {node.status.value}"
    if node.health not in _ASKED:
        return f"{node.health.value}: {node.reason}" if node.reason else node.health.value
    return ""


def preference(node: RouteNode) -> int:
    """0 for a node to ask, 1 for one to ask where there is no better replica, 2 for neither."""
    if refusal(node):
        return 2
    return 0 if node.health is Health.HEALTHY else 1


# -- the owner's side ------------------------------------------------------------------------------


def diff(old: RouteTable, new: RouteTable) -> RouteUpdate:
    """The delta that turns `old` into `new`.

    Raises:
        ValueError: Not two versions of one epoch; or `old` is empty, which takes a snapshot.
    """
    if old.epoch != new.epoch or not 0 < old.version < new.version:
        raise ValueError(f"no delta leads from {old.order} to {new.order}")
    return RouteUpdate(
        epoch=new.epoch,
        version=new.version,
        base=old.version,
        nodes=[node for slug, node in new.nodes.items() if old.nodes.get(slug) != node],
        removed=[slug for slug in old.nodes if slug not in new.nodes],
        blind=new.blind,
    )


def snapshot(
    table: RouteTable, size: Callable[[Any], int], max_bytes: int = MAX_PAGE_BYTES
) -> list[RouteUpdate]:
    """The whole table in pages, at least one.

    Args:
        table: What to send.
        size: Bytes that a message takes when encoded.
        max_bytes: Of an encoded page; only a node that is larger by itself exceeds it.
    """
    envelope = size(
        RouteUpdate(epoch=_HUGE, version=_HUGE, page=_HUGE, pages=_HUGE, nodes=[], blind=True)
    ) + len(',"nodes":[]')
    pages: list[list[RouteNode]] = [[]]
    used = envelope
    for node in table.nodes.values():
        needed = size(node) + 1
        if pages[-1] and used + needed > max_bytes:
            pages.append([])
            used = envelope
        pages[-1].append(node)
        used += needed
    return [
        RouteUpdate(
            epoch=table.epoch,
            version=table.version,
            page=number,
            pages=len(pages),
            nodes=nodes,
            blind=table.blind,
        )
        for number, nodes in enumerate(pages)
    ]


# -- the caller's side -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Applied:
    """The follower has a newer table."""

    table: RouteTable


@dataclass(frozen=True, slots=True)
class NeedSnapshot:
    """Something was missed: ask a master for the pages of the table."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """Nothing changed: old, seen already, or more pages are to come."""

    why: str


class RouteFollower:
    """A caller's copy of the table, which never goes back. `table` is the newest so far.

    Usage: feed every `RouteUpdate` heard, and every page fetched, to `apply`; on `NeedSnapshot`
    fetch page 0 and then the rest (`pages`) with the master's verb `routes`. Pages of two versions
    do not mix: if the version changes between pages, start over at page 0.
    """

    def __init__(self) -> None:
        self.table = RouteTable()
        self._collecting = (0, 0)
        self._pages: dict[int, RouteUpdate] = {}

    def apply(self, update: RouteUpdate) -> Applied | NeedSnapshot | Ignored:
        """Take one update, whatever its order."""
        if (update.epoch, update.version) <= self.table.order:
            return Ignored("not newer than the table")
        if update.base:
            return self._delta(update)
        return self._page(update)

    def _delta(self, update: RouteUpdate) -> Applied | NeedSnapshot:
        if (update.epoch, update.base) != self.table.order:
            return NeedSnapshot()
        nodes = dict(self.table.nodes)
        for slug in update.removed:
            nodes.pop(slug, None)
        nodes.update((node.slug, node) for node in update.nodes)
        return self._replace(update, nodes.values())

    def _page(self, update: RouteUpdate) -> Applied | Ignored:
        order = (update.epoch, update.version)
        if not 0 <= update.page < update.pages:
            return Ignored("no such page")
        if order < self._collecting:
            return Ignored("pages of a newer table are coming in")
        if order > self._collecting:
            self._collecting = order
            self._pages = {}
        self._pages[update.page] = update
        if any(number not in self._pages for number in range(update.pages)):
            return Ignored("more pages are to come")
        return self._replace(update, [node for page in self._pages.values() for node in page.nodes])

    def _replace(self, update: RouteUpdate, nodes: Iterable[RouteNode]) -> Applied:
        self.table = RouteTable(
            epoch=update.epoch, version=update.version, nodes=nodes, blind=update.blind
        )
        if self._collecting <= self.table.order:
            self._pages = {}
        return Applied(self.table)
