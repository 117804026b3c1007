"""Virtual time: what happens next, and when it is now."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable


class Timer:
    """Something that is due, unless it is cancelled."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None


class Timeline:
    """One heap of timers and one source of chance. `now` is in seconds."""

    def __init__(self, seed: int = 1) -> None:
        self.now = 0.0
        self.seed = seed
        self.rng = random.Random(seed)
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = 0

    def stream(self, name: str) -> random.Random:
        """Chance of its own for something that must not depend on what others draw."""
        return random.Random(f"{self.seed} {name}")

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        timer = Timer(action)
        self._count += 1
        heapq.heappush(self._heap, (self.now + seconds, self._count, timer))
        return timer

    def at(self, seconds: float, action: Callable[[], None]) -> Timer:
        return self.after(max(0.0, seconds - self.now), action)

    def every(self, seconds: float, action: Callable[[], None], *, first: float = 0.0) -> None:
        def again() -> None:
            action()
            self.after(seconds, again)

        self.after(first, again)

    def run(self, until: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, timer = heapq.heappop(heap)
            if timer.action is not None:
                timer.action()
        self.now = until
