"""How many calls may be repeated: a share of all calls, so that what is down is not shouted down.

Repetitions within any window are at most `ratio` times the calls of the window that ends with the
last of them, plus a reserve, for callers that seldom call. The same rule bounds hedges.

Source: Finagle, `RetryBudget`.
"""

from __future__ import annotations

import math

SLICES = 10
"""Of the window; it forgets one at a time."""


class RetryBudget:
    """Not thread-safe. `now` is monotonic seconds of one clock."""

    __slots__ = (
        "_calls",
        "_newest",
        "_per_s",
        "_ratio",
        "_reserve",
        "_slice_calls",
        "_slice_ends",
        "_slice_taken",
        "_taken",
    )

    def __init__(self, ratio: float, *, reserve: float = 10, window_s: float = 10) -> None:
        """Args:
        ratio: Repetitions per call; 0: none at all.
        reserve: Repetitions per window besides.
        window_s: Seconds.
        """
        self._ratio = ratio
        self._reserve = reserve if ratio > 0 else 0.0
        self._per_s = SLICES / window_s
        self._newest = -1
        self._slice_ends = -math.inf
        # One slice more than the window has. The oldest counts for what was taken, not for calls:
        # that time is cut into slices must never give more than the rule says.
        self._slice_calls = [0] * (SLICES + 1)
        self._slice_taken = [0] * (SLICES + 1)
        self._calls = 0
        self._taken = 0

    def called(self, now: float) -> None:
        """A call was made, a first one."""
        if now >= self._slice_ends:
            self._advance(now)
        self._slice_calls[self._newest % (SLICES + 1)] += 1
        self._calls += 1

    def available(self, now: float) -> float:
        """Repetitions that could be made now."""
        if now >= self._slice_ends:
            self._advance(now)
        oldest = self._slice_calls[(self._newest + 1) % (SLICES + 1)]
        return self._ratio * (self._calls - oldest) + self._reserve - self._taken

    def take(self, now: float) -> bool:
        """Leave for one repetition; False: none is left."""
        if self.available(now) < 1:
            return False
        self._slice_taken[self._newest % (SLICES + 1)] += 1
        self._taken += 1
        return True

    def _advance(self, now: float) -> None:
        """Begin the slice of `now`, and forget those that the window has left behind."""
        number = math.floor(now * self._per_s)
        for passed in range(max(self._newest + 1, number - SLICES), number + 1):
            at = passed % (SLICES + 1)
            self._calls -= self._slice_calls[at]
            self._taken -= self._slice_taken[at]
            self._slice_calls[at] = self._slice_taken[at] = 0
        self._newest = number
        self._slice_ends = (number + 1) / self._per_s
