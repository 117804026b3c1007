"""What reading a file gives, item by item, and where in the file it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from mesh.errors import InvalidError

MAX_LINE_BYTES = 2 * 1024 * 1024
ACCEPTED = (
    ".jsonl or .ndjson (one JSON object a line), .csv, .tsv, these also as .gz or .zst, .parquet,"
    " .md, or a folder of .md files"
)
STANDARD_INPUT = Path("-")
COMPRESSIONS: dict[str, Literal["gzip", "zstd"]] = {".gz": "gzip", ".zst": "zstd"}
"""By suffix."""

_BOM = "\ufeff"


class Mark(NamedTuple):
    """Where reading goes on: what it counts is each format's own affair."""

    at: int = 0
    """Of lines and rows of text: bytes before it (without compression). Of Parquet: rows. Of
    Markdown: passages.
    """
    line: int = 0
    """Lines before it."""


START = Mark()


class ReadDocument(NamedTuple):
    """A document as the action `index` takes it."""

    document: dict[str, Any]
    source: str
    """File it came from, relative to what was asked for."""
    line: int
    position: int
    """Bytes read so far, over all files, as they are on disk."""
    total: int
    """Bytes of all files; 0: nobody knows."""
    mark: Mark = START
    """After it."""
    raw: bytes = b""
    """What it was read from, where that is text of its own."""


class BadLine(NamedTuple):
    """Something that is no document, and why."""

    reason: str
    source: str
    line: int
    position: int
    total: int
    document: None = None
    """Tells it from a `ReadDocument`."""
    mark: Mark = START
    raw: bytes = b""
    whole: bool = True
    """Whether `raw` is all of it, and not only how it begins."""


Item = ReadDocument | BadLine


class Source(NamedTuple):
    """One file being read; `before` counts the bytes of those already read."""

    path: Path
    name: str
    before: int
    total: int

    @property
    def stem(self) -> str:
        """What ids of documents without one begin with: `notes` of `notes.jsonl.gz`."""
        name = Path(self.name)
        return name.with_suffix("").stem if name.suffix.lower() in COMPRESSIONS else name.stem

    def read(
        self, document: dict[str, Any], line: int, at: int, mark: Mark = START, raw: bytes = b""
    ) -> ReadDocument:
        """A document that starts at `line`, when `at` bytes of this file are read."""
        return ReadDocument(document, self.name, line, self.before + at, self.total, mark, raw)

    def bad(
        self,
        reason: str,
        line: int,
        at: int,
        mark: Mark = START,
        raw: bytes = b"",
        *,
        whole: bool = True,
    ) -> BadLine:
        """The same for what is none."""
        return BadLine(
            reason,
            self.name,
            line,
            self.before + at,
            self.total,
            mark=mark,
            raw=raw,
            whole=whole,
        )


def refused(field: str, message: str) -> InvalidError:
    """The whole file cannot be read as asked."""
    return InvalidError(message, fields={field: [message]})


def without_bom(text: str, line: int) -> str:
    """Windows programs mark UTF-8 files with an invisible character."""
    return text.removeprefix(_BOM) if line == 1 else text
