"""One action between its acceptance and its outcome, and how it is stopped."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from types import TracebackType

from mesh.errors import MeshError, UnavailableError
from mesh.runtime.action_context import Control
from mesh.runtime.action_records import Fingerprint
from mesh.wire.messages import ActionRequest, HistoryRecord

_MOST_WAITING = 1024
"""For one action. Whoever asks again and again has given up what he asked first."""
_SHORT_S = 1.0
_TICKS_A_SECOND = 100
_COARSE = 10
"""Long waits end within a tenth of a second, short ones within a hundredth."""


class StoppedError(Exception):
    """Somebody wants it stopped; what was awaited has been given up."""


class TimeIsUpError(Exception):
    """It has had its time; what was awaited has been given up."""


class Run:
    """One action. For the event loop alone."""

    __slots__ = ("cancelled_by", "control", "expirable", "fingerprint", "hits", "late", "request",
                 "stoppable", "task", "waiting")  # fmt: skip

    def __init__(self, request: ActionRequest, fingerprint: Fingerprint) -> None:
        self.request = request
        self.fingerprint = fingerprint
        self.task: asyncio.Task[HistoryRecord] | None = None
        self.waiting: list[asyncio.Future[HistoryRecord]] = []
        """Those who want to hear its outcome."""
        self.control: Control | None = None
        """Of the attempt that runs."""
        self.cancelled_by = ""
        """Who wants it stopped."""
        self.late = False
        """The attempt has had its time."""
        self.stoppable = self.expirable = False
        """What the task awaits can be given up, for either reason."""
        self.hits = 0
        """How often it was."""

    def cancel(self, by: str) -> None:
        """Stop it, if it has not come to its end; the task tells how it ended."""
        if self.control is not None:
            self.control.stop()
        if self.stoppable and not self.cancelled_by:
            self._hit()
        self.cancelled_by = self.cancelled_by or by

    def expire(self) -> None:
        """The attempt has had its time."""
        if self.control is not None:
            self.control.stop()  # a thread may still hear of it
        if self.expirable and not self.late:
            self.late = True
            self._hit()

    def _hit(self) -> None:
        if self.task is not None:
            self.hits += 1
            self.task.cancel()

    async def end(self) -> HistoryRecord:
        """Its outcome. It goes on if this one gives up: its outcome answers the next."""
        waiting: asyncio.Future[HistoryRecord] = asyncio.get_running_loop().create_future()
        if len(self.waiting) == _MOST_WAITING:
            _tell(self.waiting.pop(1), _crowded())  # the first one's place is the action's
        self.waiting.append(waiting)
        return await waiting

    def tell(self, error: MeshError) -> None:
        """Whoever waits hears this at once, and nothing of the end."""
        while self.waiting:
            _tell(self.waiting.pop(), error)

    def ended(self, task: asyncio.Task[HistoryRecord]) -> None:
        """Tell everybody who waits."""
        failure = None if task.cancelled() else task.exception()
        for waiting in self.waiting:
            if waiting.done():
                continue
            if task.cancelled():
                waiting.cancel()
            elif failure is not None:
                waiting.set_exception(failure)
            else:
                waiting.set_result(task.result())


def _tell(waiting: asyncio.Future[HistoryRecord], error: MeshError) -> None:
    if not waiting.done():
        waiting.set_exception(error)


def _crowded() -> MeshError:
    return UnavailableError(
        f"more than {_MOST_WAITING} wait for the end of this action; ask again", retry_after_ms=1000
    )


class Stoppable:
    """While inside, `Run.cancel` (or with `expires`, `Run.expire`) ends what the run's task awaits.

    Raises:
        StoppedError, TimeIsUpError: On the way out, instead of the task's CancelledError, if that
            was why; StoppedError also on the way in, if it was cancelled before.
    """

    __slots__ = ("_expires", "_run", "_stops")

    def __init__(self, run: Run, *, stops: bool = True, expires: bool = False) -> None:
        self._run = run
        self._stops = stops
        self._expires = expires

    def __enter__(self) -> None:
        run = self._run
        if run.cancelled_by:
            raise StoppedError
        run.stoppable, run.expirable = self._stops, self._expires

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        run = self._run
        run.stoppable = run.expirable = False
        if not run.hits:
            return
        left = 0
        while run.hits:
            run.hits -= 1
            left = run.task.uncancel() if run.task is not None else 0
        if not left and isinstance(error, asyncio.CancelledError):  # else the node itself stops
            raise (TimeIsUpError if run.late else StoppedError) from None


class Alarms:
    """Calls something when its time is up: one timer for all that end together, since nearly none
    of them is ever heard.
    """

    def __init__(self) -> None:
        self._due: dict[int, set[Callable[[], None]]] = {}

    def set(self, seconds: float, ring: Callable[[], None]) -> Callable[[], None]:
        """Call `ring` after so many seconds, unless the answer is called before."""
        loop = asyncio.get_running_loop()
        tick = math.ceil((loop.time() + seconds) * _TICKS_A_SECOND)
        if seconds > _SHORT_S:
            tick = -(-tick // _COARSE) * _COARSE
        due = self._due.get(tick)
        if due is None:
            due = self._due[tick] = set()
            loop.call_at(tick / _TICKS_A_SECOND, self._ring, tick)
        due.add(ring)
        return lambda: due.discard(ring)

    def _ring(self, tick: int) -> None:
        for ring in self._due.pop(tick):
            ring()
