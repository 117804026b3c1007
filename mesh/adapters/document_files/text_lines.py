"""Lines of a file of any size, plain or compressed; what is in memory at one time is one line."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mesh.adapters.document_files.items import (
    COMPRESSIONS,
    MAX_LINE_BYTES,
    STANDARD_INPUT,
    Mark,
)

_KEPT_OF_LONG_BYTES = 1024
_SKIPPED_BYTES = 1024 * 1024


class Line(NamedTuple):
    """One line as it stands in the file, its end included."""

    data: bytes
    whole: bool
    """Whether `data` is all of it: of one longer than `MAX_LINE_BYTES` it is the beginning."""


class TextFile:
    """Lines from a mark on; `mark` and `position` are after the line that came last."""

    def __init__(self, stream: BinaryIO, raw: BinaryIO, *, seekable: bool) -> None:
        self._stream = stream
        self._raw = raw
        self._seekable = seekable
        self.mark = Mark()

    @property
    def position(self) -> int:
        """Bytes of the file on disk that were read."""
        return self.mark.at if self._seekable or self._raw is self._stream else self._raw.tell()

    def go_to(self, mark: Mark) -> None:
        """Go on after `mark`; backwards only where the file can be sought in."""
        if self._seekable:
            self._stream.seek(mark.at)
        else:
            left = mark.at - self.mark.at
            while left > 0 and (skipped := self._stream.read(min(left, _SKIPPED_BYTES))):
                left -= len(skipped)
        self.mark = mark

    def lines(self) -> Iterator[Line]:
        """Every line from here on."""
        while data := self._stream.readline(MAX_LINE_BYTES + 1):
            size, whole = len(data), len(data) <= MAX_LINE_BYTES
            part = data
            while not whole and part and not part.endswith(b"\n"):
                part = self._stream.readline(MAX_LINE_BYTES)
                size += len(part)
            self.mark = Mark(self.mark.at + size, self.mark.line + 1)
            yield Line(data if whole else data[:_KEPT_OF_LONG_BYTES], whole)


@contextmanager
def opened(path: Path) -> Iterator[TextFile]:
    """A file, decompressed if its name says so, or standard input.

    Raises:
        OSError: It cannot be read; also later, where a compressed file is damaged or cut off.
    """
    if path == STANDARD_INPUT:
        # Not sys.stdin.buffer: a thread that still waits for its lock would spoil the exit.
        with io.FileIO(sys.stdin.fileno(), closefd=False) as raw:
            stream = io.BufferedReader(raw)
            yield TextFile(stream, stream, seekable=False)
        return
    compression = COMPRESSIONS.get(path.suffix.lower())
    with path.open("rb") as file:
        if compression is None:
            yield TextFile(file, file, seekable=True)
            return
        import pyarrow as pa  # noqa: PLC0415 - only compressed files need its 50 MB

        unpacked: Any = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), compression)
        with unpacked:
            yield TextFile(io.BufferedReader(unpacked), file, seekable=False)
