"""The state folder: one mesh's lock, credentials, logs and `mesh.json` on this machine.

Everything in it is for its owner alone: folders 0700, files 0600.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from mesh.errors import DisconnectedError, StateError

_PASSWORD_BYTES = 32
_MESH_FILE = "mesh.json"


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """A login at the broker; never shown."""

    user: str
    password: str

    def __repr__(self) -> str:
        return f"Credentials(user={self.user!r}, password=…)"


class MeshFile(msgspec.Struct, frozen=True, kw_only=True):
    """`mesh.json`: how to reach the mesh of a state folder."""

    http_url: str | None = None
    """Of the gateway, without its prefix; None: no gateway runs."""
    nats_url: str
    credentials: dict[str, str]
    """Absolute paths of credentials files by role: `operator`, `node`, `master`, `gateway`."""
    pids: dict[str, int]
    """By process name: `broker`, `master`, `gateway`, `node-<slug>`."""
    started_at: str
    """ISO 8601, UTC."""
    version: str


class StateFolder:
    """A folder that one mesh uses at a time; `with` takes and releases it."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._shown = path
        self._lock: int | None = None

    @property
    def logs(self) -> Path:
        """One `<process>.log` for each process."""
        return self.path / "logs"

    @property
    def broker(self) -> Path:
        """JetStream's files."""
        return self.path / "broker"

    @property
    def samples(self) -> Path:
        """The sample nodes' documents."""
        return self.path / "samples"

    def __enter__(self) -> Self:
        """Make the folder and lock it.

        Raises:
            StateError: It cannot be made or written, or another mesh uses it.
        """
        self.create()
        self._take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release the lock; the kernel does the same for a process that dies."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def create(self) -> None:
        """Make the folder and its subfolders where they are missing.

        Raises:
            StateError: It cannot be made or written.
        """
        try:
            for folder in (self.path, self._credentials, self.logs, self.samples):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise self._unusable(error) from error

    def keep_for_successor(self) -> None:
        """Hold the lock also in the program that this process becomes (`execve`)."""
        if self._lock is not None:
            os.set_inheritable(self._lock, True)

    def _take(self) -> None:
        try:
            self._lock = _lock(self.path)
        except BlockingIOError as error:
            holder = error.strerror
            raise StateError(
                f"state folder {self._shown} is in use by pid {holder}: stop that mesh "
                f"(`kill {holder}`), or give another folder with --state-dir"
            ) from error
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> StateError:
        return StateError(
            f"state folder {self._shown} cannot be used: {error.strerror}"
            f"{f' ({error.filename})' if error.filename else ''}: "
            "make it writable, or give another with --state-dir"
        )

    # -- credentials -------------------------------------------------------------------------------

    @property
    def _credentials(self) -> Path:
        return self.path / "credentials"

    def credentials_file(self, user: str) -> Path:
        """Absolute path of the file with a user's login."""
        return self._credentials / f"{user}.json"

    def credentials(self, users: Iterable[str]) -> dict[str, Credentials]:
        """Logins by user; a password is made (256 random bits) once and kept.

        Raises:
            StateError: A file that cannot be read or written.
        """
        return make_credentials(self._credentials, users)

    # -- mesh.json ---------------------------------------------------------------------------------

    def write_mesh(self, mesh: MeshFile) -> None:
        """Replace `mesh.json` at once and whole.

        Raises:
            StateError: It cannot be written.
        """
        write_json(self.path / _MESH_FILE, mesh)

    def remove_mesh(self) -> None:
        """There is no mesh any more."""
        (self.path / _MESH_FILE).unlink(missing_ok=True)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep the folder of one agent for this process; made if it is not there.

    Raises:
        StateError: It cannot be written, or another process has it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _lock(folder)
    except BlockingIOError as error:
        raise StateError(
            f"{folder} is in use by pid {error.strerror}; stop it or choose another name"
        ) from error
    except OSError as error:
        raise StateError(
            f"cannot write to {folder}: {error.strerror}; choose another folder"
        ) from error
    try:
        yield
    finally:
        os.close(lock)


def _lock(folder: Path) -> int:
    """A descriptor that holds the folder until it is closed; the kernel does that for the dead.

    Raises:
        BlockingIOError: Another process has it; `strerror` is its pid.
        OSError: The folder cannot be written.
    """
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise BlockingIOError(error.errno, holder) from error
    except BaseException:
        os.close(lock)
        raise
    return lock


def read_mesh(state_dir: Path) -> MeshFile:
    """How to reach the mesh of a state folder.

    Raises:
        DisconnectedError: None was started there.
        StateError: Its `mesh.json` cannot be read.
    """
    file = state_dir / _MESH_FILE
    if not file.exists():
        raise DisconnectedError(
            f"no {_MESH_FILE} in {state_dir}: start one with `mesh-agent up`, "
            "or give --url/MESH_URL"
        )
    return _read(file, MeshFile, "start the mesh again")


def make_credentials(folder: Path, users: Iterable[str]) -> dict[str, Credentials]:
    """Logins by user in `<folder>/<user>.json`; a password is made (256 random bits) once and kept.

    Raises:
        StateError: A file that cannot be read or written.
    """
    logins = {}
    for user in users:
        file = folder / f"{user}.json"
        if file.exists():
            logins[user] = read_credentials(file)
            continue
        # A letter first: no tool that meets the password takes it for a number or a flag.
        password = f"p{secrets.token_urlsafe(_PASSWORD_BYTES)}"
        logins[user] = Credentials(user=user, password=password)
        write_json(file, logins[user])
    return logins


def read_credentials(file: Path) -> Credentials:
    """A login from a file.

    Raises:
        StateError: Not there, not readable, or not `{"user": …, "password": …}`.
    """
    return _read(file, Credentials, 'it should be {"user": "…", "password": "…"}')


_T = TypeVar("_T")


def _read(file: Path, kind: type[_T], advice: str) -> _T:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except OSError as error:
        raise StateError(f"{file} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateError(f"{file} is damaged ({error}): {advice}") from error


def write_json(file: Path, content: Any) -> None:
    """Write `content` so that readers see the old file or the new one, also after a power cut.

    Raises:
        StateError: It cannot be written.
    """
    data = msgspec.json.format(msgspec.json.encode(content)) + b"\n"
    try:
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(descriptor, "wb") as out:  # mkstemp makes it 0600
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            Path(temporary).replace(file)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(file.parent)
    except OSError as error:
        raise StateError(f"{file} cannot be written: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
