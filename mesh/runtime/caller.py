"""One call: the only way a request leaves a client, whatever it asks and whomever."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TypeVar

import msgspec
import structlog

from mesh.errors import DeadlineExceededError, DisconnectedError, MeshError, NoRespondersError
from mesh.ports import Bus, Clock
from mesh.wire import codec, subjects
from mesh.wire.messages import CancelRequest, Request

T = TypeVar("T")
R = TypeVar("R", bound=Request)

log = structlog.get_logger()

request_origin: ContextVar[str] = ContextVar("origin", default="")
"""Network address of whoever the caller speaks for, told to masters for their audit trail; empty:
not known, or the caller speaks for itself.
"""

_MOST_ORIGIN_CHARS = 64
_RETRY_FIRST_S = 0.05
_RETRY_MOST_S = 1.0


class Caller:
    """Sends requests with a deadline on the wire and reads the one reply."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock

    async def node(
        self, node: str, verb: str, request: Request, kind: type[T], timeout_s: float
    ) -> T:
        """Ask a node.

        Raises:
            MeshError: What the node answered with, or what became of the request.
        """
        subject = subjects.rpc(node, verb, self._bus.identity)
        return await self._send(subject, node, request, kind, timeout_s)

    def give_up(self, node: str, request_id: str) -> None:
        """Tell a node that nobody waits for that request any more. Nothing is waited for here
        either: a node that does not hear of it stops at the request's deadline.
        """
        subject = subjects.rpc(node, "cancel", self._bus.identity)
        try:
            self._bus.publish(subject, codec.encode(CancelRequest(request=request_id)))
        except MeshError as error:
            log.debug("mesh.caller.cancel_lost", node=node, error=str(error))

    async def master(self, verb: str, request: Request, kind: type[T], timeout_s: float) -> T:
        """Ask any master.

        Raises:
            MeshError: As `node`.
        """
        subject = subjects.master(verb, self._bus.identity)
        if origin := request_origin.get():
            request = msgspec.structs.replace(request, origin=origin[:_MOST_ORIGIN_CHARS])
        return await self._send(subject, "master", request, kind, timeout_s)

    async def action(
        self, node: str, action: str, request: Request, kind: type[T], timeout_s: float
    ) -> T:
        """Run an action; its id makes it safe to ask again when the answer was lost.

        Raises:
            MeshError: As `node`.
        """
        subject = subjects.act(node, action, self._bus.identity)
        give_up = self._clock.monotonic() + timeout_s
        delay = _RETRY_FIRST_S
        while True:
            left_s = give_up - self._clock.monotonic()
            try:
                return await self._send(subject, node, request, kind, left_s)
            except DisconnectedError:
                if give_up - self._clock.monotonic() <= delay:
                    raise
            await self._clock.sleep(delay)
            delay = min(delay * 2, _RETRY_MOST_S)

    async def _send(
        self, subject: str, responder: str, request: Request, kind: type[T], timeout_s: float
    ) -> T:
        if timeout_s <= 0:
            raise DeadlineExceededError("no time is left for this request")
        deadline = self._clock.unix_ms() + round(timeout_s * 1000)
        payload = codec.encode(msgspec.structs.replace(request, deadline=deadline))
        try:
            reply = await self._bus.request(
                subject, payload, responder=responder, timeout_s=timeout_s
            )
        except NoRespondersError as error:
            who = "no master answers" if responder == "master" else f"node {responder!r} is away"
            raise NoRespondersError(f"{who}: nobody listens there", retry_after_ms=1000) from error
        return codec.result_of(reply, kind)
