"""Registered nodes, in SQL."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from mesh.wire.messages import NodeRecord, NodeUpdate


class Registry(Protocol):
    """Registered nodes, in SQL."""

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
        """Add a node, and what it may do. Whoever waited under its name waits no longer.

        Raises:
            ConflictError: The slug is taken, by a node or a user.
        """
        ...

    async def lookup(self, names: Collection[str]) -> list[NodeRecord]:
        """Those with one of these slugs or ids, whichever master registered them; by slug."""
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

    async def remove(self, slug: str) -> None:
        """Delete a node, its key with it.

        Raises:
            NotFoundError
        """
        ...

    async def next_epoch(self, *, at_least: int) -> int:
        """A number above all that this database gave before, and not below `at_least`."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
