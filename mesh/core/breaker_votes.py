"""Who says what of the calls of one verb to one node, in a window that slides.

Callers vote, not connections: an application cannot outvote the others by making connections up,
and what one caller says counts for nothing against those for whom the node works. Among the
connections of a caller, the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mesh.config import BreakerConfig
from mesh.types import BreakerState
from mesh.wire.messages import VerbOutcome

MOST_CONNECTIONS = 64
"""Of one caller that have a voice; the one that was heard longest ago makes room."""
MOST_CALLERS = 512
_SLICES = 6
MOST_CALLS = 1_000_000
"""In one report. Nobody makes more in half a second, and seldom while the broker is away."""


class Who(NamedTuple):
    """A connection; its name is worth something only together with its caller's."""

    caller: str
    connection: str


class Voice:
    """What one connection has told."""

    __slots__ = ("_counts", "heard_at", "probing", "state", "tried_at", "wants_at")

    def __init__(self) -> None:
        self._counts: list[tuple[int, int, int]] = []
        """Slice, calls, failures; at most `_SLICES + 1`, oldest first."""
        self.state = BreakerState.CLOSED
        self.heard_at = 0
        self.wants_at = 0
        """Unix ms at which it last had a call that its breaker refused."""
        self.tried_at = 0
        """Unix ms at which it was last chosen to probe."""
        self.probing = 0

    def count(self, calls: int, failures: int, piece: int) -> None:
        """Calls in slice `piece`."""
        if self._counts and self._counts[-1][0] >= piece:
            at, before, failed = self._counts[-1]
            self._counts[-1] = (at, before + calls, failed + failures)
        else:
            self._counts.append((piece, calls, failures))
            del self._counts[: -_SLICES - 1]

    def sums(self, oldest: int) -> tuple[int, int]:
        """Calls and failures since slice `oldest`."""
        calls = failures = 0
        for piece, more, failed in self._counts:
            if piece >= oldest:
                calls += more
                failures += failed
        return calls, failures

    def clear(self) -> None:
        """It has said nothing of what is now."""
        self._counts.clear()
        self.state = BreakerState.CLOSED


class Verdict(NamedTuple):
    """The breaker should open."""

    why: str
    alone: str
    """The only caller that used it in the window, or empty: what follows is for it alone."""


class Summary(NamedTuple):
    """Of the window."""

    calls: int
    failures: int
    connections: int
    open_at: int


