"""`MeshClient`: the whole mesh from one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
import structlog
from uuid_utils import uuid7

from mesh.config import MeshConfig
from mesh.core.route_table import NeedSnapshot, RouteFollower, RouteTable, refusal
from mesh.errors import (
    BadRequestError,
    InvalidError,
    MeshError,
    NotFoundError,
    UnavailableError,
)
from mesh.ports import Bus, Clock, Message, Subscription
from mesh.runtime.caller import Caller
from mesh.runtime.discovery import route_of
from mesh.runtime.federation import Federation
from mesh.types import ActionState, MergeStrategy, Require, SearchMode, Status
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    ActionRequest,
    ActionResult,
    HistoryPage,
    HistoryQuery,
    NodeChange,
    NodeList,
    NodeName,
    NodeRecord,
    NodeRegister,
    NodeRegistered,
    NodesQuery,
    NodeStats,
    NodeUpdate,
    PingRequest,
    PingResult,
    Request,
    RoutesRequest,
    RouteUpdate,
    SearchRequest,
    SearchResult,
)

T = TypeVar("T")

log = structlog.get_logger()

_MASTER_TIMEOUT_S = 5.0
_ROUTES_TIMEOUT_S = 2.0
_DISCOVERY_S = 0.5
_HISTORY_TIMEOUT_S = 10.0
_PAGES_TRIES = 3
_NAMES = {"options.collections", "options.nodes"}


class MeshClient:
    """Searches, actions and the registry. Made by `mesh.connect`; use it as a context manager.

    It keeps the last route table it heard and goes on when no master answers; without any it finds
    the nodes by `$SRV.INFO`.
    """

    def __init__(self, bus: Bus, config: MeshConfig, clock: Clock) -> None:
        self._bus = bus
        self._config = config
        self._clock = clock
        self._caller = Caller(bus, clock)
        self._federation = Federation(self._caller, clock)
        self._follower = RouteFollower()
        self._subscription: Subscription | None = None
        self._refreshing: asyncio.Task[None] | None = None

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
        self._subscription = await self._bus.subscribe(subjects.ROUTES, self._on_routes)
        self._bus.on_connection(self._on_connection)
        await self._refresh()

    async def close(self) -> None:
        """Hang up."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        await self._bus.close()

    # -- routes ------------------------------------------------------------------------------------

    @property
    def routes(self) -> RouteTable:
        """The newest route table this client has heard."""
        return self._follower.table

    def _on_routes(self, message: Message) -> None:
        if isinstance(self._follower.apply(codec.decode(message.data, RouteUpdate)), NeedSnapshot):
            self._refresh_soon()

    def _on_connection(self, connected: bool) -> None:
        if connected:
            self._refresh_soon()

    def _refresh_soon(self) -> None:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh_unwatched())

    async def _refresh_unwatched(self) -> None:
        try:
            await self._refresh()
        except Exception:
            log.exception("mesh.client.refresh_failed")

    async def _refresh(self) -> None:
        """Fetch the table; without a master, ask the nodes themselves."""
        try:
            await self._fetch_pages()
        except MeshError as error:
            log.info("mesh.client.master_away", error=str(error))
            if not self.routes.epoch:  # else the last table is good until a master is back
                await self._discover()

    async def _fetch_pages(self) -> None:
        for _ in range(_PAGES_TRIES):
            page, pages = 0, 1
            while page < pages:
                update = await self._caller.master(
                    "routes", RoutesRequest(page=page), RouteUpdate, _ROUTES_TIMEOUT_S
                )
                self._follower.apply(update)
                page, pages = page + 1, update.pages
            if self.routes.order >= (update.epoch, update.version):
                return

    async def _discover(self) -> None:
        try:
            cards = await self._bus.gather("$SRV.INFO", b"", responder="srv", window_s=_DISCOVERY_S)
        except MeshError as error:
            log.info("mesh.client.discovery_failed", error=str(error))
            return
        nodes = [node for node in map(route_of, cards) if node is not None]
        if not self.routes.epoch:
            self._follower.table = RouteTable(version=self.routes.version + 1, nodes=nodes)

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
        asked = {"query": query, "limit": limit, "options": options, "id": str(uuid7())}
        request = codec.convert(asked, SearchRequest)
        try:
            return await self._federation.search(request, self.routes)
        except InvalidError as error:
            # The name may be newer than our table: ask once before saying that there is no such.
            if not error.fields.keys() & _NAMES:
                raise
            await self._refresh()
            return await self._federation.search(request, self.routes)

    async def run_action(
        self,
        action: str,
        params: Mapping[str, Any] | None = None,
        *,
        node: str | None = None,
        id: str | None = None,  # noqa: A002
        timeout_s: float | None = None,
    ) -> ActionResult:
        """Run an action on a node and wait for its outcome.

        Args:
            action: Its name.
            params: JSON object; checked by the node against the action's type.
            node: Slug; None where, of all registered nodes, exactly one holds the collection in
                `params` or, if none does, exactly one offers the action.
            id: Idempotency key: the same id runs once, however often it is asked.
            timeout_s: How long to wait; the action itself goes on.

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
        target = self._target(action, body, node)
        wait_s = self._config.routing.request_timeout_s if timeout_s is None else timeout_s
        request = ActionRequest(id=id or str(uuid7()), action=action, params=body)
        return await self._caller.action(target, action, request, ActionResult, wait_s)

    def _target(self, action: str, params: Mapping[str, Any], node: str | None) -> str:
        if node is not None:
            return self._known(node)
        nodes = self.routes.nodes.values()
        able = [route for route in nodes if action in route.actions]
        if not able:
            offered = sorted({name for route in nodes for name in route.actions})
            raise BadRequestError(
                f"no node offers {action!r}; actions: {', '.join(offered) or 'none'}"
            )
        held = params.get("collection")
        holders = [route for route in able if any(info.name == held for info in route.collections)]
        # Health comes after the choice: a write meant for a node that is away must not go to
        # another one and begin a second collection of that name there.
        choice = holders or able
        if len(choice) > 1:
            raise BadRequestError(
                f"{len(choice)} nodes {'hold' if holders else 'offer'} "
                f"{held if holders else action!r}; say which: "
                + ", ".join(route.slug for route in choice)
            )
        [chosen] = choice
        if reason := refusal(chosen):
            raise UnavailableError(f"node {chosen.slug!r} cannot be asked now: {reason}")
        return chosen.slug

    def _known(self, node: str) -> str:
        subjects.token(node, "node")
        route = self.routes.node(node)
        if route is None:
            there = ", ".join(self.routes.nodes) or "none"
            raise NotFoundError(f"unknown node {node!r}; there are: {there}")
        if route.status is not Status.ACTIVE:
            raise UnavailableError(f"node {node!r} is {route.status.value}")
        return route.slug

    async def ping(self, node: str, *, timeout_s: float = 1.0) -> tuple[PingResult, float]:
        """Ask a node for a sign of life; with the round trip in milliseconds.

        Raises:
            NoRespondersError, DeadlineExceededError, DisconnectedError
        """
        began = self._clock.monotonic()
        answer = await self._caller.node(node, "ping", PingRequest(), PingResult, timeout_s)
        return answer, (self._clock.monotonic() - began) * 1000

    # -- registry ----------------------------------------------------------------------------------

    async def nodes(
        self,
        *,
        node: str = "",
        status: Status | None = None,
        type: str = "",  # noqa: A002
    ) -> NodeList:
        """Registered nodes with their live health.

        Raises:
            NotFoundError: `node` (slug or id) is none.
            UnavailableError: No master answers.
        """
        return await self._master(
            "nodes", NodesQuery(node=node, status=status, type=type), NodeList
        )

    async def register_node(self, node: NodeRegister) -> NodeRegistered:
        """Register a node; its API key is in the answer, this once.

        Raises:
            ConflictError: The name is taken.
            InvalidError: A value that cannot be.
        """
        checked = codec.convert(msgspec.to_builtins(node), NodeRegister)
        return await self._master("register", checked, NodeRegistered)

    async def update_node(self, node: str, change: NodeUpdate) -> NodeRecord:
        """Change a registered node.

        Raises:
            NotFoundError, InvalidError
        """
        checked = codec.convert(msgspec.to_builtins(change), NodeUpdate)
        return await self._master("update", NodeChange(node=node, change=checked), NodeRecord)

    async def remove_node(self, node: str) -> NodeRecord:
        """Take a node out of the registry.

        Raises:
            NotFoundError
        """
        return await self._master("remove", NodeName(node=node), NodeRecord)

    async def probe_node(self, node: str) -> NodeRecord:
        """Have the master ping the node now and say what it thinks of it.

        Raises:
            NotFoundError
        """
        return await self._master("probe", NodeName(node=node), NodeRecord)

    async def stats(self) -> NodeStats:
        """Nodes counted by status, health and type."""
        return await self._master("stats", Request(), NodeStats)

    async def history(
        self,
        *,
        action_id: str = "",
        node: str = "",
        action: str = "",
        caller: str = "",
        state: ActionState | None = None,
        since: int = 0,
        limit: int = 50,
        offset: int = 0,
    ) -> HistoryPage:
        """The action history, newest first; empty arguments match all, `since` is unix ms."""
        query = {
            "action_id": action_id,
            "node": node,
            "action": action,
            "caller": caller,
            "state": state,
            "since": since,
            "limit": limit,
            "offset": offset,
        }
        request = codec.convert(query, HistoryQuery)
        return await self._caller.master("history", request, HistoryPage, _HISTORY_TIMEOUT_S)

    async def _master(self, verb: str, request: Request, kind: type[T]) -> T:
        return await self._caller.master(verb, request, kind, _MASTER_TIMEOUT_S)
