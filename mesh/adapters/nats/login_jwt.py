"""The broker's question who somebody is, and the answer: NATS JWTs (`ed25519-nkey`).

Strict on what comes in: everything about a request may have been made up by whoever logs in, and
nobody but a broker of this mesh may ask.

Source: NATS ADR-26 (auth callout), ADR-14 (JWT), github.com/nats-io/jwt v2.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from mesh.adapters.nats.nkey import SERVER, USER, CurveKey, Signer, decode_public, verify
from mesh.ports import LoginAttempt, LoginGrant
from mesh.wire.subjects import token

MAX_REQUEST_BYTES = 64 * 1024
ACCOUNT = "MESH"
"""Where everybody who is let in works."""

_CLOCK_SKEW_S = 30
"""Of the broker's machine against ours."""
_ALGORITHM = "ed25519-nkey"
_UNLIMITED = -1
_PATTERN = re.compile(r"[A-Za-z0-9_$-]+|\*")
_LONGEST_SUBJECT = 512

_Short = Annotated[str, Meta(max_length=256)]
_Shown = Annotated[str, Meta(max_length=8192)]
"""The broker reads 4 KiB before a login, and no more."""


class LoginRequest(NamedTuple):
    """Somebody wants in."""

    server: str
    """Public key of the server that asks."""
    server_xkey: str
    """Its curve key."""
    client: str
    """Public key the server made for this one login."""
    attempt: LoginAttempt


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    typ: Literal["JWT", "jwt"]
    alg: Literal["ed25519-nkey"]


class _Server(msgspec.Struct, frozen=True, kw_only=True):
    id: _Short
    xkey: _Short


class _Client(msgspec.Struct, frozen=True, kw_only=True):
    host: _Short = ""


class _Connect(msgspec.Struct, frozen=True, kw_only=True):
    user: _Shown = ""
    password: _Shown = msgspec.field(name="pass", default="")


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["authorization_request"]
    server_id: _Server
    user_nkey: _Short
    client_info: _Client = _Client()
    connect_opts: _Connect = _Connect()


class _Claims(msgspec.Struct, frozen=True, kw_only=True):
    iss: _Short
    aud: Literal["nats-authorization-request"]
    exp: int
    nats: _Request


_HEADER = msgspec.json.Decoder(_Header)
_CLAIMS = msgspec.json.Decoder(_Claims)


def read_request(data: bytes, sender: str, key: CurveKey, *, at_s: int) -> LoginRequest:
    """What a broker asks.

    Args:
        data: Sealed for `key`.
        sender: Curve key that sealed it, as the message's header has it.
        key: The masters'.
        at_s: Unix seconds now.

    Raises:
        ValueError: Nothing that a server of this mesh asks now; says why.
    """
    if len(data) > MAX_REQUEST_BYTES:
        raise ValueError("too long")
    head, claims, signed, signature = _taken_apart(key.open(data, sender))
    try:
        _HEADER.decode(head)
        asked = _CLAIMS.decode(claims)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not an authorization request: {error}") from None
    server = asked.nats.server_id
    if asked.iss != server.id or sender != server.xkey:
        raise ValueError("the server that asks is another one than the one that signed or sealed")
    verify(decode_public(asked.iss, SERVER), signed, signature)
    if asked.exp + _CLOCK_SKEW_S < at_s:
        raise ValueError("expired")
    decode_public(asked.nats.user_nkey, USER)
    shown = asked.nats.connect_opts
    attempt = LoginAttempt(
        user=shown.user, secret=shown.password, address=asked.nats.client_info.host
    )
    return LoginRequest(server.id, server.xkey, asked.nats.user_nkey, attempt)


def _taken_apart(sealed: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Header, claims, what is signed and the signature."""
    parts = sealed.split(b".")
    if len(parts) != 3:  # noqa: PLR2004 (header, claims, signature)
        raise ValueError("not a JWT")
    head, claims, signature = (_unpacked(part) for part in parts)
    return head, claims, sealed[: sealed.rindex(b".")], signature


def sign_grant(issuer: Signer, request: LoginRequest, grant: LoginGrant, *, at_s: int) -> bytes:
    """The answer that lets somebody in.

    Raises:
        ValueError: It would let him in with more than is meant: a name that is no token, an empty
            list of subjects (the broker takes that for all of them), or a subject that is none.
        InvalidError: The same, of the name.
    """
    token(grant.name)
    _check(grant.permissions.publish)
    _check(grant.permissions.subscribe)
    user: dict[str, Any] = {
        "sub": request.client,
        "aud": ACCOUNT,
        "name": grant.name,
        "nats": {
            "type": "user",
            "version": 2,
            "pub": {"allow": list(grant.permissions.publish)},
            "sub": {"allow": list(grant.permissions.subscribe)},
            "subs": _UNLIMITED,
            "data": _UNLIMITED,
            "payload": _UNLIMITED,
        },
    }
    if grant.until is not None:
        user["exp"] = grant.until
    return _answer(issuer, request, {"jwt": _signed(issuer, user, at_s).decode()}, at_s)


def sign_refusal(issuer: Signer, request: LoginRequest, why: str, *, at_s: int) -> bytes:
    """The answer that turns somebody away; the broker logs `why`, and tells him nothing of it."""
    return _answer(issuer, request, {"error": why[:200] or "refused"}, at_s)


def _check(subjects: Sequence[str]) -> None:
    if not subjects:
        raise ValueError("no subjects at all would mean all of them")
    for subject in subjects:
        parts = subject.split(".")
        body = parts[:-1] if parts[-1] == ">" else parts
        # Never `>` alone, nor `*` first: no role has all there is.
        plain = bool(body) and body[0] != "*" and all(map(_PATTERN.fullmatch, body))
        if not plain or len(subject) > _LONGEST_SUBJECT:
            raise ValueError(f"not a subject to give anybody: {subject[:80]!r}")


def _answer(issuer: Signer, request: LoginRequest, content: dict[str, str], at_s: int) -> bytes:
    claims = {
        "sub": request.client,
        "aud": request.server,
        "nats": {"type": "authorization_response", "version": 2, **content},
    }
    return _signed(issuer, claims, at_s)


def _signed(issuer: Signer, claims: dict[str, Any], at_s: int) -> bytes:
    whole = claims | {"iss": issuer.public, "iat": at_s, "jti": secrets.token_hex(16)}
    signed = _packed(_JWT_HEADER) + b"." + _packed(msgspec.json.encode(whole))
    return signed + b"." + _packed(issuer.sign(signed))


_JWT_HEADER = msgspec.json.encode({"typ": "JWT", "alg": _ALGORITHM})


def _packed(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def _unpacked(text: bytes) -> bytes:
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64url") from None