class Votes:
    """Of one breaker. Times are unix ms."""

    def __init__(self, config: BreakerConfig) -> None:
        self._config = config
        self._window_ms = round(config.window_s * 1000)
        self._slice_ms = max(1, self._window_ms // _SLICES)
        self._callers: dict[str, dict[str, Voice]] = {}
        self._tried: dict[str, int] = {}
        """By caller: unix ms at which any of its connections, also one that is gone, was last
        chosen to probe.
        """

    def __iter__(self) -> Iterator[tuple[Who, Voice]]:
        for caller, voices in self._callers.items():
            for connection, voice in voices.items():
                yield Who(caller, connection), voice

    def voice(self, who: Who) -> Voice | None:
        """What this connection has told, or None."""
        return self._callers.get(who.caller, {}).get(who.connection)

    def heard(self, who: Who, outcome: VerbOutcome, now: int, *, counts: bool) -> Voice:
        """Take a report in. `counts`: not of a time before what the masters said last."""
        voices = self._callers.get(who.caller)
        if voices is None:
            if len(self._callers) >= MOST_CALLERS:
                del self._callers[next(iter(self._callers))]
            voices = self._callers[who.caller] = {}
        else:  # whoever was heard longest ago stands first
            self._callers[who.caller] = self._callers.pop(who.caller)
        voice = voices.pop(who.connection, None)
        if voice is None:
            voice = Voice()
            if len(voices) >= MOST_CONNECTIONS:
                del voices[next(iter(voices))]
        voices[who.connection] = voice
        voice.heard_at = now
        voice.probing = outcome.probing
        if outcome.refused:
            voice.wants_at = now
        if counts:
            voice.state = outcome.state
            if calls := min(outcome.calls, MOST_CALLS):
                voice.count(calls, min(outcome.failures, calls), now // self._slice_ms)
        return voice

    def verdict(self, now: int) -> Verdict | None:
        """Whether the breaker should open, and why.

        More than half of the callers are against the node, each by more than half of its
        connections: because theirs are open, or, where there are enough calls in all of which
        enough have failed, because theirs fail as often.
        """
        oldest = self._oldest(now)
        ratio = self._config.failure_ratio
        users: list[str] = []
        shut = failing = calls = failures = 0
        for caller, voices in self._callers.items():
            used = used_shut = used_failing = 0
            for voice in voices.values():
                some, failed = voice.sums(oldest)
                if not some:
                    continue
                used += 1
                calls += some
                failures += failed
                is_shut = voice.state is not BreakerState.CLOSED
                used_shut += is_shut
                used_failing += is_shut or failed >= ratio * some
            if used:
                users.append(caller)
            shut += 2 * used_shut > used
            failing += 2 * used_failing > used
        callers = len(users)
        alone = users[0] if callers == 1 else ""
        if 2 * shut > callers:
            return Verdict(f"{shut} of {callers} callers let nothing through any more", alone)
        if 2 * failing > callers and calls >= self._config.min_calls and failures >= ratio * calls:
            window_s = self._config.window_s
            return Verdict(f"{failures} of {calls} calls in {window_s:g} s failed", alone)
        return None

    def wanted_by_others(self, caller: str, since: int) -> bool:
        """Whether any other caller has had a call that was refused, after `since`."""
        return any(
            voice.wants_at > since
            for name, voices in self._callers.items()
            if name != caller
            for voice in voices.values()
        )

    def summary(self, now: int) -> Summary:
        """Of all connections that made calls in the window."""
        oldest = self._oldest(now)
        calls = failures = used = shut = 0
        for _, voice in self:
            some, failed = voice.sums(oldest)
            if some:
                calls += some
                failures += failed
                used += 1
                shut += voice.state is not BreakerState.CLOSED
        return Summary(calls, failures, used, shut)

    def clear(self) -> None:
        """What was said no longer counts; who is there is remembered."""
        for _, voice in self:
            voice.clear()

    def sweep(self, now: int, *, windows: int = 1) -> None:
        """Forget who has not been heard for so many windows."""
        for caller, voices in list(self._callers.items()):
            for connection, voice in list(voices.items()):
                if now - voice.heard_at > windows * self._window_ms:
                    del voices[connection]
            if not voices:
                del self._callers[caller]
        self._tried = {caller: at for caller, at in self._tried.items() if caller in self._callers}

    def by_turns(self) -> list[Who]:
        """Connections in the order in which they get to probe: those with a call to send that have
        not had their chance since; of these one of each caller before the second of any, first of
        the caller whose last chance is longest ago, by whichever of its connections; of a caller's
        own, whose last chance is longest ago, then who was heard last.
        """
        turns: list[tuple[tuple[bool, int, int, bool, int, int], Who]] = []
        for caller, voices in self._callers.items():
            tried_at = self._tried.get(caller, 0)
            order = sorted(
                ((voice.wants_at <= voice.tried_at, voice.tried_at, -voice.heard_at), connection)
                for connection, voice in voices.items()
            )
            turns += [
                ((key[0], place, tried_at, *key), Who(caller, connection))
                for place, (key, connection) in enumerate(order)
            ]
        return [who for _, who in sorted(turns)]

    def tries(self, who: Who, now: int) -> None:
        """It was chosen to probe."""
        self._tried[who.caller] = now
        voice = self.voice(who)
        if voice is not None:
            voice.tried_at = now

    def __len__(self) -> int:
        return sum(map(len, self._callers.values()))

    def _oldest(self, now: int) -> int:
        return now // self._slice_ms - _SLICES + 1
