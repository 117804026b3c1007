"""Figures of the whole mesh, as callers saw it: calls, failures and response times of each verb in
the last minute.
"""

from __future__ import annotations

from collections import Counter

from mesh.core.breaker_votes import MOST_CALLS
from mesh.core.latency import SlidingHistogram
from mesh.wire.messages import VerbFigures, VerbOutcome

WINDOW_S = 60.0
_SLICES = 12
_SLICE_S = WINDOW_S / _SLICES
_MOST_ACTIONS = 200
_PLAIN_VERBS = frozenset({"search", "fetch", "ping"})
"""Always told of by name, however many actions there are."""
OTHERS = "others"
"""Actions beyond that, together."""
_MOST_CALLERS = 10_000
_MOST_OF_ONE = 1_000_000
"""Calls of one caller in a slice: more than all of its processes can make."""
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
            counts[name] += min(getattr(outcome, name), MOST_CALLS)
        if sum(n for n in outcome.latency.values() if n > 0) <= outcome.calls:
            self.latency.merge(outcome.latency, now)

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


class _Caller:
    """What one caller told of."""

    __slots__ = ("at", "calls", "slice")

    def __init__(self) -> None:
        self.at = 0.0
        self.slice = -1
        self.calls = 0
        """In this slice."""


class CallFigures:
    """Of all verbs. Times are seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self._verbs: dict[str, _Figures] = {}
        self._heard: dict[str, _Caller] = {}
        """Whoever told longest ago is first."""

    def add(self, caller: str, outcome: VerbOutcome, now: float) -> None:
        """Take in what a caller tells; what it cannot have done is passed over."""
        if not (outcome.calls or outcome.retried or outcome.hedged):
            return
        if not self._believed(caller, outcome, now):
            return
        verb = outcome.verb
        most = _MOST_ACTIONS + len(_PLAIN_VERBS)
        if verb not in self._verbs and verb not in _PLAIN_VERBS and len(self._verbs) >= most:
            verb = OTHERS
        figures = self._verbs.get(verb)
        if figures is None:
            figures = self._verbs[verb] = _Figures()
        figures.add(outcome, now)

    def by_verb(self, now: float) -> dict[str, VerbFigures]:
        """Of those that were called in the last minute, by name."""
        self.sweep(now)
        return {verb: figures.now(now) for verb, figures in sorted(self._verbs.items())}

    def _believed(self, caller: str, outcome: VerbOutcome, now: float) -> bool:
        told = self._heard.pop(caller, None) or _Caller()
        self._heard[caller] = told
        if len(self._heard) > _MOST_CALLERS:
            del self._heard[next(iter(self._heard))]
        told.at = now
        piece = int(now // _SLICE_S)
        if told.slice != piece:
            told.slice, told.calls = piece, 0
        told.calls += max(min(getattr(outcome, name), MOST_CALLS) for name in _COUNTED)
        return told.calls <= _MOST_OF_ONE

    def callers(self, now: float) -> int:
        """How many told of calls in the last minute."""
        self.sweep(now)
        return len(self._heard)

    def sweep(self, now: float) -> None:
        """Forget what is longer ago."""
        for caller, told in list(self._heard.items()):
            if now - told.at <= WINDOW_S:
                break
            del self._heard[caller]
        for verb, figures in list(self._verbs.items()):
            if not figures.sweep(now):
                del self._verbs[verb]
