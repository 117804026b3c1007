"""Who may come in: access, refresh and join tokens, API keys, and what is no longer good.

No secret but a join token goes to a master: it is asked about the SHA-256 of keys and tokens. New
ones come from it once, in the answer.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from mesh.wire.messages.base import Request, ShownOnce, Token, Wire
from mesh.wire.messages.registry import NodeRecord, NodeRegister

Scope = Annotated[
    str,
    Meta(
        pattern=r"^(search(:[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127})?"
        r"|actions(:[A-Za-z0-9_-]{1,64})?|admin)(?!\n)$"
    ),
]
"""`search` (every collection), `search:<collection>`, `actions` (all of them), `actions:<name>` or
`admin` (the registry).
"""

Scopes = Annotated[list[Scope], Meta(min_length=1, max_length=64)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}(?!\n)$")]
"""SHA-256 in hex."""

LifetimeS = Annotated[int, Meta(ge=1, le=366 * 86_400)]
OverlapS = Annotated[int, Meta(ge=0, le=366 * 86_400)]
"""How long the old one goes on being good beside the new one; 0: not at all."""


class Identity(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """Who somebody is, and what they may do."""

    subject: str
    """One token: history shows it as the caller."""
    scopes: list[str]
    node: bool = False
    """It is a node's: `subject` is its slug."""
    token_id: str = ""
    """Of the access token; empty where an API key was shown."""


class TokenIssue(Request, frozen=True, kw_only=True):
    """`master.token-issue`."""

    subject: Token
    scopes: Scopes
    ttl_s: LifetimeS = 3600
    refresh: bool = False
    """Give a refresh token as well."""


class Grant(ShownOnce, frozen=True, kw_only=True, omit_defaults=False):
    """New tokens, shown this once."""

    id: str
    """Of the access token: what `tokens revoke` takes."""
    subject: str
    scopes: list[str]
    access_token: str
    token_type: str = "Bearer"  # noqa: S105 (RFC 6750's word)
    expires_in: int
    """Seconds."""
    refresh_token: str | None = None
    refresh_expires_in: int | None = None
    node: str | None = None
    """Slug, where it is a node's."""


class TokenRefresh(Request, frozen=True, kw_only=True):
    """`master.token-refresh`: the hash of a refresh token, good for one use."""

    digest: Digest


class TokensQuery(Request, frozen=True, kw_only=True):
    """`master.tokens`."""

    subject: str = ""
    all: bool = False
    """Expired and revoked ones too."""


