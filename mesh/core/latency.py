"""How long calls took, in so few figures that callers can tell masters twice a second.

Times are counted in buckets whose limits grow by a constant factor: bucket i holds
`LEAST_MS * GAMMA ** (i - 1) < ms <= LEAST_MS * GAMMA ** i`, and any quantile read from the counts
is off by at most `ERROR`, relatively. Counts of several callers just add up.

Source: Masson, Rim, Lee, "DDSketch: A Fast and Fully-Mergeable Quantile Sketch with Relative-Error
Guarantees", PVLDB 12(12), 2019.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

ERROR = 0.05
"""Of a quantile, relative, for times between `LEAST_MS` and `MOST_MS`."""

GAMMA = (1 + ERROR) / (1 - ERROR)
LEAST_MS = 0.01
"""Shorter times count as this one."""

_LOG_GAMMA = math.log(GAMMA)
_PER_LOG = 1 / _LOG_GAMMA
_SHIFT = -math.log(LEAST_MS) * _PER_LOG

BUCKETS = math.ceil(math.log(1e8) * _PER_LOG + _SHIFT) + 1
"""0 to BUCKETS - 1; the last one ends after a day and a bit."""

MOST_MS = LEAST_MS * GAMMA ** (BUCKETS - 1)
"""Longer times count as this one."""

_MIDDLES = tuple(LEAST_MS * GAMMA**number * 2 / (GAMMA + 1) for number in range(BUCKETS))


def bucket(ms: float) -> int:
    """The bucket of a time in ms; what is no time at all (negative, NaN) is in the first one."""
    if not ms > LEAST_MS:
        return 0
    if ms >= MOST_MS:
        return BUCKETS - 1
    return math.ceil(math.log(ms) * _PER_LOG + _SHIFT)


def middle_ms(number: int) -> float:
    """The time that stands for all of a bucket: at most `ERROR` from each, relatively."""
    return _MIDDLES[min(max(number, 0), BUCKETS - 1)]


def quantile_of(counts: Mapping[int, int], q: float) -> float | None:
    """The time in ms below which a share `q` (0 to 1) of the counted times lies; None: none is."""
    total = sum(counts.values())
    if total <= 0:
        return None
    rank = q * (total - 1)
    seen = 0
    number = 0
    for number in sorted(counts):
        seen += counts[number]
        if seen > rank:
            break
    return middle_ms(number)


class Histogram:
    """Times since the last `clear`."""

    __slots__ = ("count", "counts")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        """Bucket → times, none of them 0."""
        self.count = 0

    def add(self, ms: float) -> None:
        """Count one time in milliseconds."""
        number = bucket(ms)
        self.counts[number] = self.counts.get(number, 0) + 1
        self.count += 1

    def merge(self, counts: Mapping[int, int]) -> None:
        """Count what somebody else has counted; what can be no count of ours is passed over."""
        for number, n in _sound(counts.items()):
            self.counts[number] = self.counts.get(number, 0) + n
            self.count += n

    def quantile(self, q: float) -> float | None:
        """As `quantile_of`."""
        return quantile_of(self.counts, q)

    def clear(self) -> None:
        """Start afresh, with a new `counts`: the old one may be on its way to somebody."""
        self.counts = {}
        self.count = 0


class SlidingHistogram:
    """Times of the last `window_s` seconds, forgotten slice by slice: what is counted is between
    `window_s` less a slice and `window_s` old, at most.

    `now` is monotonic seconds of one clock; a time before the newest one heard counts as that one.
    """

    __slots__ = ("_newest", "_per_s", "_slices")

    def __init__(self, window_s: float, slices: int = 12) -> None:
        """Args:
        window_s: Seconds.
        slices: Of the window.
        """
        self._per_s = slices / window_s
        self._slices: list[dict[int, int]] = [{} for _ in range(slices)]
        self._newest: int | None = None

    def add(self, number: int, n: int, now: float) -> None:
        """Count `n` times of a bucket."""
        present = self._slices[self._advance(now) % len(self._slices)]
        if 0 <= number < BUCKETS and n > 0:
            present[number] = present.get(number, 0) + n

    def merge(self, counts: Mapping[int, int], now: float) -> None:
        """Count what somebody has counted just now."""
        present = self._slices[self._advance(now) % len(self._slices)]
        for number, n in _sound(counts.items()):
            present[number] = present.get(number, 0) + n

    def counts(self, now: float) -> dict[int, int]:
        """Bucket → times within the window."""
        self._advance(now)
        total: dict[int, int] = {}
        for part in self._slices:
            for number, n in part.items():
                total[number] = total.get(number, 0) + n
        return total

    def quantile(self, q: float, now: float) -> float | None:
        """As `quantile_of`, of the window."""
        return quantile_of(self.counts(now), q)

    def _advance(self, now: float) -> int:
        """Forget what the window has left behind; returns the number of the present slice."""
        present = math.floor(now * self._per_s)
        if self._newest is None:
            self._newest = present
        if present <= self._newest:
            return self._newest
        for number in range(max(self._newest + 1, present - len(self._slices) + 1), present + 1):
            self._slices[number % len(self._slices)] = {}
        self._newest = present
        return present


def _sound(counts: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    return ((number, n) for number, n in counts if 0 <= number < BUCKETS and n > 0)
