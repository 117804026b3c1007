"""Many requests over one subscription: which reply belongs to whom.

Compared with nats-py's `request()` there is no NUID, task, queue or `wait_for` per call: a counter
for a token, one dict entry, one timer for all whose time is up in the same hundredth of a second
(figures in BENCHMARKS.md).

An address whose one reply has come is given to a later request to the same responder: the broker
keeps what it knows of a subject (who hears it, who may publish it) in small caches, and subjects
that are never seen twice empty them for everybody. Before that it rests, so that a second reply
to the first request finds nobody; from a responder that sends one, no address is used again. Nor
is one whose request ended in any other way than by its reply.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from mesh.errors import DeadlineExceededError, ForbiddenError, MeshError, NoRespondersError
from mesh.wire.subjects import PREFIX

_NOBODY = b"NATS/1.0 503"
_SHORT_S = 0.25
"""Shorter waits end within a millisecond, longer ones within ten."""
_STALLED_S = 0.05
"""A timer that is so late was held up by our own loop; the replies may have been, too."""
_READ_S = 0.02
"""So long they get to be read then."""
_LEAST_FREE = 16
"""Addresses that rest, at least, before one is used again."""
_REST_S = 0.002
"""How long each of them rests, at least. Longer, and a busy caller needs more than there are."""
_MOST_FREE = 96
"""Of a responder; nats-server remembers 128 subjects that a login may publish."""
_Free = deque[tuple[bytes, float]]
"""Addresses and when their replies came; the one used longest ago first."""
_NONE: _Free = deque(maxlen=0)
"""Of answers that may come more than once, as JetStream's where two streams take one subject."""


class Reply(NamedTuple):
    """Raw headers, if any, and the payload."""

    headers: bytes | None
    data: bytes


class Waiter:
    """A request whose reply is awaited. `forget` it in any case."""

    __slots__ = (
        "_free",
        "_owner",
        "about",
        "address",
        "due",
        "future",
        "heard",
        "responder",
        "sent_at",
        "timeout_s",
        "wakes",
        "whole",
    )

    due: set[Waiter]
    """Those whose time is up together with this one's."""

    def __init__(
        self, owner: Multiplexer, responder: str, about: str, address: bytes, free: _Free
    ) -> None:
        self._owner = owner
        self._free = free
        self.address = address
        """Where the reply must go."""
        self.future: asyncio.Future[Any] = owner.loop.create_future()
        """The payload of the reply, or what became of it."""
        self.responder = responder
        self.about = about
        """Subject of the request."""
        self.sent_at = 0.0
        """By the loop's time."""
        self.timeout_s = 0.0
        self.wakes = False
        """The future ends once before the time is up, and there is another one from then on."""
        self.whole = False
        """The future gets a `Reply`, headers and all."""
        self.heard: Callable[[bytes], object] | None = None
        """Called with each of many replies; None: the first one ends the wait."""
        owner.waiting[address] = self

    def answered(self, reply: Reply | bytes) -> None:
        """The one reply has come."""
        self.future.set_result(reply)
        self.forget()
        if len(self._free) < _MOST_FREE:
            self._free.append((self.address, self._owner.loop.time()))

    def forget(self) -> None:
        """Nobody waits for this any more."""
        waiting = self._owner.waiting
        if waiting.get(self.address) is self:  # it may be somebody else's by now
            del waiting[self.address]
            self.due.discard(self)


