"""Whether what would have to queue is worth taking on: it is not, if nobody waits for it any more
by the time it could be done.

A queue that is longer than callers wait is the collapse of a node: whatever reaches its head has
expired, so that it works, or throws away, and answers nobody. What is refused at once can go
elsewhere.

    expected wait = mean service time x (queued + 1) / places

Source: Little, "A Proof for the Queuing Formula L = λW", Operations Research 9(3), 1961; refusing
early: Welsh and Culler, "Adaptive Overload Control for Busy Internet Servers", USITS 2003.
"""

from __future__ import annotations

from mesh.core.ewma import ewma

_WEIGHT = 0.1
"""Share of the newest piece of work in the means."""
_SPREAD = 2.0
"""Times the mean that something may take. With less, what is taken on is done just in time,
or just not: callers blame the node for the rest, and it collapses after all (tests/simulator).
"""


class Queueing:
    """What the work of one bulkhead has taken so far, and what to expect of it. All times are in
    milliseconds.
    """

    __slots__ = ("_by_kind", "_mean", "_places")

    def __init__(self, places: int) -> None:
        """`places`: how many pieces of work run at a time."""
        self._places = places
        self._mean: float | None = None
        self._by_kind: dict[str, float] = {}

    def ended(self, took_ms: float, *, kind: str = "", cut_short: bool = False) -> None:
        """Count a piece of work that has held a place.

        Args:
            took_ms: How long.
            kind: Which of a few kinds of work it was; empty: of none.
            cut_short: It was stopped before its end, so that all it says is that it takes at least
                as long. Else a node that finishes nothing in time would think itself quick.
        """
        if not cut_short or took_ms > (self._mean or 0.0):
            self._mean = ewma(self._mean, took_ms, _WEIGHT)
        if kind:
            known = self._by_kind.get(kind)
            if not cut_short or took_ms > (known or 0.0):
                self._by_kind[kind] = ewma(known, took_ms, _WEIGHT)

    def wait_ms(self, queued: int) -> float:
        """How long something waits for a place behind so many others; 0: nothing is known."""
        return (self._mean or 0.0) * (queued + 1) / self._places

    def in_time(self, queued: int, left_ms: float, *, kind: str = "") -> bool:
        """Whether what comes now, with all places taken, is worth queueing.

        Args:
            queued: How many wait already.
            left_ms: Until its deadline.
            kind: Work of a kind must have ended by then; of none, have begun.
        """
        return self.wait_ms(queued) + _SPREAD * self._by_kind.get(kind, 0.0) <= left_ms
