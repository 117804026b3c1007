"""Waiting for a place, first come first served, until it is too late."""

from __future__ import annotations

import asyncio
from collections import deque

from mesh.ports import Clock


class Turns:
    """`places` at once."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: deque[asyncio.Future[bool]] = deque()

    async def take(self, clock: Clock, *, within_s: float | None) -> bool:
        """Whether there was a place within so many seconds (None: however long that takes); then
        `leave` must follow.
        """
        if self._free and not self._waiting:
            self._free -= 1
            return True
        if within_s is not None and within_s <= 0:
            return False
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        alarm = None
        if within_s is not None:
            alarm = asyncio.ensure_future(clock.sleep(within_s))
            alarm.add_done_callback(lambda _alarm: _too_late(place))
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.result():
                self.leave()  # it was given, and nobody came
            raise
        finally:
            if alarm is not None:
                alarm.cancel()

    def leave(self) -> None:
        """The place is free for the next."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(True)
                return
        self._free += 1


def _too_late(place: asyncio.Future[bool]) -> None:
    if not place.done():
        place.set_result(False)
