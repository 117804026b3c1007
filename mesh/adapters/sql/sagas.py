"""`mesh.ports.SagaStore` on SQLAlchemy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine

from mesh.adapters.sql import models
from mesh.adapters.sql.database import translated
from mesh.core.saga_record import ENDED, actions_of
from mesh.types import SagaState
from mesh.wire.messages import Saga, SagasQuery

_INSERTS = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_CURSOR = "sagas"


class SqlSagas:
    """The tables `sagas` and `saga_actions`."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Args:
        engine: Of the masters' database, up to date.
        """
        self._engine = engine
        self._writer = engine.execution_options(writes=True)
        self._insert: Any = _INSERTS[engine.dialect.name]

    async def cursor(self) -> int:
        query = sa.select(models.cursors.c.value).where(models.cursors.c.name == _CURSOR)
        with translated():
            async with self._engine.connect() as connection:
                return int((await connection.execute(query)).scalar_one())

    async def save(self, sagas: Sequence[Saga], *, cursor: int) -> None:
        newest: dict[str, Saga] = {}
        for saga in sagas:
            if saga.id not in newest or newest[saga.id].version < saga.version:
                newest[saga.id] = saga
        table, named = models.sagas, models.saga_actions
        move = sa.update(models.cursors).where(models.cursors.c.name == _CURSOR)
        with translated():
            async with self._writer.begin() as connection:
                # Moving the cursor first makes two masters that copy at once take turns.
                await connection.execute(move.values(value=cursor))
                if not newest:
                    return
                save = self._insert(table)
                changed = {
                    column.name: save.excluded[column.name]
                    for column in table.columns
                    if not column.primary_key
                }
                await connection.execute(
                    save.on_conflict_do_update(
                        index_elements=["id"],
                        set_=changed,
                        where=table.c.version < save.excluded.version,
                    ),
                    [_row(saga) for saga in newest.values()],
                )
                await connection.execute(
                    self._insert(named).on_conflict_do_nothing(),
                    [
                        {"saga": saga.id, "action": action}
                        for saga in newest.values()
                        for action in sorted(actions_of(saga))
                    ],
                )

    async def find(self, saga_id: str) -> Saga | None:
        query = sa.select(models.sagas.c.record).where(models.sagas.c.id == saga_id)
        with translated():
            async with self._engine.connect() as connection:
                found: Saga | None = (await connection.execute(query)).scalar_one_or_none()
        return found

    async def open(self) -> list[str]:
        return await self._ids(models.sagas.c.state != SagaState.PAUSED.value)

    async def stale(self, *, before: int) -> list[str]:
        return await self._ids(models.sagas.c.changed_at < before)

    async def _ids(self, wanted: sa.ColumnElement[bool]) -> list[str]:
        table = models.sagas
        query = (
            sa.select(table.c.id)
            .where(table.c.ended_at == 0, wanted)
            .order_by(table.c.started_at, table.c.id)
        )
        with translated():
            async with self._engine.connect() as connection:
                return list((await connection.execute(query)).scalars())

    async def select(self, query: SagasQuery) -> tuple[list[Saga], int]:
        table = models.sagas
        wanted = sa.and_(*_conditions(query))
        page = (
            sa.select(table.c.record)
            .where(wanted)
            .order_by(table.c.started_at.desc(), table.c.id.desc())
            .limit(query.limit)
            .offset(query.offset)
        )
        count = sa.select(sa.func.count()).select_from(table).where(wanted)
        with translated():
            async with self._engine.connect() as connection:
                found = list((await connection.execute(page)).scalars())
                total = int((await connection.execute(count)).scalar_one())
        return [_brief(saga) for saga in found], total

    async def prune(self, *, ended_before: int) -> int:
        table, named = models.sagas, models.saga_actions
        old = sa.and_(table.c.ended_at > 0, table.c.ended_at < ended_before)
        with translated():
            async with self._writer.begin() as connection:
                ids = sa.select(table.c.id).where(old)
                await connection.execute(sa.delete(named).where(named.c.saga.in_(ids)))
                return int((await connection.execute(sa.delete(table).where(old))).rowcount)


def _row(saga: Saga) -> dict[str, Any]:
    return {
        "id": saga.id,
        "name": saga.name,
        "caller": saga.caller,
        "state": saga.state.value,
        "version": saga.version,
        "started_at": saga.started_at,
        "changed_at": saga.changed_at,
        "ended_at": saga.ended_at if saga.state in ENDED else 0,
        "record": saga,
    }


def _brief(saga: Saga) -> Saga:
    steps = [
        msgspec.structs.replace(
            step,
            call=msgspec.structs.replace(step.call, params={}),
            undo=step.undo and msgspec.structs.replace(step.undo, params={}),
            result=None,
        )
        for step in saga.steps
    ]
    return msgspec.structs.replace(saga, steps=steps)


def _conditions(query: SagasQuery) -> list[sa.ColumnElement[bool]]:
    table, named = models.sagas, models.saga_actions
    wanted: list[sa.ColumnElement[bool]] = [
        column == value
        for column, value in (
            (table.c.state, query.state and query.state.value),
            (table.c.name, query.name),
            (table.c.caller, query.caller),
        )
        if value
    ]
    if query.since:
        wanted.append(table.c.started_at >= query.since)
    if query.allowed is not None:
        other = sa.select(named.c.saga).where(
            named.c.saga == table.c.id, named.c.action.not_in(query.allowed)
        )
        wanted.append(~other.exists())
    return wanted or [sa.true()]
