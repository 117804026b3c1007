"""One saga, run step by step by the leading master.

    record stored ─► step asked for ─► outcome known ─► next record stored ─► …

Every record is stored on condition that nobody has stored another one since: whoever lost the lead
without noticing, or was paused, fails to store and lets the saga go. Whoever takes one over stores
that first, before it sends anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar, assert_never

import structlog

from mesh.core import saga as rules
from mesh.core.saga import Ask, Begin, Rest
from mesh.core.saga_events import Event, TakenOver, TimedOut
from mesh.errors import DeadlineExceededError, InternalError, UnavailableError
from mesh.ports import Clock, OutdatedError, SagaLog, SagaStore, StoredSaga
from mesh.runtime.saga_steps import Backoff, Sent, Steps
from mesh.wire import codec
from mesh.wire.messages import Saga

T = TypeVar("T")

log = structlog.get_logger()


class LostError(Exception):
    """Somebody else runs the saga."""


class Workshop(NamedTuple):
    """What every saga of a master is run with."""

    log: SagaLog
    store: SagaStore
    steps: Steps
    clock: Clock
    backoff: Backoff
    most_attempts: int
    """Of a compensation."""
    leads: Callable[[], bool]


class Drive:
    """Runs one saga until it rests: it has ended, waits for a person, or is somebody else's."""

    def __init__(self, saga_id: str, runner: str, workshop: Workshop) -> None:
        """Args:
        saga_id: Which.
        runner: Who runs it, a name of this term alone.
        workshop: With what.
        """
        self.id = saga_id
        self._runner = runner
        self._tools = workshop
        self._sequence = 0
        self._seen = 0
        """The newest sequence that anybody told of."""
        self._sent = Sent(ever=True)
        self._asking: asyncio.Timeout | None = None
        self._dropped = False

    def changed(self, stored: StoredSaga) -> None:
        """The stream has this record of it."""
        self._seen = max(self._seen, stored.sequence)
        if self._outdated:
            self._interrupt()

    def drop(self) -> None:
        """It is not ours any more."""
        self._dropped = True
        self._interrupt()

    @property
    def _outdated(self) -> bool:
        return self._seen > self._sequence

    def _interrupt(self) -> None:
        """Nothing is lost: what was asked is asked again, under the same id."""
        if self._asking is not None and not self._asking.expired():
            self._asking.reschedule(asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Until it rests."""
        try:
            saga = await self._take()
            while saga is not None:
                move = rules.next_move(saga)
                match move:
                    case Rest():
                        return
                    case Begin():
                        saga = await self._put(saga, TakenOver(self._runner))
                    case Ask():
                        event = await self._learn(saga, move)
                        saga = await (self._reload() if event is None else self._put(saga, event))
                    case _:
                        assert_never(move)
        except LostError as error:
            log.info("mesh.saga.let_go", id=self.id, reason=str(error))

    # -- records -----------------------------------------------------------------------------------

    async def _take(self) -> Saga | None:
        """Its newest record; ours from now on, if there is anything to do."""
        while True:
            stored = await self._patiently(
                lambda: newest_of(self._tools.log, self._tools.store, self.id)
            )
            if stored is None or isinstance(rules.next_move(stored.saga), Rest):
                return None
            self._sequence = stored.sequence
            asked_for = isinstance(rules.next_move(stored.saga), Ask)
            try:
                taken = await self._put(stored.saga, TakenOver(self._runner))
            except LostError:
                self._check()
                continue  # somebody aborted it, or another master did not know yet
            self._sent = Sent(ever=asked_for)
            return taken

    async def _reload(self) -> Saga:
        """The record that somebody else has stored: to abort it, or since it is his now."""
        stored = await self._patiently(lambda: self._tools.log.last(self.id))
        return self._adopted(stored)

    def _adopted(self, stored: StoredSaga | None) -> Saga:
        if stored is None or stored.saga.runner != self._runner:
            raise LostError("somebody else runs it")
        self._sequence = stored.sequence
        return stored.saga

    async def _put(self, saga: Saga, event: Event) -> Saga:
        """Store what follows from `event`; what is the newest record then."""
        made = rules.after(
            saga,
            event,
            now=self._tools.clock.unix_ms(),
            most_attempts=self._tools.most_attempts,
        )
        if made is saga:
            return saga

        async def append() -> Saga:
            try:
                sequence = await self._tools.log.append(made, after=self._sequence)
            except OutdatedError:
                stored = await self._tools.log.last(self.id)
                if stored is not None and codec.encode(stored.saga) == codec.encode(made):
                    sequence = stored.sequence  # an acknowledgement was lost
                else:
                    return self._adopted(stored)
            self._sequence = sequence
            return made

        newest = await self._patiently(append)
        if _asked_for(newest) != _asked_for(saga):
            self._sent = Sent(ever=False)
        return newest

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do it as often as it takes, as long as this master leads.

        Raises:
            LostError
        """
        failures = 0
        while True:
            self._check()
            try:
                return await work()
            except (UnavailableError, DeadlineExceededError, InternalError) as error:
                failures += 1
                delay_s = self._tools.backoff.after(failures)
                log.warning("mesh.saga.waiting", id=self.id, error=str(error), retry_s=delay_s)
            await self._tools.clock.sleep(delay_s)

    # -- steps -------------------------------------------------------------------------------------

    async def _learn(self, saga: Saga, ask: Ask) -> Event | None:
        """How it ended, or that it took too long; None: the record is not the newest any more."""
        self._check()
        if self._outdated:
            return None
        clock = self._tools.clock
        due = rules.due_at(saga)
        left_s = None if due is None else max((due[0] - clock.unix_ms()) / 1000, 0)
        try:
            async with asyncio.timeout(left_s) as self._asking:
                return await self._tools.steps.learn(
                    ask,
                    caller=saga.caller,
                    begun_at=saga.steps[ask.step].began_at,
                    sent=self._sent,
                )
        except TimeoutError:
            if self._outdated or self._dropped:
                return None
            if due is None:
                raise
            return TimedOut(due[1])
        finally:
            self._asking = None

    def _check(self) -> None:
        """Raises: LostError."""
        if self._dropped or not self._tools.leads():
            raise LostError("this master leads no more")


def _asked_for(saga: Saga) -> tuple[str, int] | None:
    move = rules.next_move(saga)
    return (move.id, move.retry) if isinstance(move, Ask) else None


async def newest_of(saga_log: SagaLog, store: SagaStore, saga_id: str) -> StoredSaga | None:
    """What the stream has; if that was lost or has aged away, the copy is good as well.

    Raises:
        UnavailableError, DeadlineExceededError
    """
    stored = await saga_log.last(saga_id)
    copy = await store.find(saga_id)
    if copy is not None and (stored is None or stored.saga.version < copy.version):
        return StoredSaga(stored.sequence if stored else 0, copy)
    return stored
