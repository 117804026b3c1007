"""Many requests over one subscription: which reply belongs to whom.

Compared with nats-py's `request()` there is no NUID, task, queue or `wait_for` per call: a counter
for a token, one dict entry, one timer for all whose time is up in the same hundredth of a second
(figures in BENCHMARKS.md).

An address whose one reply has come is given to a later request to the same responder: the broker keeps
what it knows of a subject (who hears it, who may publish it) in small caches, and subjects that are never
seen twice empty them for everybody. An address whose request ended in any other way is never used
again, so that a late reply finds nobody.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from mesh.errors import DeadlineExceededError, ForbiddenError, MeshError, NoRespondersError
from mesh.wire.subjects import PREFIX

_NOBODY = b"NATS/1.0 503"
_TICKS_PER_S = 100
_LEAST_FREE = 16
"""Addresses that rest, at least, before one is used again."""
_MOST_FREE = 96
"""Of a responder; nats-server remembers 128 subjects that a login may publish."""
_NONE: deque[bytes] = deque(maxlen=0)
"""Of answers that may come more than once, as JetStream's where two streams take one subject."""


class Reply(NamedTuple):
    """Raw headers, if any, and the payload."""

    headers: bytes | None
    data: bytes


class Waiter:
    """A request whose reply is awaited. `forget` it in any case."""

    __slots__ = (
        "_due",
        "_free",
        "_waiting",
        "about",
        "address",
        "future",
        "heard",
        "responder",
        "timeout_s",
        "whole",
    )

    def __init__(
        self,
        waiting: dict[bytes, Waiter],
        due: set[Waiter],
        free: deque[bytes],
        address: bytes,
        future: asyncio.Future[Any],
        responder: str,
        about: str,
        timeout_s: float,
    ) -> None:
        self._waiting = waiting
        self._due = due
        self._free = free
        self.address = address
        """Where the reply must go."""
        self.future = future
        """The payload of the reply, or what became of it."""
        self.responder = responder
        self.about = about
        """Subject of the request."""
        self.timeout_s = timeout_s
        self.whole = False
        """The future gets a `Reply`, headers and all."""
        self.heard: Callable[[bytes], object] | None = None
        """Called with each of many replies; None: the first one ends the wait."""
        waiting[address] = self
        due.add(self)

    def answered(self, reply: Reply | bytes) -> None:
        """The one reply has come."""
        self.future.set_result(reply)
        self.forget()
        self._free.append(self.address)

    def forget(self) -> None:
        """Nobody waits for this any more."""
        if self._waiting.get(self.address) is self:  # it may be somebody else's by now
            del self._waiting[self.address]
            self._due.discard(self)


class Multiplexer:
    """The requests of one connection that wait for replies. One event loop."""

    def __init__(self, identity: str, connection_id: str) -> None:
        self._address = f".{identity}.{connection_id}.".encode()
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[bytes, Waiter] = {}
        self._due: dict[int, set[Waiter]] = {}
        """By hundredth of a second of the loop's time, those whose time is up then."""
        self._free: dict[str, deque[bytes]] = {}
        """By responder, addresses whose reply has come; the one used longest ago first."""
        self._serial = 0
        self.subject = f"{PREFIX}.re.*.{identity}.{connection_id}.*"
        self.dropped = 0
        """Replies that came too late, or from somebody who was not asked."""

    def __len__(self) -> int:
        return len(self._waiting)

    def expect(
        self, responder: str, timeout_s: float, about: str, *, whole: bool = False
    ) -> Waiter:
        """Wait for one reply of `responder`: its payload, or `whole` a `Reply`. The future ends in
        NoRespondersError when nobody listens, in DeadlineExceededError after `timeout_s` seconds.
        """
        free = _NONE if whole else self._free.get(responder)
        if free is None:
            free = self._free[responder] = deque(maxlen=_MOST_FREE)
        waiter = Waiter(
            self._waiting,
            self._due_in(timeout_s),
            free,
            # Those that were used longest ago, once there are some.
            free.popleft() if len(free) > _LEAST_FREE else self._next(responder),
            self._loop.create_future(),
            responder,
            about,
            timeout_s,
        )
        waiter.whole = whole
        return waiter

    def collect(
        self, responder: str, window_s: float, about: str, heard: Callable[[bytes], object]
    ) -> Waiter:
        """Have `heard` called with every reply of the next `window_s` seconds; the future says when
        that is over.
        """
        waiter = Waiter(
            self._waiting,
            self._due_in(window_s),
            _NONE,
            self._next(responder),
            self._loop.create_future(),
            responder,
            about,
            window_s,
        )
        waiter.heard = heard
        return waiter

    def abandon(self, responder: str, error: MeshError) -> int:
        """No reply of `responder` will come: end the wait for each with `error`; how many."""
        ended = 0
        for waiter in self._waiting.values():
            if waiter.responder == responder and waiter.heard is None and not waiter.future.done():
                waiter.future.set_exception(error)
                ended += 1
        return ended

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
        future = waiter.future
        if future.done():
            return
        nobody = headers is not None and not data and headers.startswith(_NOBODY)
        if waiter.heard is not None:
            if nobody:
                future.set_result(None)
            else:
                waiter.heard(data)
        elif nobody:
            future.set_exception(NoRespondersError("nobody listens there"))
        else:
            waiter.answered(Reply(headers, data) if waiter.whole else data)

    def _next(self, responder: str) -> bytes:
        self._serial += 1
        return b"mesh.v1.re.%b%b%x" % (responder.encode(), self._address, self._serial)

    def _due_in(self, seconds: float) -> set[Waiter]:
        tick = math.ceil((self._loop.time() + seconds) * _TICKS_PER_S)
        due = self._due.get(tick)
        if due is None:
            due = self._due[tick] = set()
            self._loop.call_at(tick / _TICKS_PER_S, self._expire, tick)
        return due

    def _expire(self, tick: int) -> None:
        for waiter in self._due.pop(tick):
            if waiter.future.done():
                continue
            if waiter.heard is not None:
                waiter.future.set_result(None)
                continue
            late = f"no reply on {waiter.about} within {waiter.timeout_s * 1000:.0f} ms"
            waiter.future.set_exception(DeadlineExceededError(late))
