"""A node's row, and how a name is given: to one node or one user, and to nobody else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.adapters.sql import models
from mesh.errors import ConflictError
from mesh.types import Status
from mesh.wire.messages import NodeRecord

_LIVE = frozenset({"health", "reason", "lag_ms", "in_flight", "queued", "verbs", "shard"})
"""Fields of a record that are seen, not remembered."""

_AT_THE_DOOR = frozenset({"api_key_hash", "previous_key_hash", "previous_until", "scopes"})
"""Columns that are `SqlLoginStore`'s to read."""

_nodes = models.nodes
_users = models.users
_pending = models.pending_nodes


def fields_of(message: msgspec.Struct) -> dict[str, Any]:
    """By name."""
    return {field: getattr(message, field) for field in message.__struct_fields__}


def record_of(row: RowMapping) -> NodeRecord:
    """What the registry tells of a node."""
    values = {name: value for name, value in row.items() if name not in _AT_THE_DOOR}
    return NodeRecord(**values | {"status": Status(row["status"])})


async def take_turns(connection: AsyncConnection) -> None:
    """Whoever gives a name goes on alone until the transaction ends, and sees in its next statement
    what others have given meanwhile. The row is one that nobody else holds for long. SQLite has one
    writer anyway.
    """
    cursors = models.cursors
    row = sa.select(cursors.c.value).where(cursors.c.name == "epoch")
    await connection.execute(row.with_for_update())


async def is_given(connection: AsyncConnection, name: str) -> bool:
    """Whether a node or a user has it; take turns first."""
    holders = sa.union_all(
        sa.select(_nodes.c.slug).where(_nodes.c.slug == name),
        sa.select(_users.c.name).where(_users.c.name == name),
    )
    return (await connection.execute(holders)).first() is not None


async def give_name(connection: AsyncConnection, name: str) -> None:
    """Have the name for a row that is inserted next; nobody waits under it any more.

    Raises:
        ConflictError: A node or a user has it.
    """
    await take_turns(connection)
    if await is_given(connection, name):
        raise ConflictError(f"there is a node or user {name!r} already")
    await connection.execute(
        sa.delete(_pending).where(_pending.c.slug == name, _pending.c.rejected_at.is_(None))
    )


async def insert_node(
    connection: AsyncConnection, record: NodeRecord, digest: str, scopes: Sequence[str]
) -> None:
    """Register a node.

    Raises:
        ConflictError: A node or a user has its slug.
    """
    await give_name(connection, record.slug)
    values = {field: value for field, value in fields_of(record).items() if field not in _LIVE}
    at_the_door = {"api_key_hash": digest, "scopes": list(scopes)}
    await connection.execute(sa.insert(_nodes).values(values | at_the_door))