class TokenInfo(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """An issued token, without its secret. Times are unix ms."""

    id: str
    kind: str
    """`access`, `refresh` or `join`."""
    subject: str
    """Of a join token: its description."""
    scopes: list[str]
    node: bool
    issued_at: int
    expires_at: int
    revoked_at: int | None = None
    uses_left: int | None = None
    """Of a join token; None: as often as one likes, and for other kinds. 0 too for a refresh token
    that was used."""


class TokenList(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """Newest first."""

    tokens: list[TokenInfo]


class TokenRevoke(Request, frozen=True, kw_only=True):
    """`master.token-revoke`: the id of a token of any kind; a refresh token, or an access token
    that can be refreshed, takes its family with it. Or every token of a subject.
    """

    id: str = ""
    subject: str = ""


class TokensRevoked(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """How many tokens that were still good are no longer."""

    revoked: int


class JoinTokenCreate(Request, frozen=True, kw_only=True):
    """`master.join-token-create`."""

    scopes: Scopes = msgspec.field(default_factory=lambda: ["search", "actions"])
    """What the nodes that join with it may do."""
    ttl_s: LifetimeS = 86_400
    uses: Annotated[int, Meta(ge=1, le=1_000_000)] | None = 1
    """None: as often as one likes until it expires."""
    description: Annotated[str, Meta(max_length=200)] = ""


class JoinTokenCreated(ShownOnce, frozen=True, kw_only=True, omit_defaults=False):
    """The new join token, shown this once."""

    id: str
    join_token: str
    scopes: list[str]
    expires_at: int
    uses: int | None


class NodeJoin(ShownOnce, Request, frozen=True, kw_only=True):
    """`master.join`: a node registers itself. The one request that holds a secret: whoever got hold
    of the database's copy of it, the SHA-256, cannot join with that.
    """

    token: Annotated[str, Meta(min_length=1, max_length=512)]
    """The join token."""
    node: NodeRegister
    version: Annotated[str, Meta(max_length=64)] = ""


class NodeJoined(ShownOnce, frozen=True, kw_only=True, omit_defaults=False):
    """The new node, its API key and its tokens, shown this once."""

    node: NodeRecord
    api_key: str
    grant: Grant


class NodeAdopt(Request, frozen=True, kw_only=True):
    """`master.adopt`: register a node, or give a key to one that nobody has used yet: registered
    and never heard of. Answered with `NodeRegistered`.
    """

    node: NodeRegister


class NodeKeyRotate(Request, frozen=True, kw_only=True):
    """`master.rotate-key`."""

    node: str
    """Slug or id."""
    overlap_s: OverlapS = 0


class NodeKey(ShownOnce, frozen=True, kw_only=True, omit_defaults=False):
    """The node's new API key, shown this once. Without an overlap the old one and all of its tokens
    are refused, and its connections cut.
    """

    node: NodeRecord
    api_key: str
    previous_until: int = 0
    """Unix ms until which the old key is good; 0: no longer."""


class PendingNode(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """A node that nobody announced and that waits for an operator."""

    id: str
    name: str
    fingerprint: str
    """First 16 hex digits of the SHA-256 of the key it made itself: its own log shows the same."""
    address: str
    """Where its last login came from."""
    first_seen: int
    """Unix ms."""
    last_seen: int


class PendingList(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """`master.pending`: oldest first."""

    nodes: list[PendingNode]


class NodeApprove(Request, frozen=True, kw_only=True):
    """`master.approve`, answered with the new `NodeRecord`."""

    node: str
    """Id, or its name where only one waits under it."""
    scopes: Scopes = msgspec.field(default_factory=lambda: ["search", "actions"])


class NodeReject(Request, frozen=True, kw_only=True):
    """`master.reject`, answered with the `PendingNode` that was: it may not ask again for a day."""

    node: str
    """Id, or its name where only one waits under it."""


class User(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """An operator or application: it logs in at the broker, and at the gateway with its API key."""

    name: str
    scopes: list[str]
    description: str = ""
    created_at: int = 0


class UserCreate(Request, frozen=True, kw_only=True):
    """`master.user-create`."""

    name: Token
    scopes: Scopes
    description: Annotated[str, Meta(max_length=200)] = ""


class UserKey(ShownOnce, frozen=True, kw_only=True, omit_defaults=False):
    """`master.user-create` and `user-rotate-key`: a user and its API key, shown this once."""

    user: User
    api_key: str
    previous_until: int = 0
    """Unix ms until which the old key is good; 0: no longer, or there was none."""


class UserKeyRotate(Request, frozen=True, kw_only=True):
    """`master.user-rotate-key`."""

    name: str
    overlap_s: OverlapS = 0


class UserName(Request, frozen=True, kw_only=True):
    """`master.user-remove`, answered with the `User` that was."""

    name: str


class UserList(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """`master.users`: by name."""

    users: list[User]


class SigningKeysRotate(Request, frozen=True, kw_only=True):
    """`master.signing-keys-rotate`: a new key signs from now on; the others verify for
    `overlap_s` more seconds. Answered with `SigningKeyList`.
    """

    overlap_s: OverlapS = 86_400


class SigningKey(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """A key of the masters' ring, without its secret."""

    kid: str
    created_at: int
    """Unix ms."""
    retires_at: int | None = None
    """Unix ms from which it verifies nothing any more; None: it signs."""


class SigningKeyList(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """`master.signing-keys`: newest first; empty where `security.jwt_secret` signs."""

    keys: list[SigningKey]


class Authenticate(Request, frozen=True, kw_only=True):
    """`master.authenticate`: whose API key has this hash? Answered with an `Identity`."""

    digest: Digest


class PublicKey(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """A key that verifies access tokens, as in RFC 8037: `kty` OKP, `crv` Ed25519."""

    kid: str
    x: str
    """base64url, 32 bytes."""
    kty: str = "OKP"
    crv: str = "Ed25519"
    alg: str = "EdDSA"
    use: str = "sig"


class TrustQuery(Request, frozen=True, kw_only=True):
    """`master.trust`: the keys, and the revoked tokens after an id, as many as fit a message."""

    after: str = ""


class Trust(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """What a gateway needs to judge tokens by itself."""

    keys: list[PublicKey]
    revoked: list[str]
    """Ids of access tokens that were revoked and have not expired, in order."""
    more: bool = False
    """There are others: ask for those after the last."""


class Revoked(Wire, frozen=True, kw_only=True):
    """`mesh.v1.revoked`: no longer good, from now on."""

    tokens: list[str] = []
    """Ids of access tokens."""
    subjects: list[str] = []
    """Whoever remembers an API key of theirs forgets it."""
    keys: bool = False
    """A key that verified tokens does no longer: ask for those that do."""
