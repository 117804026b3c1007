"""Circuit breaker of the calls of one verb to one node, as a pure state machine.

Closed, it counts; `failure_threshold` failures in a row, or a share of `failure_ratio` among at
least `min_calls` in the sliding window, open it. Open, it refuses for `retry_timeout_s`, twice as
long after each probe that fails, up to `max_backoff` times; and by chance up to a tenth longer on
top of that, never shorter, so that callers do not probe in step. Half open, it admits
`success_threshold` probes; when all have succeeded it closes, and the first that fails opens it
again.

A call may be made although it is open, where others can bear no more: an exempt one. When
`success_threshold` of them in a row have succeeded, the node is well before anybody would have
probed it, and the breaker closes.

Above its own counting stands the masters' word. It opens, closes, or gives this caller a number of
probes, to be sent before its `until`; their results are counted here and judged there. A word that
is overdue for `VOID_AFTER_S` comes from masters who are gone: the breaker then goes half open by
itself. Its own decision to open never waits for anybody.

A result counts only in the state that its call was admitted in: each change of state begins a new
generation, and permits of an older one change nothing. A half-open breaker that hears another
half-open word has not changed: probes that are still out keep their places and count, or more of
them would be in flight than anybody allowed.

Source: Nygard, "Release It!", 2007; generations: sony/gobreaker; doubled ejection: Envoy, outlier
detection.
"""

from __future__ import annotations

import enum
import math
from typing import NamedTuple

from mesh.config import BreakerConfig
from mesh.types import BreakerState
from mesh.wire.messages import BreakerWord

VOID_AFTER_S = 2.0
"""A word whose `until` is past for so long, without a newer one, holds no more."""

SLICES = 10
"""Of the window; it forgets one at a time."""

LEAST_MS = 250.0
"""Who had less time than this has not failed; the last attempt of a search still has more."""

USUAL_TIMES = 4.0
"""Nor has who had less than so many times what it usually takes."""

MOST_MS = 750.0
"""Who had so much has, whatever it usually takes: searches and pings do not wait much longer, and
a node that hangs must be found out by them.
"""

JITTER = 0.1
_MOST_DOUBLINGS = 10
"""More than `max_backoff` may allow."""
_SOON_S = 0.1
_NEVER = float("inf")

# Looking up a member of an enum takes as long as the rest of what is done per call.
_CLOSED = BreakerState.CLOSED


class Outcome(enum.Enum):
    """How a call ended, for the breaker."""

    SUCCESS = enum.auto()
    FAILURE = enum.auto()
    IGNORED = enum.auto()
    """Says nothing of the node: cancelled, pushed back, refused as wrong, or never sent."""


def had_its_time(had_ms: float, usual_ms: float) -> bool:
    """Whether a node that has not answered so far is to blame, or a caller who did not wait for it:
    one caller's short timeout must not open breakers for everybody.

    Args:
        had_ms: How long it has had.
        usual_ms: How long its answers take; 0: it has given none.
    """
    return had_ms >= min(max(LEAST_MS, USUAL_TIMES * usual_ms), MOST_MS)


class Permit(NamedTuple):
    """Leave to make one call; to be settled exactly once, whatever becomes of the call."""

    generation: int


_SUCCESS, _IGNORED = Outcome.SUCCESS, Outcome.IGNORED


