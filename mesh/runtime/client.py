"""`MeshClient`: the whole mesh from one connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
from uuid_utils import uuid7

from mesh.config import MeshConfig
from mesh.core.route_table import RouteTable
from mesh.errors import InvalidError, NotFoundError
from mesh.ports import Bus, Clock, Embedder, QueueDoor
from mesh.runtime.access_api import AccessApi
from mesh.runtime.actions_api import ActionsApi
from mesh.runtime.answer_cache import AnswerCache
from mesh.runtime.cache_door import CacheDoor, ask_caches
from mesh.runtime.caller import Caller
from mesh.runtime.common_embedder import CommonEmbedder
from mesh.runtime.federation import Federation
from mesh.runtime.peers import Group
from mesh.runtime.rag_api import RagApi
from mesh.runtime.routes import Routes
from mesh.runtime.sagas_api import SagasApi
from mesh.types import MergeStrategy, Require, SearchMode
from mesh.wire import codec
from mesh.wire.messages import (
    CacheReports,
    CacheStats,
    PingRequest,
    PingResult,
    SearchOptions,
    SearchRequest,
    SearchResult,
)

T = TypeVar("T")

_LEARN_S = 0.25
_PING = PingRequest()
_NAMES = {"options.collections", "options.nodes"}


class MeshClient(ActionsApi, RagApi):
    """Searches, actions and the registry. Made by `mesh.connect`; use it as a context manager.

    It keeps the last route table it heard and goes on when no master answers; without any it finds
    the nodes by `$SRV.INFO`.
    """

    def __init__(
        self,
        bus: Bus,
        config: MeshConfig,
        clock: Clock,
        *,
        queue: QueueDoor | None = None,
        embedder: Callable[[], Embedder] | None = None,
    ) -> None:
        """Args:
        bus: Open; the client closes it.
        config: Settings.
        clock: Time.
        queue: Where actions wait for nodes that are away; None: none can be queued.
        embedder: Loads the one that compares what nodes with different embedders found; called in
            a thread when such nodes are searched. None: their cosines are only scaled.
        """
        self._bus = bus
        caller = Caller(bus, clock, config)
        self._cache = AnswerCache(clock, config)
        super().__init__(
            caller,
            Routes(bus, caller, clock, heard=self._cache.routes_heard),
            queue,
            identity=bus.identity,
            config=config,
            clock=clock,
            wrote=self._cache.wrote,
        )
        self.access = AccessApi(self._caller)
        """Keys and tokens."""
        self.sagas = SagasApi(self._caller, clock)
        """Several actions, or none of them."""
        self._common = None if embedder is None else CommonEmbedder(embedder, clock)
        self._federation = Federation(self._caller, clock, self._cache, self._common)
        self._shards: tuple[RouteTable, dict[str, Group]] = (self.routes, {})
        """Who answers pings for a shard, by that table."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Hear of routes and writes from now on, and know the present ones."""
        await self._cache.start(self._bus)  # first: no write is missed after the table
        await self._routes.start()

    async def close(self) -> None:
        """Hang up."""
        await self._routes.stop()
        await self._cache.stop()
        if self._common is not None:
            await self._common.close()
        self._caller.close()
        await self._bus.close()

    @property
    def routes(self) -> RouteTable:
        """The newest route table this client has heard."""
        return self._routes.table

    @property
    def connected(self) -> bool:
        """Whether the broker is there right now."""
        return self._bus.connected

    # -- search ------------------------------------------------------------------------------------

    async def search(
        self,
        query: str,
        *,
        limit: int = 10,
        collections: Sequence[str] | None = None,
        mode: SearchMode = "hybrid",
        threshold: float | None = None,
        filters: Mapping[str, Any] | None = None,
        nodes: Sequence[str] | None = None,
        strategy: MergeStrategy | None = None,
        require: Require = "any",
        timeout_ms: int | None = None,
        deduplicate: bool | None = None,
        explain: bool = False,
        cache: bool = True,
    ) -> SearchResult:
        """Search all nodes as if they were one index.

        Args:
            query: 1..4096 characters.
            limit: 1..100 results.
            collections: Names; None: all there are.
            mode: `hybrid`, `vector` or `text`.
            threshold: Least cosine of the vector leg; None: the embedder's own.
            filters: Column → value, list of values, or range (`{"gte": …, "lt": …}`).
            nodes: Slugs; None: all.
            strategy: `score` ranks globally, `round_robin` takes the nodes in turn.
            require: How many shards must answer: `any`, `quorum` or `all`.
            timeout_ms: Back by then, with what came.
            deduplicate: Keep one of equal documents of a collection.
            explain: Give each hit's parts.
            cache: Take an answer that is still true from what this client keeps, if it has one,
                and keep this one. False: ask the nodes in any case.

        When the task that awaits it is cancelled, the nodes stop their work for it.

        Raises:
            InvalidError: A value that cannot be, an unknown collection, column or node.
            UnavailableError: Fewer shards answered than `require` asks.
        """
        settings = self._config.search
        options = {
            "collections": None if collections is None else list(collections),
            "threshold": threshold,
            "filters": dict(filters or {}),
            "mode": mode,
            "nodes": None if nodes is None else list(nodes),
            "strategy": strategy or settings.merge_strategy,
            "require": require,
            "timeout_ms": settings.timeout_ms if timeout_ms is None else timeout_ms,
            "deduplicate": settings.deduplicate if deduplicate is None else deduplicate,
            "explain": explain,
            "cache": cache,
        }
        asked = {"query": query, "limit": limit, "options": options}
        return await self.submit(codec.convert(asked, SearchRequest))

    async def submit(self, request: SearchRequest, *, on_behalf: str = "") -> SearchResult:
        """`search` for a request that is made, and checked against its type, already.

        When the task that awaits it is cancelled, the nodes stop their work for it.

        Args:
            request: One without an id gets one. Its id must be no other search's of this identity:
                a node that is told to stop it stops whatever the identity asked under that id.
            on_behalf: Whom the caller speaks for; empty: as the request says.

        Raises:
            InvalidError: An unknown collection, column or node.
            UnavailableError: Fewer shards answered than `require` asks.
        """
        request = msgspec.structs.replace(
            request,
            id=request.id or str(uuid7()),
            on_behalf=on_behalf or request.on_behalf,
        )
        began = self._clock.monotonic()
        try:
            return await self._federation.search(request, self.routes)
        except InvalidError as error:
            # The name may be newer than our table: ask once before saying that there is no such.
            if not error.fields.keys() & _NAMES:
                raise
            options = request.options
            await self._routes.learn(self._left_s(began, options.timeout_ms / 1000))
            left_ms = round(self._left_s(began, options.timeout_ms / 1000) * 1000)
            options = msgspec.structs.replace(options, timeout_ms=max(1, left_ms))
            request = msgspec.structs.replace(request, options=options)
            return await self._federation.search(request, self.routes)

    async def _learn_names(self, options: SearchOptions) -> None:
        """A name may be newer than our table."""
        table = self.routes
        unknown = set(options.collections or ()) - set(table.collections())
        if unknown or set(options.nodes or ()) - set(table.nodes):
            await self._routes.learn(min(_LEARN_S, options.timeout_ms / 1000))

    def cache_stats(self) -> CacheStats:
        """What this client keeps of answers, and how often that was of use."""
        return self._cache.stats()

    def clear_cache(self) -> int:
        """Forget all answers this client keeps; how many there were."""
        return self._cache.clear()

    async def caches(self, *, clear: bool = False, window_s: float = 0.3) -> CacheReports:
        """What each gateway says of the answers it keeps; takes the scope `admin`.

        Args:
            clear: Have them forget all first.
            window_s: Those that answer within so many seconds are named.

        Raises:
            ForbiddenError, DisconnectedError
        """
        return await ask_caches(self._bus, clear=clear, window_s=window_s)

    def cache_door(self, name: str) -> CacheDoor:
        """What answers `caches` for this client, if it is a gateway's; `name` tells it apart."""
        return CacheDoor(self._bus, self._cache, name)

    # -- signs of life -----------------------------------------------------------------------------

    async def ping(self, node: str, *, timeout_s: float = 1.0) -> tuple[PingResult, float]:
        """Ask a node for a sign of life, whatever is thought of it; with the round trip in
        milliseconds.

        Raises:
            NoRespondersError, DeadlineExceededError, DisconnectedError
        """
        began = self._clock.monotonic()
        answer = await self._caller.node(node, "ping", PingRequest(), PingResult, timeout_s)
        return answer, (self._clock.monotonic() - began) * 1000

    async def ping_shard(self, shard: str, *, timeout_s: float = 1.0) -> tuple[PingResult, float]:
        """Ask whichever replica of a shard is the best to ask, and another one if that fails; with
        the milliseconds it took. A node without collections is a shard of its own name.

        Raises:
            NotFoundError: No node holds such a shard.
            UnavailableError: No replica can be asked; CircuitOpenError: all failed too often.
            DeadlineExceededError: None answered in time.
        """
        began = self._clock.monotonic()
        _, answer = await self._caller.any(self._replicas(shard), _PING, PingResult, timeout_s)
        return answer, (self._clock.monotonic() - began) * 1000

    def _replicas(self, shard: str) -> Group:
        table, groups = self._shards
        if table is not self.routes:
            table, groups = self._shards = (self.routes, {})
        known = groups.get(shard)
        if known is None:
            self._caller.adopt(table)
            known = groups[shard] = self._caller.group(_holders_of(table, shard), "ping")
        return known


def _holders_of(table: RouteTable, shard: str) -> list[str]:
    holders = [
        slug
        for slug, node in table.nodes.items()
        if any(info.shard == shard for info in node.collections)
        or (slug == shard and not node.collections)
    ]
    if not holders:
        known = {info.shard for node in table.nodes.values() for info in node.collections}
        there_are = ", ".join(sorted(known)) or "none yet"
        raise NotFoundError(f"no node holds a shard {shard[:80]!r}; there are: {there_are}")
    return holders
