"""HTTP/1.1 on the socket: uvicorn's httptools protocol, with the limits it lacks.

A request's head must be small and arrive in time, its body must arrive in time, and there are only
so many connections. What breaks a limit here is answered in the gateway's own form and hung up on.
Whoever handles a request can be told that its client is gone, without a task that waits for it.
"""

from __future__ import annotations

import asyncio
import enum
from typing import Any

from uuid_utils import uuid7
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from agents.gateway.errors import HeadersTooLargeError, Problem, SlowRequestError, problem
from mesh.config import GatewayConfig
from mesh.errors import BadRequestError, MeshError, UnavailableError

CONNECTION = "nodemesh.connection"
"""Key of the scope's extensions under which a request finds its `LimitedProtocol`."""

_LINGER_S = 0.5
"""How long a connection without a request stays when the gateway stops: one may be on its way."""


class _Reading(enum.Enum):
    NOTHING = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()


class LimitedProtocol(HttpToolsProtocol):
    """One connection. `limits` is set by `limited`."""

    limits: GatewayConfig
    refuse_head: ASGI3Application

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.waiting: asyncio.Task[Any] | None = None
        """Cancelled when the client goes; whoever sets it takes it back."""
        self.timed_out = False
        self._extensions: dict[str, Any] = {CONNECTION: self}
        self._usual_app = self.app
        self._reading = _Reading.NOTHING
        self._timed = _Reading.NOTHING
        self._timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0

    # -- connections -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(UnavailableError("too many connections", retry_after_ms=1000))
            return
        self._close_after(self.limits.keep_alive_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        if self.waiting is not None:
            self.waiting.cancel()

    def shutdown(self) -> None:
        """The gateway stops: what runs is finished, what is being sent is answered, and then the
        connection closes.
        """
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        elif self._reading is _Reading.NOTHING:
            self._unset_keepalive_if_required()
            self._close_after(_LINGER_S)

    def _close_after(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    # -- reading -----------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._reading is not _Reading.BODY:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._reading is _Reading.HEAD and self._head_bytes > self.limits.max_header_bytes:
            self._refuse(HeadersTooLargeError(self._head_limit()))
        elif self._reading is not self._timed:
            self._time()

    def _time(self) -> None:
        """One limit for the head, as long again for the body, however slowly bytes drip in."""
        self._stop_timer()
        self._timed = self._reading
        if self._reading is not _Reading.NOTHING and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.limits.read_timeout_s, self._read_timed_out)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _read_timed_out(self) -> None:
        if self._reading is _Reading.HEAD and self._answering():
            self._time()  # of a request that has to wait for an earlier one's answer anyway
            return
        self.timed_out = True
        what = "headers" if self._reading is _Reading.HEAD else "body"
        self._refuse(SlowRequestError(f"the {what} took over {self.limits.read_timeout_s:g} s"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = self._extensions
        self._reading = _Reading.HEAD
        self.app = self._usual_app

    def on_headers_complete(self) -> None:
        if self._head_bytes > self.limits.max_header_bytes and self._head_size() > (
            self.limits.max_header_bytes
        ):
            self.app = self.refuse_head
        self._reading = _Reading.BODY
        self._head_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._reading = _Reading.NOTHING
        super().on_message_complete()

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _head_limit(self) -> str:
        return f"the headers are over {self.limits.max_header_bytes} bytes"

    # -- refusing ----------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 (it is always the same)
        self._refuse(BadRequestError("this is not HTTP"))

    def _unsupported_upgrade_warning(self) -> None:
        """A request for another protocol is answered in this one."""

    def _refuse(self, error: MeshError) -> None:
        """Answer what no request could be made of, unless another answer is on its way."""
        in_body = self._reading is _Reading.BODY
        self._reading = self._timed = _Reading.NOTHING
        self._stop_timer()
        answering = self._answering()
        mine = in_body and answering and not self.cycle.response_started and not self.pipeline
        if mine or not (answering or in_body):
            reference = str(uuid7())
            self.transport.write(raw(problem(error, reference), reference))
        if answering:
            self.cycle.disconnected = True
        self.transport.close()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete


def raw(refused: Problem, reference: str) -> bytes:
    """A whole response that closes the connection."""
    headers = [
        *refused.headers,
        (b"content-type", b"application/json"),
        (b"content-length", str(len(refused.body)).encode()),
        (b"x-request-id", reference.encode()),
        (b"connection", b"close"),
    ]
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return STATUS_LINE[refused.status] + lines + b"\r\n" + refused.body


def limited(config: GatewayConfig, *, refuse_head: ASGI3Application) -> type[LimitedProtocol]:
    """The protocol class with its limits; `refuse_head` answers a head that is too large."""
    return type(
        "Protocol",
        (LimitedProtocol,),
        {"limits": config, "refuse_head": staticmethod(refuse_head)},
    )
