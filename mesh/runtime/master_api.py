"""The verbs of `mesh.v1.master.<verb>.<caller>`: registry, statistics, routes, history."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog
from uuid_utils import uuid7

from mesh.errors import BadRequestError, ConflictError, DeadlineExceededError, MeshError
from mesh.ports import Clock, History, Message, Registry
from mesh.runtime.history_index import HistoryIndex
from mesh.runtime.membership import Membership
from mesh.runtime.route_publisher import RoutePublisher
from mesh.runtime.serving import Responder
from mesh.types import VERSION, Status
from mesh.wire import codec, subjects
from mesh.wire.messages import (
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
    PingRequest,
    PingResult,
    Request,
    RoutesRequest,
    RouteUpdate,
)

log = structlog.get_logger()

R = TypeVar("R", bound=Request)

_KEY_BYTES = 32
_HISTORY_WAIT_S = 2.0


class MasterApi:
    """Answers what callers ask of the master."""

    def __init__(
        self,
        membership: Membership,
        publisher: RoutePublisher,
        history_index: HistoryIndex,
        *,
        registry: Registry,
        history: History,
        clock: Clock,
        responder: Responder,
        incarnation: int,
    ) -> None:
        self._membership = membership
        self._view = membership.view
        self._publisher = publisher
        self._history_index = history_index
        self._registry = registry
        self._history = history
        self._clock = clock
        self._responder = responder
        self._incarnation = incarnation
        self._verbs: dict[str, Callable[[bytes], Awaitable[Any]]] = {
            "history": self._of(HistoryQuery, self._history_page),
            "nodes": self._of(NodesQuery, self._nodes),
            "ping": self._of(PingRequest, self._ping),
            "probe": self._of(NodeName, self._probe),
            "register": self._of(NodeRegister, self._register),
            "remove": self._of(NodeName, self._remove),
            "routes": self._of(RoutesRequest, self._routes),
            "stats": self._of(Request, self._stats),
            "update": self._of(NodeChange, self._update),
        }

    def handle(self, message: Message) -> None:
        """Serve one request; the bus calls this."""
        try:
            _, verb, _ = subjects.parts(message.subject)
        except (MeshError, ValueError) as error:
            self._responder.drop(message, str(error))
            return

        async def answer(_caller: str) -> bytes:
            serve = self._verbs.get(verb)
            if serve is None:
                raise BadRequestError(f"no verb {verb!r}; there are: {', '.join(self._verbs)}")
            return codec.ok(await serve(message.data))

        self._responder.serve(message, answer, bypass=verb == "ping")

    def _of(
        self, kind: type[R], verb: Callable[[R], Awaitable[Any]]
    ) -> Callable[[bytes], Awaitable[Any]]:
        """`verb` on bytes; nothing at all is as good as `{}`."""

        async def serve(data: bytes) -> Any:
            request = codec.decode(data or b"{}", kind)
            if request.deadline and self._clock.unix_ms() >= request.deadline:
                raise DeadlineExceededError("the request had expired before it was read")
            return await verb(request)

        return serve

    # -- reading -----------------------------------------------------------------------------------

    async def _ping(self, _: PingRequest) -> PingResult:
        return PingResult(
            node="master",
            incarnation=self._incarnation,
            version=VERSION,
            at=self._clock.unix_ms(),
        )

    async def _routes(self, request: RoutesRequest) -> RouteUpdate:
        return await self._publisher.page(request.page)

    async def _nodes(self, query: NodesQuery) -> NodeList:
        return NodeList(nodes=self._view.select(query), blind=self._membership.blind)

    async def _stats(self, _: Request) -> NodeStats:
        return self._view.stats(blind=self._membership.blind)

    async def _probe(self, request: NodeName) -> NodeRecord:
        record = self._view.find(request.node)
        await self._membership.probe(record.slug)
        return self._view.find(record.slug)

    async def _history_page(self, query: HistoryQuery) -> HistoryPage:
        """Whoever has just seen an action end finds it here."""
        try:
            newest = await self._history.last_sequence(timeout_s=_HISTORY_WAIT_S)
            await self._history_index.reach(newest, timeout_s=_HISTORY_WAIT_S)
        except MeshError as error:  # what is indexed can be read without the stream
            log.warning("mesh.history.freshness_unknown", error=str(error))
        records, total = await self._registry.history(query)
        return HistoryPage(actions=records, total=total)

    # -- changing ----------------------------------------------------------------------------------

    async def _register(self, request: NodeRegister) -> NodeRegistered:
        slug = subjects.slug_of(request.name)
        now_ms = self._clock.unix_ms()
        record = NodeRecord(
            id=str(uuid7()),
            slug=slug,
            name=request.name,
            url=request.url,
            type=request.type,
            status=Status.ACTIVE,
            description=request.description,
            capabilities=request.capabilities,
            domains=request.domains,
            keywords=request.keywords,
            metadata=request.metadata,
            weight=request.weight,
            created_at=now_ms,
            updated_at=now_ms,
        )
        api_key = secrets.token_urlsafe(_KEY_BYTES)
        try:
            await self._registry.register(
                record, api_key_hash=hashlib.sha256(api_key.encode()).hexdigest()
            )
        except ConflictError as error:
            raise ConflictError(
                f"there is a node {slug!r} already; choose another name, "
                f"or remove that one first: meshctl nodes remove {slug}"
            ) from error
        self._membership.add(record)
        log.info("mesh.node.registered", node=slug)
        return NodeRegistered(node=self._view.find(slug), api_key=api_key)

    async def _update(self, request: NodeChange) -> NodeRecord:
        slug = self._view.find(request.node).slug
        record = await self._registry.update(slug, request.change)
        return self._membership.change(record)

    async def _remove(self, request: NodeName) -> NodeRecord:
        record = self._view.find(request.node)
        await self._registry.remove(record.slug, incarnation=record.incarnation)
        self._membership.remove(record)
        log.info("mesh.node.removed", node=record.slug)
        return record
