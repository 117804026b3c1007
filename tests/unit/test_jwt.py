"""Tokens that are good are taken; everything else is refused, in few words and without a crash."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import stat
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from mesh.adapters.jwt import JwtSigner, JwtVerifier, _StoredKey
from mesh.adapters.state import write_json
from mesh.errors import StateError, UnauthorizedError
from mesh.ports import UnknownKeyError
from mesh.wire.messages import Identity, PublicKey

NOW = 1_800_000_000
WHO = Identity(subject="app", scopes=["search", "actions:refund"], token_id="t-1")
MESH = {"issuer": "nodemesh", "audience": "nodemesh"}


def signer_in(folder, name="keys.json", **changed) -> JwtSigner:
    options = MESH | {"at": NOW * 1000, "save": write_json} | changed
    return JwtSigner.open(folder / name, **options)


def verifier_for(*signers: JwtSigner, **changed) -> JwtVerifier:
    verifier = JwtVerifier(**MESH | {"leeway_s": 5.0} | changed)
    verifier.trust([key for signer in signers for key in signer.public_keys()])
    return verifier


@pytest.fixture(scope="module")
def signer(tmp_path_factory) -> JwtSigner:
    return signer_in(tmp_path_factory.mktemp("keys"))


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


def private_key(signer: JwtSigner) -> Ed25519PrivateKey:
    return signer._signing_key


def forged(signer: JwtSigner, *, header: dict | None = None, **claims) -> str:
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


# -- bad tokens ------------------------------------------------------------------------------------


def unsigned(token: str, alg: str) -> str:
    header = packed(json.dumps(header_of(token) | {"alg": alg}).encode())
    return f"{header}.{token.split('.')[1]}."


def symmetric(token: str, secret: bytes, alg: str = "HS256") -> str:
    """Signed with what everybody knows: the public key, taken for a shared secret."""
    start = unsigned(token, alg).rstrip(".")
    return f"{start}.{packed(hmac.digest(secret, start.encode(), 'sha256'))}"


def public_forms(signer: JwtSigner) -> dict[str, bytes]:
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


def test_a_token_of_another_mesh_is_signed_with_an_unknown_key(verifier, tmp_path):
    token = signer_in(tmp_path).sign(WHO, issued_at=NOW, expires_at=NOW + 60)
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


# -- keys ------------------------------------------------------------------------------------------


def test_keys_are_made_once_and_kept(tmp_path):
    first, again = signer_in(tmp_path), signer_in(tmp_path, at=1)
    assert first.public_keys() == again.public_keys()
    token = first.sign(WHO, issued_at=NOW, expires_at=NOW + 60)
    assert verifier_for(again).verify(token, NOW)[0] == WHO


def test_a_file_that_is_closed_is_left_as_it_is(tmp_path, monkeypatch):
    """It may be another's, or on a volume that can only be read."""
    signer_in(tmp_path)
    path = tmp_path / "keys.json"

    def refuse(_self, _mode):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    assert signer_in(tmp_path).public_keys()
    os.chmod(path, 0o644)  # noqa: PTH101 (the method refuses now)
    with pytest.raises(StateError, match=r"open to others .* Operation not permitted"):
        signer_in(tmp_path)


def test_the_file_is_its_owners_alone(tmp_path):
    signer_in(tmp_path)
    path = tmp_path / "keys.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    signer_in(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_newest_key_signs_and_older_ones_are_still_believed(tmp_path):
    old, new = signer_in(tmp_path, "old", at=1), signer_in(tmp_path, "new", at=2)
    keys = [json.loads((tmp_path / name).read_text())["keys"][0] for name in ("old", "new")]
    write_json(tmp_path / "both", {"keys": keys})
    both = signer_in(tmp_path, "both")
    assert both.public_keys() == new.public_keys() + old.public_keys()
    token = both.sign(WHO, issued_at=NOW, expires_at=NOW + 60)
    assert verifier_for(new).verify(token, NOW)
    before = old.sign(WHO, issued_at=NOW, expires_at=NOW + 60)
    assert verifier_for(both).verify(before, NOW)


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
        signer_in(tmp_path)
    assert path.read_bytes() == content


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StateError, match=r"keys\.json"):
        signer_in(tmp_path / "none")


def test_secrets_are_not_shown(tmp_path):
    signer_in(tmp_path)
    [key] = json.loads((tmp_path / "keys.json").read_text())["keys"]
    assert key["d"] not in repr(_StoredKey(**key))


def test_the_id_of_a_key_follows_from_the_key(signer):
    [key] = signer.public_keys()
    assert key.kid == packed(hashlib.sha256(unpacked(key.x)).digest()[:12])


def test_trust_tells_whether_it_changed(signer, tmp_path):
    verifier = JwtVerifier(**MESH, leeway_s=0)
    other = signer_in(tmp_path)
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
