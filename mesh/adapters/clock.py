"""The real clock."""

from __future__ import annotations

import asyncio
import time


class SystemClock:
    """`mesh.ports.Clock` over the operating system's."""

    def monotonic(self) -> float:
        return time.monotonic()

    def unix_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
