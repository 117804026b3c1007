"""Keeps the searchable copy of the action history in step with the stream.

Rows and the place in the stream are saved in one transaction, so a crash at any point repeats work
at most; records are joined, so repeating changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import structlog

from mesh.core.backoff import Backoff, BackoffPolicy
from mesh.errors import InvalidError, MeshError
from mesh.ports import ActionIndex, Bus, Clock, History, Message, Place, Subscription
from mesh.runtime.background import Background
from mesh.wire import subjects
from mesh.wire.messages import HistoryRecord

log = structlog.get_logger()

_BATCH = 256
_GATHER_S = 0.1
"""How long what is heard of waits for more, unless somebody asks: an action that has ended by then
is written once.
"""
_LOOK_EVERY_S = 2.0
_STOP_WITHIN_S = 2.0
_RETRY = BackoffPolicy(first_s=0.1, limit_s=5.0)


class HistoryIndex:
    """Reads the stream into SQL, oldest first, never skipping one that can be stored."""

    def __init__(
        self, bus: Bus, history: History, index: ActionIndex, clock: Clock, background: Background
    ) -> None:
        self._bus = bus
        self._history = history
        self._index = index
        self._background = background
        self._clock = clock
        self._wake = asyncio.Event()
        self._asked = asyncio.Event()
        self._moved = asyncio.Condition()
        self.writing = asyncio.Lock()
        """Held by whoever writes to the index: a transaction that is cancelled half-way may keep
        the database locked until its connection is gone.
        """
        self._backoff = Backoff(_RETRY)
        self._subscription: Subscription | None = None
        self._place: Place | None = None
        self._prepared = False
        self.unstorable = 0
        """Records that the database cannot hold, passed over."""

    async def start(self) -> None:
        """Make the stream if the broker has none, and begin to follow it."""
        try:
            await self._prepare()
        except MeshError as error:
            log.warning("mesh.history.stream_waiting", error=str(error))
        self._subscription = await self._bus.subscribe(subjects.HISTORY_SUBJECTS, self._heard)
        self._background.repeat("history-index", self._round)

    async def stop(self) -> None:
        """Hear and write no more; the background tasks are their owner's to end."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_WITHIN_S):
                await self.writing.acquire()  # for good

    async def reach(self, sequence: int, *, timeout_s: float) -> bool:
        """Wait until everything up to `sequence` is indexed; False if that takes too long."""
        if self._is_at(sequence):
            return True
        self._wake.set()
        self._asked.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: self._is_at(sequence))
                return True
        return False

    def _is_at(self, sequence: int) -> bool:
        return self._place is not None and self._place.cursor >= sequence

    def _heard(self, _message: Message) -> None:
        self._wake.set()  # a hint: what counts is what the stream says

    async def _round(self) -> None:
        self._wake.clear()
        self._asked.clear()
        try:
            behind = await self._advance()
        except MeshError as error:
            self._prepared = False  # the broker may have come back without its store
            delay_s = self._backoff.died(0.0)
            log.warning("mesh.history.index_waiting", error=str(error), retry_s=delay_s)
            await self._clock.sleep(delay_s)
            return
        self._backoff = Backoff(_RETRY)
        if not behind:
            await _or_later(self._wake, _LOOK_EVERY_S)
            await _or_later(self._asked, _GATHER_S)

    async def _prepare(self) -> None:
        if not self._prepared:
            await self._history.prepare()
            self._prepared = True

    async def _advance(self) -> bool:
        """Index the next batch; True if there may be more at once."""
        await self._prepare()
        place = await self._index.place()  # another master may have gone further
        records, read = await self._history.read(place.cursor, _BATCH)
        if read > place.cursor:
            async with self.writing:
                place = await self._save(records, Place(place.base, read))
            await self._move(place)
            return len(records) >= _BATCH
        if await self._history.last_sequence() < place.cursor:
            # Somebody made the stream anew: its records are all new to us.
            log.warning("mesh.history.stream_restarted", cursor=place.cursor)
            async with self.writing:
                place = await self._index.restart(place)
            await self._move(place)
            return True
        await self._move(place)
        return False

    async def _save(self, records: Sequence[tuple[int, HistoryRecord]], upto: Place) -> Place:
        try:
            return await self._index.save(records, upto=upto)
        except InvalidError:
            # One record that the database cannot hold must not keep out all that follow.
            for sequence, record in records:
                try:
                    await self._index.save([(sequence, record)], upto=Place(upto.base, sequence))
                except InvalidError as error:
                    self.unstorable += 1
                    log.warning(
                        "mesh.history.record_unstorable", sequence=sequence, error=str(error)
                    )
            return await self._index.save([], upto=upto)

    async def _move(self, place: Place) -> None:
        async with self._moved:
            self._place = place
            self._moved.notify_all()


async def _or_later(event: asyncio.Event, within_s: float) -> None:
    """Until it is set, or that long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()
