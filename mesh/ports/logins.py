"""Logins at the broker: who tries, who judges, and how somebody is thrown out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple, Protocol

import msgspec

from mesh.core.permissions import Permissions


class Login(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a process logs in at the broker: a password (an API key) or an nkey's seed. As JSON, a
    credentials file.
    """

    user: str
    """What it speaks as: one subject token."""
    password: str = ""
    nkey: str = ""
    """Seed (`SU…`) of a user that the broker's own configuration knows."""

    def __repr__(self) -> str:
        return f"Login(user={self.user!r}, {'nkey' if self.nkey else 'password'}=…)"


class LoginAttempt(NamedTuple):
    """What somebody shows to the broker; anything may be in it."""

    user: str
    secret: str
    address: str
    """Of the client, as the broker sees it."""

    def __repr__(self) -> str:
        return f"LoginAttempt(user={self.user[:64]!r}, address={self.address!r}, secret=…)"


class LoginGrant(NamedTuple):
    """Let in."""

    name: str
    """As whom: the broker lets it publish under no other name."""
    permissions: Permissions
    until: int | None = None
    """Unix seconds at which the broker ends the connection; None: not by itself."""


Judge = Callable[[LoginAttempt], Awaitable[LoginGrant]]
"""Raises UnauthorizedError to turn somebody away. Any other error means that nobody can tell right
now: the broker gets no answer, turns the client away after its timeout, and that one tries again.
"""


class Doorman(Protocol):
    """Carries login attempts from the broker to the masters, any of which answers."""

    async def start(self, judge: Judge) -> None:
        """Answer from now on."""
        ...

    async def stop(self) -> None:
        """Leave it to the other masters; finish what was begun."""
        ...

    @property
    def dropped(self) -> int:
        """Requests that could not be read or came when too many were waiting."""
        ...


class Bouncer(Protocol):
    """Ends live connections, at every server of the broker."""

    async def kick(self, names: Collection[str]) -> Counter[str]:
        """Cut every connection that logged in under one of these names; how many there were, by
        name.

        Raises:
            UnavailableError, DeadlineExceededError: The broker does not answer.
        """
        ...


class Seedling(msgspec.Struct, frozen=True, kw_only=True):
    """A login that comes with the masters' credentials file, so that there is somebody who can let
    others in. Entered once.
    """

    name: str
    digest: str
    """SHA-256 of its API key, hex."""
    scopes: list[str]
    node: bool = False
