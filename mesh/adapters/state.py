"""The state folder: one mesh's lock, credentials, logs and `mesh.json` on this machine.

Everything in it is for its owner alone: folders 0700, files 0600.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
import structlog

from mesh.errors import DisconnectedError, StateError
from mesh.ports import Login

log = structlog.get_logger()

_MESH_FILE = "mesh.json"
_OWNER_ALONE = 0o600
_OTHERS = 0o077
_MAX_CREDENTIALS_BYTES = 1024 * 1024


class MeshFile(msgspec.Struct, frozen=True, kw_only=True):
    """`mesh.json`: how to reach the mesh of a state folder."""

    http_url: str | None = None
    """Of the gateway, without its prefix; None: no gateway runs."""
    nats_url: str
    credentials: dict[str, str]
    """Absolute paths of credentials files by role: `operator`, `master`, `gateway`."""
    pids: dict[str, int]
    """By process name: `broker`, `master`, `gateway`, `node-<slug>`."""
    started_at: str
    """ISO 8601, UTC."""
    version: str
    tls_ca: str = ""
    """Absolute paths as in `nats.tls_…`, where the broker speaks TLS; empty: not given."""
    tls_cert: str = ""
    tls_key: str = ""


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
            for folder in (self.path, self.credentials, self.logs, self.samples):
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
    def credentials(self) -> Path:
        """Folder of the credentials files."""
        return self.path / "credentials"

    def credentials_file(self, role: str) -> Path:
        """Absolute path of the file with the login of `master`, `gateway` or `operator`, or with
        the `broker`'s public keys.
        """
        return self.credentials / f"{role}.json"

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
    return read_json(file, MeshFile, advice="start the mesh again")


_T = TypeVar("_T")


def read_json(file: Path, kind: type[_T], *, advice: str) -> _T:
    """What a file holds.

    Raises:
        StateError: It cannot be read, or holds something else; says what to do.
    """
    try:
        return msgspec.json.decode(read_bytes(file), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StateError(f"{file} is damaged ({error}): {advice}") from error


def read_bytes(file: Path) -> bytes:
    """Raises: StateError, if it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise StateError(f"{file} cannot be read: {error.strerror}") from error


def read_credentials(file: Path, *, user: str = "") -> Login:
    """A login from a file: JSON with `user` and `password` or `nkey`, or the bare API key of
    `user`. What others can read is made the owner's alone.

    Raises:
        StateError: Not there, not readable, or neither of the two.
    """
    data = read_bytes(file)
    keep_private(file)
    text = data[:_MAX_CREDENTIALS_BYTES].strip()
    if not text.startswith(b"{"):
        return _bare_key(file, text, user)
    try:
        login = msgspec.json.decode(text, type=Login)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        login = None  # what is wrong is not told: the text is a secret
    if login is None or not login.user or bool(login.password) is bool(login.nkey):
        raise StateError(f'{file} is damaged: it should be {{"user": "…", "password": "…"}}')
    return login


def _bare_key(file: Path, text: bytes, user: str) -> Login:
    if not text.isascii() or not text.startswith(b"nmk_") or len(text.split()) != 1:
        raise StateError(
            f"{file} holds no credentials: it should be an API key (nmk_…), or "
            '{"user": "…", "password": "…"}'
        )
    if not user:
        raise StateError(
            f"{file} holds an API key and not whose it is: make it "
            '{"user": "…", "password": "nmk_…"}'
        )
    return Login(user=user, password=text.decode())


def keep_private(file: Path) -> None:
    """See that a file with a secret is its owner's alone, where that is for us to say: in a folder
    that others cannot enter, they cannot read it either.
    """
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        if not mode & _OTHERS or not stat.S_IMODE(file.parent.stat().st_mode) & _OTHERS:
            return
        if file.stat().st_uid == os.geteuid():
            file.chmod(_OWNER_ALONE)
            log.warning("mesh.credentials.made_private", file=str(file), mode=f"{mode:o}")
        else:
            log.info("mesh.credentials.left_readable", file=str(file), mode=f"{mode:o}")
    except OSError as error:
        log.warning("mesh.credentials.left_readable", file=str(file), error=error.strerror)


def write_json(file: Path, content: Any, *, mode: int = _OWNER_ALONE) -> None:
    """Write `content` so that readers see the old file or the new one, also after a power cut.

    Raises:
        StateError: It cannot be written.
    """
    data = msgspec.json.format(msgspec.json.encode(content)) + b"\n"
    try:
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(descriptor, "wb") as out:  # mkstemp makes it 0600
                os.fchmod(descriptor, mode)
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
