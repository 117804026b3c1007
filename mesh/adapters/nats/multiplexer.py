"""Many requests over one subscription: which reply belongs to whom.

Compared with nats-py's `request()` there is no NUID, task, queue or `wait_for` per call: a counter
for a token, one dict entry, one timer (figures in BENCHMARKS.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

from mesh.errors import DeadlineExceededError, ForbiddenError, MeshError, NoRespondersError
from mesh.wire.subjects import PREFIX

_NOBODY = b"NATS/1.0 503"


class Reply(NamedTuple):
    """Raw headers, if any, and the payload."""

    headers: bytes | None
    data: bytes


class _Waiter(NamedTuple):
    future: asyncio.Future[Any]
    timer: asyncio.TimerHandle
    about: str
    """Subject of the request."""
    heard: Callable[[bytes], object] | None
    """Called with each of many replies; None: the first one ends the wait."""


class Multiplexer:
    """The requests of one connection that wait for replies. One event loop."""

    def __init__(self, identity: str, connection_id: str) -> None:
        self._address = f".{identity}.{connection_id}.".encode()
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[bytes, _Waiter] = {}
        self._serial = 0
        self.subject = f"{PREFIX}.re.*.{identity}.{connection_id}.*"
        self.dropped = 0
        """Replies that came too late, or from somebody who was not asked."""

    def __len__(self) -> int:
        return len(self._waiting)

    def expect(
        self, responder: str, timeout_s: float, about: str
    ) -> tuple[bytes, asyncio.Future[Reply]]:
        """Wait for one reply of `responder`; `forget` it in any case.

        Returns:
            Where the reply must go, and the future: it ends in NoRespondersError when nobody
            listens, in DeadlineExceededError after `timeout_s` seconds.
        """
        address = self._next(responder)
        future: asyncio.Future[Reply] = self._loop.create_future()
        timer = self._loop.call_later(timeout_s, _expire, future, about, timeout_s)
        self._waiting[address] = _Waiter(future, timer, about, None)
        return address, future

    def collect(
        self, responder: str, window_s: float, about: str, heard: Callable[[bytes], object]
    ) -> tuple[bytes, asyncio.Future[None]]:
        """Have `heard` called with every reply of the next `window_s` seconds; the future says when
        that is over.
        """
        address = self._next(responder)
        over: asyncio.Future[None] = self._loop.create_future()
        timer = self._loop.call_later(window_s, _finish, over)
        self._waiting[address] = _Waiter(over, timer, about, heard)
        return address, over

    def forget(self, address: bytes) -> None:
        """Nobody waits at `address` any more."""
        waiter = self._waiting.pop(address, None)
        if waiter is not None:
            waiter.timer.cancel()

    def fail_all(self, error: MeshError) -> None:
        """No reply will come: the connection is gone."""
        for waiter in self._waiting.values():
            if waiter.future.done():
                continue
            if waiter.heard is None:
                waiter.future.set_exception(error)
            else:
                waiter.future.set_result(None)

    def deny(self, subject: str) -> None:
        """The broker does not let us publish on `subject`, given in lower case."""
        for waiter in self._waiting.values():
            if waiter.about.lower() == subject and not waiter.future.done():
                denied = (
                    f"the broker refuses {waiter.about}: this login lacks the scope for it; "
                    "`meshctl users` shows scopes, and whoever has `admin` gives them"
                )
                waiter.future.set_exception(ForbiddenError(denied))

    def on_message(self, subject: bytes, _reply: bytes, data: bytes, headers: bytes | None) -> None:
        """Hand a reply to whoever waits at exactly this subject."""
        waiter = self._waiting.get(subject)
        if waiter is None:
            self.dropped += 1
            return
        future, _, _, heard = waiter
        if future.done():
            return
        nobody = headers is not None and not data and headers.startswith(_NOBODY)
        if heard is not None:
            if nobody:
                future.set_result(None)
            else:
                heard(data)
        elif nobody:
            future.set_exception(NoRespondersError("nobody listens there"))
        else:
            future.set_result(Reply(headers, data))

    def _next(self, responder: str) -> bytes:
        self._serial += 1
        return b"mesh.v1.re.%b%b%x" % (responder.encode(), self._address, self._serial)


def _expire(future: asyncio.Future[Reply], about: str, timeout_s: float) -> None:
    if not future.done():
        late = f"no reply on {about} within {timeout_s * 1000:.0f} ms"
        future.set_exception(DeadlineExceededError(late))


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
