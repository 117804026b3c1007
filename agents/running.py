"""What every agent process does alike: loop, signals, exit."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from contextlib import AbstractAsyncContextManager

import uvloop

_COLLECT_AT = (20_000, 20, 100)
"""Garbage in cycles is rare here, so it may wait a little."""


def until_stopped(opened: AbstractAsyncContextManager[object]) -> int:
    """Run an agent until SIGTERM or SIGINT, then close it; a second signal ends it at once.

    A signal while it is still starting ends that as well.

    Args:
        opened: The agent, as a context manager.
    """
    os.umask(0o077)  # what an agent keeps is its owner's alone
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(opened))
    return 0


async def _run(opened: AbstractAsyncContextManager[object]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    running = asyncio.create_task(_stay(opened))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
    for task in (running, stopping):
        task.cancel()
    for outcome in await asyncio.gather(running, stopping, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


async def _stay(opened: AbstractAsyncContextManager[object]) -> None:
    async with opened:
        # What is here now stays: the collector need not look through it again and again, which took
        # a busy node a third of its CPU.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_COLLECT_AT)
        await asyncio.Event().wait()
