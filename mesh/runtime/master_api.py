"""The verbs of `mesh.v1.master.<verb>.<caller>`: what is read of registry and routes, and whatever
others provide.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec
import structlog

from mesh.errors import BadRequestError, DeadlineExceededError, MeshError
from mesh.ports import Clock, Message, VerbProvider
from mesh.runtime.breaker_board import BreakerBoard
from mesh.runtime.membership import Membership
from mesh.runtime.route_publisher import RoutePublisher
from mesh.runtime.serving import Responder
from mesh.runtime.whereabouts import Whereabouts
from mesh.types import VERSION
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    NodeList,
    NodeName,
    NodeRecord,
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

_SPEAK_FOR_OTHERS = frozenset({"bridge", "gateway", "master"})
"""Whoever else says for whom he speaks, and from where, is not believed."""


class MasterApi:
    """Answers what callers ask of the master."""

    def __init__(
        self,
        membership: Membership,
        publisher: RoutePublisher,
        providers: Sequence[VerbProvider],
        *,
        board: BreakerBoard,
        whereabouts: Whereabouts,
        clock: Clock,
        responder: Responder,
        incarnation: int,
    ) -> None:
        self._membership = membership
        self._view = membership.view
        self._publisher = publisher
        self._board = board
        self._whereabouts = whereabouts
        self._clock = clock
        self._responder = responder
        self._incarnation = incarnation
        self._verbs: dict[str, Callable[[bytes, str], Awaitable[Any]]] = {
            "nodes": self._of(NodesQuery, self._nodes),
            "ping": self._of(PingRequest, self._ping),
            "probe": self._of(NodeName, self._probe),
            "routes": self._of(RoutesRequest, self._routes),
            "stats": self._of(Request, self._stats),
        }
        for provider in providers:
            self._verbs |= {
                name: self._of(kind, verb) for name, (kind, verb) in provider.verbs.items()
            }

    def handle(self, message: Message) -> None:
        """Serve one request; the bus calls this."""
        try:
            _, verb, _ = subjects.parts(message.subject)
        except (MeshError, ValueError) as error:
            self._responder.drop(message, str(error))
            return

        async def answer(caller: str) -> bytes:
            serve = self._verbs.get(verb)
            if serve is None:
                raise BadRequestError(
                    f"no verb {verb!r}; there are: {', '.join(sorted(self._verbs))}"
                )
            return codec.ok(await serve(message.data, caller))

        self._responder.serve(message, answer, bypass=verb == "ping")

    def _of(
        self, kind: type[R], verb: Callable[[R, str], Awaitable[Any]]
    ) -> Callable[[bytes, str], Awaitable[Any]]:
        """`verb` on bytes of a caller; nothing at all is as good as `{}`."""

        async def serve(data: bytes, caller: str) -> Any:
            request = codec.decode(data or b"{}", kind)
            if request.deadline and self._clock.unix_ms() >= request.deadline:
                raise DeadlineExceededError("the request had expired before it was read")
            if caller not in _SPEAK_FOR_OTHERS:
                origin = await self._whereabouts.of(caller)
                if request.on_behalf or request.origin != origin:
                    request = msgspec.structs.replace(request, on_behalf="", origin=origin)
            return await verb(request, caller)

        return serve

    # -- reading -----------------------------------------------------------------------------------

    async def _ping(self, _: PingRequest, _caller: str) -> PingResult:
        return PingResult(
            node="master",
            incarnation=self._incarnation,
            version=VERSION,
            at=self._clock.unix_ms(),
        )

    async def _routes(self, request: RoutesRequest, _caller: str) -> RouteUpdate:
        return await self._publisher.page(request.page)

    async def _nodes(self, query: NodesQuery, _caller: str) -> NodeList:
        return NodeList(nodes=self._view.select(query), blind=self._membership.blind)

    async def _stats(self, _: Request, _caller: str) -> NodeStats:
        verbs, breakers, callers = self._board.figures()
        counted = self._view.stats(blind=self._membership.blind)
        return msgspec.structs.replace(counted, verbs=verbs, breakers=breakers, callers=callers)

    async def _probe(self, request: NodeName, _caller: str) -> NodeRecord:
        record = await self._membership.find(request.node)
        await self._membership.probe(record.slug)
        return self._view.find(record.slug)
