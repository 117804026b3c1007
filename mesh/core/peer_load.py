"""How busy a node is, as one of its callers sees it.

The cost of asking a node is the time it lately took times the work that is there already. Time is a
moving average that jumps up to a longer sample at once and forgets it slowly; it fades without
samples too, so that a node that was slow is tried again. A call that runs for longer than that
average is news already: its age counts until it has ended. A call that failed has cost its caller
as much as one that took `FAILED_MS`: who fails at once would be the cheapest of all otherwise.

Source: Finagle, `PeakEwma` (decay, peak, penalty of who has not answered yet).
"""

from __future__ import annotations

import math

TAU_S = 10.0
"""A sample's share fades to a third in this time."""

FAILED_MS = 1000.0
"""Longer than a search may take, unless its author says otherwise."""

_PER_TAU = 1 / TAU_S
_NEW = 0.1
"""Share of the last answer in the usual time."""
_UNKNOWN_MS = 1e6
"""Of a node that was asked and has never answered: others first, until it has."""


class InFlight:
    """Calls of this caller to one node, whatever they ask."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class PeerLoad:
    """Calls of one kind to one node. All methods take O(1); `now` is monotonic seconds."""

    __slots__ = (
        "_decayed_at",
        "_oldest_at",
        "_started",
        "_token",
        "ewma_ms",
        "in_flight",
        "node",
        "reported",
        "slug",
        "usual_ms",
        "weight",
    )

    def __init__(self, slug: str, *, weight: float = 1.0, node: InFlight | None = None) -> None:
        """Args:
        slug: Of the node.
        weight: Work that it takes, relative to others, > 0.
        node: Shared by all kinds of calls to it; None: there is only this one.
        """
        self.slug = slug
        self.node = node or InFlight()
        self.weight = weight
        self.reported = 0
        """Requests that run or wait there, as the node itself said lately."""
        self.in_flight = 0
        """Calls of this kind."""
        self.usual_ms = 0.0
        """How long answers take; lags behind while there are few."""
        self.ewma_ms: float | None = None
        """As of the last sample; None: no call has ended yet."""
        self._decayed_at = 0.0
        self._token = 0
        self._started: dict[int, float] = {}
        """Token → start, the oldest first."""
        self._oldest_at = math.inf

    def sent(self, now: float) -> int:
        """A call goes out; returns the token to give back when it ends."""
        self._token = token = self._token + 1
        if not self._started:
            self._oldest_at = now
        self._started[token] = now
        self.in_flight += 1
        self.node.count += 1
        return token

    def answered(self, token: int, now: float) -> None:
        """A call has ended in an answer; a token that was given back before changes nothing."""
        started = self._given_back(token)
        if started is None:
            return
        took_ms = (now - started) * 1000
        self.usual_ms += (took_ms - self.usual_ms) * _NEW
        self._took(took_ms, now)

    def failed(self, token: int, now: float) -> None:
        """A call has ended in an error that the node is to blame for."""
        started = self._given_back(token)
        if started is not None:
            self._took(max(FAILED_MS, (now - started) * 1000), now)

    def returned(self, token: int, now: float, *, counts: bool) -> None:
        """A call has ended in some other way.

        Args:
            token: What `sent` gave.
            now: Monotonic seconds.
            counts: It is known to take at least as long as it did until now. False for what was
                refused or never done.
        """
        started = self._given_back(token)
        if counts and started is not None:
            self._took((now - started) * 1000, now)

    def _given_back(self, token: int) -> float | None:
        """When the call started; None: its end was told before."""
        started = self._started.pop(token, None)
        if started is not None:
            self.in_flight -= 1
            self.node.count -= 1
            if started <= self._oldest_at:
                self._oldest_at = next(iter(self._started.values()), math.inf)
        return started

    def _took(self, took_ms: float, now: float) -> None:
        mean_ms = self.ewma_ms
        if mean_ms is None or took_ms >= mean_ms:
            self.ewma_ms = took_ms
        else:
            kept = math.exp((self._decayed_at - now) * _PER_TAU)
            self.ewma_ms = took_ms + (mean_ms - took_ms) * kept
        self._decayed_at = now

    def time_ms(self, now: float) -> float:
        """How long a call is likely to take at the node's present pace; 0: nothing is known."""
        mean_ms = self.ewma_ms
        if mean_ms is None:
            return _UNKNOWN_MS if self.in_flight else 0.0
        faded_ms = mean_ms * math.exp((self._decayed_at - now) * _PER_TAU)
        age_ms = (now - self._oldest_at) * 1000
        return faded_ms if faded_ms >= age_ms else age_ms  # noqa: FURB136 - max() takes longer

    def cost(self, now: float) -> float:
        """What one more call costs; comparable between nodes, lower is better."""
        return self.time_ms(now) * (self.in_flight + self.reported + 1) / self.weight
