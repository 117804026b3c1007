"""New vectors of a collection that is embedded anew, until all are there."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from mesh.errors import StateError

_DIGEST_BYTES = 32
_VERSION = 1
_SUFFIX = ".reembedding"


class Staged:
    """Vectors by their text, in a file that outlives a kill.

    The first line is JSON and names the embedder; then come records of one length: SHA-256 of the
    text, the vector, and a CRC of both. What is torn off at the end, or is another embedder's, is
    embedded again. Blocking.
    """

    def __init__(self, path: Path, *, embedder: str, dim: int) -> None:
        """Raises StateError: the file cannot be used."""
        self._path = path
        self._record = np.dtype(
            [("digest", "u1", _DIGEST_BYTES), ("vector", "<f4", dim), ("crc", "<u4")]
        )
        self._head = msgspec.json.encode([_VERSION, embedder, dim]) + b"\n"
        self._places: dict[bytes, int] = {}
        try:
            whole = self._load() if path.exists() else 0
            self._file = path.open("r+b" if whole else "w+b")
            if not whole:
                self._file.write(self._head)
                whole = len(self._head)
            self._file.truncate(whole)
            self._file.seek(whole)
        except OSError as error:
            raise self._unusable(error) from error

    def _load(self) -> int:
        """Bytes that can be used; 0: none."""
        with self._path.open("rb") as file:
            if file.readline() != self._head:
                return 0
            while len(record := file.read(self._record.itemsize)) == self._record.itemsize:
                if zlib.crc32(record[:-4]) != int.from_bytes(record[-4:], "little"):
                    break
                self._places[record[:_DIGEST_BYTES]] = len(self._places)
        return len(self._head) + len(self._places) * self._record.itemsize

    def missing(self, texts: Sequence[str]) -> list[str]:
        """Those without a vector, each once."""
        return [text for text in dict.fromkeys(texts) if _digest(text) not in self._places]

    def add(self, texts: Sequence[str], vectors: npt.NDArray[np.float32]) -> None:
        """Keep vectors; on disk when this returns.

        Raises:
            StateError: They cannot be kept.
        """
        records = np.zeros(len(texts), dtype=self._record)
        for place, (content, vector) in enumerate(zip(texts, vectors, strict=True)):
            digest = _digest(content)
            records[place]["digest"] = np.frombuffer(digest, dtype=np.uint8)
            records[place]["vector"] = vector
            records[place]["crc"] = zlib.crc32(records[place].tobytes()[:-4])
        try:
            self._file.write(records.tobytes())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unusable(error) from error
        for content in texts:
            self._places[_digest(content)] = len(self._places)

    def vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """`(n, dim)` float32 of texts that all were added."""
        rows: npt.NDArray[np.float32] = np.zeros(
            (len(texts), self._record["vector"].shape[0]), dtype=np.float32
        )
        for row, content in zip(rows, texts, strict=True):
            place = len(self._head) + self._places[_digest(content)] * self._record.itemsize
            record = os.pread(self._file.fileno(), self._record.itemsize, place)
            row[:] = np.frombuffer(record, dtype=self._record)[0]["vector"]
        return rows

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """It has done its work."""
        self.close()
        self._path.unlink(missing_ok=True)

    def _unusable(self, error: OSError) -> StateError:
        return StateError(f"{self._path} cannot be used: {error.strerror}")


def staging_file(folder: Path, collection: str) -> Path:
    """Where a collection's vectors are staged."""
    return folder / f"{collection}{_SUFFIX}"


def staging_files(folder: Path) -> list[Path]:
    """All there are; the stem of each is the collection."""
    return list(folder.glob(f"*{_SUFFIX}"))


def _digest(content: str) -> bytes:
    return hashlib.sha256(content.encode()).digest()
