"""A write to a shard that several nodes hold:

look for the action's id → append to the log → tell the others → apply → answer
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import structlog

from mesh.core import replication as rules
from mesh.core.replication import Position
from mesh.errors import MeshError, TooLargeError, UnavailableError
from mesh.ports import Bus, Clock, MovedOnError, NotStoredError, ReplicaState
from mesh.runtime.neighbours import Neighbours
from mesh.runtime.shard_copy import ShardCopy
from mesh.runtime.shard_place import ShardPlace
from mesh.wire import codec, subjects
from mesh.wire.messages import Change, LoggedWrite, WriteEntry

log = structlog.get_logger()


class Planned(NamedTuple):
    """What a write comes to on this copy, and how many documents it changes."""

    change: Change
    changed: int


Plan = Callable[[], Awaitable[Planned]]
"""Finds that out, and refuses what cannot be; changes nothing."""


@dataclass
class Wish:
    """A write that somebody asked for, through all attempts at it."""

    action_id: str
    action: str
    digest: str
    plan: Plan
    open_at: Position | None = None
    """Where it was tried to be logged, and may have been: nobody may say yet that it failed."""


class ShardWrites:
    """Whoever calls it holds the replica's lock."""

    def __init__(
        self,
        copy: ShardCopy,
        place: ShardPlace,
        *,
        bus: Bus,
        state: ReplicaState,
        clock: Clock,
        neighbours: Neighbours,
    ) -> None:
        self._copy = copy
        self._place = place
        self._bus = bus
        self._state = state
        self._clock = clock
        self._neighbours = neighbours

    async def attempt(self, wish: Wish) -> dict[str, Any] | None:
        """The answer; None: this copy has no place in the order yet.

        Raises:
            ConflictError: The id was used for another write.
            MovedOnError: Another replica was first; this copy has caught up: try again.
            UnavailableError: Not now.
            MeshError: What the plan raises. Whatever it is: nothing was done, unless `open_at`.
        """
        if not (self._place.following and self._place.checked):
            await self._place.look(copies=False)
        if (known := await self._known(wish)) is not None:
            return known
        if wish.open_at is not None and wish.open_at < self._copy.position:
            wish.open_at = None  # what comes after it is known, and it is not among it
        if not self._place.following:
            return None
        await self._log(wish, await wish.plan())
        known = await self._known(wish)
        if known is None:
            raise UnavailableError("the answer of this write is not known; ask for it again")
        return known

    async def _known(self, wish: Wish) -> dict[str, Any] | None:
        found = await self._state.applied(wish.action_id)
        if found is None:
            return None
        rules.check_same(wish.action_id, wish.digest, found.digest)
        answer: dict[str, Any] = msgspec.json.decode(found.result)
        return answer

    async def _log(self, wish: Wish, planned: Planned) -> None:
        here = self._copy.position
        entry = rules.packed(
            WriteEntry(
                id=wish.action_id,
                action=wish.action,
                digest=wish.digest,
                prev=here.sequence,
                change=planned.change,
                changed=planned.changed,
                at=self._clock.unix_ms(),
            )
        )
        before, wish.open_at = wish.open_at, here
        try:
            logged = await self._place.append(entry)
        except (NotStoredError, TooLargeError):
            wish.open_at = before
            raise
        except MovedOnError:
            wish.open_at = before  # tried here before, it may be what the log has moved on by
            await self._place.catch_up()
            raise
        self._tell(logged)
        await self._copy.apply([logged], own=True)

    def _tell(self, logged: LoggedWrite) -> None:
        """The others hear of it now, and not only when they next look."""
        payload = codec.encode(logged)
        for node in self._neighbours.others():
            try:
                self._bus.publish(subjects.rpc(node.slug, "replicate", self._copy.node), payload)
            except MeshError as error:
                log.debug("mesh.replica.not_told", node=node.slug, error=str(error))
