"""What both databases share: how a SQLite file is opened and kept up to date, and what a driver's
error means to the rest of the mesh.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError, StatementError

from mesh.errors import ConflictError, InvalidError, StateError, UnavailableError

_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_TIMEOUT_MS = 5000


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """SQLAlchemy's and the driver's errors as ours.

    Raises:
        ConflictError: A row that must be unique is there already.
        InvalidError: A value that the database cannot hold.
        UnavailableError: Everything else: locked, full, gone, closed.
    """
    try:
        yield
    except IntegrityError as error:
        raise ConflictError("the database has such a row already") from error
    except (DataError, OverflowError, UnicodeError) as error:
        raise InvalidError(f"the database cannot hold such a value: {_cause(error)}") from error
    except SQLAlchemyError as error:
        cause = error.orig if isinstance(error, StatementError) else None
        if isinstance(cause, (OverflowError, UnicodeError)):
            raise InvalidError(f"the database cannot hold such a value: {cause}") from error
        raise UnavailableError(f"the database is not available: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """The driver's word, without the statement and its parameters."""
    cause = getattr(error, "orig", None) or error
    return f"{type(cause).__name__}: {cause}"


def make_private(path: Path) -> None:
    """Make the file, readable by its owner alone; SQLite gives its side files the same mode.

    Raises:
        StateError: The folder is not there or not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # One that is there is not opened: closing it would drop the locks this process has on it.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        path.chmod(0o600)
    except OSError as error:
        raise StateError(
            f"{path} cannot be written ({error.strerror}); check the folder and its permissions"
        ) from error


def tune_sqlite(engine: Engine) -> None:
    """Write-ahead log, foreign keys, patience with a locked file, and transactions that are ours:
    the driver's own would leave schema changes outside.

    With a write-ahead log, synchronous=NORMAL loses nothing when a process is killed: what was
    committed has been handed to the operating system. Only power loss can take the last commits.
    """

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for setting in (
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "foreign_keys=ON",
            f"busy_timeout={_BUSY_TIMEOUT_MS}",
        ):
            cursor.execute(f"PRAGMA {setting}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def began(connection: Connection) -> None:
        # A transaction that begins as a reader cannot wait for a lock when it turns to writing.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def upgrade(connection: Connection, branch: str, metadata: sa.MetaData) -> None:
    """Bring the schema to the newest version, all of it or none.

    Args:
        connection: In a transaction that writes.
        branch: Folder of `migrations`.
        metadata: The tables as the code knows them.

    Raises:
        StateError: A newer version of this program has changed the database.
    """
    from alembic import command  # noqa: PLC0415 (slow to import, only needed here)
    from alembic.config import Config  # noqa: PLC0415
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config(attributes={"connection": connection, "metadata": metadata})
    for option, value in (
        ("script_location", _MIGRATIONS),
        ("version_locations", _MIGRATIONS / branch),
        ("path_separator", "newline"),
    ):
        config.set_main_option(option, str(value).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    current = MigrationContext.configure(connection).get_current_heads()
    if unknown := sorted(set(current) - known):
        where = connection.engine.url.render_as_string(hide_password=True)
        raise StateError(
            f"{where} was written by a newer version of nodemesh (schema {', '.join(unknown)}); "
            "install that version, or restore a backup made before it was upgraded"
        )
    command.upgrade(config, "head")
