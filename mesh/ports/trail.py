"""Where the audit trail is kept: SQL to be asked, and a stream that nobody can change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mesh.wire.messages import AuditQuery, AuditRecord


class AuditStore(Protocol):
    """The trail in SQL, and which of it the stream has. Every master writes to it."""

    async def add(self, records: Sequence[AuditRecord]) -> None:
        """Save entries, all or none; one that is there already, by its id, stays as it is.

        Raises:
            InvalidError: The database cannot hold one of them.
        """
        ...

    async def find(self, query: AuditQuery) -> tuple[list[AuditRecord], int]:
        """A page, newest first, or with `query.after` oldest first; and how many match."""
        ...

    async def unpublished(self, limit: int) -> list[AuditRecord]:
        """What the stream may not have yet, in order of ids."""
        ...

    async def published(self, ids: Sequence[str]) -> None:
        """The stream has these."""
        ...

    async def prune(self, *, before: int) -> int:
        """Forget entries from before that (unix ms); how many."""
        ...


class AuditStream(Protocol):
    """The stream `MESH_AUDIT`."""

    async def prepare(self) -> None:
        """Make the stream if the broker has none.

        Raises:
            UnavailableError
        """
        ...

    async def append(self, record: AuditRecord, *, timeout_s: float) -> int:
        """Its sequence number, once the stream has it; by its id it is there once, however many
        masters append it within ten minutes.

        Raises:
            UnavailableError, DeadlineExceededError: The stream may or may not have it.
        """
        ...
