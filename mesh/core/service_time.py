"""How long a verb takes: count, errors, exponentially weighted mean, quantiles of the last calls.

Source: Roberts, "Control Chart Tests Based on Geometric Moving Averages", Technometrics 1(3), 1959.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from mesh.wire.messages import VerbStats

WEIGHT = 0.1
"""Share of the newest call in the mean: the last ~20 calls make 90 % of it."""

WINDOW = 256
"""Calls that quantiles are taken over."""


class ServiceTime:
    """Meter of one verb. Not thread-safe."""

    def __init__(self) -> None:
        self._count = 0
        self._errors = 0
        self._mean_ms = 0.0
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._stats = VerbStats()

    def record(self, took_ms: float, *, failed: bool = False) -> None:
        """Count one call of `took_ms` milliseconds."""
        self._mean_ms = (
            took_ms if not self._count else self._mean_ms + WEIGHT * (took_ms - self._mean_ms)
        )
        self._count += 1
        self._errors += failed
        self._recent.append(took_ms)

    def stats(self) -> VerbStats:
        """The figures as of now; all zero before the first call. Every heartbeat asks: they are
        made anew only where there was a call.
        """
        if self._stats.count != self._count:
            ordered = sorted(self._recent)
            self._stats = VerbStats(
                count=self._count,
                errors=self._errors,
                ewma_ms=round(self._mean_ms, 3),
                p50_ms=_quantile(ordered, 0.5),
                p95_ms=_quantile(ordered, 0.95),
                p99_ms=_quantile(ordered, 0.99),
            )
        return self._stats


def _quantile(ordered: Sequence[float], share: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 3)