class Breaker:
    """Not thread-safe: one event loop. `now` is always monotonic seconds of one clock."""

    __slots__ = (
        "_allowed",
        "_before",
        "_calls",
        "_config",
        "_doublings",
        "_exempt",
        "_failures",
        "_in_row",
        "_own_at",
        "_per_s",
        "_permit",
        "_slice",
        "_slice_ends",
        "_slices",
        "_spared",
        "_succeeded",
        "_told",
        "_until",
        "open_until",
        "opened_at",
        "probes_failed",
        "probes_succeeded",
        "probing",
        "reason",
        "state",
        "turn",
    )

    def __init__(self, config: BreakerConfig) -> None:
        """Closed, and nothing counted."""
        self._config = config
        self._per_s = SLICES / config.window_s
        self._permit = Permit(0)
        """The one permit of this generation: it says no more than that."""
        self._exempt = Permit(-1)
        """The one of this generation for calls that are no probes."""
        self._spared = 0
        """Of these, how many have succeeded in a row."""
        self.state = BreakerState.CLOSED
        self.turn = 0
        """Of the masters' word that was last taken; 0: none."""
        self.open_until = 0.0
        """When probes begin, if open."""
        self.opened_at = 0.0
        """When it was last closed and opened: re-openings do not move it."""
        self.reason = ""
        """Why it is not closed."""
        self.probes_succeeded = 0
        """Of those that the present word allowed."""
        self.probes_failed = 0
        self._told = False
        """The masters' word is in force, and it is not `closed`."""
        self._until = _NEVER
        """When its probes must have been sent; forever, if they are this breaker's own."""
        self._own_at = _NEVER
        """When it goes half open by itself."""
        self._doublings = 0
        """Of the next opening, if it is its own."""
        self.probing = 0
        """Probes that are in flight, also those that an earlier word allowed."""
        self._allowed = 0
        """Probes that may be in flight or have succeeded."""
        self._succeeded = 0
        self._in_row = self._calls = self._failures = 0
        self._slice = 0
        self._slice_ends = -_NEVER
        self._slices = [(0, 0)] * SLICES
        """Calls and failures of each; the present one has what is new since `_before`."""
        self._before = (0, 0)

    # -- asking ----------------------------------------------------------------------------------

    def admits(self, now: float) -> bool:
        """Whether `acquire` would give a permit; changes nothing."""
        if self.state is _CLOSED:
            return True
        if now >= self._own_at:
            return self.probing < self._config.success_threshold
        return now < self._until and self.probing + self._succeeded < self._allowed

    def acquire(self, now: float) -> Permit | None:
        """Leave to make one call now; None: refused."""
        if self.state is _CLOSED:
            return self._permit
        if now >= self._own_at:
            self._probe_alone()
        if now >= self._until or self.probing + self._succeeded >= self._allowed:
            return None
        self.probing += 1
        return self._permit

    def exempt(self) -> Permit:
        """A permit that is no probe's, for a call that is made although the breaker is open."""
        return self._exempt

    def retry_after_s(self, now: float) -> float:
        """Seconds until asking again makes sense; 0: closed."""
        match self.state:
            case BreakerState.CLOSED:
                return 0.0
            case BreakerState.OPEN:
                return max(_SOON_S, self.open_until - now)
            case BreakerState.HALF_OPEN:
                return max(_SOON_S, self._until - now) if self._told else _SOON_S

    # -- how calls ended -------------------------------------------------------------------------

    def settle(self, permit: Permit, outcome: Outcome, now: float, chance: float) -> bool:
        """Take how a permitted call ended; returns whether the state has changed.

        Args:
            permit: What `acquire` gave.
            outcome: How it ended.
            now: Monotonic seconds.
            chance: In [0, 1); lengthens an opening by up to a tenth.
        """
        if permit is not self._permit:  # there is one of each generation
            return permit is self._exempt and self._settle_exempt(outcome)
        if self.state is not _CLOSED:
            return self._settle_probe(outcome, now, chance)
        if outcome is _IGNORED:
            return False
        if now >= self._slice_ends:
            self._advance(now)
        self._calls += 1
        if outcome is _SUCCESS:
            self._in_row = 0
        else:
            self._failures += 1
            self._in_row += 1
        return self._failures > 0 and self._trips(now, chance)

    def _trips(self, now: float, chance: float) -> bool:
        config = self._config
        if not config.enabled:
            return False
        if self._in_row >= config.failure_threshold:
            reason = f"{self._in_row} failures in a row"
        elif (
            self._calls >= config.min_calls and self._failures >= config.failure_ratio * self._calls
        ):
            reason = f"{self._failures} of {self._calls} calls failed"
        else:
            return False
        self._open(reason, now, chance)
        return True

    def _settle_exempt(self, outcome: Outcome) -> bool:
        if self._told or self.state is not BreakerState.OPEN or outcome is _IGNORED:
            return False
        self._spared = self._spared + 1 if outcome is _SUCCESS else 0
        if self._spared < self._config.success_threshold:
            return False
        self._close()
        return True

    def _settle_probe(self, outcome: Outcome, now: float, chance: float) -> bool:
        self.probing -= 1
        match outcome:
            case Outcome.IGNORED:
                return False
            case Outcome.SUCCESS:
                self._succeeded += 1
                if self._told:
                    self.probes_succeeded += 1
                    return False
                if self._succeeded < self._allowed:
                    return False
                self._close()
                return True
            case Outcome.FAILURE:
                if self._told:  # the masters decide; until they have, nobody else tries
                    self.probes_failed += 1
                    self._allowed = 0
                    return False
                self._open("a probe failed", now, chance)
                return True

    # -- the masters' word -----------------------------------------------------------------------

    def adopt(self, word: BreakerWord, *, until: float, probes: int, now: float) -> bool:
        """Take the masters' word, if it is news; returns whether the state has changed.

        Args:
            word: As published.
            until: `word.until` as monotonic seconds.
            probes: What `word.probers` gives this caller.
            now: Monotonic seconds.
        """
        if word.turn <= self.turn:
            return False
        self.turn = word.turn
        self.probes_succeeded = self.probes_failed = 0
        if not self._config.enabled:
            return False
        before = self.state
        match word.state:
            case BreakerState.CLOSED:
                self._close()
            case BreakerState.OPEN:
                self._enter_open(now)
                self.open_until = until
            case BreakerState.HALF_OPEN:
                if before is BreakerState.CLOSED:
                    self._enter_open(now)
                self._let_probe(probes)
        if word.state is not BreakerState.CLOSED:
            self.reason = word.reason
            self._told = True
            self._until = until
            self._own_at = until + VOID_AFTER_S
        return self.state is not before

    # -- states ----------------------------------------------------------------------------------

    def _open(self, reason: str, now: float, chance: float) -> None:
        """By its own decision."""
        self._enter_open(now)
        grown = min(2.0**self._doublings, self._config.max_backoff)
        self._doublings = min(self._doublings + 1, _MOST_DOUBLINGS)
        self.open_until = now + self._config.retry_timeout_s * grown * (1 + JITTER * chance)
        self.reason = reason
        self._told = False
        self._own_at = self.open_until

    def _enter_open(self, now: float) -> None:
        if self.state is BreakerState.CLOSED:
            self.opened_at = now
        self._enter(BreakerState.OPEN)

    def _probe_alone(self) -> None:
        """Half open without a word, or without one that still holds."""
        self._told = False
        self._own_at = self._until = _NEVER
        self._let_probe(self._config.success_threshold)

    def _let_probe(self, probes: int) -> None:
        if self.state is not BreakerState.HALF_OPEN:
            self._enter(BreakerState.HALF_OPEN)
        self._allowed = probes
        self._succeeded = 0

    def _close(self) -> None:
        self._enter(BreakerState.CLOSED)
        self.reason = ""
        self._told = False
        self._own_at = _NEVER
        self._doublings = 0
        self._clear_window()

    def _enter(self, state: BreakerState) -> None:
        self.state = state
        self._permit = Permit(self._permit.generation + 1)
        self._exempt = Permit(-1)
        self._spared = 0
        self._allowed = self.probing = self._succeeded = 0

    # -- the window ------------------------------------------------------------------------------

    def _clear_window(self) -> None:
        self._in_row = self._calls = self._failures = 0
        self._slice_ends = -_NEVER
        self._slices = [(0, 0)] * SLICES
        self._before = (0, 0)

    def _advance(self, now: float) -> None:
        """Begin the slice of `now`, and forget those that the window has left behind."""
        number = math.floor(now * self._per_s)
        if self._slice_ends == -_NEVER:
            self._slice = number - 1
        number = max(number, self._slice + 1)  # a slice that has ended does not begin again
        calls, failures = self._before
        self._slices[self._slice % SLICES] = (self._calls - calls, self._failures - failures)
        for passed in range(max(self._slice + 1, number - SLICES + 1), number + 1):
            calls, failures = self._slices[passed % SLICES]
            self._calls -= calls
            self._failures -= failures
            self._slices[passed % SLICES] = (0, 0)
        self._slice = number
        self._slice_ends = (number + 1) / self._per_s
        self._before = (self._calls, self._failures)
