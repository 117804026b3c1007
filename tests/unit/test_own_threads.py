"""Threads for what may hang: few at once, and whoever leaves does not free the place."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mesh.runtime.own_threads import OwnThreads


async def test_a_place_is_free_again_when_the_work_ends_not_when_its_caller_leaves():
    threads, go = OwnThreads("test", 1), threading.Event()
    began = []

    def work(number):
        began.append(number)
        assert go.wait(30)
        return number

    try:
        first = asyncio.create_task(threads.run(work, 1))
        while not began:
            await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(threads.run(work, 2))
        for _ in range(50):
            await asyncio.sleep(0)
        assert began == [1]
    finally:
        go.set()
    assert await second == 2
    assert began == [1, 2]


async def test_errors_are_the_callers():
    def work():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await OwnThreads("test", 1).run(work)
