"""A copy's place in the order of its shard's writes: found, kept, and found again.

What decides is `mesh.core.replication.standing`; this asks the masters for the log, the other
replicas for where they are, and does what it says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import assert_never

import msgspec
import structlog

from mesh.core import replication as rules
from mesh.core.arrivals import Arrivals
from mesh.core.replication import Begin, Copy, CopyFrom, Follow, LogView, Position, Wait
from mesh.core.seldom import Seldom
from mesh.errors import ConflictError, MeshError, OverloadedError, UnavailableError
from mesh.ports import Bus, Clock, MovedOnError, WriteLog
from mesh.runtime.exporting import Exports
from mesh.runtime.neighbours import Neighbours
from mesh.runtime.shard_copy import ShardCopy
from mesh.runtime.syncing import Copied, Peer, Progress, Syncing
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    CopyState,
    ExportQuery,
    LoggedWrite,
    WriteEntry,
    WritesPage,
    WritesQuery,
)

log = structlog.get_logger()

_APPEND_S = 3.0
_READ_S = 5.0
_ASK_S = 2.0
_BATCH = 200
_RETRY_MS = 1000


class ShardPlace:
    """Whoever calls it holds the replica's lock."""

    def __init__(
        self,
        copy: ShardCopy,
        *,
        bus: Bus,
        write_log: WriteLog,
        clock: Clock,
        neighbours: Neighbours,
        peer: Peer,
        syncing: Syncing,
        exports: Exports,
    ) -> None:
        self._copy = copy
        self._bus = bus
        self._log = write_log
        self._clock = clock
        self._neighbours = neighbours
        self._peer = peer
        self._syncing = syncing
        self._exports = exports
        self._told = Seldom()
        self.following = False
        """It has its place, and every entry there is as far as it knows."""
        self.catching_up = False
        """Much is missing, and is being fetched: that may take minutes."""
        self.why = ""
        """Why it has no place."""
        self.checked = False
        """The log is known to be the one that the position is of."""
        self.due = asyncio.Event()
        """There is a reason to look."""
        self.arrivals = Arrivals()

    def tell(self, event: str, **about: object) -> None:
        """One line a second is enough."""
        if self._told.turn(self._clock.monotonic()) is not None:
            log.info(event, shard=self._copy.shard, **about)

    # -- adding to the log -------------------------------------------------------------------------

    async def append(self, entry: WriteEntry) -> LoggedWrite:
        """Store an entry that follows our position.

        Raises:
            MeshError: As `WriteLog.append`.
        """
        here = self._copy.position
        sequence = await self._log.append(
            self._copy.shard, entry, after=here.sequence, timeout_s=_APPEND_S
        )
        return LoggedWrite(sequence=sequence, entry=entry, log=here.log)

    async def _begin(self, page: WritesPage) -> None:
        entry = WriteEntry(
            prev=self._copy.position.sequence,
            before=self._copy.position.log,
            begin=True,
            base=self._copy.has_data,
            at=self._clock.unix_ms(),
        )
        try:
            sequence = await self._log.append(
                self._copy.shard, entry, after=page.last, timeout_s=_APPEND_S
            )
        except MovedOnError:
            return  # somebody else began: the next look tells
        log.info("mesh.replica.order_begins", shard=self._copy.shard, sequence=sequence)
        await self._copy.apply([LoggedWrite(sequence=sequence, entry=entry, log=page.log)])
        self.due.set()

    async def _keep_alive(self) -> None:
        """A new entry, so that the log does not lose the shard's last one."""
        entry = WriteEntry(prev=self._copy.position.sequence, at=self._clock.unix_ms())
        try:
            logged = await self.append(entry)
        except MovedOnError:
            self.due.set()
            return
        await self._copy.apply([logged])

    # -- keeping up --------------------------------------------------------------------------------

    async def catch_up(self) -> None:
        """There is more than we have; most often it has just been told of.

        Raises:
            UnavailableError: Not now.
        """
        if not await self.apply_arrivals():
            try:
                await self.look(copies=False)
            except MeshError:
                self.lag()
                raise

    def lag(self) -> None:
        """Something is missing. What others tell of meanwhile is in the log, too."""
        self.following = False
        self.arrivals.clear()

    async def apply_arrivals(self) -> bool:
        """Whether any of those that were told of could be applied."""
        found = False
        while self.following and (run := self.arrivals.run(self._copy.position, _BATCH)):
            await self._copy.apply(run)
            self.arrivals.forget(self._copy.position)
            found = True
        self.arrivals.forget(self._copy.position)
        return found

    async def look(self, *, copies: bool = True) -> None:
        """Apply what the log has beyond our position; if there is no way to, find another.

        Args:
            copies: Copy from another replica, where that is the way; it takes its time.

        Raises:
            UnavailableError: No master reads the log for us; or it would have to copy.
            MeshError: Whoever is copied went away.
        """
        here = self._copy.position
        page = await self._read(here.sequence)
        if page.log != here.log and here.sequence:
            page = await self._read(0)
        self.checked = True
        if self._stands(page, None) != Follow():
            self.lag()
            others = await self._others()
            if others is None:
                return
            match self._stands(page, others):
                case Follow():
                    pass
                case CopyFrom(node):
                    if not copies:
                        self.due.set()
                        raise self.behind()
                    await self.copy(node)
                    return
                case Begin():
                    await self._begin(page)
                    return
                case Wait(why):
                    self._waits(why)
                    return
                case other:
                    assert_never(other)
        await self._follow(page)

    def _stands(self, page: WritesPage, others: Sequence[Copy] | None) -> rules.Standing:
        return rules.standing(self._copy.seen(following=self.following), _view(page), others)

    async def _follow(self, page: WritesPage) -> None:
        """Apply page after page, until there is nothing more."""
        try:
            while page.entries:
                if page.entries[-1].sequence < page.last:  # far behind: others answer better
                    self.lag()
                    self.catching_up = True
                run = self._run(page)
                if not run:
                    break
                await self._copy.apply(run)
                page = await self._read(self._copy.position.sequence)
        finally:
            self.catching_up = False
        if self._copy.position != (page.log, page.last):  # it was cut meanwhile
            self.lag()
            self.due.set()
            return
        if not self.following:
            self.following = True
            self.why = ""
            here = self._copy.position
            log.info("mesh.replica.following", shard=self._copy.shard, sequence=here.sequence)
        self.arrivals.forget(self._copy.position)
        if page.fading:
            await self._keep_alive()

    def _run(self, page: WritesPage) -> list[LoggedWrite]:
        """The entries that continue our position, one after another."""
        found: list[LoggedWrite] = []
        copy = self._copy.seen(following=self.following)
        for logged in page.entries:
            if not rules.continues(copy, logged.entry, page.log):
                break
            found.append(msgspec.structs.replace(logged, log=page.log))
            copy = copy._replace(position=Position(page.log, logged.sequence))
        return found

    async def _read(self, after: int) -> WritesPage:
        """Raises UnavailableError, whatever the reason: a master that has started a moment ago, for
        example, does not know yet whose shard this is.
        """
        try:
            reply = await self._bus.request(
                subjects.master("writes", self._copy.node),
                codec.encode(WritesQuery(shard=self._copy.shard, after=after, limit=_BATCH)),
                responder="master",
                timeout_s=_READ_S,
            )
            return codec.result_of(reply, WritesPage)
        except MeshError as error:
            why = f"the log of writes cannot be read now: {error}"
            raise UnavailableError(why, retry_after_ms=_RETRY_MS) from error

    def behind(self) -> OverloadedError:
        """What a write is answered meanwhile."""
        why = f": {self.why}" if self.why else ""
        return OverloadedError(
            f"{self._copy.node} has not caught up with the other replicas of "
            f"{self._copy.shard}{why}",
            retry_after_ms=_RETRY_MS,
        )

    def _waits(self, why: str) -> None:
        self.why = why
        self.tell("mesh.replica.waits", why=why)

    async def _others(self) -> list[Copy] | None:
        """All other copies; None: nobody knows yet which there are."""
        if not self._neighbours.known:
            self._neighbours.refresh()
            self._waits("the route table does not tell of this node yet")
            return None
        others = self._neighbours.others()
        return list(await asyncio.gather(*(self._ask(node.slug) for node in others)))

    async def _ask(self, node: str) -> Copy:
        query = ExportQuery(what="state")
        try:
            there = await self._peer.ask(node, query, CopyState, timeout_s=_ASK_S)
        except MeshError:
            return Copy(node, Position(), has_data=False, reachable=False)
        return Copy(
            node,
            Position(there.log, there.sequence),
            has_data=bool(there.collections),
            following=there.following,
            founder=node == self._copy.shard,
        )

    # -- copying -----------------------------------------------------------------------------------

    async def copy(
        self,
        source: str,
        scope: str = "",
        progress: Progress = lambda _share, _note: None,
        *,
        at_will: bool = False,
    ) -> Copied:
        """Make this copy equal to that node's, or one collection of it. `at_will`: it need not be,
        so it must not lead to where the log does not lead on from.

        Raises:
            ConflictError: Then nothing was changed.
            MeshError: As `Syncing.run`.
        """
        before = self._copy.position

        async def begun(there: Position) -> None:
            if at_will and not await self._leads_on(there):
                raise ConflictError(f"{source} has not caught up itself: copy from another replica")
            if scope and there.log != before.log:
                raise ConflictError("this copy has no place in the order yet: copy all collections")
            self.lag()
            self._exports.forget()
            self._copy.being_copied()
            # What is copied may be older than what is here: then the log is replayed from there.
            if before.log == there.log and there.sequence < before.sequence:
                await self._copy.move(there)

        self.catching_up = True
        try:
            copied = await self._syncing.run(
                source, scope, fit=self._leads_on, begun=begun, progress=progress
            )
            if not scope:
                await self._copy.move(copied.position, copied=True)
        finally:
            self.catching_up = False
        self.due.set()
        return copied

    async def _leads_on(self, position: Position) -> bool:
        """Whether the log has all that came after."""
        page = await self._read(position.sequence)
        return rules.standing(Copy("", position, has_data=True), _view(page), None) == Follow()


def _view(page: WritesPage) -> LogView:
    return LogView(page.log, page.last, page.entries[0].entry if page.entries else None)
