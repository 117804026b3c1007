"""Tasks that belong to something and end with it; none fails unseen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from mesh.ports import Clock

log = structlog.get_logger()

_PAUSE_AFTER_FAILURE_S = 1.0


class Background:
    """The tasks of one component."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopped = False
        self.failures = 0
        """Tasks and rounds that ended in an exception."""

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` beside everything else; an exception is logged and counted."""
        if self._stopped:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def repeat(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
        """Run `step` for ever, which paces itself; a round that fails is followed by a pause."""
        self.spawn(name, self._rounds(name, step))

    async def stop(self) -> None:
        """Cancel everything; nothing runs any more when this returns."""
        self._stopped = True
        while tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._tasks.difference_update(tasks)

    async def _rounds(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except Exception:
                self.failures += 1
                log.exception("mesh.background.round_failed", task=name)
                await self._clock.sleep(_PAUSE_AFTER_FAILURE_S)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures += 1
            log.error("mesh.background.task_failed", task=task.get_name(), exc_info=error)
