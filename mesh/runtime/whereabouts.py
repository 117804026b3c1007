"""Where those who ask us come from: the broker tells it at their login, and never again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable

import structlog

from mesh.errors import MeshError
from mesh.ports import Clock

log = structlog.get_logger()

_MOST = 4096
_FRESH_S = 60.0
"""Another master may have let somebody in again meanwhile."""


class Whereabouts:
    """Address of the last login of each name, as one master knows it."""

    def __init__(self, look_up: Callable[[str], Awaitable[str]], clock: Clock) -> None:
        """Args:
        look_up: What all masters have written down; raises MeshError where it cannot be read.
        clock: Time.
        """
        self._look_up = look_up
        self._clock = clock
        self._seen: OrderedDict[str, tuple[str, float]] = OrderedDict()
        """Address, and until when (monotonic seconds) it is not looked up; the newest last."""

    def saw(self, name: str, address: str) -> None:
        """Somebody of this name was let in."""
        self._seen[name] = (address, self._clock.monotonic() + _FRESH_S)
        self._seen.move_to_end(name)
        if len(self._seen) > _MOST:
            self._seen.popitem(last=False)

    async def of(self, name: str) -> str:
        """The address; empty: not known."""
        address, until = self._seen.get(name, ("", float("-inf")))
        if self._clock.monotonic() < until:
            return address
        try:
            address = await self._look_up(name) or address
        except MeshError as error:
            log.debug("mesh.whereabouts.unknown", name=name, error=str(error))
        self.saw(name, address)
        return address
