"""`mesh.ports.Registry` on SQLAlchemy: SQLite. PostgreSQL, by its URL, is written for and
has not been tried: no test runs on it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, RowMapping
from sqlalchemy.exc import ArgumentError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from mesh.adapters.sql import models
from mesh.adapters.sql.audit import SqlAuditStore
from mesh.adapters.sql.database import make_private, translated, tune_sqlite, upgrade
from mesh.adapters.sql.logins import SqlLoginStore
from mesh.adapters.sql.node_rows import fields_of, insert_node, record_of
from mesh.adapters.sql.signing_keys import SqlSigningKeys
from mesh.adapters.sql.tokens import SqlTokenStore
from mesh.core.action_states import join
from mesh.errors import ConfigError, NotFoundError
from mesh.types import ActionState
from mesh.wire.messages import HistoryQuery, HistoryRecord, NodeRecord, NodeUpdate

_INSERTS = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}

_OBSERVED = (
    "version",
    "incarnation",
    "response_time_ms",
    "last_ping_at",
    "failures",
    "collections",
    "actions",
    "updated_at",
)

_OBSERVE = (
    sa.update(models.nodes)
    .where(models.nodes.c.slug == sa.bindparam("new_slug"))
    .values({field: sa.bindparam(f"new_{field}") for field in _OBSERVED})
)


class SqlRegistry:
    """Registered nodes and the index of the action history."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Use `open`: the schema must be up to date."""
        self._engine = engine
        self._writer = engine.execution_options(writes=True)
        self._insert: Any = _INSERTS[engine.dialect.name]
        self.tokens = SqlTokenStore(engine)
        self.logins = SqlLoginStore(engine)
        self.signing_keys = SqlSigningKeys(engine)
        self.audit = SqlAuditStore(engine)

    @classmethod
    async def open(cls, url: str) -> SqlRegistry:
        """Connect and bring the schema to the newest version.

        Args:
            url: SQLAlchemy URL with an async driver, e.g. `sqlite+aiosqlite:////var/lib/mesh.db`.

        Raises:
            ConfigError: Not such a URL.
            StateError: The file cannot be written, or was changed by a newer version.
            UnavailableError: The database does not answer.
        """
        parsed = _checked(url)
        if parsed.get_backend_name() == "sqlite":
            make_private(Path(str(parsed.database)))
        try:
            engine = create_async_engine(parsed)
        except (InvalidRequestError, ImportError) as error:
            raise ConfigError(
                f"master.database: {error}; name an async driver, e.g. sqlite+aiosqlite:///mesh.db"
            ) from error
        if parsed.get_backend_name() == "sqlite":
            tune_sqlite(engine.sync_engine)
        registry = cls(engine)
        try:
            with translated():
                async with registry._writing() as connection:
                    await connection.run_sync(_upgrade)
        except BaseException:
            await engine.dispose()
            raise
        return registry

    def _writing(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._writer.begin()

    # -- nodes -----------------------------------------------------------------------------------

    async def nodes(self) -> list[NodeRecord]:
        query = sa.select(models.nodes).order_by(models.nodes.c.slug)
        with translated():
            async with self._engine.connect() as connection:
                rows = (await connection.execute(query)).mappings().all()
        return [record_of(row) for row in rows]

    async def register(
        self,
        record: NodeRecord,
        *,
        api_key_hash: str,
        scopes: Sequence[str] = ("search", "actions"),
    ) -> None:
        with translated():
            async with self._writing() as connection:
                await insert_node(connection, record, api_key_hash, scopes)

    async def lookup(self, names: Collection[str]) -> list[NodeRecord]:
        nodes = models.nodes
        wanted = sa.or_(nodes.c.slug.in_(names), nodes.c.id.in_(names))
        with translated():
            async with self._engine.connect() as connection:
                rows = await connection.execute(
                    sa.select(nodes).where(wanted).order_by(nodes.c.slug)
                )
                return [record_of(row) for row in rows.mappings()]

    async def update(self, slug: str, change: NodeUpdate) -> NodeRecord:
        values = {field: value for field, value in fields_of(change).items() if value is not None}
        is_it = models.nodes.c.slug == slug
        with translated():
            async with self._writing() as connection:
                if values:
                    await connection.execute(sa.update(models.nodes).where(is_it).values(values))
                row = (
                    (await connection.execute(sa.select(models.nodes).where(is_it)))
                    .mappings()
                    .one_or_none()
                )
        if row is None:
            raise NotFoundError(f"no node {slug!r} is registered")
        return record_of(row)

    async def observe(self, *records: NodeRecord) -> None:
        if not records:
            return
        told = [
            {f"new_{field}": getattr(record, field) for field in ("slug", *_OBSERVED)}
            for record in records
        ]
        with translated():
            async with self._writing() as connection:
                await connection.execute(_OBSERVE, told)

    async def remove(self, slug: str) -> None:
        gone = sa.delete(models.nodes).where(models.nodes.c.slug == slug)
        with translated():
            async with self._writing() as connection:
                if not (await connection.execute(gone)).rowcount:
                    raise NotFoundError(f"no node {slug!r} is registered")

    async def next_epoch(self, *, at_least: int) -> int:
        cursors = models.cursors
        following = cursors.c.value + 1
        least = sa.literal(at_least, cursors.c.value.type)
        statement = (
            sa.update(cursors)
            .where(cursors.c.name == "epoch")
            .values(value=sa.case((following > least, following), else_=least))
            .returning(cursors.c.value)
        )
        with translated():
            async with self._writing() as connection:
                return int((await connection.execute(statement)).scalar_one())

    # -- history ---------------------------------------------------------------------------------

    async def history_cursor(self) -> int:
        query = sa.select(models.cursors.c.value).where(models.cursors.c.name == "history")
        with translated():
            async with self._engine.connect() as connection:
                return int((await connection.execute(query)).scalar_one())

    async def index_history(
        self, records: Sequence[tuple[int, HistoryRecord]], *, cursor: int
    ) -> None:
        cursors, actions = models.cursors, models.actions
        # Moving the cursor first makes two masters that index at once take turns.
        move = sa.update(cursors).where(cursors.c.name == "history").values(value=cursor)
        known = sa.select(actions).where(actions.c.id.in_({record.id for _, record in records}))
        with translated():
            async with self._writing() as connection:
                await connection.execute(move)
                if not records:
                    return
                rows = (await connection.execute(known)).mappings().all()
                latest = {(row["id"], row["node"]): _record(row) for row in rows}
                for _, record in records:
                    key = (record.id, record.node)
                    latest[key] = join(latest.get(key), record)
                save = self._insert(actions)
                changed = {
                    column.name: save.excluded[column.name]
                    for column in actions.columns
                    if not column.primary_key
                }
                await connection.execute(
                    save.on_conflict_do_update(index_elements=["id", "node"], set_=changed),
                    [_action(record) for record in latest.values()],
                )

    async def history(self, query: HistoryQuery) -> tuple[list[HistoryRecord], int]:
        actions = models.actions
        wanted = sa.and_(*_conditions(query), *self._prefixed(query.id_prefix))
        page = (
            sa.select(actions)
            .where(wanted)
            .order_by(actions.c.accepted_at.desc(), actions.c.id.desc(), actions.c.node)
            .limit(query.limit)
            .offset(query.offset)
        )
        count = sa.select(sa.func.count()).select_from(actions).where(wanted)
        with translated():
            async with self._engine.connect() as connection:
                rows = (await connection.execute(page)).mappings().all()
                total = int((await connection.execute(count)).scalar_one())
        return [_record(row) for row in rows], total

    def _prefixed(self, prefix: str) -> list[sa.ColumnElement[bool]]:
        column = models.actions.c.id
        if not prefix:
            return []
        if self._engine.dialect.name == "sqlite":  # compares bytes, but not in LIKE
            return [column >= prefix, column < prefix[:-1] + chr(ord(prefix[-1]) + 1)]
        return [column.startswith(prefix, autoescape=True)]

    async def close(self) -> None:
        await self._engine.dispose()


def _checked(url: str) -> URL:
    try:
        parsed = sa.make_url(url)
    except ArgumentError as error:
        raise ConfigError(
            "master.database is not a URL like sqlite+aiosqlite:///mesh.db"
        ) from error
    backend = parsed.get_backend_name()
    if backend not in _INSERTS:
        raise ConfigError(f"master.database: {backend} is not supported; use SQLite or PostgreSQL")
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigError(
            "master.database must name a file: what is in memory dies with the master"
        )
    return parsed


def _upgrade(connection: Connection) -> None:
    upgrade(connection, "registry", models.registry)


def _action(record: HistoryRecord) -> Mapping[str, Any]:
    result = None if record.result is None else msgspec.json.encode(record.result).decode()
    return fields_of(record) | {"result": result}


def _record(row: RowMapping) -> HistoryRecord:
    result = None if row["result"] is None else msgspec.json.decode(row["result"])
    return HistoryRecord(**dict(row) | {"state": ActionState(row["state"]), "result": result})


def _conditions(query: HistoryQuery) -> list[sa.ColumnElement[bool]]:
    actions = models.actions
    wanted: list[sa.ColumnElement[bool]] = [
        column == value
        for column, value in (
            (actions.c.id, query.action_id),
            (actions.c.node, query.node),
            (actions.c.action, query.action),
            (actions.c.caller, query.caller),
            (actions.c.state, query.state),
        )
        if value
    ]
    if query.since:
        wanted.append(actions.c.accepted_at >= query.since)
    return wanted or [sa.true()]
