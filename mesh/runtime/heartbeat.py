"""A node's heartbeat, from a thread and a connection of its own.

A main loop that is busy, or blocked by a handler, is late (and says so), never dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from mesh.errors import MeshError
from mesh.ports import Bus, Clock
from mesh.wire import codec, subjects
from mesh.wire.messages import Heartbeat

log = structlog.get_logger()

_JITTER = 0.1
_STOP_TIMEOUT_S = 5.0
_LOG_EVERY = 60
"""Failures in a row of which one is a warning."""

Compose = Callable[[], Heartbeat]
"""Makes a heartbeat without lag and sequence; called in the main loop."""


class HeartbeatThread:
    """Beats until stopped; keeps trying while the broker is away."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Bus]],
        compose: Compose,
        *,
        node: str,
        interval_s: float,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._connect = connect
        self._compose = compose
        self._subject = subjects.heartbeat(node)
        self._interval_s = interval_s
        self._clock = clock
        self._rng = rng
        self._main = asyncio.get_running_loop()
        self._latest = compose()
        self._asked_at: float | None = None
        self._lag_s = 0.0
        self._sequence = 0
        self._own: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._connecting: asyncio.Future[Bus] | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"heartbeat-{node}", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def beat_now(self) -> int:
        """Do not wait for the interval: something changed that callers should know. The number of
        the last heartbeat that may not tell of it.
        """
        self._latest = self._compose()
        sequence = self._sequence  # counted before `_latest` is read: later ones tell of it
        self._call_own(self._ring)
        return sequence

    async def stop(self) -> None:
        """End the thread and its connection, also one that is still looking for the broker."""
        self._stopping = True
        self._call_own(self._end)
        await asyncio.to_thread(self._thread.join, _STOP_TIMEOUT_S)

    def _ring(self) -> None:
        if self._wake is not None:
            self._wake.set()

    def _end(self) -> None:
        self._ring()
        if self._connecting is not None:
            self._connecting.cancel()

    def _call_own(self, callback: Callable[[], None]) -> None:
        loop = self._own
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the thread ended meanwhile
                loop.call_soon_threadsafe(callback)

    # -- in the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._beat())
        except Exception:
            log.exception("mesh.heartbeat.thread_died", subject=self._subject)

    async def _beat(self) -> None:
        self._own = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        failures = 0
        while not self._stopping:
            try:
                await self._beat_on(await self._connected(), self._wake)
            except asyncio.CancelledError:
                if not self._stopping:
                    raise
            except Exception as error:  # noqa: BLE001 (a node without heartbeat is dead to all)
                level = log.debug if failures % _LOG_EVERY else log.warning
                level("mesh.heartbeat.interrupted", subject=self._subject, error=repr(error))
                failures += 1
                if not self._stopping:
                    await self._pause(self._wake)

    async def _connected(self) -> Bus:
        self._connecting = asyncio.ensure_future(self._connect())
        try:
            return await self._connecting
        finally:
            self._connecting = None

    async def _beat_on(self, bus: Bus, wake: asyncio.Event) -> None:
        try:
            while not self._stopping:
                self._ask_main()
                try:
                    bus.publish(self._subject, self._next())
                except MeshError as error:
                    log.debug("mesh.heartbeat.skipped", error=str(error))
                await self._pause(wake)
        finally:
            await bus.close()

    async def _pause(self, wake: asyncio.Event) -> None:
        wake.clear()
        wait_s = self._interval_s * self._rng.uniform(1 - _JITTER, 1 + _JITTER)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await wake.wait()

    def _next(self) -> bytes:
        self._sequence += 1
        lag_s = self._lag_s
        if self._asked_at is not None:  # not answered yet: at least this late
            lag_s = max(lag_s, self._clock.monotonic() - self._asked_at)
        beat = self._latest
        lag_ms = round(lag_s * 1000, 1)
        return codec.encode(msgspec.structs.replace(beat, sequence=self._sequence, lag_ms=lag_ms))

    def _ask_main(self) -> None:
        """Have the main loop make the next heartbeat; how long that takes is its lag."""
        if self._asked_at is None:
            self._asked_at = self._clock.monotonic()
            with contextlib.suppress(RuntimeError):  # the main loop is closed: the node is ending
                self._main.call_soon_threadsafe(self._answer)

    # -- in the main loop --------------------------------------------------------------------------

    def _answer(self) -> None:
        self._latest = self._compose()
        asked_at = self._asked_at
        if asked_at is not None:
            self._lag_s = self._clock.monotonic() - asked_at
        self._asked_at = None
