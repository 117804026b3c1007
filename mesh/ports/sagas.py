"""Where sagas are remembered: the stream that decides, and the searchable copy of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from mesh.errors import ConflictError
from mesh.ports.bus import Handler, Subscription
from mesh.wire.messages import Saga, SagasQuery


class OutdatedError(ConflictError):
    """Somebody else has changed the saga since it was read."""


class StoredSaga(NamedTuple):
    """A record, and its place in the stream."""

    sequence: int
    saga: Saga


class SagaLog(Protocol):
    """The stream of sagas: the newest record of each, replaced by compare-and-set."""

    async def prepare(self) -> None:
        """Make the stream if it is not there.

        Raises:
            UnavailableError
        """
        ...

    async def follow(self, handler: Handler) -> Subscription:
        """Have `handler` called when a record may be new: a hint, some may be missed."""
        ...

    async def append(self, saga: Saga, *, after: int, timeout_s: float = 5.0) -> int:
        """Store the next record of a saga and return its sequence.

        Args:
            saga: The record.
            after: Sequence of the one that it was made from; 0: there is none.
            timeout_s: How long to wait for the acknowledgement.

        Raises:
            OutdatedError: Another record is the newest one: nothing was stored.
            UnavailableError, DeadlineExceededError: It may or may not be stored.
        """
        ...

    async def last(self, saga_id: str, *, timeout_s: float = 5.0) -> StoredSaga | None:
        """The newest record of a saga; None: the stream has none.

        Raises:
            UnavailableError, DeadlineExceededError
        """
        ...

    async def last_sequence(self, *, timeout_s: float = 2.0) -> int:
        """Of the newest record of all; 0 when empty.

        Raises:
            UnavailableError, DeadlineExceededError
        """
        ...

    async def read(self, after: int, limit: int) -> tuple[list[StoredSaga], int]:
        """Records with sequence > `after`, oldest first, and the sequence read up to. Those that
        were replaced, or cannot be read, are passed over.

        Raises:
            UnavailableError, DeadlineExceededError
        """
        ...


class SagaStore(Protocol):
    """The copy in SQL. Every method raises UnavailableError where the database is away."""

    async def cursor(self) -> int:
        """Sequence of the stream up to which it is copied."""
        ...

    async def save(self, sagas: Sequence[Saga], *, cursor: int) -> None:
        """Copy records and move the cursor in one transaction; of two of one saga the one of the
        greater version stays.
        """
        ...

    async def find(self, saga_id: str) -> Saga | None:
        """One of them."""
        ...

    async def open(self) -> list[str]:
        """Ids of all that have something to do: not those that have ended or wait for a person;
        oldest first.
        """
        ...

    async def stale(self, *, before: int) -> list[str]:
        """Ids of all that have not ended, and have not changed since then (unix ms)."""
        ...

    async def select(self, query: SagasQuery) -> tuple[list[Saga], int]:
        """A page, newest first, without parameters and results; and how many match."""
        ...

    async def prune(self, *, ended_before: int) -> int:
        """Drop those that ended before that (unix ms); how many."""
        ...
