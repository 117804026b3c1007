"""Who has which key: nodes, users, and nodes that wait to be let in."""

from __future__ import annotations

import enum
from typing import NamedTuple, Protocol

from mesh.ports.logins import Seedling
from mesh.types import Status
from mesh.wire.messages import NodeRecord, PendingNode, User


class KeyHolder(NamedTuple):
    """Somebody with an API key, by its hash."""

    name: str
    node: bool
    status: Status
    """Of a node; a user is always active."""
    scopes: tuple[str, ...]
    digest: str | None
    """None: it has no key yet."""
    previous_digest: str | None
    previous_until: int
    """Unix ms until which the previous key is good beside the present one."""

    def overlaps(self, at: int) -> bool:
        """Whether the previous key is good at unix ms `at`."""
        return self.previous_digest is not None and at < self.previous_until


class Candidate(NamedTuple):
    """A node that nobody announced, as it shows itself."""

    id: str
    """The id it gets if it is new."""
    slug: str
    digest: str
    """Of the key it made itself."""
    address: str


class Wait(enum.Enum):
    """What became of a candidate."""

    ENTERED = enum.auto()
    KNOWN = enum.auto()
    REJECTED = enum.auto()
    """Turned away already."""
    FULL = enum.auto()
    """As many wait as may."""
    TAKEN = enum.auto()
    """Somebody has got the name meanwhile."""


class Sown(enum.Enum):
    """What became of a seedling."""

    ENTERED = enum.auto()
    CHANGED = enum.auto()
    """Its name was there; it has this key now, and no other."""
    KNOWN = enum.auto()
    """It was entered before, whatever became of it since."""
    TAKEN = enum.auto()
    """A node has the name of a user, or the other way round."""


class LoginStore(Protocol):
    """Keys of nodes and users, in the same SQL as the registry. A node and a user never share a
    name, and nobody waits under a name that is given.
    """

    async def find(self, name: str) -> KeyHolder | None:
        """Who has this name; one query."""
        ...

    async def of_key(self, digest: str, *, at: int) -> KeyHolder | None:
        """Whose key has this hash: the present one, or the previous one within its overlap."""
        ...

    async def rotate(self, name: str, digest: str, *, node: bool, previous_until: int) -> KeyHolder:
        """Give another key; the one until now is good until `previous_until` (unix ms; 0: no
        longer), an earlier one is not. Answers who it was before.

        Raises:
            NotFoundError
        """
        ...

    async def adopt(self, slug: str, digest: str) -> bool:
        """Give a key to an active node that has never been heard of or has none; False: it has been
        heard of, or there is no such node.
        """
        ...

    async def ended_overlaps(self, *, at: int) -> list[KeyHolder]:
        """Whose previous key was good until now, and is not forgotten yet."""
        ...

    async def forget_previous(self, name: str, *, at: int) -> None:
        """Forget a previous key that is not good any more."""
        ...

    # -- users -----------------------------------------------------------------------------------

    async def create_user(self, user: User, digest: str) -> None:
        """Raises:
        ConflictError: A node or a user has this name.
        """
        ...

    async def users(self) -> list[User]:
        """All, by name."""
        ...

    async def remove_user(self, name: str, *, at: int) -> User:
        """Forget a user, and revoke its refresh tokens with it, at unix ms `at`.

        Raises:
            NotFoundError
        """
        ...

    # -- those who wait --------------------------------------------------------------------------

    async def wait(self, candidate: Candidate, *, at: int, most: int, refresh_ms: int) -> Wait:
        """Enter a candidate, or see it again; that is written down every `refresh_ms` at most. No
        more than `most` wait at a time.
        """
        ...

    async def pending(self) -> list[PendingNode]:
        """Who waits, oldest first."""
        ...

    async def approve(
        self,
        id: str,  # noqa: A002
        record: NodeRecord,
        *,
        scopes: list[str],
    ) -> bool:
        """Register `record` with the key of the candidate with this id; nobody else waits under its
        name any more. False: it does not wait.

        Raises:
            ConflictError: The slug is taken.
        """
        ...

    async def reject(self, id: str, *, at: int) -> PendingNode | None:  # noqa: A002
        """Turn a candidate away; None: it does not wait."""
        ...

    async def forget(self, *, rejected_before: int, seen_before: int) -> int:
        """Forget who was turned away or last seen before these times; how many."""
        ...

    # -- the first ones --------------------------------------------------------------------------

    async def sow(self, seedling: Seedling, record: NodeRecord, *, at: int) -> Sown:
        """Enter somebody once, however many masters start at once.

        Args:
            seedling: Name, key and scopes.
            record: What the registry gets where it is a node.
            at: Unix ms.

        Returns:
            CHANGED is given again until `sown`: who had the old key must be out first.
        """
        ...

    async def sown(self, digest: str) -> None:
        """Remember that this key was entered, and that all that follows from it is done."""
        ...
