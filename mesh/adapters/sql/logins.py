"""`mesh.ports.LoginStore` beside the registry: same database, same engine.

Whoever gives a name takes turns with the others (`node_rows.take_turns`): nodes and users are two
tables, and no constraint of SQL spans both.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Row, RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mesh.adapters.sql import models
from mesh.adapters.sql.database import translated
from mesh.adapters.sql.node_rows import give_name, insert_node, is_given, take_turns
from mesh.errors import NotFoundError
from mesh.ports import Candidate, KeyHolder, Seedling, Sown, Wait
from mesh.types import Status
from mesh.wire.messages import NodeRecord, PendingNode, User

_INSERTS = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_FINGERPRINT_DIGITS = 16

_nodes = models.nodes
_users = models.users
_refresh = models.refresh_tokens
_pending = models.pending_nodes
_waits = _pending.c.rejected_at.is_(None)


def _holders(on_node: sa.ColumnElement[bool], on_user: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Nodes and users alike, in one query."""
    both = sa.union_all(
        sa.select(
            _nodes.c.slug.label("name"),
            sa.literal(1).label("node"),
            _nodes.c.status,
            _nodes.c.scopes,
            _nodes.c.api_key_hash,
            _nodes.c.previous_key_hash,
            _nodes.c.previous_until,
        ).where(on_node),
        sa.select(
            _users.c.name,
            sa.literal(0),
            sa.literal(Status.ACTIVE.value),
            _users.c.scopes,
            _users.c.api_key_hash,
            _users.c.previous_key_hash,
            _users.c.previous_until,
        ).where(on_user),
    ).subquery()
    return sa.select(both)


def _opened_by(table: sa.Table, digest: str, at: int) -> sa.ColumnElement[bool]:
    return sa.or_(
        table.c.api_key_hash == digest,
        sa.and_(table.c.previous_key_hash == digest, table.c.previous_until > at),
    )


def _ended(table: sa.Table, at: int) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.previous_until > 0, table.c.previous_until <= at)


