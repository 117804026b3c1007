"""Whether this master leads: the shell that looks after the lease."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import assert_never

import structlog

from mesh.core.leadership import Candidate, Look, Rest, Seat, Standing, Step, Write
from mesh.errors import MeshError
from mesh.ports import Clock, Lease, TakenError
from mesh.runtime.background import Background

log = structlog.get_logger()


class Leadership:
    """The candidacy of one master. Its owner tells of connections, lost and found."""

    def __init__(
        self,
        lease: Lease,
        clock: Clock,
        background: Background,
        *,
        ttl_s: float,
        next_epoch: Callable[[], Awaitable[int]],
        on_begin: Callable[[int], None],
        on_end: Callable[[], None],
    ) -> None:
        """Args:
        lease: What the leading master holds.
        clock: Time.
        background: Its owner ends it.
        ttl_s: How long a leader that falls silent is waited for.
        next_epoch: A number above all that any leader had.
        on_begin: We lead, under this epoch.
        on_end: We lead no more; `leads` has been False for a moment already.
        """
        self._lease = lease
        self._clock = clock
        self._background = background
        self._ttl_s = ttl_s
        self._next_epoch = next_epoch
        self._on_begin = on_begin
        self._on_end = on_end
        self._candidate = Candidate(lease.identity, ttl_s)
        self._crowned = 0
        """The term that has its epoch."""
        self._told = False
        """Whether `on_begin` was called last."""
        self._leader = ""
        self._in_reach = True
        self._stopped = False
        self._stepping = asyncio.Lock()
        self._crowning = asyncio.Lock()
        self._wake = asyncio.Event()

    @property
    def leads(self) -> bool:
        """Whether this master leads right now; ask each time, the lease may just have run out."""
        return self._crowned == self._candidate.term and self._candidate.leads(
            self._clock.monotonic()
        )

    def start(self) -> None:
        """Try to lead from now on."""
        self._background.repeat("lease", self._round)

    async def stop(self) -> None:
        """Lead no more; whoever looks next may."""
        self._stopped = True
        async with self._crowning:  # a write to the database is not to be torn
            await self._give_up()

    def departed(self, seat: Seat) -> None:
        """The broker has lost a connection: the leader's own, perhaps."""
        if self._candidate.departed(seat, self._clock.monotonic()):
            log.info("mesh.master.leader_departed", leader=self._leader)
            self._wake.set()

    def connection_changed(self, connected: bool) -> None:
        """Our own connection is lost, or back."""
        if not connected:
            self._candidate.cut_off(self._clock.monotonic())
            self._settle()
        self._wake.set()

    # -- step by step ------------------------------------------------------------------------------

    async def _round(self) -> None:
        self._wake.clear()
        async with self._stepping:
            now = self._now()
            step: Step = Rest(now + self._ttl_s) if self._stopped else self._candidate.step(now)
            match step:
                case Look():
                    await self._look()
                case Write(revision):
                    await self._write(revision)
                case Rest():
                    pass
                case _:
                    assert_never(step)
            self._settle()
        if isinstance(step, Rest):
            await self._rest(step.until)

    async def _look(self) -> None:
        try:
            standing = await self._lease.look(timeout_s=self._candidate.answer_within_s)
        except MeshError as error:
            self._unanswered(error)
        else:
            self._answered()
            self._candidate.saw(standing, self._now())
            self._note_leader(standing)

    async def _write(self, revision: int) -> None:
        began = self._now()
        try:
            written = await self._lease.write(
                revision, ttl_s=self._ttl_s, timeout_s=self._candidate.answer_within_s
            )
        except TakenError:
            self._answered()
            self._candidate.refused(self._now())
        except MeshError as error:
            self._unanswered(error)
        else:
            self._answered()
            if self._candidate.wrote(written, began=began):
                self._leader = self._lease.identity
                self._background.spawn("epoch", self._crown(self._candidate.term))

    async def _rest(self, until: float) -> None:
        if self._told:  # who cannot renew has to notice that he does not lead any more
            until = min(until, self._candidate.ends_at)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(until - self._now(), 0.0)):
                await self._wake.wait()

    async def _crown(self, term: int) -> None:
        """Begin to lead, once there is an epoch; where there is none, another master may try."""
        if self._stopped:
            return
        pause_s = self._ttl_s
        try:
            async with self._crowning:
                epoch = await self._next_epoch()
            pause_s = 0.0
            self._settle()
            # A lease that lapsed meanwhile may yet be renewed, in the same term: what has not begun
            # now never will, so it is given up below.
            is_ours = self._candidate.term == term and self._candidate.leads(self._now())
            if is_ours and not self._stopped:
                self._crowned = term
                self._told = True
                log.info("mesh.master.leading", epoch=epoch)
                self._on_begin(epoch)
        except MeshError as error:
            log.warning("mesh.master.epoch_missing", error=str(error))
        finally:
            if self._candidate.term == term and self._crowned != term:
                await self._give_up(pause_s)

    async def _give_up(self, pause_s: float = 0.0) -> None:
        async with self._stepping:
            revision = self._candidate.give_up(self._now(), pause_s)
            self._settle()
            if revision is None:
                return
            try:
                await self._lease.release(revision, timeout_s=self._candidate.answer_within_s)
            except MeshError as error:  # then it runs out
                log.info("mesh.master.lease_kept", error=str(error))

    # -- what is told ------------------------------------------------------------------------------

    def _settle(self) -> None:
        if self._told and not self.leads:
            self._told = False
            self._leader = ""
            log.info("mesh.master.stepped_down")
            self._on_end()

    def _note_leader(self, standing: Standing) -> None:
        holder = standing.holder
        if holder is not None and holder.id not in (self._leader, self._lease.identity):
            self._leader = holder.id
            log.info("mesh.master.following", leader=holder.id)

    def _unanswered(self, error: MeshError) -> None:
        self._candidate.unanswered(self._now())
        if self._in_reach:
            self._in_reach = False
            log.warning("mesh.master.lease_out_of_reach", error=str(error))

    def _answered(self) -> None:
        if not self._in_reach:
            self._in_reach = True
            log.info("mesh.master.lease_back_in_reach")

    def _now(self) -> float:
        return self._clock.monotonic()
