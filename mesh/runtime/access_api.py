"""What a client may ask the masters about keys and tokens; secrets are hashed before they leave."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

from mesh.runtime.caller import Caller
from mesh.wire import codec
from mesh.wire.messages import (
    Authenticate,
    Grant,
    Identity,
    JoinTokenCreate,
    JoinTokenCreated,
    NodeJoin,
    NodeJoined,
    NodeKey,
    NodeName,
    NodeRegister,
    Request,
    TokenIssue,
    TokenList,
    TokenRefresh,
    TokenRevoke,
    TokensQuery,
    TokensRevoked,
    Trust,
    TrustQuery,
)

T = TypeVar("T")

_TIMEOUT_S = 5.0


def digest_of(secret: str) -> str:
    """SHA-256 in hex: keys and tokens are 256 random bits, so nothing slower is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


class AccessApi:
    """Keys and tokens; `MeshClient.access`. Every method raises UnavailableError or
    DeadlineExceededError where no master answers. `on_behalf`: whom the caller speaks for, as the
    masters' logs name them.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def issue(
        self,
        subject: str,
        scopes: Sequence[str],
        *,
        ttl_s: int = 3600,
        refresh: bool = False,
        on_behalf: str = "",
    ) -> Grant:
        """An access token for `subject`, and a refresh token if asked.

        Raises:
            InvalidError: Not a name, no such scope, no such lifetime.
            ConflictError: A node has that name: its tokens are its own.
        """
        asked = {
            "subject": subject,
            "scopes": list(scopes),
            "ttl_s": ttl_s,
            "refresh": refresh,
            "on_behalf": on_behalf,
        }
        return await self._ask("token-issue", asked, TokenIssue, Grant)

    async def refresh(self, refresh_token: str, *, on_behalf: str = "") -> Grant:
        """Trade a refresh token for new tokens; it is good for one use.

        Raises:
            UnauthorizedError: `Invalid refresh token`; one that was used before ends its family.
        """
        asked = {"digest": digest_of(refresh_token), "on_behalf": on_behalf}
        return await self._ask("token-refresh", asked, TokenRefresh, Grant)

    async def tokens(self, *, subject: str = "", all: bool = False) -> TokenList:  # noqa: A002
        """Issued tokens, newest first; `all`: expired and revoked ones too."""
        return await self._ask("tokens", {"subject": subject, "all": all}, TokensQuery, TokenList)

    async def revoke(
        self,
        id: str = "",  # noqa: A002
        *,
        subject: str = "",
        on_behalf: str = "",
    ) -> TokensRevoked:
        """Revoke one token by its id, with all of its family if it can be refreshed; or all of a
        subject.

        Raises:
            NotFoundError: No token has this id.
            InvalidError: Neither or both given.
        """
        asked = {"id": id, "subject": subject, "on_behalf": on_behalf}
        return await self._ask("token-revoke", asked, TokenRevoke, TokensRevoked)

    async def create_join_token(
        self,
        *,
        scopes: Sequence[str] = ("search", "actions"),
        ttl_s: int = 86_400,
        uses: int | None = 1,
        description: str = "",
        on_behalf: str = "",
    ) -> JoinTokenCreated:
        """A token with which nodes register themselves over HTTP.

        Raises:
            InvalidError
        """
        asked = {
            "scopes": list(scopes),
            "ttl_s": ttl_s,
            "uses": uses,
            "description": description,
            "on_behalf": on_behalf,
        }
        return await self._ask("join-token-create", asked, JoinTokenCreate, JoinTokenCreated)

    async def join(
        self, join_token: str, node: NodeRegister, *, version: str = "", on_behalf: str = ""
    ) -> NodeJoined:
        """Register a node with a join token.

        Raises:
            UnauthorizedError: The join token is unknown, expired, revoked or used up.
            ConflictError: The name is taken; the use of the token is given back.
        """
        request = NodeJoin(
            digest=digest_of(join_token), node=node, version=version, on_behalf=on_behalf
        )
        return await self._caller.master("join", request, NodeJoined, _TIMEOUT_S)

    async def rotate_key(self, node: str, *, on_behalf: str = "") -> NodeKey:
        """A new API key for a node; the old one and all of its tokens are refused from now on.

        Raises:
            NotFoundError
        """
        return await self._ask(
            "rotate-key", {"node": node, "on_behalf": on_behalf}, NodeName, NodeKey
        )

    async def authenticate(self, api_key: str) -> Identity:
        """Whose API key this is.

        Raises:
            UnauthorizedError: Nobody's.
        """
        asked = {"digest": digest_of(api_key)}
        return await self._ask("authenticate", asked, Authenticate, Identity)

    async def trust(self) -> Trust:
        """Keys that verify access tokens, and which tokens were revoked: all of them, in as many
        messages as that takes.
        """
        revoked: list[str] = []
        while True:
            asked = {"after": revoked[-1] if revoked else ""}
            page = await self._ask("trust", asked, TrustQuery, Trust)
            revoked += page.revoked
            if not page.more or not page.revoked:
                return Trust(keys=page.keys, revoked=revoked)

    async def _ask(
        self, verb: str, asked: dict[str, Any], request: type[Request], answer: type[T]
    ) -> T:
        return await self._caller.master(verb, codec.convert(asked, request), answer, _TIMEOUT_S)
