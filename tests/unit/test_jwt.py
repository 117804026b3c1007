"""Tokens that are good are taken; everything else is refused, in few words and without a crash."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from mesh.adapters.former_keys import FormerKeyFile, _StoredKey
from mesh.adapters.jwt import (
    Ed25519Mint,
    JwtVerifier,
    SecretSigner,
    SecretVerifier,
    token_verifier,
)
from mesh.errors import ConfigError, StateError, UnauthorizedError
from mesh.ports import UnknownKeyError
from mesh.wire.messages import Identity, PublicKey

NOW = 1_800_000_000
WHO = Identity(subject="app", scopes=["search", "actions:refund"], token_id="t-1")
MESH = {"issuer": "nodemesh", "audience": "nodemesh"}


class Signer:
    """One key."""

    def __init__(self, secret: bytes | None = None) -> None:
        mint = Ed25519Mint(**MESH)
        self.secret = secret or mint.make()
        pair = mint.load(self.secret)
        self.sign = pair.sign
        self.public_keys = lambda: [pair.public]


def verifier_for(*signers: Signer, **changed) -> JwtVerifier:
    verifier = JwtVerifier(**MESH | {"leeway_s": 5.0} | changed)
    verifier.trust([key for signer in signers for key in signer.public_keys()])
    return verifier


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer()


@pytest.fixture(scope="module")
def verifier(signer) -> JwtVerifier:
    return verifier_for(signer)


@pytest.fixture(scope="module")
def token(signer) -> str:
    return signer.sign(WHO, issued_at=NOW, expires_at=NOW + 60)


def packed(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def unpacked(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "==")


def claims_of(token: str) -> dict:
    return json.loads(unpacked(token.split(".")[1]))


def header_of(token: str) -> dict:
    return json.loads(unpacked(token.partition(".")[0]))


def private_key(signer: Signer) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(signer.secret)


def forged(signer: Signer, *, header: dict | None = None, **claims) -> str:
    """Signed with the right key, which no outsider has; what is None is left out."""
    good = claims_of(signer.sign(WHO, issued_at=NOW, expires_at=NOW + 60))
    said = {name: value for name, value in (good | claims).items() if value is not None}
    header = {"kid": signer.public_keys()[0].kid} | (header or {})
    start = f"{packed(json.dumps({'alg': 'EdDSA', 'typ': 'JWT'} | header).encode())}." + packed(
        json.dumps(said).encode()
    )
    return f"{start}.{packed(private_key(signer).sign(start.encode()))}"


# -- good tokens -----------------------------------------------------------------------------------


def test_a_good_token_says_who_and_until_when(verifier, token):
    assert verifier.verify(token, NOW) == (WHO, NOW + 65)


def test_a_node_s_token_says_so(signer, verifier):
    node = Identity(subject="crm", scopes=["search"], node=True, token_id="t-2")
    token = signer.sign(node, issued_at=NOW, expires_at=NOW + 60)
    assert claims_of(token)["node"] is True
    assert verifier.verify(token, NOW)[0] == node


def test_what_is_inside_a_token(signer, token):
    assert claims_of(token) == {
        "iss": "nodemesh",
        "aud": "nodemesh",
        "sub": "app",
        "iat": NOW,
        "exp": NOW + 60,
        "jti": "t-1",
        "scope": "search actions:refund",
    }
    kid = signer.public_keys()[0].kid
    assert header_of(token) == {"alg": "EdDSA", "typ": "JWT", "kid": kid}


def test_a_forgery_with_the_right_key_is_a_good_token(signer, verifier):
    """So that the refusals below are for what was changed."""
    assert verifier.verify(forged(signer), NOW)[0] == WHO


def test_expiry_is_what_the_clock_given_says(verifier, token):
    assert verifier.verify(token, NOW + 64.9)
    with pytest.raises(UnauthorizedError, match="expired"):
        verifier.verify(token, NOW + 65)


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_a_token_of_the_future_is_not_valid_yet(signer, verifier, claim):
    token = forged(signer, **{claim: NOW + 30})
    assert verifier.verify(token, NOW + 25)
    with pytest.raises(UnauthorizedError, match="not valid yet"):
        verifier.verify(token, NOW + 24.9)


# -- bad tokens ------------------------------------------------------------------------------------


def unsigned(token: str, alg: str) -> str:
    header = packed(json.dumps(header_of(token) | {"alg": alg}).encode())
    return f"{header}.{token.split('.')[1]}."


def symmetric(token: str, secret: bytes, alg: str = "HS256") -> str:
    """Signed with what everybody knows: the public key, taken for a shared secret."""
    start = unsigned(token, alg).rstrip(".")
    return f"{start}.{packed(hmac.digest(secret, start.encode(), 'sha256'))}"


def public_forms(signer: Signer) -> dict[str, bytes]:
    public = private_key(signer).public_key()
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    x = signer.public_keys()[0].x
    return {"raw": public.public_bytes_raw(), "pem": pem, "x": x.encode()}


@pytest.mark.parametrize("alg", ["none", "None", "NONE", ""])
def test_an_unsigned_token_is_refused(verifier, token, alg):
    with pytest.raises(UnauthorizedError, match="not valid"):
        verifier.verify(unsigned(token, alg), NOW)


@pytest.mark.parametrize("alg", ["none", "HS256", "ES256"])
def test_another_algorithm_is_no_reason_to_look_for_its_key(signer, verifier, alg):
    token = forged(signer, header={"alg": alg, "kid": "elsewhere"})
    with pytest.raises(UnauthorizedError, match="not valid") as refused:
        verifier.verify(token, NOW)
    assert not isinstance(refused.value, UnknownKeyError)


@pytest.mark.parametrize("form", ["raw", "pem", "x"])
def test_a_token_signed_with_the_public_key_as_a_secret_is_refused(signer, verifier, token, form):
    with pytest.raises(UnauthorizedError, match="not valid"):
        verifier.verify(symmetric(token, public_forms(signer)[form]), NOW)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iss", "elsewhere"),
        ("iss", None),
        ("aud", "elsewhere"),
        ("aud", ["nodemesh", "elsewhere"]),
        ("aud", None),
        ("sub", None),
        ("sub", "a.b"),
        ("sub", ">"),
        ("sub", 7),
        ("exp", None),
        ("exp", "soon"),
        ("exp", True),
        ("exp", 1e300),
        ("iat", None),
        ("iat", "now"),
        ("nbf", "now"),
        ("jti", None),
        ("jti", ""),
        ("jti", 7),
        ("scope", None),
        ("scope", ["admin"]),
        ("node", "yes"),
        ("node", 1),
    ],
)
def test_a_token_that_says_something_else_is_refused(signer, verifier, name, value):
    with pytest.raises(UnauthorizedError, match="not valid"):
        verifier.verify(forged(signer, **{name: value}), NOW)


@pytest.mark.parametrize(
    "header",
    [
        {"kid": None},
        {"kid": ["a"]},
        {"kid": 7},
        {"kid": ""},
        {"kid": "../../etc/passwd"},
        {"kid": "a" * 65},
        {"crit": ["exp"]},
        {"alg": "HS256"},
        {"alg": "ES256"},
        {"alg": None},
        {"b64": False, "crit": ["b64"]},
    ],
    ids=lambda header: "-".join(f"{name}={value}" for name, value in header.items()),
)
def test_a_token_with_another_header_is_refused(signer, verifier, header):
    with pytest.raises(UnauthorizedError, match="not valid"):
        verifier.verify(forged(signer, header=header), NOW)


@pytest.mark.parametrize("part", ["header", "claims"])
def test_what_is_said_twice_is_refused(signer, verifier, part):
    """One reader would take the first, another the last."""
    kid = signer.public_keys()[0].kid
    header = f'{{"alg":"EdDSA","kid":"{kid}"}}'
    claims = json.dumps(claims_of_good())
    if part == "header":
        header = header.replace("{", '{"alg":"none",')
    else:
        claims = claims.replace("{", '{"sub":"root",', 1)
    start = f"{packed(header.encode())}.{packed(claims.encode())}"
    signature = packed(private_key(signer).sign(start.encode()))
    with pytest.raises(UnauthorizedError, match="not valid"):
        verifier.verify(f"{start}.{signature}", NOW)


def test_a_key_that_the_token_brings_along_is_not_believed(verifier):
    mine = Ed25519PrivateKey.generate()
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": packed(mine.public_key().public_bytes_raw())}
    token = jwt.encode(
        claims_of_good(), mine, algorithm="EdDSA", headers={"kid": "mine", "jwk": jwk}
    )
    with pytest.raises(UnknownKeyError):
        verifier.verify(token, NOW)


def claims_of_good() -> dict:
    return {"iss": "nodemesh", "aud": "nodemesh", "sub": "app", "iat": NOW, "exp": NOW + 60} | {
        "jti": "t-1",
        "scope": "admin",
    }


def test_another_key_under_a_trusted_name_is_refused(signer, verifier):
    kid = signer.public_keys()[0].kid
    mine = Ed25519PrivateKey.generate()
    token = jwt.encode(claims_of_good(), mine, algorithm="EdDSA", headers={"kid": kid})
    with pytest.raises(UnauthorizedError, match="not valid"):
        verifier.verify(token, NOW)


def test_a_token_of_another_mesh_is_signed_with_an_unknown_key(verifier):
    token = Signer().sign(WHO, issued_at=NOW, expires_at=NOW + 60)
    with pytest.raises(UnknownKeyError, match="unknown key"):
        verifier.verify(token, NOW)


def test_a_verifier_that_was_told_no_keys_takes_nothing(token):
    with pytest.raises(UnknownKeyError):
        JwtVerifier(**MESH, leeway_s=5.0).verify(token, NOW)


def test_every_cut_of_a_token_is_refused(verifier, token):
    for length in range(len(token)):
        with pytest.raises(UnauthorizedError):
            verifier.verify(token[:length], NOW)


def test_every_changed_character_is_noticed(verifier, token):
    for at, character in enumerate(token):
        other = "A" if character != "A" else "Q"
        changed = token[:at] + other + token[at + 1 :]
        if unpacked_alike(changed, token):  # the unused bits of a part's last character
            continue
        with pytest.raises(UnauthorizedError):
            verifier.verify(changed, NOW)


def unpacked_alike(one: str, other: str) -> bool:
    """Only the signature may be written otherwise: the other parts are signed as written."""
    start, _, signature = one.rpartition(".")
    start_of_other, _, signature_of_other = other.rpartition(".")
    return start == start_of_other and unpacked(signature) == unpacked(signature_of_other)


def test_a_token_that_is_too_long_is_not_even_read(signer, verifier):
    long = forged(signer, more="x" * 9000)
    with pytest.raises(UnauthorizedError, match="too long"):
        verifier.verify(long, NOW)


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "é.é.é",
        "\ud800.x.y",
        "\x00.\x00.\x00",
        f"{packed(b'[]')}.{packed(b'[]')}.x",
        f"{packed(b'null')}.e30.x",
        f"{packed(b'[' * 3000)}.e30.x",
        f"{packed(b'{' + bytes([34, 0xFF, 34]) + b':1}')}.e30.x",
    ],
    ids=range(11),
)
def test_garbage_is_refused(verifier, garbage):
    with pytest.raises(UnauthorizedError):
        verifier.verify(garbage, NOW)


@given(st.text(max_size=200))
def test_any_text_is_refused(verifier, text):
    with pytest.raises(UnauthorizedError):
        verifier.verify(text, NOW)


@given(st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64"]), st.none() | st.text()
       | st.integers() | st.lists(st.text())), st.binary(max_size=60))  # fmt: skip
def test_any_header_and_claims_are_refused(verifier, header, claims):
    with pytest.raises(UnauthorizedError):
        verifier.verify(f"{packed(json.dumps(header).encode())}.{packed(claims)}.AAAA", NOW)


def test_a_refusal_holds_no_piece_of_the_token(verifier, token):
    with pytest.raises(UnauthorizedError) as refused:
        verifier.verify(token[:-2], NOW)
    assert token[:16] not in repr(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


# -- a shared secret -------------------------------------------------------------------------------

SECRET = "a secret of forty characters, as required"


@pytest.fixture(scope="module")
def shared() -> SecretSigner:
    return SecretSigner(SECRET, **MESH)


@pytest.fixture(scope="module")
def secret_verifier() -> SecretVerifier:
    return SecretVerifier(SECRET, **MESH, leeway_s=5.0)


def test_a_token_of_the_secret_says_who_and_until_when(shared, secret_verifier):
    token = shared.sign(WHO, issued_at=NOW, expires_at=NOW + 60)
    assert header_of(token) == {"alg": "HS256", "typ": "JWT"}
    assert secret_verifier.verify(token, NOW) == (WHO, NOW + 65)
    assert shared.public_keys() == []


def test_what_masters_publish_changes_nothing_for_the_secret(shared, secret_verifier, signer):
    assert not secret_verifier.trust(signer.public_keys())
    token = shared.sign(WHO, issued_at=NOW, expires_at=NOW + 60)
    assert secret_verifier.verify(token, NOW)[0] == WHO


def test_with_a_secret_no_other_algorithm_counts(secret_verifier, signer, token):
    secret_verifier.trust(signer.public_keys())
    for refused in (token, forged(signer), unsigned(token, "none"), unsigned(token, "HS256")):
        with pytest.raises(UnauthorizedError, match="not valid"):
            secret_verifier.verify(refused, NOW)


@pytest.mark.parametrize("alg", ["HS384", "HS512", "hs256", "EdDSA"])
def test_a_token_of_the_secret_in_another_algorithm_is_refused(secret_verifier, token, alg):
    with pytest.raises(UnauthorizedError, match="not valid"):
        secret_verifier.verify(symmetric(token, SECRET.encode(), alg), NOW)


def test_without_a_secret_no_token_of_one_counts(shared, verifier, signer):
    kid = signer.public_keys()[0].kid
    token = shared.sign(WHO, issued_at=NOW, expires_at=NOW + 60)
    with_kid = jwt.encode(claims_of(token), SECRET, algorithm="HS256", headers={"kid": kid})
    for refused in (token, with_kid):
        with pytest.raises(UnauthorizedError, match="not valid"):
            verifier.verify(refused, NOW)


def test_another_secret_is_refused(secret_verifier):
    other = SecretSigner(SECRET[::-1], **MESH).sign(WHO, issued_at=NOW, expires_at=NOW + 60)
    with pytest.raises(UnauthorizedError, match="not valid"):
        secret_verifier.verify(other, NOW)


def test_configuration_chooses_the_algorithm():
    options = MESH | {"leeway_s": 5.0}
    assert isinstance(token_verifier(secret="", **options), JwtVerifier)
    assert isinstance(token_verifier(secret=SECRET, **options), SecretVerifier)


def test_a_public_key_is_no_secret(signer):
    pem = public_forms(signer)["pem"].decode()
    for make in (SecretSigner, lambda *a, **o: SecretVerifier(*a, **o, leeway_s=0)):
        with pytest.raises(ConfigError, match="jwt_secret") as refused:
            make(pem, **MESH)
        assert pem.splitlines()[1] not in str(refused.value)


# -- the file of an earlier version ----------------------------------------------------------------


def former_file(folder: Path, *signers: Signer) -> Path:
    path = folder / "signing-keys.json"
    keys = [
        {"kid": one.public_keys()[0].kid, "d": packed(one.secret), "created_at": number}
        for number, one in enumerate(signers, 1)
    ]
    path.write_text(json.dumps({"keys": keys}))
    return path


def test_former_keys_are_read_whole(tmp_path):
    old, new = Signer(), Signer()
    path = former_file(tmp_path, old, new)
    found = FormerKeyFile(path).read()
    assert [(key.secret, key.created_at) for key in found] == [(old.secret, 1), (new.secret, 2)]
    FormerKeyFile(path).remove()
    FormerKeyFile(path).remove()
    assert FormerKeyFile(path).read() == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"keys": []}',
        b'{"keys": [{"kid": "a", "d": "c2hvcnQ", "created_at": 1}]}',
        b'{"keys": [{"kid": "a", "d": "*", "created_at": 1}]}',
        b"\xff",
    ],
    ids=range(6),
)
def test_a_damaged_file_is_named_and_left_alone(tmp_path, content):
    """New keys would refuse every token that was issued: that is for a person to decide."""
    path = tmp_path / "keys.json"
    path.write_bytes(content)
    with pytest.raises(StateError, match=r"keys\.json is damaged"):
        FormerKeyFile(path).read()
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_removed_is_named(tmp_path):
    path = tmp_path / "keys.json"
    path.mkdir()
    with pytest.raises(StateError, match=r"keys\.json cannot be read"):
        FormerKeyFile(path).read()
    with pytest.raises(StateError, match=r"keys\.json are in the database now, but it cannot be"):
        FormerKeyFile(path).remove()


def test_secrets_are_not_shown(tmp_path):
    path = former_file(tmp_path, Signer())
    [stored] = json.loads(path.read_text())["keys"]
    [key] = FormerKeyFile(path).read()
    assert stored["d"] not in repr(_StoredKey(d=stored["d"], created_at=1))
    assert repr(key.secret)[2:10] not in repr(key)


# -- keys ------------------------------------------------------------------------------------------


def test_the_id_of_a_key_follows_from_the_key(signer):
    [key] = signer.public_keys()
    assert key.kid == packed(hashlib.sha256(unpacked(key.x)).digest()[:12])


def test_trust_tells_whether_it_changed(signer):
    verifier = JwtVerifier(**MESH, leeway_s=0)
    other = Signer()
    assert verifier.trust(signer.public_keys())
    assert not verifier.trust(signer.public_keys())
    assert verifier.trust(signer.public_keys() + other.public_keys())
    assert verifier.trust(other.public_keys())
    token = signer.sign(WHO, issued_at=NOW, expires_at=NOW + 60)
    with pytest.raises(UnknownKeyError):
        verifier.verify(token, NOW)


@pytest.mark.parametrize(
    "key",
    [
        PublicKey(kid="a", x="c2hvcnQ"),
        PublicKey(kid="a", x="!"),
        PublicKey(kid="a", x="é"),
        PublicKey(kid="a", x=packed(bytes(32)), kty="EC"),
        PublicKey(kid="a", x=packed(bytes(32)), alg="HS256"),
        PublicKey(kid="a", x=packed(bytes(32)), use="enc"),
    ],
    ids=range(6),
)
def test_a_key_of_another_kind_is_passed_over(signer, token, key):
    verifier = JwtVerifier(**MESH, leeway_s=0)
    verifier.trust([key, *signer.public_keys()])
    assert verifier.verify(token, NOW)[0] == WHO
