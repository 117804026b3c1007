"""`mesh.ports.TokenStore` beside the registry: same database, same engine.

Every change of a token's state is one `UPDATE … WHERE` it was in the state before, so that of many
takers at once exactly one succeeds. What concerns a whole family takes its rows first: a token
never joins a family that is being revoked.
"""

from __future__ import annotations

import builtins
from contextlib import AbstractAsyncContextManager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mesh.adapters.sql import models
from mesh.adapters.sql.database import translated
from mesh.ports import AccessTokenRecord, JoinTokenRecord, NodeAccess, RefreshTokenRecord
from mesh.types import Status
from mesh.wire.messages import TokenInfo

_access = models.access_tokens
_refresh = models.refresh_tokens
_join = models.join_tokens
_nodes = models.nodes
_MOST_LISTED = 1000


def _good(table: sa.Table, at: int) -> sa.ColumnElement[bool]:
    """Neither expired nor revoked, nor used up."""
    good = sa.and_(table.c.revoked_at.is_(None), table.c.expires_at > at)
    if table is _refresh:
        return sa.and_(good, _refresh.c.used_at.is_(None))
    if table is _join:
        return sa.and_(good, sa.or_(_join.c.uses_left.is_(None), _join.c.uses_left > 0))
    return good


class SqlTokenStore:
    """Issued tokens; `SqlRegistry.tokens`."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Args:
        engine: The registry's, with the schema up to date.
        """
        self._engine = engine
        self._writer = engine.execution_options(writes=True)

    def _writing(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._writer.begin()

    # -- access and refresh tokens ---------------------------------------------------------------

    async def add(
        self, access: AccessTokenRecord, refresh: RefreshTokenRecord | None = None
    ) -> bool:
        with translated():
            async with self._writing() as connection:
                if access.family and await _is_revoked(connection, access.family):
                    return False
                await connection.execute(sa.insert(_access).values(_row(access)))
                if refresh is not None:
                    await connection.execute(sa.insert(_refresh).values(_row(refresh)))
        return True

    async def rotate(self, digest: str, *, at: int) -> tuple[RefreshTokenRecord, bool] | None:
        alive = sa.and_(
            _refresh.c.digest == digest, _refresh.c.revoked_at.is_(None), _refresh.c.expires_at > at
        )
        take = (
            sa.update(_refresh)
            .where(alive, _refresh.c.used_at.is_(None))
            .values(used_at=at)
            .returning(_refresh)
        )
        with translated():
            async with self._writing() as connection:
                taken = (await connection.execute(take)).mappings().one_or_none()
                if taken is not None:
                    return _refresh_record(taken), True
                found = await connection.execute(sa.select(_refresh).where(alive))
                used = found.mappings().one_or_none()
        return None if used is None else (_refresh_record(used), False)

    async def revoke_family(self, family: str, *, at: int) -> builtins.list[str]:
        with translated():
            async with self._writing() as connection:
                _, ids = await _revoke_family(connection, family, at)
        return ids

    async def revoke(
        self,
        id: str,  # noqa: A002
        *,
        at: int,
    ) -> tuple[int, builtins.list[str]] | None:
        families = sa.union_all(
            *(sa.select(table.c.family).where(table.c.id == id) for table in (_refresh, _access))
        )
        with translated():
            async with self._writing() as connection:
                # An access token without a family has an empty one.
                if family := (await connection.execute(families)).scalar_one_or_none():
                    return await _revoke_family(connection, family, at)
                for table in (_access, _join):
                    is_it = table.c.id == id
                    known = await connection.execute(sa.select(table.c.id).where(is_it))
                    if known.scalar_one_or_none() is not None:
                        good = await _revoke_where(connection, table, is_it, at)
                        return len(good), good if table is _access else []
        return None

    async def revoke_subject(self, subject: str, *, at: int) -> tuple[int, builtins.list[str]]:
        with translated():
            async with self._writing() as connection:
                theirs = _refresh.c.subject == subject
                await _lock(connection, theirs)
                ids = await _revoke_where(connection, _access, _access.c.subject == subject, at)
                refreshes = await _revoke_where(connection, _refresh, theirs, at)
        return len(ids) + len(refreshes), ids

    async def revoked(self, *, at: int) -> builtins.list[str]:
        query = (
            sa.select(_access.c.id)
            .where(_access.c.revoked_at.is_not(None), _access.c.expires_at > at)
            .order_by(_access.c.id)
        )
        with translated():
            async with self._engine.connect() as connection:
                return list((await connection.execute(query)).scalars())

    async def list(self, *, subject: str, all: bool, at: int) -> builtins.list[TokenInfo]:  # noqa: A002
        found: list[TokenInfo] = []
        with translated():
            async with self._engine.connect() as connection:
                for table in (_access, _refresh) if subject else (_access, _refresh, _join):
                    query = sa.select(table).order_by(table.c.issued_at.desc(), table.c.id.desc())
                    if subject:
                        query = query.where(table.c.subject == subject)
                    if not all:
                        query = query.where(_good(table, at))
                    rows = await connection.execute(query.limit(_MOST_LISTED))
                    found += [_info(table, row) for row in rows.mappings()]
        return sorted(found, key=lambda token: (token.issued_at, token.id), reverse=True)

    # -- join tokens -----------------------------------------------------------------------------

    async def add_join(self, token: JoinTokenRecord) -> None:
        with translated():
            async with self._writing() as connection:
                await connection.execute(sa.insert(_join).values(_row(token)))

    async def use_join(self, digest: str, *, at: int) -> JoinTokenRecord | None:
        use = (
            sa.update(_join)
            .where(_join.c.digest == digest, _good(_join, at))
            .values(uses_left=_join.c.uses_left - 1)
            .returning(_join)
        )
        with translated():
            async with self._writing() as connection:
                row = (await connection.execute(use)).mappings().one_or_none()
        return None if row is None else _join_record(row)

    async def good_join(self, digest: str, *, at: int) -> str | None:
        query = sa.select(_join.c.id).where(_join.c.digest == digest, _good(_join, at))
        with translated():
            async with self._engine.connect() as connection:
                return (await connection.execute(query)).scalar_one_or_none()

    async def give_back_join(self, id: str) -> None:  # noqa: A002
        give = sa.update(_join).where(_join.c.id == id).values(uses_left=_join.c.uses_left + 1)
        with translated():
            async with self._writing() as connection:
                await connection.execute(give)

    # -- nodes -----------------------------------------------------------------------------------

    async def node(self, slug: str) -> NodeAccess | None:
        query = sa.select(_nodes.c.slug, _nodes.c.status, _nodes.c.scopes)
        with translated():
            async with self._engine.connect() as connection:
                row = (await connection.execute(query.where(_nodes.c.slug == slug))).one_or_none()
        return row and NodeAccess(row.slug, Status(row.status), tuple(row.scopes))

    async def prune(self, *, before: int) -> int:
        gone = 0
        with translated():
            async with self._writing() as connection:
                for table in (_access, _refresh, _join):
                    old = sa.delete(table).where(table.c.expires_at < before)
                    gone += (await connection.execute(old)).rowcount
        return gone


async def _lock(connection: AsyncConnection, which: sa.ColumnElement[bool]) -> None:
    """Whoever changes these refresh tokens goes on alone, and sees in its next statement what was
    added meanwhile. SQLite has one writer anyway.
    """
    rows = sa.select(_refresh.c.id).where(which).order_by(_refresh.c.id)
    await connection.execute(rows.with_for_update())


async def _is_revoked(connection: AsyncConnection, family: str) -> bool:
    await _lock(connection, _refresh.c.family == family)
    revoked = sa.select(sa.func.count()).where(
        _refresh.c.family == family, _refresh.c.revoked_at.is_not(None)
    )
    return bool((await connection.execute(revoked)).scalar_one())


async def _revoke_family(
    connection: AsyncConnection, family: str, at: int
) -> tuple[int, list[str]]:
    await _lock(connection, _refresh.c.family == family)
    ids = await _revoke_where(connection, _access, _access.c.family == family, at)
    refreshes = await _revoke_where(connection, _refresh, _refresh.c.family == family, at)
    return len(ids) + len(refreshes), ids


async def _revoke_where(
    connection: AsyncConnection, table: sa.Table, which: sa.ColumnElement[bool], at: int
) -> list[str]:
    """Revoke what is not revoked yet, also what was used: ids of those that were good."""
    which = sa.and_(which, table.c.revoked_at.is_(None))
    good = sa.select(table.c.id).where(which, _good(table, at)).with_for_update()
    ids = list((await connection.execute(good)).scalars())
    await connection.execute(sa.update(table).where(which).values(revoked_at=at))
    return ids


def _row(record: AccessTokenRecord | RefreshTokenRecord | JoinTokenRecord) -> dict[str, Any]:
    return record._asdict() | {"scopes": list(record.scopes)}


def _refresh_record(row: RowMapping) -> RefreshTokenRecord:
    values = {field: row[field] for field in RefreshTokenRecord._fields}
    return RefreshTokenRecord(**values | {"scopes": tuple(row["scopes"])})


def _join_record(row: RowMapping) -> JoinTokenRecord:
    values = {field: row[field] for field in JoinTokenRecord._fields}
    return JoinTokenRecord(**values | {"scopes": tuple(row["scopes"])})


def _info(table: sa.Table, row: RowMapping) -> TokenInfo:
    uses_left = None
    if table is _join:
        uses_left = row["uses_left"]
    elif table is _refresh and row["used_at"] is not None:
        uses_left = 0
    return TokenInfo(
        id=row["id"],
        kind=table.name.removesuffix("_tokens"),
        subject=row["description"] if table is _join else row["subject"],
        scopes=row["scopes"],
        node=False if table is _join else row["node"],
        issued_at=row["issued_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        uses_left=uses_left,
    )
