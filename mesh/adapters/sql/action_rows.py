"""`mesh.ports.ActionIndex` beside the registry: same database, same engine.

A row is the latest attempt of an action on a node; the earlier ones stand in a table of their own,
so that the usual action, which is tried once, is written once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mesh.adapters.sql import models
from mesh.adapters.sql.action_queries import begins_with, conditions, has_ended, order_of
from mesh.adapters.sql.database import translated
from mesh.adapters.sql.node_rows import fields_of
from mesh.core.action_states import MOST_ATTEMPTS, Story, enter
from mesh.ports import Place
from mesh.types import ActionState
from mesh.wire.messages import ActionStory, HistoryPage, HistoryQuery, HistoryRecord

_actions = models.actions
_attempts = models.attempts
_cursors = models.cursors
_INSERTS = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_CURSOR, _BASE = "history", "history-base"
_OF_ATTEMPT = ("id", "node", "attempt", "state", "at", "duration_ms", "result", "error", "final")
_ROW_BYTES = 200
"""Of a row besides its long columns, its share of the indexes with it."""
_ASKED_AT_ONCE = 500
"""Ids in one statement: databases have limits."""

Key = tuple[str, str]
"""Id and node."""


class SqlActionRows:
    """The history index; `SqlRegistry.actions`."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Args:
        engine: The registry's, with the schema up to date.
        """
        self._engine = engine
        self._writer = engine.execution_options(writes=True)
        self._is_sqlite = engine.dialect.name == "sqlite"
        insert: Any = _INSERTS[engine.dialect.name]
        self._save_actions = _upsert(insert(_actions), _actions)
        self._save_attempts = _upsert(insert(_attempts), _attempts)

    def _writing(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._writer.begin()

    # -- indexing ----------------------------------------------------------------------------------

    async def place(self) -> Place:
        with translated():
            async with self._engine.connect() as connection:
                return await _place(connection)

    async def save(self, records: Sequence[tuple[int, HistoryRecord]], *, upto: Place) -> Place:
        with translated():
            async with self._writing() as connection:
                await _take_turns(connection)
                known = await _place(connection)
                if known.base != upto.base:
                    return known
                # What another master has saved meanwhile is saved.
                new = [one for one in records if one[0] > known.cursor]
                if new:
                    await self._enter(connection, new, known.base)
                place = Place(known.base, max(known.cursor, upto.cursor))
                await _move(connection, _CURSOR, place.cursor)
                return place

    async def restart(self, seen: Place) -> Place:
        with translated():
            async with self._writing() as connection:
                await _take_turns(connection)
                known = await _place(connection)
                if known != seen:
                    return known
                place = Place(known.base + known.cursor, 0)
                await _move(connection, _BASE, place.base)
                await _move(connection, _CURSOR, place.cursor)
                return place

    async def _enter(
        self, connection: AsyncConnection, records: Sequence[tuple[int, HistoryRecord]], base: int
    ) -> None:
        stories = await _stories(connection, {record.id for _, record in records})
        sequences = {key: kept.sequence for key, kept in stories.items()}
        touched: dict[Key, Story] = {}
        for sequence, record in records:
            key = (record.id, record.node)
            before = touched.get(key) or (stories[key].story if key in stories else None)
            after = enter(before, record)
            if after == before:
                continue
            touched[key] = after
            if before is None or after.row != before.row:
                sequences[key] = base + sequence
        if touched:
            rows = [_row(story, sequences[key]) for key, story in touched.items()]
            await connection.execute(self._save_actions, rows)
        if earlier := [row for story in touched.values() for row in _earlier(story)]:
            await connection.execute(self._save_attempts, earlier)
        for (id_, node), story in touched.items():
            if stories.get((id_, node)) is None or len(story.attempts) < MOST_ATTEMPTS:
                continue
            gone = sa.and_(
                _attempts.c.id == id_,
                _attempts.c.node == node,
                _attempts.c.attempt < min(story.attempts),
            )
            await connection.execute(sa.delete(_attempts).where(gone))

    # -- asking ------------------------------------------------------------------------------------

    async def page(self, query: HistoryQuery) -> HistoryPage:
        wanted = conditions(query, is_sqlite=self._is_sqlite)
        count = sa.select(sa.func.count()).select_from(_actions).where(wanted)
        page = (
            sa.select(_actions)
            .where(wanted)
            .order_by(*order_of(query))
            .limit(query.limit)
            .offset(query.offset)
        )
        with translated():
            async with self._engine.connect() as connection:
                newest = sum(await _place(connection))  # first: what changes meanwhile comes later
                rows = (await connection.execute(page)).mappings().all()
                total = int((await connection.execute(count)).scalar_one())
        told = max((int(row["sequence"]) for row in rows), default=0)
        if query.after is not None and len(rows) == query.limit:
            newest = told
        else:
            # What was saved between the two reads is told already. Whole saves are seen or not,
            # in their order: nothing before the newest row that was told is missing.
            newest = max(newest, told, query.after or 0)
        return HistoryPage(actions=[_record(row) for row in rows], total=total, sequence=newest)

    async def stories(self, action_id: str) -> list[ActionStory]:
        of_fan_out = sa.and_(
            begins_with(f"{action_id}.", is_sqlite=self._is_sqlite),
            _actions.c.id == f"{action_id}." + _actions.c.node,
        )
        ids = sa.select(_actions.c.id).where(sa.or_(_actions.c.id == action_id, of_fan_out))
        with translated():
            async with self._engine.connect() as connection:
                found = await _stories(connection, set((await connection.execute(ids)).scalars()))
        told = [
            ActionStory(
                action=kept.story.row,
                attempts=[one for number, one in sorted(kept.story.attempts.items()) if number],
            )
            for (id_, node), kept in found.items()
            if id_ in (action_id, f"{action_id}.{node}")
        ]
        return sorted(told, key=lambda story: (story.action.node, story.action.id))

    # -- forgetting --------------------------------------------------------------------------------

    async def prune(self, *, before: int, most_bytes: int, limit: int) -> int:
        oldest = sa.select(_actions.c.id, _actions.c.node, _actions.c.size).where(has_ended())
        too_old = oldest.where(_actions.c.at < before).order_by(_actions.c.at).limit(limit)
        with translated():
            async with self._writing() as connection:
                gone = list(await connection.execute(too_old))
                await _forget(connection, gone)
                excess = await _size(connection) - most_bytes
                if excess > 0 and len(gone) < limit:
                    more = oldest.order_by(_actions.c.sequence).limit(limit - len(gone))
                    freed = 0
                    too_much = []
                    for row in await connection.execute(more):
                        if freed >= excess:
                            break
                        too_much.append(row)
                        freed += row.size
                    await _forget(connection, too_much)
                    gone += too_much
        return len(gone)


class _Kept(NamedTuple):
    story: Story
    sequence: int


async def _take_turns(connection: AsyncConnection) -> None:
    """Two masters that index at once go on one after the other."""
    row = sa.select(_cursors.c.value).where(_cursors.c.name == "history")
    await connection.execute(row.with_for_update())


async def _place(connection: AsyncConnection) -> Place:
    rows = await connection.execute(
        sa.select(_cursors.c.name, _cursors.c.value).where(_cursors.c.name.in_((_CURSOR, _BASE)))
    )
    values = {name: int(value) for name, value in rows}
    return Place(values[_BASE], values[_CURSOR])


async def _move(connection: AsyncConnection, name: str, value: int) -> None:
    await connection.execute(sa.update(_cursors).where(_cursors.c.name == name).values(value=value))


async def _stories(connection: AsyncConnection, ids: Collection[str]) -> dict[Key, _Kept]:
    """Of these actions, on every node."""
    found: dict[Key, _Kept] = {}
    wanted = sorted(ids)
    for start in range(0, len(wanted), _ASKED_AT_ONCE):
        some = wanted[start : start + _ASKED_AT_ONCE]
        for row in (
            await connection.execute(sa.select(_actions).where(_actions.c.id.in_(some)))
        ).mappings():
            record = _record(row)
            newest = msgspec.structs.replace(record, accepted_at=row["begun_at"])
            found[record.id, record.node] = _Kept(
                Story(record, {record.attempt: newest}), row["sequence"]
            )
        for row in (
            await connection.execute(sa.select(_attempts).where(_attempts.c.id.in_(some)))
        ).mappings():
            story = found[row["id"], row["node"]].story
            story.attempts[row["attempt"]] = _of_attempt(story.row, row)
    return found


async def _size(connection: AsyncConnection) -> int:
    """Bytes of all rows, roughly."""
    total = 0
    for table in (_actions, _attempts):
        size = sa.select(sa.func.coalesce(sa.func.sum(table.c.size), 0))
        total += int((await connection.execute(size)).scalar_one())
    return total


async def _forget(connection: AsyncConnection, rows: Iterable[Any]) -> None:
    """Their attempts go with them."""
    which = [{"gone_id": row.id, "gone_node": row.node} for row in rows]
    if which:
        is_it = sa.and_(
            _actions.c.id == sa.bindparam("gone_id"), _actions.c.node == sa.bindparam("gone_node")
        )
        await connection.execute(sa.delete(_actions).where(is_it), which)


def _upsert(insert: Any, table: sa.Table) -> Any:
    changed = {
        column.name: insert.excluded[column.name]
        for column in table.columns
        if not column.primary_key
    }
    keys = [column.name for column in table.primary_key]
    return insert.on_conflict_do_update(index_elements=keys, set_=changed)


# -- rows and records ------------------------------------------------------------------------------


def _row(story: Story, sequence: int) -> dict[str, Any]:
    record = story.row
    values = fields_of(record) | _written(record)
    size = _ROW_BYTES + _long(values["result"]) + _long(record.params) + _long(record.error)
    begun_at = story.attempts[record.attempt].accepted_at
    return values | {"begun_at": begun_at, "sequence": sequence, "size": size}


def _earlier(story: Story) -> list[dict[str, Any]]:
    """Rows of all attempts but the last."""
    rows = []
    for number, record in story.attempts.items():
        if number == story.row.attempt:
            continue
        values = {name: getattr(record, name) for name in _OF_ATTEMPT} | _written(record)
        size = _ROW_BYTES + _long(values["result"]) + _long(record.error)
        rows.append(values | {"begun_at": record.accepted_at, "size": size})
    return rows


def _written(record: HistoryRecord) -> dict[str, Any]:
    result = record.result
    return {"result": None if result is None else msgspec.json.encode(result).decode()}


def _long(value: Any) -> int:
    if value is None:
        return 0
    return len(value) if isinstance(value, str) else len(msgspec.json.encode(value))


def _record(row: RowMapping) -> HistoryRecord:
    values = {name: row[name] for name in HistoryRecord.__struct_fields__}
    return HistoryRecord(**values | _read(row))


def _of_attempt(action: HistoryRecord, row: RowMapping) -> HistoryRecord:
    values = {name: row[name] for name in _OF_ATTEMPT}
    return msgspec.structs.replace(action, **values | _read(row) | {"accepted_at": row["begun_at"]})


def _read(row: RowMapping) -> dict[str, Any]:
    result = None if row["result"] is None else msgspec.json.decode(row["result"])
    return {"state": ActionState(row["state"]), "result": result}
