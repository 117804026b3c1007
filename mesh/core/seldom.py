"""What anybody may cause ten thousand times a second, told once a second."""

from __future__ import annotations

_EVERY_S = 1.0


class Seldom:
    """Whose turn it is to say something; those who are not told are counted."""

    def __init__(self, *, every_s: float = _EVERY_S) -> None:
        self._every_s = every_s
        self._told_at = float("-inf")
        self._untold = 0

    def turn(self, now: float) -> int | None:
        """How many were passed over since the last one that was told; None: pass over this one too.

        Args:
            now: Seconds of a clock that never goes back.
        """
        if now - self._told_at < self._every_s:
            self._untold += 1
            return None
        untold, self._untold = self._untold, 0
        self._told_at = now
        return untold
