"""Tampered tokens at the door of the whole app: each of them is a 401, and a good one is let in."""

from __future__ import annotations

import base64
import hmac
import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fakes import MemoryBroker
from gateway_fakes import Client

from agents.gateway.app import create_app
from mesh.adapters.clock import SystemClock
from mesh.adapters.jwt import Ed25519Mint, SecretSigner, token_verifier
from mesh.config import MeshConfig, RateLimitConfig
from mesh.errors import UnauthorizedError
from mesh.runtime.gatekeeper import Gatekeeper
from mesh.wire.messages import Identity, Trust

MESH = {"issuer": "nodemesh", "audience": "nodemesh"}
SECRET = "a secret of forty characters, as required"
WHO = Identity(subject="app", scopes=["search"], token_id="t1")
MINT = Ed25519Mint(**MESH)
PRIVATE = MINT.make()
PAIR = MINT.load(PRIVATE)
KID = PAIR.public.kid
KEY = f"nmk_{'k' * 43}"


def now() -> int:
    """Asked when a token is made: this module is read long before its tests run."""
    return int(time.time())


class Masters:
    """`AccessApi` as far as a gatekeeper asks it."""

    def __init__(self, keys) -> None:
        self.keys = keys

    async def trust(self) -> Trust:
        return Trust(keys=self.keys, revoked=["gone"])

    async def authenticate(self, key: str):
        if key == KEY:
            return WHO
        raise UnauthorizedError("Invalid API key")


@pytest.fixture(params=["keys", "secret"])
async def door(request):
    async for client in opened(request.param):
        yield client


async def opened(kind, **limits):
    """The app with a real gatekeeper and verifier, and how a token is signed for it."""
    secret = SECRET if kind == "secret" else ""
    verifier = token_verifier(secret=secret, **MESH, leeway_s=5.0)
    masters = Masters([] if secret else [PAIR.public])
    gatekeeper = Gatekeeper(MemoryBroker().bus("gateway"), masters, verifier, SystemClock())
    await gatekeeper.start()
    client = Client()
    config = MeshConfig(rate_limit=RateLimitConfig(**limits or {"enabled": False}))
    client.edge = create_app(client.mesh, gatekeeper, config)
    client.secret = secret
    yield client
    await gatekeeper.stop()


