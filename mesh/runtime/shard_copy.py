"""One node's copy of a shard: its documents, and the last entry of the log that is in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from mesh.core import replication as rules
from mesh.core.replication import Copy, Effect, Position
from mesh.ports import Clock, Documents, ReplicaState
from mesh.wire import codec
from mesh.wire.messages import AppliedWrite, Change, LoggedWrite


class ShardCopy:
    """Whoever changes it holds the replica's lock."""

    def __init__(
        self,
        node: str,
        shard: str,
        *,
        documents: Documents,
        state: ReplicaState,
        clock: Clock,
        changed: Callable[[str], None],
    ) -> None:
        """Args:
        node: Who holds it.
        shard: Which one.
        documents: What is in it.
        state: What outlives the process.
        clock: Time.
        changed: Told the name of each collection that was written for others.
        """
        self.node = node
        self.shard = shard
        self.position = Position()
        self._copying = False
        self._documents = documents
        self._state = state
        self._clock = clock
        self._changed = changed

    async def load(self) -> bool:
        """Know the place of the last life; whether the shard's writes are logged."""
        logged, self.position = await self._state.load(self.shard)
        self._copying = await self._state.place(self.shard) is not None
        return logged

    def seen(self, *, following: bool) -> Copy:
        """As the rules see it."""
        return Copy(
            self.node,
            self.position,
            has_data=self.has_data,
            following=following,
            own=self.own,
            founder=self.node == self.shard,
        )

    @property
    def has_data(self) -> bool:
        return bool(self._documents.collections())

    @property
    def own(self) -> bool:
        """Its documents came neither from the log nor, so far, from another replica."""
        return self.has_data and not self.position.sequence and not self._copying

    async def apply(self, entries: Sequence[LoggedWrite], *, own: bool = False) -> None:
        """In order, each of which continues the one before; in few commits, and the place after
        them. A crash in between has them applied again, which changes nothing.
        """
        changes = [(logged, rules.change_of(logged.entry)) for logged in entries]
        effects = rules.effects(change for _, change in changes if change is not None)
        versions = {name: await self._effect(name, effect) for name, effect in effects.items()}
        now = self._clock.unix_ms()
        writes = [
            _applied(logged, change, versions[change.collection], now)
            for logged, change in changes
            if logged.entry.id and change is not None
        ]
        await self.move(Position(entries[-1].log, entries[-1].sequence), writes)
        if not own:
            for name in effects:
                self._changed(name)

    async def _effect(self, name: str, effect: Effect) -> int:
        """The data version after it."""
        there = any(info.name == name for info in self._documents.collections())
        if effect.drop and there:
            await self._documents.drop(name)
            there = False
        if not (effect.made or there):
            return 0
        done = await self._documents.replace(
            name,
            puts=list(effect.puts.values()),
            deletes=list(effect.deletes),
            columns=effect.columns,
        )
        return done.data_version

    async def move(
        self,
        position: Position,
        writes: Sequence[AppliedWrite] = (),
        *,
        copied: bool = False,
    ) -> None:
        """Be there, now and after a crash; if it was `copied`, that is done."""
        await self._state.advance(self.shard, position, writes, copied=copied)
        self.position = position
        if copied:
            self._copying = False

    async def settled(self) -> None:
        """Until no write runs that had begun."""
        await self._documents.settled()

    def being_copied(self) -> None:
        """From here on its documents are another replica's, in part."""
        self._copying = True


def _applied(logged: LoggedWrite, change: Change, data_version: int, at: int) -> AppliedWrite:
    result = rules.result_of(logged.entry, change, data_version)
    return AppliedWrite(
        id=logged.entry.id,
        sequence=logged.sequence,
        digest=logged.entry.digest,
        result=msgspec.Raw(codec.encode(result)),
        at=at,
    )
