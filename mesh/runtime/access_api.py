"""What a client may ask the masters about keys and tokens; secrets are hashed before they leave."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from mesh.runtime.caller import Caller
from mesh.wire import codec
from mesh.wire.messages import (
    AuditPage,
    AuditQuery,
    Authenticate,
    Grant,
    Identity,
    JoinTokenCreate,
    JoinTokenCreated,
    NodeAdopt,
    NodeApprove,
    NodeJoin,
    NodeJoined,
    NodeKey,
    NodeKeyRotate,
    NodeRecord,
    NodeRegister,
    NodeRegistered,
    NodeReject,
    PendingList,
    PendingNode,
    Request,
    SigningKeyList,
    SigningKeysRotate,
    TokenIssue,
    TokenList,
    TokenRefresh,
    TokenRevoke,
    TokensQuery,
    TokensRevoked,
    Trust,
    TrustQuery,
    User,
    UserCreate,
    UserKey,
    UserKeyRotate,
    UserList,
    UserName,
)

T = TypeVar("T")

_TIMEOUT_S = 5.0


def digest_of(secret: str) -> str:
    """SHA-256 in hex: keys and tokens are 256 random bits, so nothing slower is needed."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


class AccessApi:
    """Keys and tokens; `MeshClient.access`. Every method raises UnavailableError or
    DeadlineExceededError where no master answers. `on_behalf` and `origin`: whom a gateway or
    bridge speaks for, and from which address, as the audit trail names them; nobody else is
    believed.
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
        origin: str = "",
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
            "origin": origin,
        }
        return await self._ask("token-issue", asked, TokenIssue, Grant)

    async def refresh(self, refresh_token: str, *, on_behalf: str = "", origin: str = "") -> Grant:
        """Trade a refresh token for new tokens; it is good for one use.

        Raises:
            UnauthorizedError: `Invalid refresh token`; one that was used before ends its family.
        """
        asked = {
            "digest": digest_of(refresh_token),
            "on_behalf": on_behalf,
            "origin": origin,
        }
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
        origin: str = "",
    ) -> TokensRevoked:
        """Revoke one token by its id, with all of its family if it can be refreshed; or all of a
        subject.

        Raises:
            NotFoundError: No token has this id.
            InvalidError: Neither or both given.
        """
        asked = {"id": id, "subject": subject, "on_behalf": on_behalf, "origin": origin}
        return await self._ask("token-revoke", asked, TokenRevoke, TokensRevoked)

    async def create_join_token(
        self,
        *,
        scopes: Sequence[str] = ("search", "actions"),
        ttl_s: int = 86_400,
        uses: int | None = 1,
        description: str = "",
        on_behalf: str = "",
        origin: str = "",
    ) -> JoinTokenCreated:
        """A token with which nodes register themselves.

        Raises:
            InvalidError
        """
        asked = {
            "scopes": list(scopes),
            "ttl_s": ttl_s,
            "uses": uses,
            "description": description,
            "on_behalf": on_behalf,
            "origin": origin,
        }
        return await self._ask("join-token-create", asked, JoinTokenCreate, JoinTokenCreated)

    async def join(
        self,
        join_token: str,
        node: NodeRegister,
        *,
        version: str = "",
        on_behalf: str = "",
        origin: str = "",
    ) -> NodeJoined:
        """Register a node with a join token.

        Raises:
            UnauthorizedError: The join token is unknown, expired, revoked or used up.
            ConflictError: The name is taken; the use of the token is given back.
        """
        request = NodeJoin(
            token=join_token,
            node=node,
            version=version,
            on_behalf=on_behalf,
            origin=origin,
        )
        return await self._caller.master("join", request, NodeJoined, _TIMEOUT_S)

    async def adopt(
        self, node: NodeRegister, *, on_behalf: str = "", origin: str = ""
    ) -> NodeRegistered:
        """Register a node that starts now, or give a key to one that nobody has used yet.

        Raises:
            ConflictError: The name is taken, by a node that has been in use or by somebody else.
            InvalidError: A value that cannot be.
        """
        asked = {"node": msgspec.to_builtins(node), "on_behalf": on_behalf, "origin": origin}
        return await self._ask("adopt", asked, NodeAdopt, NodeRegistered)

    async def rotate_key(
        self, node: str, overlap_s: int = 0, *, on_behalf: str = "", origin: str = ""
    ) -> NodeKey:
        """A new API key for a node. The old one is good for `overlap_s` more seconds; with 0 it and
        all of the node's tokens are refused from now on, and its connections cut.

        Raises:
            NotFoundError, InvalidError
        """
        asked = {"node": node, "overlap_s": overlap_s, "on_behalf": on_behalf, "origin": origin}
        return await self._ask("rotate-key", asked, NodeKeyRotate, NodeKey)

    # -- those who wait ----------------------------------------------------------------------------

    async def pending(self) -> PendingList:
        """Nodes that nobody announced and that wait for an operator, oldest first."""
        return await self._ask("pending", {}, Request, PendingList)

    async def approve(
        self,
        node: str,
        scopes: Sequence[str] = ("search", "actions"),
        *,
        on_behalf: str = "",
        origin: str = "",
    ) -> NodeRecord:
        """Let a waiting node in, by its id, or by its name where only one waits under it.

        Raises:
            NotFoundError: It does not wait.
            ConflictError: Several wait under this name, or somebody has it by now.
        """
        asked = {"node": node, "scopes": list(scopes), "on_behalf": on_behalf, "origin": origin}
        return await self._ask("approve", asked, NodeApprove, NodeRecord)

    async def reject(self, node: str, *, on_behalf: str = "", origin: str = "") -> PendingNode:
        """Turn a waiting node away for a day, by its id or name.

        Raises:
            NotFoundError, ConflictError: As `approve`.
        """
        asked = {"node": node, "on_behalf": on_behalf, "origin": origin}
        return await self._ask("reject", asked, NodeReject, PendingNode)

    # -- users -------------------------------------------------------------------------------------

    async def users(self) -> UserList:
        """Operators and applications, by name."""
        return await self._ask("users", {}, Request, UserList)

    async def create_user(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        description: str = "",
        on_behalf: str = "",
        origin: str = "",
    ) -> UserKey:
        """Somebody who may log in, with an API key that is shown this once.

        Raises:
            ConflictError: A node or a user has this name.
            InvalidError: Not a name, or no such scope.
        """
        asked = {
            "name": name,
            "scopes": list(scopes),
            "description": description,
            "on_behalf": on_behalf,
            "origin": origin,
        }
        return await self._ask("user-create", asked, UserCreate, UserKey)

    async def remove_user(self, name: str, *, on_behalf: str = "", origin: str = "") -> User:
        """The key and all tokens of a user are refused from now on, and its connections cut.

        Raises:
            NotFoundError
        """
        asked = {"name": name, "on_behalf": on_behalf, "origin": origin}
        return await self._ask("user-remove", asked, UserName, User)

    async def rotate_user_key(
        self, name: str, overlap_s: int = 0, *, on_behalf: str = "", origin: str = ""
    ) -> UserKey:
        """As `rotate_key`, for a user.

        Raises:
            NotFoundError, InvalidError
        """
        asked = {"name": name, "overlap_s": overlap_s, "on_behalf": on_behalf, "origin": origin}
        return await self._ask("user-rotate-key", asked, UserKeyRotate, UserKey)

    # -- the masters' own keys and memory ----------------------------------------------------------

    async def signing_keys(self) -> SigningKeyList:
        """Keys that sign and verify access tokens, newest first."""
        return await self._ask("signing-keys", {}, Request, SigningKeyList)

    async def rotate_signing_keys(
        self, overlap_s: int = 86_400, *, on_behalf: str = "", origin: str = ""
    ) -> SigningKeyList:
        """A new key signs from now on; the others verify for `overlap_s` more seconds.

        Raises:
            ConflictError: A shared secret signs, or too many keys verify already.
        """
        asked = {"overlap_s": overlap_s, "on_behalf": on_behalf, "origin": origin}
        return await self._ask("signing-keys-rotate", asked, SigningKeysRotate, SigningKeyList)

    async def audit(
        self,
        *,
        kind: str = "",
        actor: str = "",
        subject: str = "",
        since: int = 0,
        until: int = 0,
        after: str = "",
        limit: int = 50,
        offset: int = 0,
    ) -> AuditPage:
        """The audit trail, newest first; empty arguments match all, times are unix ms. With `after`
        (an id) what came later than that, oldest first.
        """
        asked = {
            "kind": kind,
            "actor": actor,
            "subject": subject,
            "since": since,
            "until": until,
            "after": after,
            "limit": limit,
            "offset": offset,
        }
        return await self._ask("audit", asked, AuditQuery, AuditPage)

    # -- what gateways ask -------------------------------------------------------------------------

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
