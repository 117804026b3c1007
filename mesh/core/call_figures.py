"""Figures of the whole mesh, as callers saw it: calls, failures and response times of each verb in
the last minute.
"""

from __future__ import annotations

from collections import Counter

from mesh.core.latency import SlidingHistogram
from mesh.wire.messages import VerbFigures, VerbOutcome

WINDOW_S = 60.0
_SLICES = 12
_SLICE_S = WINDOW_S / _SLICES
_MOST_VERBS = 200
OTHERS = "others"
"""Verbs beyond that, together."""
_MOST_CONNECTIONS = 10_000
_MOST_CALLS = 1_000_000
"""In one report. Nobody makes more in half a second."""
_COUNTED = ("calls", "failures", "retried", "hedged")


class _Figures:
    """Of one verb."""

    def __init__(self) -> None:
        self.latency = SlidingHistogram(WINDOW_S, _SLICES)
        self.slices: dict[int, Counter[str]] = {}
        """By number of the slice, oldest first."""

    def add(self, outcome: VerbOutcome, now: float) -> None:
        counts = self.slices.setdefault(int(now // _SLICE_S), Counter())
        for name in _COUNTED:
            counts[name] += min(getattr(outcome, name), _MOST_CALLS)
        times = {number: n for number, n in outcome.latency.items() if n <= _MOST_CALLS}
        self.latency.merge(times, now)

    def sweep(self, now: float) -> bool:
        """Forget what is longer ago; whether anything is left."""
        oldest = int(now // _SLICE_S) - _SLICES + 1
        for number in [number for number in self.slices if number < oldest]:
            del self.slices[number]
        return bool(self.slices)

    def now(self, now: float) -> VerbFigures:
        self.sweep(now)
        sums: Counter[str] = Counter()
        for counts in self.slices.values():
            sums.update(counts)
        covered_s = now - min(self.slices, default=0) * _SLICE_S
        p50_ms, p95_ms, p99_ms = (
            round(self.latency.quantile(share, now) or 0.0, 3) for share in (0.5, 0.95, 0.99)
        )
        return VerbFigures(
            calls=sums["calls"],
            failures=sums["failures"],
            retried=sums["retried"],
            hedged=sums["hedged"],
            per_s=round(sums["calls"] / max(covered_s, _SLICE_S), 3),
            p50_ms=p50_ms,
            p95_ms=p95_ms,
            p99_ms=p99_ms,
        )


class CallFigures:
    """Of all verbs. Times are seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self._verbs: dict[str, _Figures] = {}
        self._heard: dict[tuple[str, str], float] = {}
        """By caller and connection: when it last told of calls. Whoever did longest ago is first.
        """

    def add(self, caller: str, connection: str, outcome: VerbOutcome, now: float) -> None:
        """Take in what a connection tells."""
        if not (outcome.calls or outcome.retried or outcome.hedged):
            return
        who = (caller, connection)
        self._heard.pop(who, None)
        self._heard[who] = now
        if len(self._heard) > _MOST_CONNECTIONS:
            del self._heard[next(iter(self._heard))]
        verb = outcome.verb
        if verb not in self._verbs and len(self._verbs) >= _MOST_VERBS:
            verb = OTHERS
        figures = self._verbs.get(verb)
        if figures is None:
            figures = self._verbs[verb] = _Figures()
        figures.add(outcome, now)

    def by_verb(self, now: float) -> dict[str, VerbFigures]:
        """Of those that were called in the last minute, by name."""
        self.sweep(now)
        return {verb: figures.now(now) for verb, figures in sorted(self._verbs.items())}

    def connections(self, now: float) -> int:
        """How many told of calls in the last minute."""
        self.sweep(now)
        return len(self._heard)

    def sweep(self, now: float) -> None:
        """Forget what is longer ago."""
        for who, at in list(self._heard.items()):
            if now - at <= WINDOW_S:
                break
            del self._heard[who]
        for verb, figures in list(self._verbs.items()):
            if not figures.sweep(now):
                del self._verbs[verb]
