"""Where the order of writes to a shard with replicas is kept, and each one's place in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mesh.core.replication import Position
from mesh.errors import MeshError, UnavailableError
from mesh.wire.messages import AppliedWrite, CopyPlace, LoggedWrite, WriteEntry, WritesPage


class MovedOnError(MeshError):
    """Another replica has written meanwhile: catch up first. Nothing was stored."""

    code = 409
    kind = "conflict"
    retryable = True

    def __init__(self, last: int) -> None:
        super().__init__(f"the log of this shard has moved on to {last}")
        self.last = last
        """The shard's last entry there is; 0: none is left."""


class NotStoredError(UnavailableError):
    """The log refuses to store: it is full, or not there. Nothing was stored."""


class WriteLog(Protocol):
    """A node's side: it can only add."""

    async def append(self, shard: str, entry: WriteEntry, *, after: int, timeout_s: float) -> int:
        """Store an entry behind the shard's entry `after` (0: as its first) and return its
        sequence.

        Raises:
            MovedOnError: Another one is the last; nothing was stored.
            TooLargeError, NotStoredError: Nothing was stored.
            MeshError: It may or may not be stored.
        """
        ...


class WriteLogArchive(Protocol):
    """The masters' side."""

    async def prepare(self) -> None:
        """Make the log if it is not there.

        Raises:
            UnavailableError
        """
        ...

    async def read(self, shard: str, after: int, limit: int, *, timeout_s: float) -> WritesPage:
        """A shard's entries after `after`, in order, as many as fit an answer, `linked` as far as
        the entry `after` is still there.

        Raises:
            UnavailableError
        """
        ...


class ReplicaState(Protocol):
    """A node's durable memory of its place in the order."""

    async def load(self, shard: str) -> tuple[bool, Position]:
        """Whether the shard's writes are logged, and what was applied last. From now on the node
        holds this shard: its places in others are of documents that will change, and are forgotten.
        """
        ...

    async def set_logged(self, shard: str) -> None:
        """From now on, and after the next start."""
        ...

    async def advance(
        self,
        shard: str,
        position: Position,
        writes: Sequence[AppliedWrite] = (),
        *,
        copied: bool = False,
    ) -> None:
        """Remember in one step what was applied, what these actions answer, and, if it was copied,
        that the copy is done.
        """
        ...

    async def remember(self, writes: Sequence[AppliedWrite]) -> None:
        """What actions answered that another replica had applied."""
        ...

    async def applied(self, action_id: str) -> AppliedWrite | None:
        """What an action answered, on whichever replica it ran."""
        ...

    async def applied_after(self, action_id: str, limit: int) -> list[AppliedWrite]:
        """By id, for another replica."""
        ...

    async def place(self, shard: str) -> CopyPlace | None:
        """How far a copy from another node had come."""
        ...

    async def keep_place(self, shard: str, place: CopyPlace | None) -> None:
        """None: it is done."""
        ...

    async def prune(self, before: int) -> int:
        """Forget actions applied before unix ms `before`; how many."""
        ...

    async def close(self) -> None:
        """Release the file."""
        ...


__all__ = [
    "LoggedWrite",
    "MovedOnError",
    "NotStoredError",
    "Position",
    "ReplicaState",
    "WriteLog",
    "WriteLogArchive",
]
