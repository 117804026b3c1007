"""One line per request: JSON, or for people on a terminal.

A logger's call per request would cost more than the rest of the edge: lines are collected and
written every `FLUSH_S`.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from typing import TextIO

import msgspec

FLUSH_S = 0.2
_FLUSH_CHARS = 65_536


class _Line(msgspec.Struct, frozen=True):
    method: str
    path: str
    status: int
    duration_ms: float
    bytes: int
    identity: str
    client: str
    reference: str
    timestamp: datetime
    event: str = "mesh.gateway.answered"
    level: str = "info"


_encode = msgspec.json.Encoder().encode


class AccessLog:
    """Collects lines for `out`."""

    def __init__(self, out: TextIO | None = None) -> None:
        """Default: stderr, like all other logs."""
        self._out = out or sys.stderr
        self._person = self._out.isatty()
        self._lines: list[str] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    def write(
        self,
        *,
        method: str,
        path: str,
        status: int,
        duration_s: float,
        size: int,
        identity: str,
        client: str,
        reference: str,
    ) -> None:
        """Note an answer. `path` as it came, still percent-encoded and without its query, which
        may hold what is nobody's business.
        """
        now = datetime.now(tz=UTC)
        took_ms = round(duration_s * 1000, 3)
        if self._person:
            who = identity or client
            line = (
                f"{now.isoformat()} {status} {method} {path} {took_ms:.1f} ms {who} {reference}\n"
            )
        else:
            entry = _Line(method, path, status, took_ms, size, identity, client, reference, now)
            line = _encode(entry).decode() + "\n"
        self._lines.append(line)
        self._size += len(line)
        if self._size > _FLUSH_CHARS:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what there is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        text = "".join(self._lines)
        self._lines.clear()
        self._size = 0
        try:
            self._out.write(text)
            self._out.flush()
        except (OSError, ValueError):
            return  # nobody reads the log any more: that is no reason to fail requests
