"""One node's copy of a shard that others hold too: every write gets its place in the shard's log
before anything is changed, and is applied here only after all that come before it.

- shard_writes.py: a write of this node's
- shard_place.py: the place in the log, and how it is found again
- shard_copy.py: the documents
- syncing.py, exporting.py: copying from another replica, and being copied

The rules are in `mesh.core.replication`. Where a node is the only one that holds its shard, none of
it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog

from mesh.config import ReplicasConfig
from mesh.errors import MeshError, OverloadedError, UnavailableError
from mesh.ports import Bus, Clock, Documents, MovedOnError, ReplicaState, WriteLog
from mesh.runtime.background import Background
from mesh.runtime.exporting import Exports
from mesh.runtime.neighbours import Neighbours
from mesh.runtime.shard_copy import ShardCopy
from mesh.runtime.shard_place import ShardPlace
from mesh.runtime.shard_writes import Plan, ShardWrites, Wish
from mesh.runtime.syncing import Copied, Peer, Progress, Syncing
from mesh.wire import codec
from mesh.wire.messages import CopyState, ExportQuery, LoggedWrite

log = structlog.get_logger()

_PATIENCE_S = 10.0
"""How long a write waits for its copy to catch up, or for the log."""
_AGAIN_S = 0.1
_STANDING_S = 0.3
"""Between two looks for a place in the order."""
_LATE_S = 0.05
"""How long an entry that a peer told of may wait for the one before it."""
_PRUNE_EVERY_S = 3600.0
_RETRY_MS = 1000


class Replica:
    """`start` it when the bus is there; `stop` it before the documents are closed."""

    def __init__(
        self,
        node: str,
        shard: str,
        *,
        bus: Bus,
        write_log: WriteLog,
        state: ReplicaState,
        documents: Documents,
        clock: Clock,
        config: ReplicasConfig,
        declared: bool,
        keep_ms: int,
        changed: Callable[[str], None],
    ) -> None:
        """Args:
        node: Who this is.
        shard: What it holds.
        bus: Speaks as the node.
        write_log: The order of writes.
        state: This copy's place in it.
        documents: The copy.
        clock: Time.
        config: Of replicas.
        declared: Somebody named the shard: others may hold it, though none is seen yet.
        keep_ms: How long the answer of an action is remembered.
        changed: Told the name of each collection that was written for others.
        """
        self._node = node
        self._shard = shard
        self._bus = bus
        self._state = state
        self._clock = clock
        self._poll_s = config.poll_s
        self._declared = declared
        self._keep_ms = keep_ms
        self.logged = False
        """Its writes go through the log."""
        self._lock = asyncio.Lock()
        """Held by whatever changes the copy."""
        self._direct = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._arrived = asyncio.Event()
        self._background = Background(clock)
        self._neighbours = Neighbours(bus, self._background, node=node, shard=shard)
        self._peer = Peer(bus, me=node, shard=shard)
        self._copy = ShardCopy(
            node, shard, documents=documents, state=state, clock=clock, changed=changed
        )
        self._exports = Exports(
            node,
            shard,
            documents=documents,
            state=state,
            clock=clock,
            position=lambda: self._copy.position,
            following=lambda: self.following,
        )
        self._place = ShardPlace(
            self._copy,
            bus=bus,
            write_log=write_log,
            clock=clock,
            neighbours=self._neighbours,
            peer=self._peer,
            syncing=Syncing(self._peer, shard, documents=documents, state=state, changed=changed),
            exports=self._exports,
        )
        self._writes = ShardWrites(
            self._copy, self._place, bus=bus, state=state, clock=clock, neighbours=self._neighbours
        )

    @property
    def following(self) -> bool:
        """It has its place in the order, and every entry as far as it knows."""
        return self._place.following

    # -- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Know the place of the last life; catching up goes on beside everything else."""
        self.logged = await self._copy.load()
        if self._declared and not self.logged:
            await self._turn_logged()
        await self._neighbours.start()
        self._bus.on_connection(self._connection_changed)
        self._background.repeat("replication", self._round)
        self._background.repeat("arrivals", self._take_arrivals)
        self._background.repeat("prune writes", self._prune)

    def _connection_changed(self, connected: bool) -> None:
        if connected:
            self._place.checked = False  # it may be another broker's log by now
            self._place.due.set()

    async def stop(self) -> None:
        """Nothing of it runs any more."""
        await self._neighbours.stop()
        await self._background.stop()

    def refuse_if_behind(self) -> None:
        """Raises OverloadedError while another replica answers better than this one."""
        if self.logged and not self._place.following and self._neighbours.healthy():
            raise OverloadedError(
                f"{self._node} is catching up with the other replicas of {self._shard}",
                retry_after_ms=_RETRY_MS,
            )

    @contextlib.asynccontextmanager
    async def direct(self) -> AsyncIterator[None]:
        """Around a write that nobody else needs to hear of: only while `logged` is false."""
        self._direct += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._direct -= 1
            if not self._direct:
                self._idle.set()

    async def _turn_logged(self) -> None:
        await self._state.set_logged(self._shard)
        self.logged = True
        # What has begun without the log is part of what it begins with, also where nobody waits
        # for it any more.
        await self._idle.wait()
        await self._copy.settled()
        self._place.due.set()
        log.info("mesh.replica.logged", shard=self._shard)

    async def _round(self) -> None:
        """Look whether anything was missed."""
        self._place.due.clear()
        if not self.logged and self._neighbours.others():
            async with self._lock:
                await self._turn_logged()
        if self.logged:
            try:
                async with self._lock:
                    await self._place.look()
            except MeshError as error:
                async with self._lock:  # what was told of meanwhile waited for us
                    await self._place.apply_arrivals()
                    if len(self._place.arrivals):  # they follow something that is missing
                        self._place.lag()
                self._place.tell("mesh.replica.not_caught_up", error=str(error))
        wait_s = self._poll_s if self._place.following or not self.logged else _STANDING_S
        try:
            async with asyncio.timeout(wait_s):
                await self._place.due.wait()
        except TimeoutError:
            return

    async def _prune(self) -> None:
        await self._state.prune(self._clock.unix_ms() - self._keep_ms)
        await self._clock.sleep(_PRUNE_EVERY_S)

    # -- writing -----------------------------------------------------------------------------------

    async def write(self, action_id: str, action: str, digest: str, plan: Plan) -> dict[str, Any]:
        """Write to every replica; what the action answers. One effect for one id, whichever of the
        replicas it is asked of.

        Raises:
            ConflictError: The id was used for another write.
            OverloadedError: This copy is behind, or others write.
            UnavailableError: The log is away, or this copy cannot catch up now.
            MeshError: What `plan` raises. Whatever it is, nothing was done: a write that may be in
                the log goes on until that is known.
        """
        until = self._clock.monotonic() + _PATIENCE_S
        wish = Wish(action_id, action, digest, plan)
        while True:
            if self._place.catching_up and wish.open_at is None:
                raise self._place.behind()
            try:
                is_open = wish.open_at is not None
                async with self._turn(self._clock.monotonic() + _PATIENCE_S if is_open else until):
                    answer = await self._writes.attempt(wish)
                if answer is not None:
                    return answer
                why: MeshError = self._place.behind()
            except MovedOnError:
                continue  # it has caught up since
            except MeshError as error:
                if wish.open_at is None and not isinstance(error, UnavailableError):
                    raise
                why = error
            if wish.open_at is None and self._clock.monotonic() >= until:
                raise why
            if wish.open_at is not None:
                self._place.tell("mesh.replica.write_open", id=action_id, why=str(why))
            await self._clock.sleep(_AGAIN_S)

    @contextlib.asynccontextmanager
    async def _turn(self, until: float) -> AsyncIterator[None]:
        """Raises OverloadedError if it does not come by then."""
        try:
            async with asyncio.timeout(max(_AGAIN_S, until - self._clock.monotonic())):
                await self._lock.acquire()
        except TimeoutError:
            raise OverloadedError(
                f"{self._node} is busy with other writes", retry_after_ms=_RETRY_MS
            ) from None
        try:
            yield
        finally:
            self._lock.release()

    # -- hearing of others' writes -----------------------------------------------------------------

    def heard(self, caller: str, payload: bytes) -> None:
        """A peer tells of an entry; from anybody else it is nothing.

        Raises:
            MeshError: It cannot be read.
        """
        if self._place.following and self._neighbours.shares(caller):
            self._place.arrivals.add(codec.decode(payload, LoggedWrite), len(payload))
            self._arrived.set()

    def may_export(self, caller: str) -> bool:
        """Whether that node may see the documents of this one."""
        return self._neighbours.shares(caller)

    async def export(self, query: ExportQuery, *, peer: bool) -> bytes:
        """The encoded answer to another replica, or a master."""
        if peer and not self.logged:
            async with self._lock:
                await self._turn_logged()
        return await self._exports.answer(query)

    async def _take_arrivals(self) -> None:
        await self._arrived.wait()
        self._arrived.clear()
        async with self._lock:
            await self._place.apply_arrivals()
        if len(self._place.arrivals):
            # The one before may be on its way; else the log has it.
            await self._clock.sleep(_LATE_S)
            if len(self._place.arrivals) and not self._arrived.is_set():
                self._place.due.set()

    # -- copying -----------------------------------------------------------------------------------

    async def sync(self, source: str, scope: str, progress: Progress) -> Copied:
        """Make this copy, or one collection of it, equal to that node's, and follow from there.

        Raises:
            ForbiddenError: That node holds another shard.
            ConflictError: It has not caught up itself; nothing was changed.
            MeshError: It went away; asked again, this goes on.
        """
        await self._peer.ask(source, ExportQuery(what="state"), CopyState)  # does it share it?
        if not self.logged:
            async with self._lock:
                await self._turn_logged()
        async with self._lock:
            copied = await self._place.copy(source, scope, progress, at_will=True)
            await self._place.look()
        return copied
