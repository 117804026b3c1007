"""Blocking work in a daemon thread of its own: what hangs starves nobody else's, and keeps no
process from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class OwnThreads:
    """A few threads for what may hang, apart from everybody else's."""

    def __init__(self, name: str, most: int) -> None:
        """Args:
        name: Of the threads, for people.
        most: How many run at once; others wait for their turn.
        """
        self._name = name
        self._turns = asyncio.Semaphore(most)

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """What the function gives. Whoever stops waiting does not stop it: it has its turn until it
        ends.
        """
        await self._turns.acquire()
        work = in_own_thread(self._name, function, *arguments)
        work.add_done_callback(lambda _work: self._turns.release())
        return await asyncio.shield(work)


def in_own_thread(name: str, function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
    """What the function gives. Whoever stops waiting does not stop it; how many run at once is the
    caller's business.

    Args:
        name: Of the thread, for people.
        function: Runs in a copy of the caller's context.
        arguments: Of the function.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[T] = loop.create_future()
    work = functools.partial(contextvars.copy_context().run, function, *arguments)

    def settle(result: Any, error: BaseException | None) -> None:
        if ended.done():
            return
        if error is not None:
            ended.set_exception(error)
        else:
            ended.set_result(result)

    def run() -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = work()
        except StopIteration as stop:  # no future can hold one
            error = RuntimeError(f"StopIteration: {stop}")
        except BaseException as raised:  # noqa: BLE001 (it is the waiting task's to handle)
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return ended
