"""What the masters' subjects are answered with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from mesh.ports.audit import Audit
from mesh.wire.messages import Request

Verb = Callable[[Any, str], Awaitable[Any]]
"""Serves a request of a caller."""


class VerbProvider(Protocol):
    """Something that callers may ask the masters about."""

    @property
    def verbs(self) -> Mapping[str, tuple[type[Request], Verb]]:
        """By name: what is asked, and who answers."""
        ...


class Trail(Audit, VerbProvider, Protocol):
    """The audit trail, which can be read too."""

    async def start(self) -> None:
        """Write and publish from now on."""
        ...

    async def stop(self) -> None:
        """Write what is left."""
        ...

    async def last_origin(self, name: str) -> str:
        """Address that somebody last logged in from, at any master; empty: not known.

        Raises:
            UnavailableError: The database is away.
        """
        ...
