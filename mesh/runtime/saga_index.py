"""Keeps the searchable copy of the sagas in step with their stream, and tells what has changed.

Rows and the place in the stream are saved in one transaction, so a crash at any point repeats work
at most; of two records of a saga the newer one stays, so repeating changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from mesh.core.backoff import Backoff, BackoffPolicy
from mesh.errors import InvalidError, MeshError
from mesh.ports import Message, SagaLog, SagaStore, StoredSaga, Subscription
from mesh.runtime.parts import Surroundings

log = structlog.get_logger()

_BATCH = 256
_LOOK_EVERY_S = 2.0
_RETRY = BackoffPolicy(first_s=0.1, limit_s=5.0)


class SagaIndex:
    """Reads the stream into SQL, oldest first."""

    def __init__(
        self,
        around: Surroundings,
        saga_log: SagaLog,
        store: SagaStore,
        on_saga: Callable[[StoredSaga], None],
    ) -> None:
        """Args:
        around: Of the master.
        saga_log: The stream.
        store: The copy.
        on_saga: Called with every record that was read, in order.
        """
        self._around = around
        self._log = saga_log
        self._store = store
        self._on_saga = on_saga
        self._wake = asyncio.Event()
        self._moved = asyncio.Condition()
        self._backoff = Backoff(_RETRY)
        self._subscription: Subscription | None = None
        self._cursor: int | None = None
        self._prepared = False

    async def start(self) -> None:
        """Make the stream if the broker has none, and begin to follow it."""
        try:
            await self._prepare()
        except MeshError as error:
            log.warning("mesh.saga.stream_waiting", error=str(error))
        self._subscription = await self._log.follow(self._heard)
        self._around.background.repeat("saga-index", self._round)

    async def stop(self) -> None:
        """Hear no more."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()

    async def reach(self, sequence: int, *, timeout_s: float) -> bool:
        """Wait until everything up to `sequence` is copied; False if that takes too long."""
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: (self._cursor or 0) >= sequence)
                return True
        return False

    def _heard(self, _message: Message) -> None:
        self._wake.set()  # a hint: what counts is what the stream took

    async def _round(self) -> None:
        self._wake.clear()
        try:
            behind = await self._advance()
        except MeshError as error:
            self._prepared = False  # the broker may have come back without its store
            delay_s = self._backoff.died(0.0)
            log.warning("mesh.saga.index_waiting", error=str(error), retry_s=delay_s)
            await self._around.clock.sleep(delay_s)
            return
        self._backoff = Backoff(_RETRY)
        if not behind:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._wake.wait()

    async def _prepare(self) -> None:
        if not self._prepared:
            await self._log.prepare()
            self._prepared = True

    async def _advance(self) -> bool:
        """Copy the next batch; True if there may be more at once."""
        await self._prepare()
        if self._cursor is None:
            self._cursor = await self._store.cursor()
        cursor = self._cursor
        records, upto = await self._log.read(cursor, _BATCH)
        if upto > cursor:
            await self._save(records, upto)
            await self._move(upto)
            for stored in records:
                self._on_saga(stored)
            return True
        if await self._log.last_sequence() < cursor:
            # Somebody made the stream anew: its records are all new to us.
            log.warning("mesh.saga.stream_restarted", cursor=cursor)
            await self._move(0)
            return True
        return False

    async def _save(self, records: list[StoredSaga], upto: int) -> None:
        try:
            await self._store.save([stored.saga for stored in records], cursor=upto)
        except InvalidError:
            # One record that the database cannot hold must not keep out all that follow.
            for stored in records:
                try:
                    await self._store.save([stored.saga], cursor=stored.sequence)
                except InvalidError as error:
                    log.warning("mesh.saga.record_unstorable", id=stored.saga.id, error=str(error))
            await self._store.save([], cursor=upto)

    async def _move(self, cursor: int) -> None:
        async with self._moved:
            self._cursor = cursor
            self._moved.notify_all()
