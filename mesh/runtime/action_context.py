"""What an action may know of the request it serves, and how it hears and tells while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog

from mesh.wire import codec

_TELL_EVERY_S = 0.25
_MOST_NOTE_CHARS = 500

Tell = Callable[[float | None, str], None]
"""Given fraction and note."""
Later = Callable[[float, Callable[[], None]], object]
"""Given seconds and what to do then."""


def _nobody(_fraction: float | None, _note: str) -> None:
    """Where nobody wants to know."""


class Control:
    """Between an executor and one attempt, which may run in a thread. The executor's side is for
    the event loop alone.
    """

    __slots__ = ("_ended", "_later", "_latest", "_loop", "_noticed", "_now", "_stopped", "_tell",
                 "_told_at", "_untold", "_waiting", "thread")  # fmt: skip

    def __init__(
        self,
        tell: Tell = _nobody,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        now: Callable[[], float] | None = None,
        later: Later | None = None,
    ) -> None:
        """Args:
        tell: Hears of progress, a few times a second at most.
        loop: Where `tell` is called; None: nowhere.
        now: Seconds of a clock that never goes back; None: the loop's.
        later: Calls something after some seconds; None: the loop's.
        """
        self._tell = tell
        self._loop = loop
        self._now = now
        self._later = later
        self._stopped = self._noticed = self._ended = False
        self._latest: tuple[float | None, str] = (None, "")
        self._untold = False
        self._told_at = -math.inf
        self._waiting: list[asyncio.Future[None]] = []
        self.thread: asyncio.Future[object] | None = None
        """Done when the thread ends that the attempt runs in; None: it runs in none."""

    # -- the executor's side -------------------------------------------------------------------

    def stop(self) -> None:
        """Nobody wants this attempt any more; it is for its code to look."""
        self._stopped = True
        for waiting in list(self._waiting):
            with contextlib.suppress(RuntimeError):  # of a loop that has ended
                waiting.get_loop().call_soon_threadsafe(_wake, waiting)

    def end(self) -> None:
        """What it tells from now on, a thread that was left behind perhaps, is of no interest."""
        self._ended = True

    @property
    def noticed(self) -> bool:
        """Whether its code has looked since `stop`: what it did then, it did knowing."""
        return self._noticed

    @property
    def left_behind(self) -> asyncio.Future[object] | None:
        """Its thread, if that still runs: nothing can stop it."""
        return None if self.thread is None or self.thread.done() else self.thread

    # -- the action's side, from any thread ------------------------------------------------------

    def stopped(self) -> bool:
        if self._stopped:
            self._noticed = True
        return self._stopped

    async def until_stopped(self) -> None:
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)  # before the look: `stop` may come from another thread
        try:
            if not self._stopped:
                await waiting
        finally:
            self._waiting.remove(waiting)
        self._noticed = True

    def progress(self, fraction: float | None, note: str) -> None:
        if fraction is not None:
            fraction = float(fraction)
            fraction = min(1.0, max(0.0, fraction)) if math.isfinite(fraction) else None
        self._latest = (fraction, codec.clean(str(note)[:_MOST_NOTE_CHARS]))
        if self._loop is not None and not self._untold:  # else the newest is told with the last
            self._untold = True
            with contextlib.suppress(RuntimeError):  # the node has ended; a thread was left behind
                self._loop.call_soon_threadsafe(self._soon)

    def _soon(self) -> None:
        loop = self._loop
        if self._ended or loop is None:
            return
        now = (self._now or loop.time)()
        wait_s = self._told_at + _TELL_EVERY_S - now
        if wait_s > 0:
            (self._later or loop.call_later)(wait_s, self._soon)
            return
        self._told_at = now
        self._untold = False
        self._tell(*self._latest)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


@dataclass(frozen=True, slots=True)
class ActionContext:
    """What an action may know of the request it serves, and what it may say meanwhile."""

    id: str
    """The idempotency key; equal on every attempt."""
    node: str
    caller: str
    """Who asked: the identity the broker vouches for."""
    attempt: int
    """1 for the first."""
    deadline: int
    """Unix ms after which nobody waits; 0: none."""
    action: str = ""
    _control: Control = field(default_factory=Control, repr=False, compare=False)

    @property
    def log(self) -> structlog.typing.FilteringBoundLogger:
        """For what the node's operator should read; it names the action and its id."""
        logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(
            action=self.action, id=self.id
        )
        return logger

    def occupies(self, thread: asyncio.Future[Any]) -> None:
        """The attempt runs in a thread, which has ended when this is done. For the SDK."""
        self._control.thread = thread

    @property
    def cancelled(self) -> bool:
        """Whether somebody wants it stopped, or its time is up. A function that runs in a thread
        should look now and then: nothing else can stop it. What returns or raises after it saw True
        has ended as `cancelled`; what never looks ends as it ends.
        """
        return self._control.stopped()

    async def until_cancelled(self) -> None:
        """Return when `cancelled` is true. A coroutine need not: it is cancelled as any task is."""
        await self._control.until_stopped()

    def progress(self, fraction: float | None = None, note: str = "") -> None:
        """Tell whoever listens how far it is, from a thread too; as often as you like: the newest
        word goes out four times a second.

        Args:
            fraction: 0..1; None: not known.
            note: For people, 500 characters at most.
        """
        self._control.progress(fraction, note)
