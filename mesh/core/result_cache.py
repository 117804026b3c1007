"""Answers that may be given again: bounded in bytes and in age, the least recently used go first.

What an answer depends on stands in its key, so a key whose data has changed is simply never asked
for again; its answer goes when it is too old or room is needed.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

OVERHEAD_BYTES = 512
"""Of an entry, besides its answer: places in the table, and its key, which is a short digest."""
_MOST_SHARE = 8
"""One answer takes no more than this part of all there is: else it would drive out all others."""


class _Entry(NamedTuple):
    answer: bytes
    until: float


class ResultCache:
    """Not thread-safe. `now` is monotonic seconds of one clock."""

    def __init__(self, max_bytes: int, ttl_s: float) -> None:
        """Args:
        max_bytes: Of all entries; 0: nothing is kept.
        ttl_s: How long an answer is good, in seconds; 0: not at all.
        """
        self.max_bytes = max_bytes if ttl_s > 0 else 0
        self._ttl_s = ttl_s
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        """Entries that went before their time was over, for want of room."""

    def __len__(self) -> int:
        """Entries, also those whose time is over and that nobody has asked for since."""
        return len(self._entries)

    @property
    def largest(self) -> int:
        """Bytes of the longest answer that is kept."""
        return self.max_bytes // _MOST_SHARE - OVERHEAD_BYTES

    def get(self, key: bytes, now: float) -> bytes | None:
        """The answer, if there is a good one."""
        entry = self._entries.get(key)
        if entry is not None and now < entry.until:
            self._entries.move_to_end(key)
            self.hits += 1
            return entry.answer
        if entry is not None:
            self._remove(key)
        self.misses += 1
        return None

    def put(self, key: bytes, answer: bytes, now: float) -> bool:
        """Keep an answer whose data was asked for at `now`; whether it was kept."""
        if len(answer) > self.largest:
            return False
        if key in self._entries:
            self._remove(key)
        self._entries[key] = _Entry(answer, now + self._ttl_s)
        self.bytes += len(answer) + OVERHEAD_BYTES
        while self.bytes > self.max_bytes:
            oldest = next(iter(self._entries))
            self.evictions += self._entries[oldest].until > now
            self._remove(oldest)
        return True

    def clear(self) -> int:
        """Forget all; how many there were."""
        count = len(self._entries)
        self._entries.clear()
        self.bytes = 0
        return count

    def _remove(self, key: bytes) -> None:
        self.bytes -= len(self._entries.pop(key).answer) + OVERHEAD_BYTES
