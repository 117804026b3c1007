"""Answering requests: who asks, where the answer may go, how much runs at once.

A node or master never lets a request decide where its answer goes: it replies only on
`mesh.v1.re.<itself>.<caller of the request>.…` and drops, counted, what asks for anything else.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import secrets
import weakref
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from mesh.config import RateLimitConfig
from mesh.core.queueing import Queueing
from mesh.core.rate_limit import RateLimiter
from mesh.core.seldom import Seldom
from mesh.errors import (
    DeadlineExceededError,
    InternalError,
    MeshError,
    OverloadedError,
    TooLargeError,
)
from mesh.ports import Bus, Clock, Message
from mesh.wire import codec
from mesh.wire.messages import Request
from mesh.wire.subjects import PREFIX

log = structlog.get_logger()

Respond = Callable[[str], Awaitable[bytes]]
"""Given the caller, makes the encoded reply; raises MeshErrors."""

_LEAST_RETRY_MS = 50
_UNLIMITED = frozenset({"gateway"})
"""It limits its own clients, and carries all of them."""
_CALLERS_COUNTED = 10_000


class _Work:
    """One request that is queued or runs."""

    __slots__ = (
        "__weakref__",
        "_id",
        "begun",
        "bypass",
        "caller",
        "deadline",
        "finishes",
        "handler",
        "kind",
        "message",
        "task",
    )  # fmt: skip

    def __init__(
        self,
        message: Message,
        caller: str,
        handler: Respond,
        *,
        bypass: bool,
        finishes: bool,
        deadline: int,
        kind: str,
    ) -> None:
        self.message = message
        self.caller = caller
        self.handler: Respond | None = handler
        """None: it was cancelled before it began."""
        self.bypass = bypass
        """It has no place."""
        self.finishes = finishes
        """What has begun is not stopped for a caller that gave up."""
        self.deadline = deadline
        self.kind = kind
        self.begun = False
        self.task: asyncio.Task[None] | None = None
        """None: it is in the queue of the bulkhead."""
        self._id: str | None = None

    @property
    def id(self) -> str:
        """Of the request. Read when somebody asks, and once: no request pays for it that nobody
        cancels.
        """
        if self._id is None:
            try:
                self._id = codec.decode(self.message.data, Request).id
            except MeshError:
                self._id = ""
        return self._id


_handled: contextvars.ContextVar[weakref.ref[_Work]] = contextvars.ContextVar("handled")
"""What the running handler answers. Weak: whatever a handler starts has a copy of its context, and
would keep the request, which may be a megabyte.
"""


class Responder:
    """Runs at most `max_parallel` handlers at a time, queues `max_queued`, refuses the rest.

    Source: Nygard, *Release It!* (2007), "Bulkheads".
    """

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        *,
        name: str,
        max_parallel: int,
        max_queued: int,
        rate_limit: RateLimitConfig | None = None,
    ) -> None:
        """Args:
        bus: Where answers go.
        clock: Time.
        name: Who answers.
        max_parallel: Handlers at a time.
        max_queued: Requests that wait for one.
        rate_limit: How often a caller may ask, where it says so of the bus; None: as it likes.
        """
        self._bus = bus
        self._clock = clock
        self._name = name
        self._max_parallel = max_parallel
        self._max_queued = max_queued
        self._addresses = f"{PREFIX}.re.{name}."
        self._loop: asyncio.AbstractEventLoop | None = None
        self._limiter = (
            RateLimiter(rate_limit.bus_max_attempts, rate_limit.period_s, capacity=_CALLERS_COUNTED)
            if rate_limit is not None and rate_limit.bus
            else None
        )
        self._works: set[_Work] = set()
        """Whatever has come in and has not ended."""
        self._queue: deque[_Work] = deque()
        """Of these, what waits for a place."""
        self._queueing = Queueing(max_parallel)
        self.in_flight = 0
        self.queued = 0
        self.dropped = 0
        self.expired = 0
        """Requests for which nothing was done, since nobody waited any more."""
        self._drops_told = Seldom()
        self._refused_at: float | None = None

    def refused_within(self, seconds: float) -> bool:
        """Whether work was pushed back that recently."""
        at = self._refused_at
        return at is not None and self._clock.monotonic() - at < seconds

    def serve(
        self,
        message: Message,
        handler: Respond,
        *,
        bypass: bool = False,
        placed: bool = True,
        finishes: bool = False,
        deadline: int = 0,
        kind: str = "",
    ) -> None:
        """Answer `message` with what `handler` gives; returns at once.

        Args:
            message: The request; the last token of its subject is the caller.
            handler: Runs in a task of its own.
            bypass: Neither counted nor queued nor limited: pings must be answered by a busy node
                too.
            placed: False: neither counted nor queued, since something else bounds how much of it
                there is.
            finishes: Once it has begun, `cancel` no longer stops it.
            deadline: Unix ms until which somebody waits; 0: for ever. What would have to queue too
                long for that is refused at once.
            kind: One of a few kinds of work that must have ended by the deadline; empty: it is
                enough to have begun.
        """
        caller = caller_of(message)
        if not self.answerable(message, caller):
            self.drop(message, "reply subject is not the caller's")
            return
        refusal = None if bypass else self._too_often(caller)
        if placed and not bypass and refusal is None:
            refusal = self._no_place(deadline, kind)
        if refusal is not None:
            self.refuse(message, refusal)
            return
        work = _Work(
            message,
            caller,
            handler,
            bypass=bypass or not placed,
            finishes=finishes,
            deadline=deadline,
            kind=kind,
        )
        self._works.add(work)
        if work.bypass or self.in_flight < self._max_parallel:
            self._begin(work)
        else:
            self.queued += 1
            self._queue.append(work)

    def give_up_place(self) -> None:
        """Of the request whose handler calls this: all it does from here on is to wait for
        something that another one has a place for.
        """
        handled = _handled.get(None)
        work = handled() if handled is not None else None
        if work is not None and not work.bypass:
            work.bypass = True
            self.in_flight -= 1
            self._begin_next()

    def answerable(self, message: Message, caller: str) -> bool:
        """Whether its answer would go to nobody but its caller."""
        return message.reply.startswith(f"{self._addresses}{caller}.")

    def answer(self, message: Message, payload: bytes) -> None:
        """Answer at once what needs no time, no task and no place."""
        if self.answerable(message, caller_of(message)):
            self._reply(message, payload)
        else:
            self.drop(message, "reply subject is not the caller's")

    def refuse(self, message: Message, error: MeshError) -> None:
        """Answer at once that nothing will be done."""
        self.answer(message, codec.encode(codec.error_reply(error)))

    def too_late(self) -> DeadlineExceededError:
        """Counts a request for which nothing is done; what to answer it."""
        self.expired += 1
        why = "nobody waits for this any more; nothing was done"
        return DeadlineExceededError(why, fields={"deadline": [why]})

    def drop(self, message: Message, why: str) -> None:
        """Count a message that cannot be answered. One line a second tells of all: anybody with a
        login can send them.
        """
        self.dropped += 1
        untold = self._drops_told.turn(self._clock.monotonic())
        if untold is not None:
            log.warning(
                "mesh.serving.message_dropped", subject=message.subject, why=why, untold=untold
            )

    def cancel(self, caller: str, request: str) -> bool:
        """Stop what that caller, and no other, asked under that id; whether there was anything.

        A place in the queue or a slot is free as soon as the loop comes round. What cannot be
        stopped is code that does not await: a thread runs to its end, though nobody waits for it.
        No answer goes out: who cancels has given up.
        """
        if not request:
            return False
        stopped = False
        for work in [work for work in self._works if work.caller == caller]:
            if work.id == request and not (work.begun and work.finishes):
                stopped |= self._cancel(work)
        return stopped

    def _cancel(self, work: _Work) -> bool:
        """Whether there was anything left to stop."""
        if work.task is None:
            self._queue.remove(work)
            self._works.discard(work)
            self.queued -= 1
            return True
        if work.begun:
            return work.task.cancel()
        was_due, work.handler = work.handler is not None, None
        return was_due  # a task that is cancelled before its first step would never clean up

    def _too_often(self, caller: str) -> OverloadedError | None:
        """Why this caller is not let in now. It is nobody else's trouble: it does not make this a
        busy node.
        """
        if self._limiter is not None and caller not in _UNLIMITED:
            verdict = self._limiter.check(caller, self._clock.monotonic())
            if not verdict.allowed:
                return OverloadedError(
                    f"{caller} asks {self._name} more often than {verdict.limit} times a period",
                    retry_after_ms=max(1, math.ceil(verdict.retry_after_s * 1000)),
                )
        return None

    def _no_place(self, deadline: int, kind: str) -> OverloadedError | None:
        """Why nobody is let in now."""
        if self.in_flight < self._max_parallel:
            return None
        wait_ms = self._queueing.wait_ms(self.queued)
        if self.queued >= self._max_queued:
            self._refused_at = self._clock.monotonic()
            why = f"{self._name} has as much work as it takes"
        elif not deadline or self._in_time(self.queued, deadline, kind):
            return None
        else:
            if self._in_time(0, deadline, kind):  # a caller in a hurry does not make it a busy node
                self._refused_at = self._clock.monotonic()
            why = f"{self._name} could not begin this for {wait_ms:.0f} ms: too late for its caller"
        return OverloadedError(why, retry_after_ms=max(_LEAST_RETRY_MS, round(wait_ms)))

    def _in_time(self, queued: int, deadline: int, kind: str) -> bool:
        return self._queueing.in_time(queued, deadline - self._clock.unix_ms(), kind=kind)

    def _begin(self, work: _Work) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self.in_flight += not work.bypass
        work.task = self._loop.create_task(self._run(work))

    async def _run(self, work: _Work) -> None:
        work.begun = True
        _handled.set(weakref.ref(work))
        began = self._clock.monotonic()
        cut_short = True
        try:
            if work.handler is not None:
                cut_short = await self._answer(work.message, work.caller, work.handler)
        finally:
            self._works.discard(work)
            if not work.bypass:
                if work.handler is not None:
                    took_ms = (self._clock.monotonic() - began) * 1000
                    self._queueing.ended(took_ms, kind=work.kind, cut_short=cut_short)
                self.in_flight -= 1
                self._begin_next()

    def _begin_next(self) -> None:
        while self._queue and self.in_flight < self._max_parallel:
            self.queued -= 1
            work = self._queue.popleft()
            if work.deadline and self._clock.unix_ms() >= work.deadline:
                self._works.discard(work)
                self.refuse(work.message, self.too_late())
            else:
                self._begin(work)

    async def _answer(self, message: Message, caller: str, handler: Respond) -> bool:
        """Whether it was ended by its deadline."""
        late = False
        try:
            payload = await handler(caller)
        except MeshError as error:
            late = isinstance(error, DeadlineExceededError)
            payload = codec.encode(codec.error_reply(error))
        except Exception:
            reference = secrets.token_hex(8)
            log.exception(
                "mesh.serving.handler_failed", subject=message.subject, reference=reference
            )
            failure = InternalError("something went wrong in the node", reference=reference)
            payload = codec.encode(codec.error_reply(failure))
        self._reply(message, payload)
        return late

    def _reply(self, message: Message, payload: bytes) -> None:
        try:
            try:
                self._bus.publish(message.reply, payload)
            except TooLargeError as error:
                refusal = TooLargeError(f"the answer is too large: {error}; ask for less")
                self._bus.publish(message.reply, codec.encode(codec.error_reply(refusal)))
        except MeshError as error:
            log.warning("mesh.serving.reply_lost", subject=message.subject, error=str(error))

    async def drain(self, grace_s: float) -> None:
        """Let what has come in finish for `grace_s` seconds, then cancel what is left."""
        give_up = self._clock.monotonic() + grace_s
        while running := self._tasks():  # what was queued begins when these end
            left_s = give_up - self._clock.monotonic()
            if left_s <= 0:
                break
            await asyncio.wait(running, timeout=left_s)
        while works := list(self._works):
            for work in works:
                self._cancel(work)
            await asyncio.gather(*self._tasks(), return_exceptions=True)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [work.task for work in self._works if work.task is not None]


def caller_of(message: Message) -> str:
    """Who asks: the broker lets nobody publish under another's name."""
    return message.subject.rpartition(".")[2]
