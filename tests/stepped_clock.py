"""Time that passes only when a test says so."""

from __future__ import annotations

import asyncio


class SteppedClock:
    """Stands still until told; who sleeps wakes when its time has come."""

    def __init__(self, now: float) -> None:
        self.now = now
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        return self.now

    def unix_ms(self) -> int:
        return round(self.now * 1000)

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, woken))
        await woken

    async def step(self, seconds: float) -> None:
        """Let time pass at one go: who would have woken several times wakes once."""
        self.now += seconds
        due = [woken for at, woken in self._sleepers if at <= self.now]
        self._sleepers = [one for one in self._sleepers if one[0] > self.now]
        for woken in due:
            if not woken.done():
                woken.set_result(None)
        await settled()


async def settled() -> None:
    """All that can go on without time passing has done so."""
    for _ in range(40):
        await asyncio.sleep(0)
