"""What an import puts aside: one JSON object a line, with the line as it stands in the file."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Protocol

import msgspec

_LONGEST_LINE_BYTES = 64 * 1024 * 1024
"""More than any line that is put aside, as JSON."""


class Rejected(Protocol):
    """What it could not import."""

    @property
    def source(self) -> str: ...
    @property
    def line(self) -> int: ...
    @property
    def reason(self) -> str: ...
    @property
    def raw(self) -> bytes: ...
    @property
    def whole(self) -> bool: ...


def as_line(bad: Rejected) -> bytes:
    """With its line end."""
    fields: dict[str, object] = {"source": bad.source, "line": bad.line, "reason": bad.reason}
    raw = bad.raw.removesuffix(b"\n").removesuffix(b"\r")
    try:
        fields["raw"] = raw.decode()
    except UnicodeDecodeError:
        if bad.whole:
            fields |= {"raw": base64.b64encode(raw).decode(), "encoding": "base64"}
        else:  # cut within a character, perhaps
            fields["raw"] = raw.decode(errors="replace")
    if not bad.whole:
        fields["cut"] = True
    return msgspec.json.encode(fields) + b"\n"


class _Line(msgspec.Struct):
    source: str
    line: int
    reason: str
    raw: str


def holds_rejects(file: Path) -> bool:
    """Whether a file is one of these, as far as its first line tells, or empty.

    Raises:
        OSError
    """
    with file.open("rb") as opened:
        first = opened.readline(_LONGEST_LINE_BYTES)
    if not first:
        return True
    try:
        msgspec.json.decode(first, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True
