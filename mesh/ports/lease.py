"""What only one master may hold at a time."""

from __future__ import annotations

from typing import Protocol

from mesh.core.leadership import Standing
from mesh.errors import ConflictError


class TakenError(ConflictError):
    """Another revision of the lease stands."""


class Lease(Protocol):
    """A record that is replaced by compare-and-set, and forgotten unless it is replaced in time."""

    @property
    def identity(self) -> str:
        """What stands in the lease while it is ours; of this process alone."""
        ...

    async def look(self, *, timeout_s: float) -> Standing:
        """Read it; it is made where there is none.

        Raises:
            UnavailableError, DeadlineExceededError, DisconnectedError
        """
        ...

    async def write(self, revision: int, *, ttl_s: float, timeout_s: float) -> int:
        """Make it ours for `ttl_s` or a little longer, if `revision` stands: the new revision.

        Raises:
            TakenError: Another one stands.
            UnavailableError, DeadlineExceededError, DisconnectedError: It may be ours or not.
        """
        ...

    async def release(self, revision: int, *, timeout_s: float) -> None:
        """Give it back, if `revision` stands.

        Raises:
            As `write`.
        """
        ...
