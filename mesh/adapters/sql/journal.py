"""`mesh.ports.Journal` in a SQLite file of the node's own.

One connection in one thread: an action writes four times, and a hop to a thread is cheaper than an
async driver's hop for every statement. Each call returns after its commit, so whatever was accepted
or settled outlives the process (`tune_sqlite` says how far that goes).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from mesh.adapters.sql import models
from mesh.adapters.sql.database import make_private, translated, tune_sqlite, upgrade
from mesh.errors import NotFoundError, UnavailableError
from mesh.ports import JournalEntry
from mesh.types import ActionState
from mesh.wire.messages import ActionRequest, HistoryRecord

T = TypeVar("T")

_entries = models.entries
_this = _entries.c.id == sa.bindparam("entry")
_find = sa.select(_entries).where(_this)
_accept = sa.insert(_entries)
_begin = (
    sa.update(_entries)
    .where(_this)
    .values(state=ActionState.RUNNING.value, attempt=sa.bindparam("number"))
)
_settle = (
    sa.update(_entries)
    .where(_this)
    .values(
        state=sa.bindparam("ended"),
        attempt=sa.bindparam("number"),
        settled_at=sa.bindparam("ended_at"),
        outcome=sa.bindparam("how", type_=models.Json(HistoryRecord)),
        recorded=False,
    )
)
_recorded = (
    sa.update(_entries)
    .where(_this, _entries.c.attempt == sa.bindparam("number"), _entries.c.outcome.is_not(None))
    .values(recorded=True)
)
_forget = sa.delete(_entries).where(_this, _entries.c.state == ActionState.CANCELLED.value)
_open_entries = (
    sa.select(_entries)
    .where(_entries.c.recorded.is_(False))
    .order_by(_entries.c.accepted_at, _entries.c.id)
)
_unrecorded = _open_entries.where(_entries.c.outcome.is_not(None))
_unsettled = _open_entries.where(_entries.c.outcome.is_(None))
_prune = sa.delete(_entries).where(
    _entries.c.recorded.is_(True), _entries.c.settled_at < sa.bindparam("before")
)


class SqlJournal:
    """A node's memory of its actions."""

    def __init__(self) -> None:
        """Use `open`."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._connection: Connection | None = None
        self._closed = False

    @classmethod
    async def open(cls, path: Path) -> SqlJournal:
        """Open the file, made if it is not there, and bring its schema to the newest version.

        Raises:
            StateError: It cannot be written, or was changed by a newer version.
        """
        journal = cls()
        try:
            await asyncio.get_running_loop().run_in_executor(journal._thread, journal._open, path)
        except BaseException:
            await journal.close()
            raise
        return journal

    async def find(self, action_id: str) -> JournalEntry | None:
        found = await self._run(lambda connection: _entry_of(connection, action_id))
        return _entry(found) if found is not None else None

    async def accept(
        self,
        request: ActionRequest,
        *,
        caller: str,
        digest: str,
        accepted_at: int,
        attempts: int = 0,
    ) -> None:
        await self._write(
            _accept,
            id=request.id,
            request=request,
            caller=caller,
            digest=digest,
            state=ActionState.ACCEPTED.value,
            accepted_at=accepted_at,
            attempt=attempts,
            recorded=False,
        )

    async def begin(self, action_id: str, attempt: int) -> None:
        await self._write(_begin, entry=action_id, number=attempt)

    async def settle(self, outcome: HistoryRecord) -> None:
        settled = await self._write(
            _settle,
            entry=outcome.id,
            ended=outcome.state.value,
            number=outcome.attempt,
            ended_at=outcome.at,
            how=outcome,
        )
        if not settled:
            raise NotFoundError(f"the journal has no action {outcome.id!r}")

    async def forget(self, action_id: str) -> None:
        await self._write(_forget, entry=action_id)

    async def recorded(self, outcome: HistoryRecord) -> None:
        await self._write(_recorded, entry=outcome.id, number=outcome.attempt)

    async def unrecorded(self) -> list[HistoryRecord]:
        rows = await self._run(lambda connection: connection.execute(_unrecorded).mappings().all())
        return [row["outcome"] for row in rows]

    async def unsettled(self) -> list[JournalEntry]:
        rows = await self._run(lambda connection: connection.execute(_unsettled).mappings().all())
        return [_entry(row) for row in rows]

    async def prune(self, before: int) -> int:
        return await self._write(_prune, before=before)

    async def close(self) -> None:
        """Safe to call twice."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown()

    async def _write(self, statement: sa.Executable, **values: Any) -> int:
        return await self._run(lambda connection: connection.execute(statement, values).rowcount)

    async def _run(self, work: Callable[[Connection], T]) -> T:
        """One transaction, in the journal's thread."""
        if self._closed:
            raise UnavailableError("the journal is closed")
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._transaction, work
        )

    # -- in the thread -----------------------------------------------------------------------

    def _open(self, path: Path) -> None:
        make_private(path)
        engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)))
        tune_sqlite(engine)
        with translated():
            self._connection = engine.connect().execution_options(writes=True)
            with self._connection.begin():
                upgrade(self._connection, "journal", models.journal)

    def _transaction(self, work: Callable[[Connection], T]) -> T:
        connection = self._connection
        if connection is None:
            raise UnavailableError("the journal is not open")
        with translated(), connection.begin():
            return work(connection)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            connection.engine.dispose()


def _entry_of(connection: Connection, action_id: str) -> RowMapping | None:
    return connection.execute(_find, {"entry": action_id}).mappings().one_or_none()


def _entry(row: RowMapping) -> JournalEntry:
    return JournalEntry(
        request=row["request"],
        caller=row["caller"],
        digest=row["digest"],
        state=ActionState(row["state"]),
        accepted_at=row["accepted_at"],
        attempt=row["attempt"],
        outcome=row["outcome"],
        recorded=bool(row["recorded"]),
    )
