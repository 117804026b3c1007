"""Answering requests: who asks, where the answer may go, how much runs at once.

A node or master never lets a request decide where its answer goes: it replies only on
`mesh.v1.re.<itself>.<caller of the request>.…` and drops, counted, what asks for anything else.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable

import structlog

from mesh.errors import InternalError, MeshError, OverloadedError, TooLargeError
from mesh.ports import Bus, Clock, Message
from mesh.wire import codec
from mesh.wire.subjects import PREFIX

log = structlog.get_logger()

Respond = Callable[[str], Awaitable[bytes]]
"""Given the caller, makes the encoded reply; raises MeshErrors."""

_SMOOTHING = 0.1
_LEAST_RETRY_MS = 50


class Responder:
    """Runs at most `max_parallel` handlers at a time, queues `max_queued`, refuses the rest.

    Source: Nygard, *Release It!* (2007), "Bulkheads".
    """

    def __init__(
        self, bus: Bus, clock: Clock, *, name: str, max_parallel: int, max_queued: int
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._name = name
        self._max_parallel = max_parallel
        self._max_queued = max_queued
        self._slots = asyncio.Semaphore(max_parallel)
        self._tasks: set[asyncio.Task[None]] = set()
        self._service_ms = 0.0
        self.in_flight = 0
        self.queued = 0
        self.dropped = 0
        self._refused_at: float | None = None

    def refused_within(self, seconds: float) -> bool:
        """Whether work was pushed back that recently."""
        at = self._refused_at
        return at is not None and self._clock.monotonic() - at < seconds

    def serve(self, message: Message, handler: Respond, *, bypass: bool = False) -> None:
        """Answer `message` with what `handler` gives; returns at once.

        Args:
            message: The request; the last token of its subject is the caller.
            handler: Runs in a task of its own.
            bypass: Neither counted nor queued: pings must be answered by a busy node too.
        """
        caller = message.subject.rpartition(".")[2]
        if not message.reply.startswith(f"{PREFIX}.re.{self._name}.{caller}."):
            self.drop(message, "reply subject is not the caller's")
            return
        if not bypass and self.in_flight >= self._max_parallel and self.queued >= self._max_queued:
            self._refused_at = self._clock.monotonic()
            wait_ms = self._service_ms * (self.queued + 1) / self._max_parallel
            refusal = OverloadedError(
                f"{self._name} has as much work as it takes",
                retry_after_ms=max(_LEAST_RETRY_MS, round(wait_ms)),
            )
            self._reply(message, codec.encode(codec.error_reply(refusal)))
            return
        run = (
            self._answer(message, caller, handler)
            if bypass
            else self._queue(message, caller, handler)
        )
        task = asyncio.get_running_loop().create_task(run)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def drop(self, message: Message, why: str) -> None:
        """Count a message that cannot be answered."""
        self.dropped += 1
        log.warning("mesh.serving.message_dropped", subject=message.subject, why=why)

    async def _queue(self, message: Message, caller: str, handler: Respond) -> None:
        self.queued += 1
        waiting = True
        try:
            async with self._slots:
                self.queued -= 1
                waiting = False
                self.in_flight += 1
                began = self._clock.monotonic()
                try:
                    await self._answer(message, caller, handler)
                finally:
                    self.in_flight -= 1
                    took_ms = (self._clock.monotonic() - began) * 1000
                    self._service_ms += _SMOOTHING * (took_ms - self._service_ms)
        finally:
            if waiting:
                self.queued -= 1

    async def _answer(self, message: Message, caller: str, handler: Respond) -> None:
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
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=grace_s)
        leftover = set(self._tasks)
        for task in leftover:
            task.cancel()
        if leftover:
            await asyncio.gather(*leftover, return_exceptions=True)