class SqlLoginStore:
    """Keys of nodes and users; `SqlRegistry.logins`."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Args:
        engine: The registry's, with the schema up to date.
        """
        self._engine = engine
        self._writer = engine.execution_options(writes=True)
        self._insert: Any = _INSERTS[engine.dialect.name]

    def _writing(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._writer.begin()

    # -- keys ------------------------------------------------------------------------------------

    async def find(self, name: str) -> KeyHolder | None:
        return await self._holder(_holders(_nodes.c.slug == name, _users.c.name == name))

    async def of_key(self, digest: str, *, at: int) -> KeyHolder | None:
        return await self._holder(
            _holders(_opened_by(_nodes, digest, at), _opened_by(_users, digest, at))
        )

    async def _holder(self, query: sa.Select[Any]) -> KeyHolder | None:
        with translated():
            async with self._engine.connect() as connection:
                row = (await connection.execute(query)).first()
        return None if row is None else _holder(row)

    async def rotate(self, name: str, digest: str, *, node: bool, previous_until: int) -> KeyHolder:
        table = _nodes if node else _users
        is_it = (_nodes.c.slug if node else _users.c.name) == name
        nobody = sa.false()
        before = _holders(is_it, nobody) if node else _holders(nobody, is_it)
        with translated():
            async with self._writing() as connection:
                # Two who rotate at once: the second sees what the first has set.
                lock = sa.select(table.c.api_key_hash).where(is_it).with_for_update()
                await connection.execute(lock)
                row = (await connection.execute(before)).first()
                if row is None:
                    kind = "node" if node else "user"
                    raise NotFoundError(f"no {kind} {name[:80]!r} is registered")
                await _set_key(connection, table, is_it, digest, previous_until=previous_until)
        return _holder(row)

    async def adopt(self, slug: str, digest: str) -> bool:
        change = (
            sa.update(_nodes)
            .where(
                _nodes.c.slug == slug,
                _nodes.c.status == Status.ACTIVE.value,
                sa.or_(_nodes.c.incarnation == 0, _nodes.c.api_key_hash.is_(None)),
            )
            .values(api_key_hash=digest, previous_key_hash=None, previous_until=0)
        )
        with translated():
            async with self._writing() as connection:
                return bool((await connection.execute(change)).rowcount)

    async def ended_overlaps(self, *, at: int) -> list[KeyHolder]:
        query = _holders(_ended(_nodes, at), _ended(_users, at))
        with translated():
            async with self._engine.connect() as connection:
                return [_holder(row) for row in await connection.execute(query)]

    async def forget_previous(self, name: str, *, at: int) -> None:
        with translated():
            async with self._writing() as connection:
                for table in (_nodes, _users):
                    is_it = sa.and_(_name_of(table) == name, _ended(table, at))
                    gone = sa.update(table).where(is_it)
                    await connection.execute(gone.values(previous_key_hash=None, previous_until=0))

    # -- users -----------------------------------------------------------------------------------

    async def create_user(self, user: User, digest: str) -> None:
        with translated():
            async with self._writing() as connection:
                await _insert_user(connection, user, digest)

    async def users(self) -> list[User]:
        with translated():
            async with self._engine.connect() as connection:
                rows = await connection.execute(sa.select(_users).order_by(_users.c.name))
                return [_user(row) for row in rows.mappings()]

    async def remove_user(self, name: str, *, at: int) -> User:
        gone = sa.delete(_users).where(_users.c.name == name).returning(_users)
        theirs = sa.and_(_refresh.c.subject == name, _refresh.c.revoked_at.is_(None))
        revoke = sa.update(_refresh).where(theirs).values(revoked_at=at)
        with translated():
            async with self._writing() as connection:
                row = (await connection.execute(gone)).mappings().one_or_none()
                if row is not None:
                    await connection.execute(revoke)
        if row is None:
            raise NotFoundError(f"there is no user {name[:80]!r}; see: meshctl users list")
        return _user(row)

    # -- those who wait --------------------------------------------------------------------------

    async def wait(self, candidate: Candidate, *, at: int, most: int, refresh_ms: int) -> Wait:
        """Most of those who try are known or too many: for them it is one look, and no write."""
        with translated():
            async with self._engine.connect() as connection:
                seen = await _look(connection, candidate, at=at, most=most, refresh_ms=refresh_ms)
            if seen is not None:
                return seen
            async with self._writing() as connection:
                await take_turns(connection)
                return await self._enter(connection, candidate, at, most, refresh_ms)

    async def _enter(
        self, connection: AsyncConnection, candidate: Candidate, at: int, most: int, refresh_ms: int
    ) -> Wait:
        if await is_given(connection, candidate.slug):
            return Wait.TAKEN
        seen = await _look(connection, candidate, at=at, most=most, refresh_ms=refresh_ms)
        if seen is not None:
            return seen
        is_it = sa.and_(
            _pending.c.slug == candidate.slug, _pending.c.digest == candidate.digest, _waits
        )
        again = sa.update(_pending).where(is_it)
        again = again.values(last_seen=at, address=candidate.address)
        if (await connection.execute(again)).rowcount:
            return Wait.KNOWN
        values = candidate._asdict() | {"first_seen": at, "last_seen": at}
        await connection.execute(sa.insert(_pending).values(values))
        return Wait.ENTERED

    async def pending(self) -> list[PendingNode]:
        query = sa.select(_pending).where(_waits).order_by(_pending.c.first_seen, _pending.c.id)
        with translated():
            async with self._engine.connect() as connection:
                return [_waiting(row) for row in (await connection.execute(query)).mappings()]

    async def approve(
        self,
        id: str,  # noqa: A002
        record: NodeRecord,
        *,
        scopes: list[str],
    ) -> bool:
        take = sa.delete(_pending).where(_pending.c.id == id, _waits).returning(_pending.c.digest)
        with translated():
            async with self._writing() as connection:
                await take_turns(connection)  # before the row: as everybody who gives a name does
                digest = (await connection.execute(take)).scalar_one_or_none()
                if digest is None:
                    return False
                await insert_node(connection, record, digest, scopes)
        return True

    async def reject(self, id: str, *, at: int) -> PendingNode | None:  # noqa: A002
        change = (
            sa.update(_pending)
            .where(_pending.c.id == id, _waits)
            .values(rejected_at=at)
            .returning(_pending)
        )
        with translated():
            async with self._writing() as connection:
                row = (await connection.execute(change)).mappings().one_or_none()
        return None if row is None else _waiting(row)

    async def forget(self, *, rejected_before: int, seen_before: int) -> int:
        old = sa.delete(_pending).where(
            sa.or_(
                _pending.c.rejected_at < rejected_before,
                sa.and_(_waits, _pending.c.last_seen < seen_before),
            )
        )
        with translated():
            async with self._writing() as connection:
                return (await connection.execute(old)).rowcount

    # -- the first ones --------------------------------------------------------------------------

    async def sow(self, seedling: Seedling, record: NodeRecord, *, at: int) -> Sown:
        keys = models.sown_keys
        known = sa.select(keys.c.digest).where(keys.c.digest == seedling.digest)
        with translated():
            async with self._writing() as connection:
                await take_turns(connection)
                if (await connection.execute(known)).first() is not None:
                    return Sown.KNOWN
                is_node = (await connection.execute(_names(_nodes, seedling.name))).first()
                is_user = (await connection.execute(_names(_users, seedling.name))).first()
                if (is_user if seedling.node else is_node) is not None:
                    return Sown.TAKEN
                if (is_node if seedling.node else is_user) is not None:
                    table = _nodes if seedling.node else _users
                    is_it = _name_of(table) == seedling.name
                    await _set_key(connection, table, is_it, seedling.digest, previous_until=0)
                    return Sown.CHANGED
                if seedling.node:
                    await insert_node(connection, record, seedling.digest, seedling.scopes)
                else:
                    user = User(name=seedling.name, scopes=seedling.scopes, created_at=at)
                    await _insert_user(connection, user, seedling.digest)
                await connection.execute(self._mark_sown(seedling.digest))
        return Sown.ENTERED

    async def sown(self, digest: str) -> None:
        with translated():
            async with self._writing() as connection:
                await connection.execute(self._mark_sown(digest))

    def _mark_sown(self, digest: str) -> sa.Executable:
        mark: sa.Executable = (
            self._insert(models.sown_keys)
            .values(digest=digest)
            .on_conflict_do_nothing(index_elements=["digest"])
        )
        return mark


async def _set_key(
    connection: AsyncConnection,
    table: sa.Table,
    which: sa.ColumnElement[bool],
    digest: str,
    *,
    previous_until: int,
) -> None:
    """The old key, if it stays good for a while, is read by the statement that replaces it."""
    overlaps = previous_until > 0
    await connection.execute(
        sa.update(table)
        .where(which)
        .values(
            previous_key_hash=table.c.api_key_hash if overlaps else None,
            previous_until=previous_until,
            api_key_hash=digest,
        )
    )


async def _insert_user(connection: AsyncConnection, user: User, digest: str) -> None:
    await give_name(connection, user.name)
    values = {field: getattr(user, field) for field in User.__struct_fields__}
    await connection.execute(sa.insert(_users).values(values | {"api_key_hash": digest}))


async def _look(
    connection: AsyncConnection, candidate: Candidate, *, at: int, most: int, refresh_ms: int
) -> Wait | None:
    """What is to be said without writing anything; None: there is something to write."""
    count = sa.select(sa.func.count()).select_from(_pending).where(_waits).scalar_subquery()
    query = sa.select(sa.literal(1), count.label("waiting"), *_pending.c).select_from(
        sa.select(sa.literal(1))
        .subquery()
        .outerjoin(
            _pending,
            sa.and_(_pending.c.slug == candidate.slug, _pending.c.digest == candidate.digest),
        )
    )
    row = (await connection.execute(query)).mappings().one()
    if row["id"] is None:
        return Wait.FULL if row["waiting"] >= most else None
    if row["rejected_at"] is not None:
        return Wait.REJECTED
    return Wait.KNOWN if at - row["last_seen"] < refresh_ms else None


def _name_of(table: sa.Table) -> sa.Column[str]:
    return table.c.slug if table is _nodes else table.c.name


def _names(table: sa.Table, name: str) -> sa.Select[Any]:
    return sa.select(_name_of(table)).where(_name_of(table) == name)


def _holder(row: Row[Any]) -> KeyHolder:
    return KeyHolder(
        name=row.name,
        node=bool(row.node),
        status=Status(row.status),
        scopes=tuple(row.scopes),
        digest=row.api_key_hash,
        previous_digest=row.previous_key_hash,
        previous_until=row.previous_until,
    )


def _user(row: RowMapping) -> User:
    return User(**{field: row[field] for field in User.__struct_fields__})


def _waiting(row: RowMapping) -> PendingNode:
    return PendingNode(
        id=row["id"],
        name=row["slug"],
        fingerprint=row["digest"][:_FINGERPRINT_DIGITS],
        address=row["address"],
        first_seen=row["first_seen"],
        last_seen=row["last_seen"],
    )
