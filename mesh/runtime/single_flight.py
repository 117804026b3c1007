"""Many who ask the same at the same time wait for one answer.

The work runs in a task of its own, so who began it may leave without harm to the others; when
nobody waits any more it is cancelled. Nobody joins work that may end later than he waits himself.

Source: Go, `golang.org/x/sync/singleflight`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Flight(Generic[T]):
    """Work under way."""

    __slots__ = ("give_up", "key", "task", "timeout_s", "waiters")

    def __init__(
        self, key: Hashable, task: asyncio.Task[T], give_up: float, timeout_s: float
    ) -> None:
        self.key = key
        self.task = task
        self.give_up = give_up
        """When it ends at the latest (monotonic s)."""
        self.timeout_s = timeout_s
        self.waiters = 0


class SingleFlight(Generic[T]):
    """Not thread-safe; of one event loop."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def find(self, key: Hashable, give_up: float) -> Flight[T] | None:
        """Work that ends by then, and that is still wanted."""
        flight = self._flights.get(key)
        return flight if flight is not None and flight.give_up <= give_up else None

    def begin(
        self,
        key: Hashable,
        work: Callable[[], Coroutine[Any, Any, T]],
        give_up: float,
        timeout_s: float,
    ) -> Flight[T]:
        """Start work that others may join from now on; `wait` for it at once."""
        flight = Flight(key, asyncio.create_task(work()), give_up, timeout_s)
        self._flights[key] = flight
        flight.task.add_done_callback(lambda _task: self._forget(flight))
        return flight

    async def wait(self, flight: Flight[T]) -> T:
        """What the work gave.

        Raises:
            Whatever it raised.
        """
        flight.waiters += 1
        try:
            await asyncio.wait((flight.task,))
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                flight.task.cancel()
                self._forget(flight)  # nobody joins what is being cancelled
        return flight.task.result()

    def _forget(self, flight: Flight[T]) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
