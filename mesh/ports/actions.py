"""Where actions are remembered: the mesh's history, the node's own journal."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from mesh.types import ActionState
from mesh.wire.messages import ActionRequest, HistoryRecord


class History(Protocol):
    """The action history: an append-only stream that outlives every process."""

    async def prepare(self) -> None:
        """Make the stream if it is not there (masters, and the embedded mesh)."""
        ...

    async def append(self, record: HistoryRecord, *, timeout_s: float) -> int:
        """Store and return the sequence number; a record stored twice counts once.

        Raises:
            UnavailableError: No acknowledgement: not known to be stored.
        """
        ...

    async def last_sequence(self, *, timeout_s: float = 2.0) -> int:
        """Of the newest record; 0 when empty.

        Raises:
            UnavailableError
        """
        ...

    async def read(
        self, after: int, limit: int, *, timeout_s: float = 5.0
    ) -> tuple[list[tuple[int, HistoryRecord]], int]:
        """Records with sequence > `after`, oldest first, and the sequence read up to (gaps and
        unreadable records are passed over).

        Raises:
            UnavailableError
        """
        ...


class JournalEntry(NamedTuple):
    """An action as the node's own disk remembers it."""

    request: ActionRequest
    caller: str
    digest: str
    state: ActionState
    accepted_at: int
    attempt: int
    outcome: HistoryRecord | None
    recorded: bool


class Journal(Protocol):
    """A node's durable memory of actions: what was accepted, how it ended, what history still
    has to hear.
    """

    async def find(self, action_id: str) -> JournalEntry | None:
        """The entry of an id, or None."""
        ...

    async def accept(
        self,
        request: ActionRequest,
        *,
        caller: str,
        digest: str,
        accepted_at: int,
        attempts: int = 0,
        again: bool = False,
    ) -> JournalEntry | None:
        """Remember an action before it runs. Where its id is known nothing is changed, and what is
        known of it is the answer. With `again` an entry that has ended with attempt number
        `attempts` or an earlier one begins anew, and no other.

        Raises:
            UnavailableError: It cannot be written.
            InvalidError: It cannot be stored, whatever the disk.
        """
        ...

    async def begin(self, action_id: str, attempt: int) -> None:
        """Note that attempt number `attempt` starts: from here on the entry is `running`, which
        is how the next life tells what may have had an effect.
        """
        ...

    async def settle(self, outcome: HistoryRecord) -> None:
        """Remember how it ended; history has not heard of it yet.

        Raises:
            NotFoundError: It was never accepted.
        """
        ...

    def recorded(self, outcome: HistoryRecord) -> None:
        """History has this outcome; that of a later attempt is another one. Written some time soon:
        a crash before that only has it recorded once more, which history does not mind.
        """
        ...

    async def unrecorded(self, limit: int = 256) -> list[HistoryRecord]:
        """Outcomes that history has not acknowledged, oldest first."""
        ...

    async def unsettled(self) -> list[JournalEntry]:
        """Accepted without an outcome: what a crash left behind, oldest first."""
        ...

    async def prune(self, before: int) -> int:
        """Drop recorded outcomes older than `before` (unix ms); returns how many."""
        ...

    async def close(self) -> None:
        """Release the file."""
        ...
