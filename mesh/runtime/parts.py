"""What a master is made of besides membership, routes and logins: parts that live as long as it
does, answer verbs, and hear whether it leads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from mesh.config import MeshConfig
from mesh.ports import Bus, Clock, Registry, Trail, VerbProvider
from mesh.runtime.background import Background
from mesh.runtime.membership import Membership


class Surroundings(NamedTuple):
    """What a master gives each of its parts."""

    bus: Bus
    clock: Clock
    background: Background
    """The master ends it, after the parts have stopped."""
    config: MeshConfig
    registry: Registry
    membership: Membership
    audit: Trail
    leads: Callable[[], bool]
    """Whether this is the leading master; ask each time."""


class Part(VerbProvider, Protocol):
    """One of them."""

    async def start(self) -> None:
        """Begin; nothing that may fail for long is waited for."""
        ...

    async def stop(self) -> None:
        """Hear no more, leave nothing running that is not in the background."""
        ...

    def lead(self, epoch: int) -> None:
        """The master leads from now on."""
        ...

    def follow(self) -> None:
        """The master leads no more."""
        ...


MakePart = Callable[[Surroundings], Part]
