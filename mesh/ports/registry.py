"""Registered nodes, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mesh.wire.messages import HistoryQuery, HistoryRecord, NodeRecord, NodeUpdate


class Registry(Protocol):
    """Registered nodes and the searchable copy of the action history, in SQL."""

    async def nodes(self) -> list[NodeRecord]:
        """All, by slug."""
        ...

    async def register(
        self,
        record: NodeRecord,
        *,
        api_key_hash: str,
        scopes: Sequence[str] = ("search", "actions"),
    ) -> None:
        """Add a node, and what it may do.

        Raises:
            ConflictError: The slug is taken.
        """
        ...

    async def enrol(self, record: NodeRecord) -> bool:
        """Add the node if its slug is new; False if it was there."""
        ...

    async def update(self, slug: str, change: NodeUpdate) -> NodeRecord:
        """Change what an operator may change.

        Raises:
            NotFoundError
        """
        ...

    async def observe(self, *records: NodeRecord) -> None:
        """Save what nodes last told of themselves and how their probes went; one transaction."""
        ...

    async def remove(self, slug: str, *, incarnation: int) -> None:
        """Delete a node and remember which of its lives was removed.

        Raises:
            NotFoundError
        """
        ...

    async def removed(self) -> dict[str, int]:
        """Slug → newest incarnation that was removed: its heartbeats do not enrol it again."""
        ...

    async def next_epoch(self, *, at_least: int) -> int:
        """A number above all that this database gave before, and not below `at_least`."""
        ...

    async def history_cursor(self) -> int:
        """Sequence of the stream up to which history is indexed."""
        ...

    async def index_history(
        self, records: Sequence[tuple[int, HistoryRecord]], *, cursor: int
    ) -> None:
        """Save records and the cursor in one transaction; a record seen twice changes nothing."""
        ...

    async def history(self, query: HistoryQuery) -> tuple[list[HistoryRecord], int]:
        """Newest first, one record per action in its latest state; and how many match."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
