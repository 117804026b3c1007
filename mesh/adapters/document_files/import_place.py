"""How far an import is, in a small file next to what is imported, and what it put aside.

    notes.jsonl                            what is imported
    notes.jsonl.notes@crm.import           how far it is, while it is not at the end
    notes.jsonl.notes@crm.rejects.jsonl    what could not be imported, if anything

The place is written after what it stands for, so a crash in between loses nothing: the next run
cuts the rejects to what the place knows and does the rest again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, Self

import msgspec
from uuid_utils import uuid7

from mesh.adapters.document_files.items import STANDARD_INPUT, START, Mark
from mesh.adapters.document_files.rejects import Rejected, as_line, holds_rejects
from mesh.errors import InvalidError, StateError

_HEAD_BYTES = 65_536
_LONGEST_NAME_BYTES = 200
_VERSION = 1


class Counts(Protocol):
    """What an import has done."""

    documents: int
    changed: int
    batches: int
    bad: int


class Done(NamedTuple):
    """What earlier runs have done."""

    documents: int
    changed: int
    batches: int
    bad: int


class _Place(msgspec.Struct, kw_only=True):
    """The small file."""

    version: int = _VERSION
    file: str
    """Fingerprint: path, size, time of change, beginning."""
    collection: str
    node: str
    options: list[str]
    import_id: str
    holder: str = ""
    """The node that takes it, where nobody named one."""
    at: int = 0
    line: int = 0
    documents: int = 0
    changed: int = 0
    batches: int = 0
    bad: int = 0
    rejects: str = ""
    rejects_bytes: int = 0


class ImportPlace:
    """One import's; `with` takes and releases its files."""

    def __init__(
        self,
        path: Path,
        *,
        collection: str,
        node: str,
        options: Sequence[str] = (),
        rejects: Path | None = None,
        fallback: Path,
    ) -> None:
        """Args:
        path: What is imported; `-` for standard input, which has no place to go on from.
        collection, node: Where to; an empty node: nobody named one.
        options: Whatever else decides what a line becomes.
        rejects: Where to put what cannot be imported; default: next to `path`.
        fallback: Folder for all that where the one of `path` cannot be written.
        """
        self._path = path
        self._stdin = path == STANDARD_INPUT
        folder = _folder(path, fallback)
        name = "stdin" if self._stdin else path.resolve().name
        if not self._stdin and folder != path.resolve().parent:  # others are there as well
            name += f".{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]}"
        name = f"{name}.{collection}@{node or 'any'}"
        self._file = folder / _short(name, ".import")
        self.rejects = rejects or folder / _short(name, ".rejects.jsonl")
        """Written only if there is something to write."""
        self._fresh = _Place(
            file="", collection=collection, node=node, options=list(options), import_id=""
        )
        self._place = self._fresh
        self._lock = self._file.with_name(f".{self._file.name}.lock")
        self._held: int | None = None
        self._out: BinaryIO | None = None
        self.resumed = False
        self.notice = ""
        """Why an earlier run's place does not count, for a person."""

    # -- life --------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Find out where to begin.

        Raises:
            StateError: A file cannot be read or written.
            InvalidError: `rejects` is what is imported, or something else that is not ours.
        """
        if self.rejects.exists() and not self._stdin and self.rejects.samefile(self._path):
            raise _unfit("is the file that is imported")
        with self._translated():
            ours = not self.rejects.is_file() or holds_rejects(self.rejects)
        if not ours:
            raise _unfit(f"{self.rejects} holds something else; name another file")
        with self._translated():
            self._take()
            fingerprint = "" if self._stdin else _fingerprint(self._path)
            known = None if self._stdin else self._read()
        self._fresh.file = fingerprint
        if known is not None and not (why := self._unfit(known)):
            self._place, self.resumed = known, True
            with self._translated():
                if self.rejects.is_file():
                    # A crash may have come between what was put aside and the place.
                    os.truncate(self.rejects, known.rejects_bytes)
        else:
            if known is not None:
                self.notice = f"{why} since the import that was cut off: beginning anew"
            self.begin_anew()
        return self

    def __exit__(self, *_: object) -> None:
        """Close what is open; the place stays for the next run."""
        if self._out is not None:
            self._out.close()
        if self._held is not None:
            with contextlib.suppress(OSError):
                self._lock.unlink()
            os.close(self._held)

    def _take(self) -> None:
        """So that nobody else imports the same from the same place meanwhile."""
        self._held = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._held)
            self._held = None
            raise StateError(
                f"{self._path} is being imported to {self._fresh.collection!r} already"
            ) from None

    def begin_anew(self) -> None:
        """Forget what earlier runs did."""
        self.resumed = False
        self._place = msgspec.structs.replace(self._fresh, import_id=str(uuid7()))
        self._place.rejects = str(self.rejects.absolute())
        with self._translated():
            self._file.unlink(missing_ok=True)
            if self.rejects.is_file():
                self.rejects.unlink()

    def finish(self) -> None:
        """Everything is in: another import of the same file begins at its start."""
        with self._translated():
            self._file.unlink(missing_ok=True)

    # -- what is kept ------------------------------------------------------------------------------

    @property
    def import_id(self) -> str:
        return self._place.import_id

    @property
    def mark(self) -> Mark:
        """Where to go on reading."""
        return Mark(self._place.at, self._place.line) if self.resumed else START

    @property
    def counts(self) -> Done:
        """What earlier runs did."""
        place = self._place
        return Done(place.documents, place.changed, place.batches, place.bad)

    @property
    def begun(self) -> bool:
        """Whether there is something to go on from."""
        return self._place.batches > 0 and not self._stdin

    @property
    def line(self) -> int:
        """How many lines are done."""
        return self._place.line

    @property
    def holder(self) -> str:
        """The node that took the first batch; empty while none did."""
        return self._place.holder

    @holder.setter
    def holder(self, node: str) -> None:
        self._place.holder = node

    def commit(self, report: Counts, mark: tuple[int, int], rejected: Sequence[Rejected]) -> None:
        """Everything before `mark` is in, or among what was rejected.

        Raises:
            StateError: It cannot be kept.
        """
        place = self._place
        with self._translated():
            if rejected:
                self._put_aside(rejected)
            place.at, place.line = mark
            place.documents, place.changed = report.documents, report.changed
            place.batches, place.bad = report.batches, report.bad
            if not self._stdin:
                _write(self._file, msgspec.json.format(msgspec.json.encode(place)))

    def _put_aside(self, rejected: Sequence[Rejected]) -> None:
        if self._out is None:
            self._out = self.rejects.open("ab")
        self._out.write(b"".join(as_line(bad) for bad in rejected))
        self._out.flush()
        os.fsync(self._out.fileno())
        self._place.rejects_bytes = self._out.tell()

    def _read(self) -> _Place | None:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_Place)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _unfit(self, known: _Place) -> str:
        """What tells it from a place of this import; empty if nothing does."""
        fresh = self._fresh
        if known.version != _VERSION or known.options != fresh.options:
            return "the options have changed"
        if (known.collection, known.node) != (fresh.collection, fresh.node):
            return "the target has changed"  # one name cut short like another
        if known.file != fresh.file:
            return f"{self._path} has changed"
        if known.rejects != str(self.rejects.absolute()):
            return "--rejects has changed"
        if known.rejects_bytes and (
            not self.rejects.is_file() or self.rejects.stat().st_size < known.rejects_bytes
        ):
            return f"{self.rejects} has changed"
        return ""

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename or self._file
            raise StateError(
                f"the place of the import cannot be kept: {where}: {error.strerror or error}"
            ) from error


def _unfit(message: str) -> InvalidError:
    return InvalidError(f"rejects: {message}", fields={"rejects": [message]})


def _folder(path: Path, fallback: Path) -> Path:
    if path == STANDARD_INPUT:
        return Path.cwd()
    beside = path.resolve().parent
    if os.access(beside, os.W_OK):
        return beside
    fallback.mkdir(mode=0o700, parents=True, exist_ok=True)
    return fallback


def _short(name: str, suffix: str) -> str:
    """A name that a file may have."""
    if len(name.encode()) <= _LONGEST_NAME_BYTES:
        return name + suffix
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return name.encode()[: _LONGEST_NAME_BYTES - 17].decode(errors="ignore") + f".{digest}{suffix}"


def _fingerprint(path: Path) -> str:
    """Changes when a file, or any of a folder's, does."""
    digest = hashlib.sha256(str(path.resolve()).encode())
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        found = file.stat()
        digest.update(f"{file}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    if not path.is_dir():
        with path.open("rb") as opened:
            digest.update(opened.read(_HEAD_BYTES))
    return digest.hexdigest()


def _write(file: Path, data: bytes) -> None:
    """Readers see the old file or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name[:100]}.")
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
