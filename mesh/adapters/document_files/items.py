"""What reading a file gives, item by item, and where in the file it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mesh.errors import InvalidError

MAX_LINE_BYTES = 2 * 1024 * 1024
ACCEPTED = ".jsonl or .ndjson (one JSON object a line), .csv, .tsv, .md, or a folder of .md files"

_BOM = "\ufeff"


class ReadDocument(NamedTuple):
    """A document as the action `index` takes it."""

    document: dict[str, Any]
    source: str
    """File it came from, relative to what was asked for."""
    line: int
    position: int
    """Bytes read so far, over all files."""
    total: int
    """Bytes of all files."""


class BadLine(NamedTuple):
    """Something that is no document, and why."""

    reason: str
    source: str
    line: int
    position: int
    total: int
    document: None = None
    """Tells it from a `ReadDocument`."""


Item = ReadDocument | BadLine


class Source(NamedTuple):
    """One file being read; `before` counts the bytes of those already read."""

    path: Path
    name: str
    before: int
    total: int

    def read(self, document: dict[str, Any], line: int, at: int) -> ReadDocument:
        """A document that starts at `line`, when `at` bytes of this file are read."""
        return ReadDocument(document, self.name, line, self.before + at, self.total)

    def bad(self, reason: str, line: int, at: int) -> BadLine:
        """The same for what is none."""
        return BadLine(reason, self.name, line, self.before + at, self.total)


def refused(field: str, message: str) -> InvalidError:
    """The whole file cannot be read as asked."""
    return InvalidError(message, fields={field: [message]})


def bounded_lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Lines of at most `MAX_LINE_BYTES`; None stands for one that is longer."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        if len(line) <= MAX_LINE_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE_BYTES)
        yield None


def without_bom(text: str, line: int) -> str:
    """Windows programs mark UTF-8 files with an invisible character."""
    return text.removeprefix(_BOM) if line == 1 else text