class Multiplexer:
    """The requests of one connection that wait for replies. One event loop."""

    def __init__(self, identity: str, connection_id: str) -> None:
        self._address = f".{identity}.{connection_id}.".encode()
        self.loop = asyncio.get_running_loop()
        self.waiting: dict[bytes, Waiter] = {}
        """By address."""
        self._due: dict[int, set[Waiter]] = {}
        """By millisecond of the loop's time, those whose time is up then."""
        self._free: dict[str, _Free] = {}
        """By responder, addresses whose reply has come."""
        self._serial = 0
        self.subject = f"{PREFIX}.re.*.{identity}.{connection_id}.*"
        self.dropped = 0
        """Replies that came too late, or from somebody who was not asked."""

    def __len__(self) -> int:
        return len(self.waiting)

    def expect(
        self,
        responder: str,
        timeout_s: float,
        about: str,
        *,
        first_s: float = 0.0,
        whole: bool = False,
    ) -> Waiter:
        """Wait for one reply of `responder`: its payload, or `whole` a `Reply`. The future ends in
        NoRespondersError when nobody listens, in DeadlineExceededError after `timeout_s` seconds.
        With `first_s` it ends empty after so many seconds, and `future` is another one, which ends
        as said.
        """
        now = self.loop.time()
        free = _NONE if whole else self._free.get(responder)
        if free is None:
            free = self._free[responder] = deque()
        if len(free) > _LEAST_FREE and free[0][1] <= now - _REST_S:
            address = free.popleft()[0]
        else:
            address = self._next(responder)
        waiter = Waiter(self, responder, about, address, free)
        waiter.sent_at = now
        waiter.timeout_s = timeout_s
        waiter.whole = whole
        if first_s:
            waiter.wakes = True
            self._wake(waiter, now, first_s)
        else:
            self._wake(waiter, now, timeout_s)
        return waiter

    def collect(
        self, responder: str, window_s: float, about: str, heard: Callable[[bytes], object]
    ) -> Waiter:
        """Have `heard` called with every reply of the next `window_s` seconds; the future says when
        that is over.
        """
        waiter = Waiter(self, responder, about, self._next(responder), _NONE)
        waiter.heard = heard
        self._wake(waiter, self.loop.time(), window_s)
        return waiter

    def abandon(self, responder: str, error: MeshError, *, older_than_s: float = 0.0) -> int:
        """No reply of `responder` will come to what was sent so long ago: end the wait for each
        with `error`; how many.
        """
        ended, sent_before = 0, self.loop.time() - older_than_s
        for waiter in self.waiting.values():
            if (
                waiter.responder == responder
                and waiter.heard is None
                and waiter.sent_at <= sent_before
                and not waiter.future.done()
            ):
                waiter.future.set_exception(error)
                ended += 1
        return ended

    def fail_all(self, error: MeshError) -> None:
        """No reply will come: the connection is gone."""
        for waiter in self.waiting.values():
            if waiter.future.done():
                continue
            if waiter.heard is None:
                waiter.future.set_exception(error)
            else:
                waiter.future.set_result(None)

    def deny(self, subject: str) -> None:
        """The broker does not let us publish on `subject`, given in lower case."""
        for waiter in self.waiting.values():
            if waiter.about.lower() == subject and not waiter.future.done():
                denied = (
                    f"the broker refuses {waiter.about}: this login lacks the scope for it; "
                    "`meshctl users` shows scopes, and whoever has `admin` gives them"
                )
                waiter.future.set_exception(ForbiddenError(denied))

    def on_message(self, subject: bytes, _reply: bytes, data: bytes, headers: bytes | None) -> None:
        """Hand a reply to whoever waits at exactly this subject."""
        waiter = self.waiting.get(subject)
        if waiter is None:
            self.dropped += 1
            self._distrust(subject)
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

    def _distrust(self, subject: bytes) -> None:
        """Who replies twice may do so again, when somebody else waits there."""
        free = self._free.get(subject.split(b".")[3].decode())
        if free and any(subject == address for address, _ in free):
            free.clear()

    def _next(self, responder: str) -> bytes:
        self._serial += 1
        return b"mesh.v1.re.%b%b%x" % (responder.encode(), self._address, self._serial)

    def _wake(self, waiter: Waiter, now: float, seconds: float) -> None:
        if seconds < _SHORT_S:
            tick = math.ceil((now + seconds) * 1000)
        else:
            tick = math.ceil((now + seconds) * 100) * 10
        due = self._due.get(tick)
        if due is None:
            due = self._due[tick] = set()
            self.loop.call_at(tick / 1000, self._expire, tick)
        due.add(waiter)
        waiter.due = due

    def _expire(self, tick: int, *, stalled: bool = False) -> None:
        now = self.loop.time()
        if not stalled and now - tick / 1000 > _STALLED_S:
            self.loop.call_later(_READ_S, partial(self._expire, tick, stalled=True))
            return
        for waiter in self._due.pop(tick):
            future = waiter.future
            if future.done():
                continue
            left_s = waiter.sent_at + waiter.timeout_s - now
            if waiter.heard is not None:
                future.set_result(None)
            elif waiter.wakes and left_s > 0:
                waiter.wakes = False
                waiter.future = self.loop.create_future()
                self._wake(waiter, now, left_s)
                future.set_result(b"")
            else:
                late = f"no reply on {waiter.about} within {waiter.timeout_s * 1000:.0f} ms"
                future.set_exception(DeadlineExceededError(late))
