"""An event loop whose time jumps to whatever is due next: timers of seconds take no time at all."""

from __future__ import annotations

import asyncio
import functools


class VirtualLoop(asyncio.SelectorEventLoop):
    """Only for what needs no socket and no thread."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1000.0
        self._poll = self._selector.select
        self._selector.select = self._jump

    def time(self) -> float:
        return self._now

    def _jump(self, timeout):
        ready = self._poll(0)
        if not ready and timeout != 0:
            assert timeout is not None, "everybody waits, and nothing is due"
            self._now += timeout
        return ready


class LoopClock:
    """`mesh.ports.Clock` by the time of the loop that runs."""

    def monotonic(self) -> float:
        return asyncio.get_event_loop().time()

    def unix_ms(self) -> int:
        return 1_700_000_000_000 + round(self.monotonic() * 1000)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def virtual(test):
    """Run an async test in virtual time."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run
