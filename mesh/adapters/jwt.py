"""Access tokens as JWTs: EdDSA over Ed25519, or HS256 where a secret is configured. Which of the
two is settled before any token is seen; what a token's header says changes nothing.

Source: RFC 7519 (JWT), RFC 8037 (EdDSA in JOSE), RFC 8725 (best practices: algorithm pinned,
issuer and audience checked).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

from mesh.errors import ConfigError, MeshError, UnauthorizedError
from mesh.ports import TokenVerifier, UnknownKeyError
from mesh.wire.messages import Identity, PublicKey, Token

MAX_TOKEN_CHARS = 8192

_EDDSA = "EdDSA"
_HS256 = "HS256"
_KEY_BYTES = 32
_KID_BYTES = 12
_KID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PARTS = 3
_REFUSED = (jwt.PyJWTError, msgspec.ValidationError, ValueError, TypeError, RecursionError)
_REQUIRED = ["iss", "aud", "sub", "iat", "exp", "jti", "scope"]
_OURS_TO_CHECK = {
    "require": _REQUIRED,
    "strict_aud": True,
    "verify_exp": False,  # against the time that we are given
    "verify_nbf": False,
    "verify_iat": False,
}


class _Claims(msgspec.Struct, frozen=True, kw_only=True):
    sub: Token
    iat: int
    exp: int
    nbf: int = 0
    jti: Annotated[str, Meta(min_length=1, max_length=64)]
    scope: str
    node: bool = False


# -- signing ---------------------------------------------------------------------------------------


class Ed25519Mint:
    """`mesh.ports.Mint`: private keys of 32 bytes."""

    def __init__(self, *, issuer: str, audience: str) -> None:
        """Args:
        issuer: Whose tokens they are.
        audience: Whom they are for.
        """
        self._issuer = issuer
        self._audience = audience

    def make(self) -> bytes:
        return Ed25519PrivateKey.generate().private_bytes_raw()

    def load(self, secret: bytes) -> Ed25519Pair:
        private = Ed25519PrivateKey.from_private_bytes(secret)
        return Ed25519Pair(private, issuer=self._issuer, audience=self._audience)


class Ed25519Pair:
    """`mesh.ports.SigningPair`."""

    def __init__(self, private: Ed25519PrivateKey, *, issuer: str, audience: str) -> None:
        self._private = private
        self._issuer = issuer
        self._audience = audience
        raw = private.public_key().public_bytes_raw()
        # The id follows from the key: two keys never share one.
        kid = _packed(hashlib.sha256(raw).digest()[:_KID_BYTES])
        self.public = PublicKey(kid=kid, x=_packed(raw))

    def sign(self, identity: Identity, *, issued_at: int, expires_at: int) -> str:
        claims = _claims(identity, self._issuer, self._audience, issued_at, expires_at)
        return jwt.encode(claims, self._private, algorithm=_EDDSA, headers={"kid": self.public.kid})


class SecretSigner:
    """`mesh.ports.TokenSigner` with a secret that whoever verifies has as well."""

    def __init__(self, secret: str, *, issuer: str, audience: str) -> None:
        """Args:
        secret: 32 characters at least.
        issuer: Whose tokens they are.
        audience: Whom they are for.

        Raises:
            ConfigError: The secret looks like a key that may be known to others.
        """
        self._secret = _checked(secret)
        self._issuer = issuer
        self._audience = audience

    def sign(self, identity: Identity, *, issued_at: int, expires_at: int) -> str:
        claims = _claims(identity, self._issuer, self._audience, issued_at, expires_at)
        return jwt.encode(claims, self._secret, algorithm=_HS256)

    def public_keys(self) -> list[PublicKey]:
        """None: a secret has no public half."""
        return []


def _claims(
    identity: Identity, issuer: str, audience: str, issued_at: int, expires_at: int
) -> dict[str, Any]:
    claims: dict[str, Any] = {
        "iss": issuer,
        "aud": audience,
        "sub": identity.subject,
        "iat": issued_at,
        "exp": expires_at,
        "jti": identity.token_id,
        "scope": " ".join(identity.scopes),
    }
    if identity.node:
        claims["node"] = True
    return claims


# -- verifying -------------------------------------------------------------------------------------


def token_verifier(*, secret: str, issuer: str, audience: str, leeway_s: float) -> TokenVerifier:
    """What judges tokens: by the masters' keys, or by the secret where there is one.

    Args:
        secret: `security.jwt_secret`; empty: the masters' keys sign.
        issuer: Whose tokens count.
        audience: Whom they must be for.
        leeway_s: How far clocks may differ.

    Raises:
        ConfigError: The secret looks like a key that may be known to others.
    """
    if secret:
        return SecretVerifier(secret, issuer=issuer, audience=audience, leeway_s=leeway_s)
    return JwtVerifier(issuer=issuer, audience=audience, leeway_s=leeway_s)


class _Verifier(ABC):
    """What both kinds check alike."""

    def __init__(self, *, algorithm: str, issuer: str, audience: str, leeway_s: float) -> None:
        self._algorithm = algorithm
        self._issuer = issuer
        self._audience = audience
        self._leeway_s = leeway_s

    def verify(self, token: str, now: float) -> tuple[Identity, float]:
        if len(token) > MAX_TOKEN_CHARS:
            raise UnauthorizedError("the token is too long")
        try:
            key = self._key_of(_header(token, self._algorithm))
            claims = msgspec.convert(self._signed_by(key, token), _Claims)
        except _REFUSED:
            # What was wrong is nobody's business; nor may pieces of the token get into a log.
            raise _not_valid() from None
        until = claims.exp + self._leeway_s
        if now >= until:
            raise UnauthorizedError("the token has expired")
        if now < max(claims.iat, claims.nbf) - self._leeway_s:
            raise UnauthorizedError("the token is not valid yet")
        identity = Identity(
            subject=claims.sub, scopes=claims.scope.split(), node=claims.node, token_id=claims.jti
        )
        return identity, until

    @abstractmethod
    def _key_of(self, header: dict[str, Any]) -> Ed25519PublicKey | str:
        """Raises UnauthorizedError: None that is trusted."""

    def _signed_by(self, key: Ed25519PublicKey | str, token: str) -> dict[str, Any]:
        claims = jwt.decode(
            token,
            key,
            algorithms=[self._algorithm],
            issuer=self._issuer,
            audience=self._audience,
            options=_OURS_TO_CHECK,  # type: ignore[arg-type]
        )
        _object(token.split(".")[1])
        return claims


class JwtVerifier(_Verifier):
    """`mesh.ports.TokenVerifier` of EdDSA tokens. Trusts nobody until it is told whom."""

    def __init__(self, *, issuer: str, audience: str, leeway_s: float) -> None:
        """Args:
        issuer: Whose tokens count.
        audience: Whom they must be for.
        leeway_s: How long before its issue and after its expiry a token is taken: clocks differ.
        """
        super().__init__(algorithm=_EDDSA, issuer=issuer, audience=audience, leeway_s=leeway_s)
        self._trusted: dict[str, str] = {}
        self._keys: dict[str, Ed25519PublicKey] = {}

    def trust(self, keys: Sequence[PublicKey]) -> bool:
        """Keys of a kind that a newer master may have are passed over."""
        trusted = {key.kid: key.x for key in keys if _is_ours(key)}
        if trusted == self._trusted:
            return False
        self._keys = {
            kid: Ed25519PublicKey.from_public_bytes(_unpacked(x)) for kid, x in trusted.items()
        }
        self._trusted = trusted
        return True

    def _key_of(self, header: dict[str, Any]) -> Ed25519PublicKey:
        kid = header.get("kid")
        if not isinstance(kid, str) or not _KID.fullmatch(kid):
            raise _not_valid()
        key = self._keys.get(kid)
        if key is None:
            raise UnknownKeyError("the token is signed with an unknown key")
        return key


class SecretVerifier(_Verifier):
    """`mesh.ports.TokenVerifier` of HS256 tokens; what masters publish is no business of it."""

    def __init__(self, secret: str, *, issuer: str, audience: str, leeway_s: float) -> None:
        """Args: as `SecretSigner` and `JwtVerifier`.

        Raises:
            ConfigError: The secret looks like a key that may be known to others.
        """
        super().__init__(algorithm=_HS256, issuer=issuer, audience=audience, leeway_s=leeway_s)
        self._secret = _checked(secret)

    def trust(self, keys: Sequence[PublicKey]) -> bool:  # noqa: ARG002 (none counts)
        return False

    def _key_of(self, header: dict[str, Any]) -> str:  # noqa: ARG002 (there is one)
        return self._secret


def _header(token: str, algorithm: str) -> dict[str, Any]:
    """Raises UnauthorizedError, ValueError: Not that of a token of this algorithm."""
    parts = token.split(".")
    if len(parts) != _PARTS:
        raise _not_valid()
    header = _object(parts[0])
    if header.get("alg") != algorithm:
        raise _not_valid()
    return header


def _object(part: str) -> dict[str, Any]:
    """A JSON object that says nothing twice: readers differ on which of the two counts.

    Raises:
        ValueError
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        read = dict(pairs)
        if len(read) != len(pairs):
            raise ValueError("a name comes twice")
        return read

    read = json.loads(_unpacked(part), object_pairs_hook=once)
    if not isinstance(read, dict):
        raise ValueError("not an object")  # noqa: TRY004 (as every other way to be no token)
    return read


def _checked(secret: str) -> str:
    try:
        jwt.get_algorithm_by_name(_HS256).prepare_key(secret)
    except jwt.InvalidKeyError:
        raise ConfigError(
            "security.jwt_secret is the text of a public key or certificate: "
            "make a random one, for example with `openssl rand -base64 48`"
        ) from None
    return secret


def _not_valid() -> MeshError:
    return UnauthorizedError("the token is not valid")


def _is_ours(key: PublicKey) -> bool:
    if (key.kty, key.crv, key.alg, key.use) != ("OKP", "Ed25519", _EDDSA, "sig"):
        return False
    try:
        return len(_unpacked(key.x)) == _KEY_BYTES
    except ValueError:
        return False


def _packed(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _unpacked(text: str) -> bytes:
    """Raises ValueError: Not base64url."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeError) as error:
        raise ValueError("not base64url") from error
