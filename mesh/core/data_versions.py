"""What a caller knows of each shard's data version, so that a cached answer is never older.

A node counts up the data version of a collection with every write. A caller hears of it in route
tables (from heartbeats), in the nodes' own events, in answers, and in the outcome of what it has
written itself; the newest word counts, whichever way it came, and never goes back within one life
of a node. A node tells of a write after it is done, so an answer is at least as new as every word
that came before it was asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from mesh.core.route_table import RouteTable

SETTLE_S = 2.0
"""Two heartbeats: so long replicas of a shard may differ after a write, and nobody know."""


class Shard(NamedTuple):
    """A collection's shard, and the replicas that may be asked for it."""

    collection: str
    name: str
    nodes: tuple[str, ...]


class Stamp(NamedTuple):
    """The state of the data that a search is asked of: equal stamps, equal data."""

    digest: bytes
    versions: dict[tuple[str, str], int]
    """By (node, collection)."""
    settled_at: float
    """From then on (monotonic s) replicas are equal, as far as is known."""


class _Known:
    __slots__ = ("changed_at", "era", "fingerprint", "incarnation", "version")

    def __init__(self, incarnation: int, version: int, fingerprint: str) -> None:
        self.incarnation = incarnation
        self.version = version
        self.fingerprint = fingerprint
        self.era = 0
        """Changes about which it is not known to which version they led."""
        self.changed_at = float("-inf")


class DataVersions:
    """Not thread-safe. `now` is monotonic seconds of one clock."""

    def __init__(self, settle_s: float = SETTLE_S) -> None:
        """Args:
        settle_s: How long after a change the replicas of a shard may still differ.
        """
        self._settle_s = settle_s
        self._known: dict[tuple[str, str], _Known] = {}
        self._table = RouteTable()
        self._unlisted: dict[tuple[str, str], float] = {}
        """When (monotonic s) shards were made that the table does not have yet."""
        self.turn = 0
        """Grows whenever stamps may have changed."""

    # -- what is heard -----------------------------------------------------------------------------

    def adopt(self, table: RouteTable, now: float) -> None:
        """Take over what heartbeats said; who is gone is forgotten."""
        old, self._table = self._table.nodes, table
        if table.nodes.keys() != old.keys() or any(
            node is not old[slug] and node.collections != old[slug].collections
            for slug, node in table.nodes.items()
        ):
            there = {
                (slug, info.name) for slug, node in table.nodes.items() for info in node.collections
            }
            for key in self._known.keys() - there:
                del self._known[key]
            for key in self._unlisted.keys() & there:
                del self._unlisted[key]
            self.turn += 1
        for slug, node in table.nodes.items():
            before = old.get(slug)
            if node is before:
                continue
            for info in node.collections:
                self._heard(slug, node.incarnation, info.name, info.data_version, now)
                known = self._known[slug, info.name]
                if known.fingerprint != info.fingerprint:
                    known.fingerprint = info.fingerprint
                    self.turn += 1

    def changed(
        self, node: str, incarnation: int, collection: str, version: int, now: float
    ) -> None:
        """A node's event: it wrote; version 0: the collection is gone."""
        if version > 0:
            if (node, collection) in self._known:  # a new one comes with the next table
                self._heard(node, incarnation, collection, version, now)
        else:
            self.wrote(node, collection, None, now)

    def wrote(self, node: str, collection: str | None, version: int | None, now: float) -> None:
        """The caller wrote there, or may have; None: any collection; not known to which version.

        A shard that the write has made is not among those that are asked until a table has it.
        Until then no answer is whole, for two heartbeats at most.
        """
        if collection is not None and version is not None and (node, collection) not in self._known:
            recent = {k: at for k, at in self._unlisted.items() if now < at + self._settle_s}
            self._unlisted = recent | {(node, collection): now}
            self.turn += 1
        for key, known in self._known.items():
            if key[0] != node or collection not in (None, key[1]):
                continue
            known.changed_at = now
            self.turn += 1
            if version is None:
                known.era += 1
            else:
                known.version = max(known.version, version)

    def seen(self, node: str, collection: str, version: int, now: float) -> None:
        """An answer told its version."""
        known = self._known.get((node, collection))
        if known is not None and version > known.version:
            self._move(known, version, now)

    def _heard(
        self, node: str, incarnation: int, collection: str, version: int, now: float
    ) -> None:
        known = self._known.get((node, collection))
        if known is None:
            self._known[node, collection] = _Known(incarnation, version, "")
            self.turn += 1
        elif incarnation > known.incarnation:
            known.incarnation = incarnation
            self._move(known, version, now)
        elif incarnation == known.incarnation and version > known.version:
            self._move(known, version, now)

    def _move(self, known: _Known, version: int, now: float) -> None:
        known.version = version
        known.changed_at = now
        self.turn += 1

    # -- what is asked -----------------------------------------------------------------------------

    def stamp(self, shards: Iterable[Shard]) -> Stamp | None:
        """The state of the shards that a search asks; None: of one of them nothing is known, as of
        those that functions search.
        """
        marks: list[tuple[object, ...]] = []
        versions: dict[tuple[str, str], int] = {}
        settled_at = max(self._unlisted.values(), default=float("-inf")) + self._settle_s
        for shard in sorted(shards):
            for node in shard.nodes:
                known = self._known.get((node, shard.collection))
                if known is None or known.version <= 0:
                    return None
                versions[node, shard.collection] = known.version
                mark = (node, known.incarnation, known.version, known.era, known.fingerprint)
                marks.append((shard.collection, shard.name, *mark))
                if len(shard.nodes) > 1:
                    settled_at = max(settled_at, known.changed_at + self._settle_s)
        digest = hashlib.blake2b(msgspec.json.encode(marks), digest_size=16).digest()
        return Stamp(digest, versions, settled_at)
