"""`mesh.ports.Registry` on SQLAlchemy: SQLite. PostgreSQL, by its URL, is written for and
has not been tried: no test runs on it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import ArgumentError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from mesh.adapters.sql import models
from mesh.adapters.sql.action_rows import SqlActionRows
from mesh.adapters.sql.audit import SqlAuditStore
from mesh.adapters.sql.database import make_private, translated, tune_sqlite, upgrade
from mesh.adapters.sql.descriptions import SqlDescriptions
from mesh.adapters.sql.logins import SqlLoginStore
from mesh.adapters.sql.node_rows import fields_of, insert_node, record_of
from mesh.adapters.sql.sagas import SqlSagas
from mesh.adapters.sql.signing_keys import SqlSigningKeys
from mesh.adapters.sql.tokens import SqlTokenStore
from mesh.errors import ConfigError, NotFoundError
from mesh.wire.messages import NodeRecord, NodeUpdate

_BACKENDS = ("sqlite", "postgresql")

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
    """Registered nodes; what else masters share in SQL is in its attributes."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Use `open`: the schema must be up to date."""
        self._engine = engine
        self._writer = engine.execution_options(writes=True)
        self.actions = SqlActionRows(engine)
        self.descriptions = SqlDescriptions(engine)
        self.tokens = SqlTokenStore(engine)
        self.logins = SqlLoginStore(engine)
        self.signing_keys = SqlSigningKeys(engine)
        self.audit = SqlAuditStore(engine)
        self.sagas = SqlSagas(engine)

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
    if backend not in _BACKENDS:
        raise ConfigError(f"master.database: {backend} is not supported; use SQLite or PostgreSQL")
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigError(
            "master.database must name a file: what is in memory dies with the master"
        )
    return parsed


def _upgrade(connection: Connection) -> None:
    upgrade(connection, "registry", models.registry)
