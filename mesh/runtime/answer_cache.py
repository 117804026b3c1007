"""Answers of searches that are kept in the caller, and searches that share one answer.

An answer is kept under what was asked and the data versions of every shard that was asked: a write
makes it unreachable as soon as this caller hears of the write, by the node's event or by the
heartbeat behind the next route table. Where nothing was heard for too long, nothing is kept or
given. Partial answers are never kept, nor what functions found.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import structlog

from mesh.config import MeshConfig
from mesh.core.data_versions import SETTLE_S, DataVersions, Stamp
from mesh.core.result_cache import ResultCache
from mesh.core.route_table import RouteTable
from mesh.errors import MeshError
from mesh.ports import Bus, Clock, Message, Subscription
from mesh.runtime.own_writes import OwnWrite
from mesh.runtime.search_plan import Plan
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    CacheStats,
    Candidates,
    Changed,
    SearchRequest,
    SearchResult,
)

log = structlog.get_logger()

_MB = 1024 * 1024
_DIGEST_BYTES = 32
_SNAPSHOTS = 2
"""So many of the masters' snapshots of the route table may fail to come."""


class Place(NamedTuple):
    """Where an answer is kept, and what it was asked of."""

    key: bytes
    """A digest: questions are as long as people make them, and each entry would hold its own."""
    stamp: Stamp
    era: int
    """Of the cache: after it nothing is kept there."""


class AnswerCache:
    """Of one client."""

    def __init__(self, clock: Clock, config: MeshConfig) -> None:
        settings = config.search
        self._clock = clock
        self._entries = ResultCache(round(settings.cache_mb * _MB), settings.cache_ttl_s)
        self._on = self._entries.max_bytes > 0
        self._patience_s = _SNAPSHOTS * config.master.snapshot_interval_s + 1
        self._versions = DataVersions()
        self._subscription: Subscription | None = None
        self._heard_at = float("-inf")
        """When a master last told of routes (monotonic s)."""
        self._sure_at = float("-inf")
        """From then on everything is known that happened while the broker was away."""
        self._lost = False
        self._blind = False
        self._era = 0
        """Grows when all is forgotten: what was asked for before is not kept after it."""
        self._writes = 0
        """Of this caller: nobody joins who asked before his own."""
        self.shared = 0
        """Searches that were answered by what another one had asked."""

    # -- what is heard -----------------------------------------------------------------------------

    async def start(self, bus: Bus) -> None:
        """Hear of every write from now on; before the route table is fetched."""
        if not self._on:
            return
        bus.on_connection(self._connection)
        try:
            self._subscription = await bus.subscribe(
                f"{subjects.PREFIX}.evt.*.changed", self._on_changed
            )
        except MeshError as error:
            self._on = False
            log.warning("mesh.cache.off", reason=str(error))

    async def stop(self) -> None:
        """Hear no more."""
        if self._subscription is not None:
            with contextlib.suppress(MeshError):
                await self._subscription.unsubscribe()

    def _on_changed(self, message: Message) -> None:
        event = codec.decode(message.data, Changed)
        _, node, _ = subjects.parts(message.subject)
        self._versions.changed(
            node,
            event.incarnation,
            event.collection,
            event.data_version,
            self._clock.monotonic(),
        )

    def _connection(self, connected: bool) -> None:
        """Events are lost while the broker is away; two heartbeats later all is known again."""
        if not connected:
            self._lost = True
            self._sure_at = float("inf")
        elif self._lost:
            self._lost = False
            self._sure_at = self._clock.monotonic() + SETTLE_S

    def routes_heard(self, table: RouteTable) -> None:
        """A master has told of routes: this is the table now."""
        self._heard_at = self._clock.monotonic()
        self._blind = table.blind or not table.epoch
        if self._on:
            self._versions.adopt(table, self._heard_at)

    def wrote(self, node: str, write: OwnWrite) -> None:
        """The caller wrote there, or may have, or may be about to."""
        self._writes += 1
        if self._on:
            self._versions.wrote(node, write.collection, write.version, self._clock.monotonic())

    # -- what is asked -----------------------------------------------------------------------------

    def place(self, request: SearchRequest, plan: Plan, now: float) -> Place | None:
        """Where the answer to that search would be; None: it is not to be kept, or cannot be."""
        if not (self._on and request.options.cache):
            return None
        if self._blind or now < self._sure_at or now > self._heard_at + self._patience_s:
            return None
        versions = self._versions
        if plan.stamped is None or plan.stamped[0] != versions.turn:
            plan.stamped = versions.turn, versions.stamp(plan.shards)
        stamp = plan.stamped[1]
        if stamp is None or now < stamp.settled_at:
            return None
        return Place(_digest(request, stamp.digest, plan.absent, self._era), stamp, self._era)

    def flight(self, request: SearchRequest, plan: Plan, place: Place | None) -> Hashable:
        """Searches of which this is equal may share an answer that is under way, whether or not it
        is to be kept. None: it is to be asked alone, as of functions, which may answer each
        person differently.
        """
        if place is not None:
            return place.key
        if plan.by_function or not request.options.cache:
            return None
        return plan, _digest(request, self._versions.turn, self._writes, self._era)

    def get(self, place: Place, now: float) -> SearchResult | None:
        """The answer that is kept there."""
        found = self._entries.get(place.key, now)
        return None if found is None else codec.decode(found, SearchResult)

    def keep(
        self, place: Place, answer: SearchResult, parts: Sequence[Candidates], now: float
    ) -> bool:
        """Keep an answer to what was asked at `now`, if it is whole and no write came between;
        whether it is kept.
        """
        agree = True
        for part in parts:
            for hits in part.shards:
                known = place.stamp.versions.get((part.node, hits.collection))
                agree &= hits.data_version == known
                self._versions.seen(part.node, hits.collection, hits.data_version, now)
        agree &= place.era == self._era
        if not agree or answer.partial or _size(answer) > self._entries.largest:
            return False
        return self._entries.put(place.key, codec.encode(answer), now)

    # -- for people --------------------------------------------------------------------------------

    def stats(self) -> CacheStats:
        """What is in it, and how often that was of use."""
        entries = self._entries
        asked = entries.hits + entries.misses
        return CacheStats(
            entries=len(entries),
            bytes=entries.bytes,
            max_bytes=entries.max_bytes,
            hits=entries.hits,
            misses=entries.misses,
            evictions=entries.evictions,
            shared=self.shared,
            hit_rate=round(entries.hits / asked, 4) if asked else None,
        )

    def clear(self) -> int:
        """Forget all answers; how many there were."""
        self._era += 1
        return self._entries.clear()


def _digest(request: SearchRequest, *of: object) -> bytes:
    """Equal for requests that get the same answer `of` the same. `require` and `timeout_ms` are not
    in it: what is kept is whole, so it is good for all of these; shards are told by the plan.
    """
    options = request.options
    filters = [
        [column, sorted({codec.encode(one).decode() for one in given})]
        if isinstance(given, list)
        else [column, given]
        for column, given in sorted(options.filters.items())
    ]
    asked = codec.encode(
        [
            request.query.strip(),
            request.limit,
            options.mode,
            options.threshold,
            options.strategy,
            options.deduplicate,
            options.explain,
            filters,
            *of,
        ]
    )
    return hashlib.blake2b(asked, digest_size=_DIGEST_BYTES).digest()


def _size(answer: SearchResult) -> int:
    """At least so many bytes it takes when encoded."""
    return sum(len(hit.content) for hit in answer.results)
