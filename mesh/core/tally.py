"""What may happen ten thousand times a minute, entered a bounded number of times.

The first of a kind, by an actor, from an origin, is entered at once; the others of a minute become
one entry that says how many they were. Of more such keys than `capacity` the newest are counted
together, by kind alone.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

OTHERS = "others"
"""Actor of what is counted together."""

_WINDOW_S = 60.0


class Key(NamedTuple):
    """What is counted as one."""

    kind: str
    actor: str
    origin: str


class Tallied(NamedTuple):
    """One entry."""

    key: Key
    subject: str
    """Empty where they had several."""
    times: int


class _Window:
    __slots__ = ("began", "count", "subject")

    def __init__(self, began: float) -> None:
        self.began = began
        self.count = 0
        self.subject = ""

    def add(self, subject: str) -> None:
        self.subject = subject if self.subject == subject or not self.count else ""
        self.count += 1


class Tally:
    """Counts by key. No more than `capacity` keys, and one a kind, are remembered."""

    def __init__(self, *, window_s: float = _WINDOW_S, capacity: int = 256) -> None:
        """Args:
        window_s: Seconds from one entry of a key to its next.
        capacity: Keys that are counted apart from each other.
        """
        self._window_s = window_s
        self._capacity = capacity
        self._windows: OrderedDict[Key, _Window] = OrderedDict()
        """The one that began first, first."""

    def __len__(self) -> int:
        return len(self._windows)

    def count(self, key: Key, subject: str, now: float) -> Tallied | None:
        """Count one at `now` (seconds of a clock that never goes back); the entry to make at once,
        if it is the first.
        """
        window = self._windows.get(key)
        if window is None and len(self._windows) >= self._capacity:
            key = Key(key.kind, OTHERS, "")
            window = self._windows.get(key)
        if window is None:
            self._windows[key] = _Window(now)
            return Tallied(key, subject, 1)
        window.add(subject)
        return None

    def due(self, now: float) -> list[Tallied]:
        """Entries of the windows that have ended; a key that had none in its window is forgotten,
        and the next one of it is a first again.
        """
        entries: list[Tallied] = []
        while self._windows:
            key, window = next(iter(self._windows.items()))
            if window.began + self._window_s > now:
                break
            del self._windows[key]
            if window.count:
                entries.append(Tallied(key, window.subject, window.count))
                self._windows[key] = _Window(now)
        return entries

    def close(self) -> list[Tallied]:
        """Entries of everything that was counted and not entered yet; all is forgotten."""
        windows, self._windows = self._windows, OrderedDict()
        return [
            Tallied(key, window.subject, window.count)
            for key, window in windows.items()
            if window.count
        ]
