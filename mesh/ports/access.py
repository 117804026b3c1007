"""Keys and tokens: who may come in."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from mesh.types import Status
from mesh.wire.messages import TokenInfo


class AccessTokenRecord(NamedTuple):
    """An access token that was issued; times in unix ms."""

    id: str
    subject: str
    node: bool
    scopes: tuple[str, ...]
    family: str
    """Of the refresh tokens it belongs to; empty: none."""
    issued_at: int
    expires_at: int


class RefreshTokenRecord(NamedTuple):
    """A refresh token, by its hash. All that come from one first token are a family."""

    id: str
    digest: str
    subject: str
    node: bool
    scopes: tuple[str, ...]
    family: str
    issued_at: int
    expires_at: int


class JoinTokenRecord(NamedTuple):
    """A join token, by its hash."""

    id: str
    digest: str
    description: str
    scopes: tuple[str, ...]
    issued_at: int
    expires_at: int
    uses_left: int | None


class NodeAccess(NamedTuple):
    """A registered node, as far as it matters at the door."""

    slug: str
    status: Status
    scopes: tuple[str, ...]


class TokenStore(Protocol):
    """Issued tokens, in the same SQL as the registry; what expired is forgotten by `prune`."""

    async def add(
        self, access: AccessTokenRecord, refresh: RefreshTokenRecord | None = None
    ) -> bool:
        """Remember new tokens, both or neither; False, and neither, if their family was revoked."""
        ...

    async def rotate(self, digest: str, *, at: int) -> tuple[RefreshTokenRecord, bool] | None:
        """Take a refresh token that is neither expired nor revoked; exactly one of many takers at
        once gets True with it: it was unused, and is used now. None: no such token.
        """
        ...

    async def revoke_family(self, family: str, *, at: int) -> list[str]:
        """Revoke all of a family; ids of its access tokens that were still good."""
        ...

    async def revoke(self, id: str, *, at: int) -> tuple[int, list[str]] | None:  # noqa: A002
        """Revoke a token of any kind by its id, one of a family with all of that; how many were
        good, and the ids of the access tokens among them. None: no such token.
        """
        ...

    async def revoke_subject(self, subject: str, *, at: int) -> tuple[int, list[str]]:
        """Revoke every access and refresh token of a subject; how many were good, and the ids of
        the access tokens among them.
        """
        ...

    async def revoked(self, *, at: int) -> list[str]:
        """Ids of access tokens that are revoked and not expired."""
        ...

    async def list(self, *, subject: str, all: bool, at: int) -> list[TokenInfo]:  # noqa: A002
        """Issued tokens, newest first, the last 1,000 of each kind; without `all` those that are
        good. Join tokens have no subject.
        """
        ...

    async def add_join(self, token: JoinTokenRecord) -> None:
        """Remember a new join token."""
        ...

    async def use_join(self, digest: str, *, at: int) -> JoinTokenRecord | None:
        """Use a join token once, if it is good; None: it is not."""
        ...

    async def good_join(self, digest: str, *, at: int) -> str | None:
        """Id of the join token, if it could be used; it is not."""
        ...

    async def give_back_join(self, id: str) -> None:  # noqa: A002
        """The join it was used for was refused: undo the use."""
        ...

    async def node(self, slug: str) -> NodeAccess | None:
        """What the registry has now, whichever master wrote it."""
        ...

    async def prune(self, *, before: int) -> int:
        """Forget what expired before; how many."""
        ...
