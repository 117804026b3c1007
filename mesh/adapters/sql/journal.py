"""`mesh.ports.Journal` in a SQLite file of the node's own, with group commit.

One connection in one thread. What is written while the thread works waits, and then goes to the
disk in one transaction, as few statements as it has kinds of writes: a thread that has to ask for
the interpreter after every row waits longer for that than for the disk. Each call returns after its
commit, so whatever was accepted or settled outlives the process (`tune_sqlite` says how far that
goes). Source: DeWitt et al., "Implementation Techniques for Main Memory Database Systems" (1984),
section 5.2, "group commit".
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import PoolProxiedConnection

from mesh.adapters.sql import journal_statements as statements
from mesh.adapters.sql import models
from mesh.adapters.sql.database import make_private, translated, tune_sqlite, upgrade
from mesh.adapters.sql.journal_statements import COLUMNS, Kind, Row, Write
from mesh.errors import InvalidError, MeshError, NotFoundError, UnavailableError
from mesh.ports import JournalEntry
from mesh.types import ActionState
from mesh.wire import codec
from mesh.wire.messages import ActionRequest, HistoryRecord

_MOST_AT_ONCE = 256
_SOON_S = 0.05
"""How long what nobody waits for may wait for company."""

Work = Callable[[sqlite3.Connection], Any]


class SqlJournal:
    """A node's memory of its actions."""

    def __init__(self) -> None:
        """Use `open`."""
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[Work, Callable[..., None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="journal", daemon=True)
        self._waiting: deque[Write | tuple[Work, asyncio.Future[Any]]] = deque()
        self._busy = self._closed = False
        self._soon: asyncio.TimerHandle | None = None
        self._engine: sa.Engine | None = None
        self._pooled: PoolProxiedConnection | None = None
        self._connection: sqlite3.Connection | None = None
        """The driver's own, out of the pool's."""

    @classmethod
    async def open(cls, path: Path) -> SqlJournal:
        """Open the file, made if it is not there, and bring its schema to the newest version.

        Raises:
            StateError: It cannot be written, or was changed by a newer version.
        """
        journal = cls()
        journal._thread.start()
        try:
            await journal._run(lambda _none: journal._open(path))
        except BaseException:
            await journal.close()
            raise
        return journal

    async def find(self, action_id: str) -> JournalEntry | None:
        found = await self._run(lambda connection: statements.find(connection, [action_id]))
        return _entry(found[0]) if found else None

    async def accept(
        self,
        request: ActionRequest,
        *,
        caller: str,
        digest: str,
        accepted_at: int,
        attempts: int = 0,
        again: bool = False,
    ) -> JournalEntry | None:
        kind = Kind.REOPEN if again else Kind.ACCEPT
        row = (request.id, _text(request), caller, digest, accepted_at, attempts)
        found: Row | None = await self._write(kind, request.id, row)
        return None if found is None else _entry(found)

    async def begin(self, action_id: str, attempt: int) -> None:
        await self._write(Kind.BEGIN, action_id, (action_id, attempt))

    async def settle(self, outcome: HistoryRecord) -> None:
        row = (outcome.id, outcome.state.value, outcome.attempt, outcome.at, _text(outcome))
        if not await self._write(Kind.SETTLE, outcome.id, row):
            raise NotFoundError(f"the journal has no action {outcome.id!r}")

    def recorded(self, outcome: HistoryRecord) -> None:
        if self._closed:
            return
        row = (outcome.id, outcome.attempt)
        self._waiting.append(Write(Kind.RECORDED, outcome.id, row, None))
        if self._soon is None:
            self._soon = self._loop.call_later(_SOON_S, self._now)

    async def unrecorded(self, limit: int = 256) -> list[HistoryRecord]:
        rows = await self._run(lambda connection: statements.unrecorded(connection, limit))
        return [codec.decode(outcome.encode(), HistoryRecord) for (outcome,) in rows]

    async def unsettled(self) -> list[JournalEntry]:
        return [_entry(row) for row in await self._run(statements.unsettled)]

    async def prune(self, before: int) -> int:
        pruned, after = 0, 0
        while True:  # between two slices everybody else has a turn
            some, upto = await self._prune(before, after)
            pruned += some
            if upto is None:
                return pruned
            after = upto

    async def _prune(self, before: int, after: int) -> tuple[int, int | None]:
        some: tuple[int, int | None] = await self._run(
            lambda connection: statements.prune(connection, before, after)
        )
        return some

    async def close(self) -> None:
        """Safe to call twice."""
        if self._closed:
            return
        ended = self._give(lambda _connection: self._close())
        self._closed = True
        try:
            await ended
        finally:
            self._jobs.put(None)

    # -- on the loop -------------------------------------------------------------------------

    def _write(self, kind: Kind, key: str, row: tuple[Any, ...]) -> asyncio.Future[Any]:
        if self._closed:
            raise UnavailableError("the journal is closed")
        done = self._loop.create_future()
        self._waiting.append(Write(kind, key, row, done))
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._next)  # what others write in this turn comes along
        return done

    async def _run(self, work: Work) -> Any:
        """In the journal's thread, in a transaction, after whatever was written before."""
        if self._closed:
            raise UnavailableError("the journal is closed")
        return await self._give(work)

    def _give(self, work: Work) -> asyncio.Future[Any]:
        done = self._loop.create_future()
        self._waiting.append((work, done))
        self._now()
        return done

    def _now(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if not self._busy:
            self._busy = True
            self._next()

    def _next(self) -> None:
        """Give the thread what waits: writes up to one whose id is among them already, or one
        piece of work.
        """
        waiting = self._waiting
        if not waiting:
            self._busy = False
            return
        if not isinstance(waiting[0], Write):
            work, done = waiting.popleft()  # type: ignore[misc]  # mypy does not narrow an item
            self._jobs.put((work, lambda result, error: self._ended([done], [result], error)))
            return
        batch: list[Write] = []
        ids: set[str] = set()
        while waiting and len(batch) < _MOST_AT_ONCE:
            write = waiting[0]
            if not isinstance(write, Write) or write.key in ids:
                break
            ids.add(write.key)
            batch.append(write)
            waiting.popleft()
        futures = [write.done for write in batch]
        self._jobs.put(
            (
                lambda connection: statements.write(connection, batch),
                lambda results, error: self._ended(futures, results, error),
            )
        )

    def _ended(
        self, futures: list[asyncio.Future[Any] | None], results: list[Any], error: MeshError | None
    ) -> None:
        for position, future in enumerate(futures):
            if future is None or future.done():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(results[position])
        self._next()

    # -- in the thread -----------------------------------------------------------------------

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, ended = job
            result, error = None, None
            try:
                with translated(), _drivers_translated():
                    result = self._transaction(work)
            except MeshError as failure:
                error = failure
            except Exception as failure:  # noqa: BLE001 (a thread that ends leaves all waiting)
                error = UnavailableError(f"the journal is not available: {failure!r}")
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(ended, result, error)

    def _transaction(self, work: Work) -> Any:
        connection = self._connection
        if connection is None:
            return work(connection)  # type: ignore[arg-type]  # it is to be opened
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(connection)
            if self._connection is not None:  # the last piece of work closes it
                connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        return result

    def _open(self, path: Path) -> None:
        make_private(path)
        # The driver's own words are used in this thread alone, like the connection.
        self._engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)))
        tune_sqlite(self._engine)
        opened = self._engine.connect().execution_options(writes=True)
        with opened as connection, connection.begin():
            upgrade(connection, "journal", models.journal)
        self._pooled = self._engine.raw_connection()
        self._connection = self._pooled.driver_connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._pooled is not None:
            connection.execute("COMMIT")  # of the transaction that all work runs in
            self._pooled.close()
        if self._engine is not None:
            self._engine.dispose()


@contextlib.contextmanager
def _drivers_translated() -> Iterator[None]:
    """As `translated`, for what does not go through SQLAlchemy."""
    try:
        yield
    except sqlite3.Error as error:
        raise UnavailableError(
            f"the journal is not available: {type(error).__name__}: {error}"
        ) from error


def _text(message: ActionRequest | HistoryRecord) -> str:
    try:
        return codec.encode(message).decode()
    except UnicodeEncodeError as error:
        raise InvalidError(f"the journal cannot hold such a text: {error}") from error


def _entry(row: Row) -> JournalEntry:
    found = dict(zip(COLUMNS, row, strict=True))
    outcome = found["outcome"]
    return JournalEntry(
        request=codec.decode(found["request"].encode(), ActionRequest),
        caller=found["caller"],
        digest=found["digest"],
        state=ActionState(found["state"]),
        accepted_at=found["accepted_at"],
        attempt=found["attempt"],
        outcome=None if outcome is None else codec.decode(outcome.encode(), HistoryRecord),
        recorded=bool(found["recorded"]),
    )
