"""`MeshClient`: the whole mesh from one connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
from uuid_utils import uuid7

from mesh.config import MeshConfig
from mesh.core import targets
from mesh.core.route_table import RouteTable
from mesh.errors import BadRequestError, InvalidError, NotFoundError
from mesh.ports import Bus, Clock
from mesh.runtime.access_api import AccessApi
from mesh.runtime.caller import Caller
from mesh.runtime.fan_out import fan_out
from mesh.runtime.federation import Federation
from mesh.runtime.peers import Group
from mesh.runtime.registry_api import RegistryApi
from mesh.runtime.routes import Routes
from mesh.types import MergeStrategy, Require, SearchMode
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    ActionRequest,
    ActionResult,
    FanOutResult,
    PingRequest,
    PingResult,
    SearchRequest,
    SearchResult,
)

T = TypeVar("T")

_PING = PingRequest()
_NAMES = {"options.collections", "options.nodes"}


class MeshClient(RegistryApi):
    """Searches, actions and the registry. Made by `mesh.connect`; use it as a context manager.

    It keeps the last route table it heard and goes on when no master answers; without any it finds
    the nodes by `$SRV.INFO`.
    """

    def __init__(self, bus: Bus, config: MeshConfig, clock: Clock) -> None:
        self._bus = bus
        self._config = config
        self._clock = clock
        super().__init__(Caller(bus, clock, config))
        self._routes = Routes(bus, self._caller, clock)
        self.access = AccessApi(self._caller)
        """Keys and tokens."""
        self._federation = Federation(self._caller, clock)
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
        """Hear of routes from now on, and know the present ones."""
        await self._routes.start()

    async def close(self) -> None:
        """Hang up."""
        await self._routes.stop()
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

    # -- search and actions ------------------------------------------------------------------------

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

    async def run_action(
        self,
        action: str,
        params: Mapping[str, Any] | None = None,
        *,
        node: str | None = None,
        id: str | None = None,  # noqa: A002
        timeout_s: float | None = None,
        on_behalf: str = "",
    ) -> ActionResult:
        """Run an action on a node and wait for its outcome.

        Args:
            action: Its name.
            params: JSON object; checked by the node against the action's type.
            node: Slug; None where, of all registered nodes, exactly one holds the collection in
                `params` or, if none does, exactly one offers the action.
            id: Idempotency key: the same id runs once, however often it is asked.
            timeout_s: How long to wait; the action itself goes on.
            on_behalf: Whom a gateway, master or bridge speaks for: history names them instead of
                the caller. Nodes ignore it from anybody else.

        Raises:
            BadRequestError: Unknown action, or not exactly one node qualifies.
            NotFoundError: Unknown node.
            InvalidError: Parameters that do not fit.
            ConflictError: The id was used with other parameters.
            ActionFailedError: It ran and failed.
            UnavailableError, DeadlineExceededError: It may or may not have run; ask again with
                the same id.
        """
        subjects.token(action, "action")
        body = dict(params or {})
        wait_s = self._action_timeout_s(timeout_s)
        began = self._clock.monotonic()
        target = await self._chosen(lambda: targets.one(self.routes, action, body, node), wait_s)
        request = ActionRequest(
            id=id or str(uuid7()), action=action, params=body, on_behalf=on_behalf
        )
        left_s = self._left_s(began, wait_s)
        return await self._caller.action(target, action, request, ActionResult, left_s)

    async def fan_out(
        self,
        action: str,
        params: Mapping[str, Any] | None = None,
        *,
        nodes: Sequence[str] | None = None,
        all: bool = False,  # noqa: A002
        collection: str | None = None,
        id: str | None = None,  # noqa: A002
        timeout_s: float | None = None,
        parallel: int = 10,
        on_behalf: str = "",
    ) -> FanOutResult:
        """Run an action on several nodes and wait for all of their outcomes: exactly one of
        `nodes`, `all` and `collection` says on which. A node that fails or is away is told of in
        its item of the result; whatever is raised was raised before anything was sent.

        Args:
            action: Its name.
            params: JSON object, the same for every node.
            nodes: Slugs; one that is named twice runs it once.
            all: Every registered, active node that offers the action.
            collection: Every node that holds it, all replicas of a shard among them.
            id: Idempotency key: each node runs `<id>.<node>` once, however often it is asked.
            timeout_s: How long to wait for each node, from when it is asked.
            parallel: How many nodes are asked at a time.
            on_behalf: As in `run_action`.

        Raises:
            InvalidError: Not exactly one of the three, an unknown collection, an id that is too
                long.
            NotFoundError: Unknown node in `nodes`.
            BadRequestError: Nobody offers the action; or `index` by a collection that several
                nodes hold, which would store the same documents on each.
            UnavailableError: None of the nodes that offer it is active.
        """
        subjects.token(action, "action")
        if parallel < 1:
            message = "must be at least 1"
            raise InvalidError(f"parallel: {message}", fields={"parallel": [message]})
        wait_s = self._action_timeout_s(timeout_s)
        chosen = await self._chosen(
            lambda: targets.several(
                self.routes, action, nodes=nodes, all=all, collection=collection
            ),
            wait_s,
        )
        request = ActionRequest(
            id=id or str(uuid7()), action=action, params=dict(params or {}), on_behalf=on_behalf
        )
        return await fan_out(self._caller, request, chosen, timeout_s=wait_s, parallel=parallel)

    async def _chosen(self, choose: Callable[[], T], within_s: float) -> T:
        """What `choose` gives, once more with the newest table if ours does not have it."""
        try:
            return choose()
        except (BadRequestError, NotFoundError, InvalidError) as error:
            if isinstance(error, InvalidError) and "collection" not in error.fields:
                raise
            await self._routes.learn(within_s)
            return choose()

    def _left_s(self, began: float, timeout_s: float) -> float:
        """Of a request that began then (monotonic s); never below 0."""
        return max(0.0, timeout_s - (self._clock.monotonic() - began))

    def _action_timeout_s(self, timeout_s: float | None) -> float:
        return self._config.routing.request_timeout_s if timeout_s is None else timeout_s

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