def packed(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def good(secret: str, **changed) -> dict:
    claims = {"iss": "nodemesh", "aud": "nodemesh", "sub": "app", "iat": now(), "exp": now() + 60}
    said = claims | {"jti": "t1", "scope": "search"} | changed
    return {name: value for name, value in said.items() if value is not None}


def signed(secret: str, start: str) -> str:
    """By whoever signs here: the signature is right, whatever it is under."""
    if secret:
        return f"{start}.{packed(hmac.digest(secret.encode(), start.encode(), 'sha256'))}"
    private = Ed25519PrivateKey.from_private_bytes(PRIVATE)
    return f"{start}.{packed(private.sign(start.encode()))}"


def made(secret: str, *, claims: str | None = None, header: dict | None = None, **changed) -> str:
    head = {"alg": "HS256" if secret else "EdDSA", "typ": "JWT", "kid": KID} | (header or {})
    body = claims or json.dumps(good(secret, **changed))
    return signed(secret, f"{packed(json.dumps(head).encode())}.{packed(body.encode())}")


def unsigned(secret: str, alg: str) -> str:
    head = packed(json.dumps({"alg": alg, "typ": "JWT", "kid": KID}).encode())
    return f"{head}.{packed(json.dumps(good(secret)).encode())}."


def confused(_secret: str) -> str:
    """HMAC with what everybody knows."""
    public = base64.urlsafe_b64decode(PAIR.public.x + "=")
    start = unsigned("", "HS256").rstrip(".")
    return f"{start}.{packed(hmac.digest(public, start.encode(), 'sha256'))}"


def other_kind(secret: str) -> str:
    """What the other configuration would take."""
    signer = PAIR if secret else SecretSigner(SECRET, **MESH)
    return signer.sign(WHO, issued_at=now(), expires_at=now() + 60)


def foreign(secret: str) -> str:
    other = SecretSigner(SECRET[::-1], **MESH) if secret else MINT.load(MINT.make())
    return other.sign(WHO, issued_at=now(), expires_at=now() + 60)


def under_our_kid(_secret: str) -> str:
    mine = Ed25519PrivateKey.generate()
    return jwt.encode(good(""), mine, algorithm="EdDSA", headers={"kid": KID})


TAMPERED = {
    "alg-none": lambda secret: unsigned(secret, "none"),
    "alg-None": lambda secret: unsigned(secret, "None"),
    "alg-missing": lambda secret: made(secret, header={"alg": None}),
    "alg-rs256": lambda secret: made(secret, header={"alg": "RS256"}),
    "public-key-as-secret": confused,
    "other-kind": other_kind,
    "foreign-key": foreign,
    "other-key-our-kid": under_our_kid,
    "kid-number": lambda secret: made(secret, header={"kid": 7}),
    "kid-list": lambda secret: made(secret, header={"kid": ["a"]}),
    "expired": lambda secret: made(secret, iat=now() - 90, exp=now() - 30),
    "future": lambda secret: made(secret, iat=now() + 3600, exp=now() + 7200),
    "not-before": lambda secret: made(secret, nbf=now() + 3600),
    "audience": lambda secret: made(secret, aud="elsewhere"),
    "audiences": lambda secret: made(secret, aud=["nodemesh", "elsewhere"]),
    "no-audience": lambda secret: made(secret, aud=None),
    "issuer": lambda secret: made(secret, iss="elsewhere"),
    "no-expiry": lambda secret: made(secret, exp=None),
    "revoked": lambda secret: made(secret, jti="gone"),
    "cut": lambda secret: made(secret)[:-6],
    "no-signature": lambda secret: made(secret).rpartition(".")[0] + ".",
    "two-parts": lambda secret: made(secret).rpartition(".")[0],
    "four-parts": lambda secret: made(secret) + ".x",
    "twice": lambda secret: made(
        secret, claims=json.dumps(good(secret)).replace("{", '{"sub":"root",', 1)
    ),
    "huge": lambda secret: made(secret, more="x" * 9000),
    "claims-deep": lambda secret: made(secret, claims="[" * 3000),
    "subject-wildcard": lambda secret: made(secret, sub=">"),
    "not-base64": lambda secret: "a.b.!",
}


@pytest.mark.parametrize("how", TAMPERED)
async def test_a_tampered_token_is_a_401(door, how):
    answer = await door.ask("POST", "/search", {"query": "x"}, bearer=TAMPERED[how](door.secret))
    assert answer.status == 401
    assert answer.json()["error"] == "Unauthorized"
    assert door.mesh.calls == []


@pytest.mark.parametrize("kid", ["elsewhere", "../../etc/passwd", "", "a" * 65])
async def test_a_token_under_another_kid_is_a_401_where_keys_sign(door, kid):
    """A secret has no kid: what a token says of it means nothing there."""
    token = made(door.secret, header={"kid": kid})
    answer = await door.ask("POST", "/search", {"query": "x"}, bearer=token)
    assert answer.status == (200 if door.secret else 401)


async def test_a_good_token_is_let_in(door):
    """So that what is refused above is refused for what was changed."""
    answer = await door.ask("POST", "/search", {"query": "x"}, bearer=made(door.secret))
    assert answer.status == 200


async def test_the_key_set_is_what_verifies_tokens(door):
    answer = await door.ask("GET", "/.well-known/jwks.json", bearer=None, prefix="")
    assert answer.status == 200
    x, kid = PAIR.public.x, PAIR.public.kid
    key = {"kid": kid, "x": x, "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig"}
    assert answer.json() == {"keys": [] if door.secret else [key]}
    assert answer.headers["cache-control"] == "public, max-age=60"


async def test_no_key_set_before_a_master_told_it():
    client = Client()
    client.gatekeeper.ready = False
    answer = await client.ask("GET", "/.well-known/jwks.json", bearer=None, prefix="")
    assert answer.status == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("kind", ["keys", "secret"])
async def test_who_guesses_shuts_nobody_out_who_is_behind_the_same_address(kind):
    async for client in opened(kind, max_attempts=3):
        guesses = [f"nmk_{number:043d}" for number in range(10)]
        guesses += [made(client.secret)[:-9] + f"{number:09d}" for number in range(10)]
        answers = [await client.ask("POST", "/search", {"query": "x"}, bearer=b) for b in guesses]
        assert {answer.status for answer in answers} == {401, 429}
        for bearer in (KEY, made(client.secret)):
            assert (
                await client.ask("POST", "/search", {"query": "x"}, bearer=bearer)
            ).status == 200
