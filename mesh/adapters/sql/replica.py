"""`mesh.ports.ReplicaState` in the SQLite file of the node's journal, on its own connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import Connection, RowMapping

from mesh.adapters.sql import models
from mesh.adapters.sql.database import make_private, translated, tune_sqlite, upgrade
from mesh.core.replication import Position
from mesh.errors import UnavailableError
from mesh.wire.messages import AppliedWrite, CopyPlace

T = TypeVar("T")

_positions, _applied = models.positions, models.applied
_NOWHERE = {"logged": False, "log": "", "sequence": 0, "place": None}
_keep_write = insert(_applied)
_keep_write = _keep_write.on_conflict_do_update(
    index_elements=["id"],
    set_={name: _keep_write.excluded[name] for name in ("sequence", "digest", "result", "at")},
)


class SqlReplicaState:
    """One connection in one thread; each call returns after its commit."""

    def __init__(self) -> None:
        """Use `open`."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="replica")
        self._connection: Connection | None = None
        self._closed = False

    @classmethod
    async def open(cls, path: Path) -> SqlReplicaState:
        """Open the file, made if it is not there.

        Raises:
            StateError: It cannot be written, or was changed by a newer version.
        """
        state = cls()
        try:
            await asyncio.get_running_loop().run_in_executor(state._thread, state._open, path)
        except BaseException:
            await state.close()
            raise
        return state

    async def load(self, shard: str) -> tuple[bool, Position]:
        def work(connection: Connection) -> RowMapping | None:
            connection.execute(sa.delete(_positions).where(_positions.c.shard != shard))
            return _row(connection, shard)

        row = await self._run(work)
        if row is None:
            return False, Position()
        return bool(row["logged"]), Position(row["log"], row["sequence"])

    async def set_logged(self, shard: str) -> None:
        await self._run(lambda connection: _set(connection, shard, logged=True))

    async def advance(
        self,
        shard: str,
        position: Position,
        writes: Sequence[AppliedWrite] = (),
        *,
        copied: bool = False,
    ) -> None:
        rows = _rows(writes)
        done = {"place": None} if copied else {}

        def work(connection: Connection) -> None:
            _set(connection, shard, log=position.log, sequence=position.sequence, **done)
            if rows:
                connection.execute(_keep_write, rows)

        await self._run(work)

    async def remember(self, writes: Sequence[AppliedWrite]) -> None:
        rows = _rows(writes)
        if rows:
            await self._run(lambda connection: connection.execute(_keep_write, rows))

    async def applied(self, action_id: str) -> AppliedWrite | None:
        query = sa.select(_applied).where(_applied.c.id == action_id)
        row = await self._run(lambda connection: connection.execute(query).mappings().one_or_none())
        return None if row is None else _write(row)

    async def applied_after(self, action_id: str, limit: int) -> list[AppliedWrite]:
        query = (
            sa.select(_applied)
            .where(_applied.c.id > action_id)
            .order_by(_applied.c.id)
            .limit(limit)
        )
        rows = await self._run(lambda connection: connection.execute(query).mappings().all())
        return [_write(row) for row in rows]

    async def place(self, shard: str) -> CopyPlace | None:
        row = await self._run(lambda connection: _row(connection, shard))
        return None if row is None else row["place"]

    async def keep_place(self, shard: str, place: CopyPlace | None) -> None:
        await self._run(lambda connection: _set(connection, shard, place=place))

    async def prune(self, before: int) -> int:
        statement = sa.delete(_applied).where(_applied.c.at < before)
        return await self._run(lambda connection: connection.execute(statement).rowcount)

    async def close(self) -> None:
        """Safe to call twice."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown()

    async def _run(self, work: Callable[[Connection], T]) -> T:
        if self._closed:
            raise UnavailableError("the replica's state is closed")
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
            raise UnavailableError("the replica's state is not open")
        with translated(), connection.begin():
            return work(connection)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            connection.engine.dispose()


def _row(connection: Connection, shard: str) -> RowMapping | None:
    query = sa.select(_positions).where(_positions.c.shard == shard)
    return connection.execute(query).mappings().one_or_none()


def _set(connection: Connection, shard: str, **values: Any) -> None:
    statement = insert(_positions).values(_NOWHERE | {"shard": shard} | values)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["shard"],
            set_={name: statement.excluded[name] for name in values},
        )
    )


def _rows(writes: Sequence[AppliedWrite]) -> list[dict[str, Any]]:
    return [
        {
            "id": write.id,
            "sequence": write.sequence,
            "digest": write.digest,
            "result": bytes(write.result).decode(),
            "at": write.at,
        }
        for write in writes
    ]


def _write(row: RowMapping) -> AppliedWrite:
    return AppliedWrite(
        id=row["id"],
        sequence=row["sequence"],
        digest=row["digest"],
        result=msgspec.Raw(row["result"].encode()),
        at=row["at"],
    )
