"""What may happen ten thousand times a minute, entered a bounded number of times.

The first by an actor, from an origin, is entered at once; the others of a minute become one entry
that says how many they were. Every actor has a place of its own, however many others there are;
from more origins than there is room for, it is counted without them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import NamedTuple

OTHERS = "(others)"
"""Actor of what is counted together; nobody's name, since that is a token."""

_WINDOW_S = 60.0


class Key(NamedTuple):
    """What is counted as one."""

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
    """Counts what is of one kind. It remembers no more than twice `most_actors` and `capacity`."""

    def __init__(
        self, *, window_s: float = _WINDOW_S, capacity: int = 256, most_actors: int = 4096
    ) -> None:
        """Args:
        window_s: Seconds from one entry of a key to its next.
        capacity: Further origins of actors that are counted apart from each other.
        most_actors: Beyond that actors are counted together.
        """
        self._window_s = window_s
        self._capacity = capacity
        self._most_actors = most_actors
        self._windows: OrderedDict[Key, _Window] = OrderedDict()
        """The one that began first, first."""
        self._keys_of: Counter[str] = Counter()
        """By actor."""

    def __len__(self) -> int:
        return len(self._windows)

    def count(self, key: Key, subject: str, now: float) -> Tallied | None:
        """Count one at `now` (seconds of a clock that never goes back); the entry to make at once,
        if it is the first.
        """
        window = self._windows.get(key)
        if window is None:
            key = self._place(key)
            window = self._windows.get(key)
        if window is None:
            self._windows[key] = _Window(now)
            self._keys_of[key.actor] += 1
            return Tallied(key, subject, 1)
        window.add(subject)
        return None

    def _place(self, key: Key) -> Key:
        """Under which a new key is counted."""
        if not self._keys_of[key.actor]:
            return key if len(self._keys_of) < self._most_actors else Key(OTHERS, "")
        further = len(self._windows) - len(self._keys_of)
        return key if further < self._capacity else Key(key.actor, "")

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
            else:
                self._leave(key.actor)
        return entries

    def close(self) -> list[Tallied]:
        """Entries of everything that was counted and not entered yet; all is forgotten."""
        windows, self._windows = self._windows, OrderedDict()
        self._keys_of.clear()
        return [
            Tallied(key, window.subject, window.count)
            for key, window in windows.items()
            if window.count
        ]

    def _leave(self, actor: str) -> None:
        self._keys_of[actor] -= 1
        if not self._keys_of[actor]:
            del self._keys_of[actor]
