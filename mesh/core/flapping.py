"""Flap damping: a node that falls again and again waits before it is used again.

From the `flap_after`-th fall within the window on, a node that is back waits `rejoin_first_s`, and
twice as long with each further fall, up to `rejoin_most_s`. Falls age out of the window, so a node
that stays up is forgiven.

Source: RFC 2439 (BGP route flap damping): a penalty per flap that fades.
"""

from __future__ import annotations

from collections import deque

from mesh.config import HealthConfig

_MOST_DOUBLINGS = 60
"""Beyond any wait that can be set, and no float overflows."""


class Falls:
    """When one node fell, through all of its lives. `now` is monotonic seconds of one clock."""

    __slots__ = ("_at", "_config")

    def __init__(self, config: HealthConfig) -> None:
        self._config = config
        # Further ones would change nothing: the wait is at its most by then.
        self._at: deque[float] = deque(maxlen=config.flap_after + _MOST_DOUBLINGS)

    def fell(self, now: float) -> None:
        """It crashed, fell silent, or nobody listened."""
        self._at.append(now)

    def forgive_last(self) -> None:
        """The last fall turned out to be a goodbye."""
        if self._at:
            self._at.pop()

    def within_window(self, now: float) -> int:
        """Falls that still count."""
        while self._at and now - self._at[0] > self._config.flap_window_s:
            self._at.popleft()
        return len(self._at)

    def wait_s(self, now: float) -> float:
        """How long the node waits if it comes back now; 0: not at all."""
        beyond = self.within_window(now) - self._config.flap_after
        if beyond < 0:
            return 0.0
        return min(
            self._config.rejoin_most_s,
            self._config.rejoin_first_s * 2.0 ** min(beyond, _MOST_DOUBLINGS),
        )
