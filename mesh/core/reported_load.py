"""What callers hear of how busy a node is: coarse and slow to fall, so that a mesh that is idle or
steadily at work says nothing new with every heartbeat.
"""

from __future__ import annotations

from mesh.wire.messages import Heartbeat, NodeLoad

_FADE = 0.75
"""Share of the peak that is left after one heartbeat: half of it after two and a half."""

_KEPT_ABOVE = 0.25
"""Share of the figure told below which the peak must fall before a lower one is told: callers hear
powers of two, and a load that swings around one of them would be told each time.
"""

_WORTH_TELLING = 0.25
"""Change of the search time, relative."""

_WORTH_TELLING_MS = 0.5
"""Change of the search time below which it is noise, whatever the share."""


_MOST_BUSY = 2**30
_MOST_MS = 1e6
"""Beyond either there is nothing to choose between, and callers must be able to reckon with it."""


class ReportedLoad:
    """One life of one node. `load` is what to tell."""

    __slots__ = ("_peak", "load")

    def __init__(self) -> None:
        self._peak = 0.0
        self.load = NodeLoad()

    def heard(self, beat: Heartbeat) -> NodeLoad:
        """Take a heartbeat; the same object as before while there is nothing new to tell."""
        busy = min(beat.in_flight + beat.queued, _MOST_BUSY)
        self._peak = max(float(busy), self._peak * _FADE)
        told = self.load
        search = beat.verbs.get("search")
        load = NodeLoad(
            busy=self._coarse(told.busy),
            search_ms=told.search_ms if search is None else _steady(told.search_ms, search.ewma_ms),
        )
        if load != told:
            self.load = load
        return self.load

    def _coarse(self, told: int) -> int:
        peak = round(self._peak)
        coarse = 1 << (peak - 1).bit_length() if peak > 0 else 0
        return told if coarse < told and self._peak > _KEPT_ABOVE * told else coarse


def _steady(told_ms: float, now_ms: float) -> float:
    if abs(now_ms - told_ms) <= max(
        _WORTH_TELLING_MS if told_ms else 0.0, _WORTH_TELLING * told_ms
    ):
        return told_ms
    return float(f"{min(now_ms, _MOST_MS):.2g}")
