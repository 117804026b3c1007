"""What every agent process does alike: logs, loop, signals, exit."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import uvloop


def until_stopped(
    opened: AbstractAsyncContextManager[object],
    *,
    then: Callable[[], Awaitable[None]] | None = None,
) -> int:
    """Run an agent until SIGTERM or SIGINT, then close it; a second signal ends it at once.

    Args:
        opened: The agent, as a context manager.
        then: Work to do once it is open; the agent goes on afterwards.
    """

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with opened:
            if then is not None:
                await then()
            await stop.wait()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    return 0
