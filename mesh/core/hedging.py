"""When a call has taken so long that another replica should be asked too.

Source: Dean, Barroso, "The Tail at Scale", CACM 56(2), 2013 (hedge after the 95th percentile).
"""

from __future__ import annotations

from mesh.core.latency import Histogram

RECOMPUTED_EVERY = 64
"""Samples; the delay in between is the last one."""

REMEMBERED = 512
"""Samples at least, and at most twice as many; then the older half is forgotten."""


class Hedging:
    """Times of one kind of call, whichever replica answered."""

    __slots__ = ("_delay_s", "_due", "_older", "_quantile", "_recent")

    def __init__(self, quantile: float, least_samples: int = 20) -> None:
        """Args:
        quantile: Share of calls, 0 to 1, that are over before a hedge is thought of.
        least_samples: Below these nothing is known.
        """
        self._quantile = quantile
        self._recent = Histogram()
        self._older: dict[int, int] = {}
        self._due = least_samples
        """Samples until the delay is computed again."""
        self._delay_s: float | None = None

    def observed(self, ms: float) -> None:
        """A call was answered after so many milliseconds."""
        self._recent.add(ms)
        self._due -= 1
        if self._due <= 0:
            self._recompute()

    def delay_s(self) -> float | None:
        """Seconds after which to hedge; None: too little is known."""
        return self._delay_s

    def _recompute(self) -> None:
        self._due = RECOMPUTED_EVERY
        known = Histogram()
        known.merge(self._older)
        known.merge(self._recent.counts)
        delay_ms = known.quantile(self._quantile)
        self._delay_s = None if delay_ms is None else delay_ms / 1000
        if self._recent.count >= REMEMBERED:
            self._older = self._recent.counts
            self._recent.clear()
