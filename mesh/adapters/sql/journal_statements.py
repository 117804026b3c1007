"""The journal's SQL: each kind of write as one statement for many rows.

A statement is made for 1, 2, 4, … rows, so that the driver keeps each of them ready.
"""

from __future__ import annotations

import enum
import functools
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from mesh.types import ActionState

Row = tuple[Any, ...]
COLUMNS = (
    "id", "request", "caller", "digest", "state", "accepted_at", "attempt", "outcome", "recorded",
)  # fmt: skip

_MOST_ROWS = 64
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM entries"  # noqa: S608 (of constants)
_NEW = (
    "INSERT INTO entries (id, request, caller, digest, accepted_at, attempt, state, recorded) "
    "VALUES {rows}"
)
_ACCEPTED = ActionState.ACCEPTED.value
_REOPEN = (
    _NEW + " ON CONFLICT (id) DO UPDATE SET request = excluded.request, caller = excluded.caller, "
    "digest = excluded.digest, accepted_at = excluded.accepted_at, state = excluded.state, "
    "attempt = excluded.attempt, settled_at = NULL, outcome = NULL, recorded = FALSE "
    "WHERE entries.outcome IS NOT NULL AND entries.attempt <= excluded.attempt"
)
_BEGIN = (
    "WITH begun (id, attempt) AS (VALUES {rows}) "
    "UPDATE entries SET state = 'running', attempt = begun.attempt "
    "FROM begun WHERE entries.id = begun.id"
)
_SETTLE = (
    "WITH ended (id, state, attempt, at, outcome) AS (VALUES {rows}) "
    "UPDATE entries SET state = ended.state, attempt = ended.attempt, settled_at = ended.at, "
    "outcome = ended.outcome, recorded = FALSE FROM ended WHERE entries.id = ended.id"
)
_RECORDED = (
    "WITH told (id, attempt) AS (VALUES {rows}) UPDATE entries SET recorded = TRUE FROM told "
    "WHERE entries.id = told.id AND entries.attempt = told.attempt AND outcome IS NOT NULL"
)
_OPEN = " WHERE recorded = 0 AND outcome IS {what} ORDER BY accepted_at, id"
_UNSETTLED = _SELECT + _OPEN.format(what="NULL")
_UNRECORDED = f"SELECT outcome FROM entries{_OPEN.format(what='NOT NULL')} LIMIT ?"  # noqa: S608
_SLICE_ROWS = 1000
_SLICE = (
    "SELECT max(rowid), min(accepted_at) FROM "
    "(SELECT rowid, accepted_at FROM entries WHERE rowid > ? ORDER BY rowid LIMIT ?)"
)
_PRUNE = "DELETE FROM entries WHERE rowid > ? AND rowid <= ? AND recorded = TRUE AND settled_at < ?"


class Kind(enum.IntEnum):
    """What may be written, in the order in which one batch is."""

    RECORDED = 0
    ACCEPT = 1
    REOPEN = 2
    BEGIN = 3
    SETTLE = 4


class Write(NamedTuple):
    """One row to be written; no two of a batch are about the same `key`."""

    kind: Kind
    key: str
    row: Row
    done: Any
    """The future of whoever waits; None: nobody does."""


def write(connection: sqlite3.Connection, batch: Sequence[Write]) -> list[Any]:
    """In the batch's order, what each came to: of accepting, the row that was there before or None;
    of settling, whether there was one.
    """
    results: list[Any] = [None] * len(batch)
    by_kind: dict[Kind, list[int]] = {}
    for position, each in enumerate(batch):
        by_kind.setdefault(each.kind, []).append(position)
    for kind in sorted(by_kind):
        positions = by_kind[kind]
        ended = _WRITERS[kind](connection, [batch[position].row for position in positions])
        for position, result in zip(positions, ended, strict=True):
            results[position] = result
    return results


def find(connection: sqlite3.Connection, ids: Sequence[str]) -> list[Row]:
    """What is known of them."""
    found: list[Row] = []
    for some in _chunks([(one,) for one in ids]):
        statement = f"{_SELECT} WHERE id IN ({','.join('?' * len(some))})"
        found += connection.execute(statement, [one for (one,) in some]).fetchall()
    return found


def unsettled(connection: sqlite3.Connection) -> list[Row]:
    """Without an outcome, oldest first."""
    return connection.execute(_UNSETTLED).fetchall()


def unrecorded(connection: sqlite3.Connection, limit: int) -> list[Row]:
    """Outcomes that are not in the history, oldest first."""
    return connection.execute(_UNRECORDED, (limit,)).fetchall()


def prune(connection: sqlite3.Connection, before: int, after: int) -> tuple[int, int | None]:
    """How many rows went of a thousand behind row `after`, and behind which row to go on; None: all
    that are left are newer. Rows stand in the order in which they were accepted: no index is
    needed, which every action would have to keep.
    """
    last, oldest = connection.execute(_SLICE, (after, _SLICE_ROWS)).fetchone()
    if last is None or oldest >= before:
        return 0, None
    return connection.execute(_PRUNE, (after, last, before)).rowcount, last


def _accept(connection: sqlite3.Connection, rows: Sequence[Row]) -> list[Row | None]:
    known = {row[0]: row for row in find(connection, [row[0] for row in rows])}
    _many(connection, _NEW, _entries([row for row in rows if row[0] not in known]))
    return [known.get(row[0]) for row in rows]


def _reopen(connection: sqlite3.Connection, rows: Sequence[Row]) -> list[Row | None]:
    """One by one: each may find another end than the one it follows."""
    results: list[Row | None] = []
    for row in rows:
        done = _many(connection, _REOPEN, _entries([row]))
        results.append(None if done else find(connection, [row[0]])[0])
    return results


def _settle(connection: sqlite3.Connection, rows: Sequence[Row]) -> list[bool]:
    if _many(connection, _SETTLE, rows) == len(rows):
        return [True] * len(rows)
    known = {row[0] for row in find(connection, [row[0] for row in rows])}
    return [row[0] in known for row in rows]


def _plain(statement: str) -> Callable[[sqlite3.Connection, Sequence[Row]], list[None]]:
    def write_all(connection: sqlite3.Connection, rows: Sequence[Row]) -> list[None]:
        _many(connection, statement, rows)
        return [None] * len(rows)

    return write_all


_WRITERS: dict[Kind, Callable[[sqlite3.Connection, Sequence[Row]], Sequence[Any]]] = {
    Kind.RECORDED: _plain(_RECORDED),
    Kind.ACCEPT: _accept,
    Kind.REOPEN: _reopen,
    Kind.BEGIN: _plain(_BEGIN),
    Kind.SETTLE: _settle,
}


def _entries(rows: Sequence[Row]) -> list[Row]:
    return [(*row, _ACCEPTED, False) for row in rows]


def _many(connection: sqlite3.Connection, statement: str, rows: Sequence[Row]) -> int:
    """How many rows it came to."""
    changed = 0
    for some in _chunks(rows):
        text = _for_rows(statement, len(some), len(some[0]))
        changed += connection.execute(text, [value for row in some for value in row]).rowcount
    return changed


@functools.cache
def _for_rows(statement: str, rows: int, width: int) -> str:
    one = f"({','.join('?' * width)})"
    return statement.format(rows=",".join([one] * rows))


def _chunks(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """In pieces of 64, 32, … 1."""
    start, size = 0, _MOST_ROWS
    while start < len(rows):
        while size > len(rows) - start:
            size //= 2
        yield rows[start : start + size]
        start += size
