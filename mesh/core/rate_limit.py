"""How many requests a key may make: the generic cell rate algorithm.

A key has a theoretical arrival time (TAT): when its allowance would be whole again. A request is
let in if, with one more interval T = period / max_attempts on it, the TAT is at most a period
ahead: `max_attempts` at once, then one every T. Nothing but the TAT is kept per key, and nothing
has to be refilled or swept on a timer. Times are counted in whole nanoseconds: in floats the 60th
of 60 requests at one instant would at times be refused.

Source: ITU-T I.371, annex A (virtual scheduling algorithm).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple

_NS = 1_000_000_000
_SWEPT = 2
"""Keys looked at per check to see whether they may be forgotten: more than one can add."""


class Verdict(NamedTuple):
    """May it pass? `reset_s`: seconds until the whole allowance is back. `retry_after_s`: seconds
    until one more would pass; 0 where this one did.
    """

    allowed: bool
    limit: int
    remaining: int
    reset_s: float
    retry_after_s: float


class RateLimiter:
    """Limits by key. Memory is bounded by `capacity`: of more keys than that the one unused for
    longest starts afresh.
    """

    def __init__(self, max_attempts: int, period_s: float, *, capacity: int = 100_000) -> None:
        """Args:
        max_attempts: Requests per period, and at once.
        period_s: Seconds.
        capacity: Keys remembered.
        """
        self._limit = max_attempts
        self._interval = max(1, round(period_s * _NS / max_attempts))
        self._burst = self._interval * max_attempts
        self._capacity = capacity
        self._arrivals: OrderedDict[Hashable, int] = OrderedDict()
        """Key → TAT in ns, the one checked last at the end."""

    def __len__(self) -> int:
        return len(self._arrivals)

    def check(self, key: Hashable, now: float) -> Verdict:
        """Count one request of `key` at `now` (seconds of a clock that never goes back); one that
        is refused is not counted.
        """
        at = int(now * _NS)
        arrivals = self._arrivals
        wait = max(arrivals.get(key, 0), at) - at
        room = self._burst - wait
        if allowed := room >= self._interval:
            wait += self._interval
            room -= self._interval
        arrivals[key] = at + wait
        arrivals.move_to_end(key)
        self._forget(at)
        return Verdict(
            allowed,
            self._limit,
            room // self._interval,
            wait / _NS,
            0.0 if allowed else (self._interval - room) / _NS,
        )

    def _forget(self, at: int) -> None:
        """Drop keys whose allowance is whole again, and what is beyond the capacity."""
        arrivals = self._arrivals
        for _ in range(_SWEPT):
            oldest = next(iter(arrivals))
            if arrivals[oldest] > at and len(arrivals) <= self._capacity:
                return
            del arrivals[oldest]
            if not arrivals:
                return
