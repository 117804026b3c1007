"""When a table is put in order: fragments joined, new rows indexed, old versions forgotten."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from mesh.adapters.lance import memory
from mesh.adapters.lance.contents import Contents
from mesh.adapters.lance.driver import translated
from mesh.errors import StateError
from mesh.ports import Clock

MIN_WRITES = 20
"""Every write leaves a fragment; 400 of them make a query 20 times slower."""
MAX_WRITES = 100
ROWS_PER_EXTRA_WRITE = 2_000
"""Tidying rewrites small fragments, which costs more the bigger the table is."""
MIN_ROWS = 256
"""Rows that are not indexed yet are searched by reading them."""
DELAY_S = 0.25
"""So that a client that writes batch after batch waits for few tidyings."""
GRACE = timedelta(seconds=60)
"""How long readers may go on with an old version; 0 would break them."""


class Tidier:
    """Counts writes, and tidies in the background when there were enough of them.

    It takes the writer's lock: LanceDB lets a tidying and a write that overlap fail each other.
    """

    def __init__(self, contents: Contents, *, lock: asyncio.Lock, clock: Clock) -> None:
        self._contents = contents
        self._lock = lock
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._writes = 0
        self._rows = 0
        self._total = 0

    def wrote(self, rows: int, *, total: int) -> None:
        """Note a write of `rows` rows to a table that now has `total`."""
        self._writes += 1
        self._rows += rows
        self._total = total
        if self._is_due():
            self.begin()

    def _is_due(self) -> bool:
        writes = min(MIN_WRITES + self._total // ROWS_PER_EXTRA_WRITE, MAX_WRITES)
        many = self._writes >= writes or self._rows >= max(MIN_ROWS, self._total // 10)
        return many or self._contents.wants_review

    def begin(self) -> None:
        """Tidy in the background, unless that goes on."""
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(self._tidy(), name=f"tidy {self._contents.name}")

    async def close(self) -> None:
        """Wait for the tidying that runs, if one does; no more follow."""
        self._closed = True
        task = self._task
        if task is None:
            return
        async with self._lock:
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _tidy(self) -> None:
        try:
            await self._clock.sleep(DELAY_S)
            async with self._lock:
                self._writes = self._rows = 0
                with translated("tidying", self._contents.name):
                    await self._contents.table.optimize(cleanup_older_than=GRACE)
                await self._contents.review()
            await asyncio.to_thread(memory.give_back)
        except StateError:
            # It is in the log; queries are slower until the next time, and nothing is lost.
            return
        finally:
            self._task = None
        if self._is_due():  # what was written meanwhile began no other one
            self.begin()
