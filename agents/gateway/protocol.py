"""HTTP/1.1 on the socket: uvicorn's httptools protocol, with the limits it lacks.

A request's head must be small and arrive in time, its body must arrive in time, answers must be
read in time, and there are only so many connections. What breaks a limit here is answered in the
gateway's own form and hung up on.
Whoever handles a request can be told that its client is gone, without a task that waits for it.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import Any, cast

from uuid_utils import uuid7
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from agents.gateway.errors import Header, HeadersTooLargeError, Problem, SlowRequestError, problem
from agents.gateway.safety import safe_headers
from mesh.config import GatewayConfig
from mesh.errors import BadRequestError, MeshError, TooLargeError, UnavailableError

CLOSE: Header = (b"connection", b"close")
CONNECTION = "nodemesh.connection"
"""Key of the scope's extensions under which a request finds its `LimitedProtocol`."""

_LINGER_S = 0.5
"""How long a connection without a request stays when the gateway stops: one may be on its way."""

_FRAMING = 5
"""Most that a chunk of one byte takes besides that byte: its length and two line ends."""


class _Reading(enum.Enum):
    NOTHING = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()


class WatchedTransport:
    """A transport that says when a close has to wait until the client reads."""

    __slots__ = ("_on_unsent", "_transport")

    def __init__(self, transport: asyncio.Transport, on_unsent: Callable[[], None]) -> None:
        self._transport = transport
        self._on_unsent = on_unsent

    def close(self) -> None:
        """Hang up, once what was written is sent. Once: of TLS nothing is left after a second."""
        if self._transport.is_closing():
            return
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._on_unsent()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class LimitedProtocol(HttpToolsProtocol):
    """One connection. `limits` is set by `limited`."""

    limits: GatewayConfig
    safe: list[Header]
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
        self._write_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._tail_bytes = 0
        """Since the head: the body, with what frames and follows it where it is chunked."""
        self._body_bytes = 0
        self._deaf = False
        """What comes now is no request: what runs is answered, then the connection closes."""

    # -- connections -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        watched = WatchedTransport(transport, self._limit_writing)
        super().connection_made(cast("asyncio.Transport", watched))
        if len(self.connections) > self.limits.max_connections:
            self._refuse(UnavailableError("too many connections", retry_after_ms=1000))
            return
        self._close_after(self.limits.keep_alive_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        self._stop_write_timer()
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

    # -- writing -----------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._limit_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_write_timer()

    def eof_received(self) -> None:
        self.transport.close()

    def _limit_writing(self) -> None:
        """Who does not read holds a connection no longer than who does not send."""
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(
                self.limits.read_timeout_s, self.transport.abort
            )

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # -- reading -----------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._deaf or self.transport.is_closing():
            return
        if self._reading is _Reading.BODY:
            self._tail_bytes += len(data)
        else:
            self._head_bytes += len(data)
        idle, self.timeout_keep_alive_task = self.timeout_keep_alive_task, None
        super().data_received(data)
        if self._reading is _Reading.HEAD and self._head_bytes > self.limits.max_header_bytes:
            self._refuse(HeadersTooLargeError(self._head_limit()))
        elif self._reading is _Reading.BODY and self._tail_too_large():
            self._refuse(TooLargeError("the chunks' headers and trailers are too large"))
        elif self._reading is not self._timed:
            self._time()
        self._keep_idle(idle)

    def _keep_idle(self, idle: asyncio.TimerHandle | None) -> None:
        """What came may have been an empty line, or the end of a request that was answered before:
        then nothing else ends the connection.
        """
        if self._reading is _Reading.NOTHING and not self._answering():
            if idle is None and not self.transport.is_closing():
                self._close_after(self.limits.keep_alive_s)
            else:
                self.timeout_keep_alive_task = idle
        elif idle is not None:
            idle.cancel()

    def _tail_too_large(self) -> bool:
        """Not by the body itself, of which the gateway says how large it may be."""
        framing = _FRAMING * min(self._body_bytes, self.limits.max_body_bytes)
        return self._tail_bytes - self._body_bytes > framing + self.limits.max_header_bytes

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

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading is not _Reading.BODY:  # a trailer: it comes after everything was decided
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_headers_complete(self) -> None:
        if self._head_bytes > self.limits.max_header_bytes and self._head_size() > (
            self.limits.max_header_bytes
        ):
            self.app = self.refuse_head
        super().on_headers_complete()  # raises where the target is no path
        self._reading = _Reading.BODY
        self._head_bytes = self._tail_bytes = self._body_bytes = 0

    def on_message_complete(self) -> None:
        self._reading = self._timed = _Reading.NOTHING
        self._stop_timer()
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
        """Answer what no request could be made of, once those before it are answered."""
        in_body = self._reading is _Reading.BODY
        self._reading = self._timed = _Reading.NOTHING
        self._stop_timer()
        answering = self._answering()
        if answering and (self.pipeline or not in_body):
            self._deaf = True
            self.cycle.keep_alive = False
            if in_body:  # of the last one in the queue
                self.pipeline[0] = (self.cycle, self._refusing(error))
            return
        if answering:
            self.cycle.disconnected = True
        if not in_body or (answering and not self.cycle.response_started):
            self._say(error)
        self.transport.close()

    def _refusing(self, error: MeshError) -> ASGI3Application:
        """An app that answers so."""
        cycle = self.cycle

        async def refuse(_scope: Any, _receive: Any, _send: Any) -> None:
            cycle.disconnected = True
            self._say(error)
            self.transport.close()

        return refuse

    def _say(self, error: MeshError) -> None:
        reference = str(uuid7())
        self.transport.write(raw(problem(error, reference), reference, self.safe))

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete


def raw(refused: Problem, reference: str, safe: list[Header]) -> bytes:
    """A whole response that closes the connection."""
    headers = [
        *safe,
        *refused.headers,
        (b"content-type", b"application/json"),
        (b"content-length", str(len(refused.body)).encode()),
        (b"x-request-id", reference.encode()),
        CLOSE,
    ]
    return STATUS_LINE[refused.status] + written(headers) + b"\r\n" + refused.body


def written(headers: list[Header]) -> bytes:
    """Headers as they go over the wire."""
    return b"".join(b"%b: %b\r\n" % header for header in headers)


def limited(config: GatewayConfig, *, refuse_head: ASGI3Application) -> type[LimitedProtocol]:
    """The protocol class with its limits; `refuse_head` answers a head that is too large."""
    return type(
        "Protocol",
        (LimitedProtocol,),
        {
            "limits": config,
            "safe": safe_headers(config),
            "refuse_head": staticmethod(refuse_head),
        },
    )


def answer_at_once(
    send: Any, status: int, fixed: bytes, headers: list[Header], body: bytes
) -> bool:
    """Send a whole answer in one go, as uvicorn would in two messages, for a third of the CPU.

    Args:
        send: ASGI's.
        status: Of the answer.
        fixed: Headers that every answer has, as they are written.
        headers: The others.
        body: Whole.

    Returns:
        False, with nothing sent, where `send` is not one of uvicorn's requests, or not one that
        can take the answer now: send it the usual way.
    """
    cycle = getattr(send, "__self__", None)
    if (
        type(cycle) is not RequestResponseCycle
        or cycle.response_started
        or cycle.disconnected
        or cycle.flow.write_paused
        or cycle.scope["method"] == "HEAD"
    ):
        return False
    if CLOSE in headers:
        cycle.keep_alive = False
    elif not cycle.keep_alive:
        headers.append(CLOSE)
    parts = [STATUS_LINE[status], fixed]
    for name, value in (*cycle.default_headers, *headers):
        parts += (name, b": ", value, b"\r\n")
    parts += (b"\r\n", body)
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    if not cycle.transport.is_closing():
        cycle.transport.write(b"".join(parts))
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True
