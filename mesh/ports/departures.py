"""Connections that end, as the broker sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

SHUT_DOWN = "Server Shutdown"
"""Reason where the broker shuts down and cuts everybody off: they go to another server, or come
back to this one.
"""


class Departure(NamedTuple):
    """A connection has ended; its login may have others."""

    login: str
    """Name that a master let it in under; of those that the broker's own configuration knows, their
    public key.
    """
    reason: str
    """In the broker's words."""
    server: str
    """Id of the server that it was at."""
    client: int
    """Its number there, never given to another connection."""


class Departures(Protocol):
    """Tells of every connection that has ended, in milliseconds: a process that died, a goodbye, a
    host that no longer answers. Not of those that end with a broker that dies.
    """

    async def start(self, heard: Callable[[Departure], None]) -> None:
        """Call `heard` from now on."""
        ...

    async def stop(self) -> None:
        """Hear no more."""
        ...

    @property
    def dropped(self) -> int:
        """Messages that could not be read."""
        ...
