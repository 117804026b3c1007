"""Answering requests: who asks, where the answer may go, how much runs at once.

A node or master never lets a request decide where its answer goes: it replies only on
`mesh.v1.re.<itself>.<caller of the request>.…` and drops, counted, what asks for anything else.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Awaitable, Callable

import structlog

from mesh.config import RateLimitConfig
from mesh.core.rate_limit import RateLimiter
from mesh.core.seldom import Seldom
from mesh.errors import InternalError, MeshError, OverloadedError, TooLargeError
from mesh.ports import Bus, Clock, Message
from mesh.wire import codec
from mesh.wire.messages import Request
from mesh.wire.subjects import PREFIX

log = structlog.get_logger()

Respond = Callable[[str], Awaitable[bytes]]
"""Given the caller, makes the encoded reply; raises MeshErrors."""

_SMOOTHING = 0.1
_LEAST_RETRY_MS = 50
_UNLIMITED = frozenset({"gateway"})
"""It limits its own clients, and carries all of them."""
_CALLERS_COUNTED = 10_000


class _Work:
    """One request that is queued or runs."""

    __slots__ = ("_id", "finishes", "message", "task", "waiting")

    def __init__(self, message: Message, *, finishes: bool, waiting: bool) -> None:
        self.message = message
        self.finishes = finishes
        """What has begun is not stopped for a caller that gave up."""
        self.waiting = waiting
        """It is in the queue of the bulkhead."""
        self.task: asyncio.Task[None] | None = None
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
        self._slots = asyncio.Semaphore(max_parallel)
        self._limiter = (
            RateLimiter(rate_limit.bus_max_attempts, rate_limit.period_s, capacity=_CALLERS_COUNTED)
            if rate_limit is not None and rate_limit.bus
            else None
        )
        self._works: dict[str, set[_Work]] = {}
        """By caller."""
        self._service_ms = 0.0
        self.in_flight = 0
        self.queued = 0
        self.dropped = 0
        self._drops_told = Seldom()
        self._refused_at: float | None = None

    def refused_within(self, seconds: float) -> bool:
        """Whether work was pushed back that recently."""
        at = self._refused_at
        return at is not None and self._clock.monotonic() - at < seconds

    def serve(
        self, message: Message, handler: Respond, *, bypass: bool = False, finishes: bool = False
    ) -> None:
        """Answer `message` with what `handler` gives; returns at once.

        Args:
            message: The request; the last token of its subject is the caller.
            handler: Runs in a task of its own.
            bypass: Neither counted nor queued nor limited: pings must be answered by a busy node
                too.
            finishes: Once it has begun, `cancel` no longer stops it.
        """
        caller = caller_of(message)
        if not self.answerable(message, caller):
            self.drop(message, "reply subject is not the caller's")
            return
        if not bypass and (refusal := self._refusal(caller)) is not None:
            self._reply(message, codec.encode(codec.error_reply(refusal)))
            return
        work = _Work(message, finishes=finishes, waiting=not bypass)
        run = self._answer if bypass else self._queue
        self.queued += work.waiting  # counted now: many may arrive before the first task runs
        work.task = asyncio.get_running_loop().create_task(run(work, caller, handler))
        self._works.setdefault(caller, set()).add(work)
        work.task.add_done_callback(lambda _task: self._ended(work, caller))

    def answerable(self, message: Message, caller: str) -> bool:
        """Whether its answer would go to nobody but its caller."""
        return message.reply.startswith(f"{PREFIX}.re.{self._name}.{caller}.")

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
        stopped = False
        for work in self._works.get(caller, ()):
            if request and work.id == request and (work.waiting or not work.finishes):
                stopped |= work.task is not None and work.task.cancel()
        return stopped

    def _refusal(self, caller: str) -> OverloadedError | None:
        """Why this caller is not let in now. One that asks too often is nobody else's trouble: it
        does not make this a busy node.
        """
        if self._limiter is not None and caller not in _UNLIMITED:
            verdict = self._limiter.check(caller, self._clock.monotonic())
            if not verdict.allowed:
                return OverloadedError(
                    f"{caller} asks {self._name} more often than {verdict.limit} times a period",
                    retry_after_ms=max(1, math.ceil(verdict.retry_after_s * 1000)),
                )
        if self.in_flight + self.queued < self._max_parallel + self._max_queued:
            return None
        self._refused_at = self._clock.monotonic()
        wait_ms = self._service_ms * (self.queued + 1) / self._max_parallel
        return OverloadedError(
            f"{self._name} has as much work as it takes",
            retry_after_ms=max(_LEAST_RETRY_MS, round(wait_ms)),
        )

    async def _queue(self, work: _Work, caller: str, handler: Respond) -> None:
        async with self._slots:
            self._left_queue(work)
            self.in_flight += 1
            began = self._clock.monotonic()
            try:
                await self._answer(work, caller, handler)
            finally:
                self.in_flight -= 1
                took_ms = (self._clock.monotonic() - began) * 1000
                self._service_ms += _SMOOTHING * (took_ms - self._service_ms)

    def _left_queue(self, work: _Work) -> None:
        self.queued -= work.waiting
        work.waiting = False

    def _ended(self, work: _Work, caller: str) -> None:
        self._left_queue(work)  # also of a task that was cancelled before its first step
        mine = self._works[caller]
        mine.discard(work)
        if not mine:
            del self._works[caller]

    async def _answer(self, work: _Work, caller: str, handler: Respond) -> None:
        message = work.message
        try:
            payload = await handler(caller)
        except MeshError as error:
            payload = codec.encode(codec.error_reply(error))
        except Exception:
            reference = secrets.token_hex(8)
            log.exception(
                "mesh.serving.handler_failed", subject=message.subject, reference=reference
            )
            failure = InternalError("something went wrong in the node", reference=reference)
            payload = codec.encode(codec.error_reply(failure))
        self._reply(message, payload)

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
        """Let running handlers finish for `grace_s` seconds, then cancel what is left."""
        if running := self._tasks():
            await asyncio.wait(running, timeout=grace_s)
        leftover = self._tasks()
        for task in leftover:
            task.cancel()
        await asyncio.gather(*leftover, return_exceptions=True)

    def _tasks(self) -> list[asyncio.Task[None]]:
        works = (work for mine in self._works.values() for work in mine)
        return [work.task for work in works if work.task is not None]


def caller_of(message: Message) -> str:
    """Who asks: the broker lets nobody publish under another's name."""
    return message.subject.rpartition(".")[2]
