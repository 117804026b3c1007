"""The real clock."""

from __future__ import annotations

import asyncio
import time


class SystemClock:
    """`mesh.ports.Clock` over the operating system's."""

    monotonic = staticmethod(time.monotonic)  # asked for several times in every call

    def unix_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
