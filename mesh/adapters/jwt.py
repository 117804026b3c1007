"""Access tokens as JWTs: EdDSA over Ed25519 and nothing else, whatever a token's header says.

Source: RFC 7519 (JWT), RFC 8037 (EdDSA in JOSE), RFC 8725 (best practices: algorithm pinned,
issuer and audience checked).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

from mesh.errors import StateError, UnauthorizedError
from mesh.ports import UnknownKeyError
from mesh.wire.messages import Identity, PublicKey, Token

MAX_TOKEN_CHARS = 8192

_ALGORITHM = "EdDSA"
_KEY_BYTES = 32
_KID_BYTES = 12
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
    exp: int
    jti: Annotated[str, Meta(min_length=1, max_length=64)]
    scope: str
    node: bool = False


class _StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """One private key of the ring."""

    kid: str
    d: str
    """base64url, 32 bytes: the secret."""
    created_at: int
    """Unix ms."""

    def __repr__(self) -> str:
        return f"_StoredKey(kid={self.kid!r}, d=…)"


class _Ring(msgspec.Struct, frozen=True, kw_only=True):
    keys: Annotated[list[_StoredKey], Meta(min_length=1)]


class JwtSigner:
    """`mesh.ports.TokenSigner` with a ring of keys in one file; the newest key signs."""

    def __init__(self, keys: Sequence[_StoredKey], *, issuer: str, audience: str) -> None:
        """Use `open`."""
        self._issuer = issuer
        self._audience = audience
        newest_first = sorted(keys, key=lambda key: key.created_at, reverse=True)
        private = [Ed25519PrivateKey.from_private_bytes(_unpacked(key.d)) for key in newest_first]
        self._public = [_public(key) for key in private]
        self._signing_key = private[0]

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        issuer: str,
        audience: str,
        at: int,
        save: Callable[[Path, Any], None],
    ) -> JwtSigner:
        """Read the ring of keys; it is made, with one key, where there is none.

        Args:
            path: The file; for its owner alone.
            issuer: Whose tokens they are.
            audience: Whom they are for.
            at: Now, unix ms.
            save: Writes JSON into a file, whole or not at all, readable by its owner alone.

        Raises:
            StateError: The file cannot be read or written, or is damaged.
        """
        try:
            if path.stat().st_mode & 0o077:
                _close(path)
            ring = msgspec.json.decode(path.read_bytes(), type=_Ring)
        except FileNotFoundError:
            ring = _Ring(keys=[_new_key(at)])
            save(path, ring)
        except OSError as error:
            raise StateError(f"{path} cannot be read: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _damaged(path) from error
        try:
            return cls(ring.keys, issuer=issuer, audience=audience)
        except ValueError as error:
            raise _damaged(path) from error

    def sign(self, identity: Identity, *, issued_at: int, expires_at: int) -> str:
        claims: dict[str, Any] = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": identity.subject,
            "iat": issued_at,
            "exp": expires_at,
            "jti": identity.token_id,
            "scope": " ".join(identity.scopes),
        }
        if identity.node:
            claims["node"] = True
        return jwt.encode(
            claims, self._signing_key, algorithm=_ALGORITHM, headers={"kid": self._public[0].kid}
        )

    def public_keys(self) -> list[PublicKey]:
        return list(self._public)


class JwtVerifier:
    """`mesh.ports.TokenVerifier`. Trusts nobody until it is told whom."""

    def __init__(self, *, issuer: str, audience: str, leeway_s: float) -> None:
        """Args:
        issuer: Whose tokens count.
        audience: Whom they must be for.
        leeway_s: How long after its expiry a token is still taken: clocks differ.
        """
        self._issuer = issuer
        self._audience = audience
        self._leeway_s = leeway_s
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

    def verify(self, token: str, now: float) -> tuple[Identity, float]:
        if len(token) > MAX_TOKEN_CHARS:
            raise UnauthorizedError("the token is too long")
        try:
            key = self._key_of(token)
            claims = msgspec.convert(self._signed_by(key, token), _Claims)
        except _REFUSED:
            # What was wrong is nobody's business; nor may pieces of the token get into a log.
            raise UnauthorizedError("the token is not valid") from None
        until = claims.exp + self._leeway_s
        if now >= until:
            raise UnauthorizedError("the token has expired")
        identity = Identity(
            subject=claims.sub, scopes=claims.scope.split(), node=claims.node, token_id=claims.jti
        )
        return identity, until

    def _key_of(self, token: str) -> Ed25519PublicKey:
        header = jwt.get_unverified_header(token)
        kid = header.get("kid")
        if header.get("alg") != _ALGORITHM or not isinstance(kid, str):
            raise UnauthorizedError("the token is not valid")
        key = self._keys.get(kid)
        if key is None:
            raise UnknownKeyError("the token is signed with an unknown key")
        return key

    def _signed_by(self, key: Ed25519PublicKey, token: str) -> dict[str, Any]:
        return jwt.decode(
            token,
            key,
            algorithms=[_ALGORITHM],
            issuer=self._issuer,
            audience=self._audience,
            options=_OURS_TO_CHECK,  # type: ignore[arg-type]
        )


def _close(path: Path) -> None:
    """Raises StateError: Others may read it, and we may not change that."""
    try:
        path.chmod(0o600)
    except OSError as error:
        raise StateError(
            f"{path} is open to others and its mode cannot be changed: {error.strerror}"
        ) from error


def _new_key(at: int) -> _StoredKey:
    key = Ed25519PrivateKey.generate()
    return _StoredKey(kid=_public(key).kid, d=_packed(key.private_bytes_raw()), created_at=at)


def _public(key: Ed25519PrivateKey) -> PublicKey:
    """The id follows from the key: two keys never share one."""
    raw = key.public_key().public_bytes_raw()
    return PublicKey(kid=_packed(hashlib.sha256(raw).digest()[:_KID_BYTES]), x=_packed(raw))


def _is_ours(key: PublicKey) -> bool:
    if (key.kty, key.crv, key.alg, key.use) != ("OKP", "Ed25519", _ALGORITHM, "sig"):
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


def _damaged(path: Path) -> StateError:
    return StateError(
        f"{path} is damaged: put a copy back, or remove it: then new keys are made, "
        "and every access token that was issued is refused"
    )
