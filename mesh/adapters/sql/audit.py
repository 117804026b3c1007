"""`mesh.ports.trail.AuditStore` beside the registry: same database, same engine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mesh.adapters.sql import models
from mesh.adapters.sql.database import translated
from mesh.wire.messages import AuditQuery, AuditRecord

_audit = models.audit
_INSERTS = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_FIELDS = AuditRecord.__struct_fields__


class SqlAuditStore:
    """The audit trail; its ids are in the order of time."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Args:
        engine: The registry's, with the schema up to date.
        """
        self._engine = engine
        self._writer = engine.execution_options(writes=True)
        insert: Any = _INSERTS[engine.dialect.name]
        self._insert = insert(_audit).on_conflict_do_nothing(index_elements=["id"])

    def _writing(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._writer.begin()

    async def add(self, records: Sequence[AuditRecord]) -> None:
        if not records:
            return
        rows = [_row(record) for record in records]
        with translated():
            async with self._writing() as connection:
                await connection.execute(self._insert, rows)

    async def find(self, query: AuditQuery) -> tuple[list[AuditRecord], int]:
        wanted = sa.and_(*_conditions(query))
        order = (_audit.c.id,) if query.after else (_audit.c.at.desc(), _audit.c.id.desc())
        page = (
            sa.select(*(_audit.c[field] for field in _FIELDS))
            .where(wanted)
            .order_by(*order)
            .limit(query.limit)
            .offset(query.offset)
        )
        count = sa.select(sa.func.count()).select_from(_audit).where(wanted)
        with translated():
            async with self._engine.connect() as connection:
                rows = (await connection.execute(page)).mappings().all()
                total = int((await connection.execute(count)).scalar_one())
        return [_record(row) for row in rows], total

    async def unpublished(self, limit: int) -> list[AuditRecord]:
        query = (
            sa.select(*(_audit.c[field] for field in _FIELDS))
            .where(_audit.c.published.is_(False))
            .order_by(_audit.c.id)
            .limit(limit)
        )
        with translated():
            async with self._engine.connect() as connection:
                rows = (await connection.execute(query)).mappings().all()
        return [_record(row) for row in rows]

    async def published(self, ids: Sequence[str]) -> None:
        mark = sa.update(_audit).where(_audit.c.id.in_(ids)).values(published=True)
        with translated():
            async with self._writing() as connection:
                await connection.execute(mark)

    async def prune(self, *, before: int) -> int:
        old = sa.delete(_audit).where(_audit.c.at < before)
        with translated():
            async with self._writing() as connection:
                return int((await connection.execute(old)).rowcount)


def _conditions(query: AuditQuery) -> list[sa.ColumnElement[bool]]:
    wanted: list[sa.ColumnElement[bool]] = [
        column == value
        for column, value in (
            (_audit.c.kind, query.kind),
            (_audit.c.actor, query.actor),
            (_audit.c.subject, query.subject),
        )
        if value
    ]
    if query.since:
        wanted.append(_audit.c.at >= query.since)
    if query.until:
        wanted.append(_audit.c.at <= query.until)
    if query.after:
        wanted.append(_audit.c.id > query.after)
    return wanted or [sa.true()]


def _row(record: AuditRecord) -> dict[str, Any]:
    return {field: getattr(record, field) for field in _FIELDS} | {"published": False}


def _record(row: RowMapping) -> AuditRecord:
    return AuditRecord(**row)
