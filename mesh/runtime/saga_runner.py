"""Sagas on a master: any one takes them on and tells of them, the leading one runs them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets

import structlog

from mesh.core.saga import Rest, next_move
from mesh.core.saga_events import TakenOver
from mesh.errors import MeshError
from mesh.ports import SagaLog, SagaStore, StoredSaga
from mesh.runtime.parts import Surroundings
from mesh.runtime.saga_desk import SagaDesk
from mesh.runtime.saga_drive import Drive, Workshop
from mesh.runtime.saga_index import SagaIndex
from mesh.runtime.saga_plan import Offers
from mesh.runtime.saga_steps import Backoff, Known, Steps

log = structlog.get_logger()

_LOOK_EVERY_S = 3.0
_TEND_EVERY_S = 3600.0
_FRESH_WITHIN_S = 2.0
_DAY_MS = 24 * 3600 * 1000


class SagaRunner:
    """A part of a master."""

    def __init__(
        self,
        around: Surroundings,
        saga_log: SagaLog,
        store: SagaStore,
        *,
        offers: Offers,
        known: Known,
    ) -> None:
        """Args:
        around: Of the master.
        saga_log: The stream.
        store: The copy of it.
        offers: What nodes' actions are.
        known: What the history has of an action.
        """
        config = self._config = around.config.sagas
        self._around = around
        self._clock = around.clock
        self._log = saga_log
        self._store = store
        self._index = SagaIndex(around, saga_log, store, self._heard)
        backoff = Backoff(config.backoff_s, config.backoff_most_s)
        self._workshop = Workshop(
            log=saga_log,
            store=store,
            steps=Steps(
                around.bus,
                around.clock,
                around.membership,
                known=known,
                backoff=backoff,
                parallel=config.parallel,
            ),
            clock=around.clock,
            backoff=backoff,
            most_attempts=config.compensation_attempts,
            leads=around.leads,
        )
        self._runner = ""
        """Our name while we lead."""
        self._drives: dict[str, Drive] = {}
        self._wake = asyncio.Event()
        self._desk = SagaDesk(around, saga_log, store, offers=offers, reach=self._index.reach)
        self.verbs = self._desk.verbs

    # -- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Follow the stream; run what there is once we lead."""
        await self._index.start()
        self._around.background.repeat("sagas", self._look)
        self._around.background.repeat("sagas-tend", self._tend)

    async def stop(self) -> None:
        """Let go of what runs: the next leader takes it up."""
        self.follow()
        await self._index.stop()

    def lead(self, epoch: int) -> None:
        """Take up every saga that is open."""
        self._runner = f"{epoch}-{secrets.token_hex(8)}"
        self._drives = {}
        self._wake.set()

    def follow(self) -> None:
        """Somebody else runs them."""
        self._runner = ""
        drives, self._drives = self._drives, {}
        for drive in drives.values():
            drive.drop()

    async def _look(self) -> None:
        """At what is open, whether or not the stream's news came through."""
        self._wake.clear()
        if self._runner:
            try:
                newest = await self._log.last_sequence()
                await self._index.reach(newest, timeout_s=_FRESH_WITHIN_S)
                for saga_id in await self._store.open():
                    self._drive(saga_id)
            except MeshError as error:
                log.warning("mesh.saga.open_unknown", error=str(error))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_EVERY_S):
                await self._wake.wait()

    def _heard(self, stored: StoredSaga) -> None:
        saga = stored.saga
        self._desk.heard(saga.id)
        if saga.id in self._drives:
            self._drives[saga.id].changed(stored)
        elif not isinstance(next_move(saga), Rest):
            self._drive(saga.id)

    def _drive(self, saga_id: str) -> None:
        if self._runner and saga_id not in self._drives:
            drive = self._drives[saga_id] = Drive(saga_id, self._runner, self._workshop)
            self._around.background.spawn(f"saga-{saga_id}", self._driven(drive, self._drives))

    async def _driven(self, drive: Drive, drives: dict[str, Drive]) -> None:
        try:
            await drive.run()
        finally:
            drives.pop(drive.id, None)

    # -- keeping -----------------------------------------------------------------------------------

    async def _tend(self) -> None:
        """What is open must not age away, what has ended long ago may."""
        await self._clock.sleep(min(_TEND_EVERY_S, self._config.days * 86_400 / 8))
        if not self._around.leads():
            return
        now, age_ms = self._clock.unix_ms(), round(self._config.days * _DAY_MS)
        try:
            for saga_id in await self._store.stale(before=now - age_ms // 2):
                await self._renew(saga_id)
            await self._store.prune(ended_before=now - age_ms)
        except MeshError as error:
            log.warning("mesh.saga.not_tended", error=str(error))

    async def _renew(self, saga_id: str) -> None:
        """One that cannot be must not keep the others from it."""
        try:
            await self._desk.change(saga_id, lambda saga: TakenOver(saga.runner))
        except MeshError as error:
            log.warning("mesh.saga.not_renewed", id=saga_id, error=str(error))
