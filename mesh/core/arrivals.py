"""Entries of a shard's log that peers told of, until their turn comes."""

from __future__ import annotations

from mesh.core.replication import Position
from mesh.wire.messages import LoggedWrite

_MOST_BYTES = 16 * 1024 * 1024


class Arrivals:
    """Of one copy."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[LoggedWrite, int]] = {}
        """With their bytes, by the sequence of the entry before."""
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, logged: LoggedWrite, size: int) -> None:
        """Keep it, unless there is too much already: the log has it all. `size`: its bytes."""
        prev = logged.entry.prev
        _, before = self._waiting.get(prev, (None, 0))
        if self._bytes - before + size <= _MOST_BYTES and not logged.entry.begin:
            self._waiting[prev] = logged, size
            self._bytes += size - before

    def run(self, position: Position, limit: int) -> list[LoggedWrite]:
        """Those that continue the position, one after another; what is behind it is dropped."""
        found: list[LoggedWrite] = []
        at = position.sequence
        while len(found) < limit and (waiting := self._waiting.get(at)) is not None:
            logged, _ = waiting
            if logged.log != position.log or logged.sequence <= at:
                break
            found.append(logged)
            at = logged.sequence
        return found

    def forget(self, position: Position) -> None:
        """What the position has passed, and what is of another log."""
        self._waiting = {
            prev: waiting
            for prev, waiting in self._waiting.items()
            if prev >= position.sequence and waiting[0].log == position.log
        }
        self._bytes = sum(size for _, size in self._waiting.values())

    def clear(self) -> None:
        """All of them."""
        self._waiting.clear()
        self._bytes = 0
