"""What a collection leaves behind when it is dropped, in one small file next to the tables.

A data version never goes back, so a collection made anew starts above the one that was dropped; and
a drop that a crash cut short is finished at the next start, not left half there.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import msgspec

from mesh.errors import StateError

_FILE = "catalogue.json"


class _Content(msgspec.Struct):
    versions: dict[str, int] = {}
    """Last data version of every collection that was dropped."""
    dropping: list[str] = []


class Catalogue:
    """The file and what is in it. Blocking, and quick."""

    def __init__(self, folder: Path) -> None:
        """Read the file, if there is one.

        Raises:
            StateError: It cannot be read.
        """
        self._path = folder / _FILE
        try:
            self._content = msgspec.json.decode(self._path.read_bytes(), type=_Content)
        except FileNotFoundError:
            self._content = _Content()
        except (OSError, msgspec.DecodeError) as error:
            raise StateError(
                f"{self._path} cannot be read ({error}); restore it, or remove it if no caller "
                "holds cached answers of dropped collections"
            ) from error

    @property
    def unfinished_drops(self) -> tuple[str, ...]:
        """Collections whose drop had begun."""
        return tuple(self._content.dropping)

    def last_version(self, collection: str) -> int:
        """The data version that a new collection of this name has to exceed."""
        return self._content.versions.get(collection, 0)

    def begin_drop(self, collection: str, data_version: int) -> None:
        """On disk when this returns.

        Raises:
            StateError: The file cannot be written; nothing changed.
        """
        self._write(
            _Content(
                versions=self._content.versions | {collection: data_version},
                dropping=sorted({*self._content.dropping, collection}),
            )
        )

    def end_drop(self, collection: str) -> None:
        """The table is gone.

        Raises:
            StateError: The file cannot be written; the drop counts as unfinished.
        """
        remaining = [name for name in self._content.dropping if name != collection]
        self._write(_Content(versions=self._content.versions, dropping=remaining))

    def _write(self, content: _Content) -> None:
        try:
            with tempfile.NamedTemporaryFile(
                dir=self._path.parent, prefix=_FILE, delete=False
            ) as file:
                file.write(msgspec.json.encode(content))
                file.flush()
                os.fsync(file.fileno())
            Path(file.name).replace(self._path)
        except OSError as error:
            raise StateError(f"{self._path} cannot be written: {error.strerror}") from error
        self._content = content
