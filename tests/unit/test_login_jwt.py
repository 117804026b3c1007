"""The broker's question and our answer, word by word, without a broker."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import nkeys
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.adapters.nats import login_jwt, nkey
from mesh.adapters.nats.nkey import ACCOUNT, CURVE, SERVER, USER, CurveKey, Signer, make_seed
from mesh.core import permissions
from mesh.core.permissions import Permissions
from mesh.errors import InvalidError
from mesh.ports import LoginGrant

NOW = 1_800_000_000
ISSUER = Signer(make_seed(ACCOUNT))
OURS = CurveKey(make_seed(CURVE))
BROKER = Signer(make_seed(SERVER))
BROKER_CURVE = CurveKey(make_seed(CURVE))
CLIENT = nkey.public_of(make_seed(USER))


def packed(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def claims(**changed) -> dict:
    """As nats-server 2.15.1 makes them; `nats__x` changes what is inside."""
    inner = {
        "type": "authorization_request",
        "version": 2,
        "server_id": {
            "name": "mesh",
            "host": "127.0.0.1",
            "id": BROKER.public,
            "xkey": BROKER_CURVE.public,
        },
        "user_nkey": CLIENT,
        "client_info": {"host": "192.0.2.7", "id": 5, "kind": "Client", "type": "nats"},
        "connect_opts": {"user": "crm", "pass": "nmk_secret", "lang": "go", "protocol": 1},
    }
    whole = {"iss": BROKER.public, "aud": "nats-authorization-request", "exp": NOW + 2}
    whole |= {"nats": inner, "sub": CLIENT, "iat": NOW, "jti": "x"}
    for name, value in changed.items():
        place, found, inside = name.partition("__")
        target = whole[place] if found else whole
        target[inside or place] = value
    return whole


def jwt(content: dict, *, header=None, signer: Signer = BROKER) -> bytes:
    head = packed(json.dumps(header or {"typ": "JWT", "alg": "ed25519-nkey"}).encode())
    signed = f"{head}.{packed(json.dumps(content).encode())}".encode()
    return signed + b"." + packed(signer.sign(signed)).encode()


def sealed(raw: bytes) -> bytes:
    return BROKER_CURVE.seal(raw, OURS.public)


def read(data: bytes, sender: str = BROKER_CURVE.public, at_s: int = NOW):
    return login_jwt.read_request(data, sender, OURS, at_s=at_s)


REQUEST = read(sealed(jwt(claims())))


def test_a_request_says_who_wants_in():
    assert REQUEST.server == BROKER.public
    assert REQUEST.server_xkey == BROKER_CURVE.public
    assert REQUEST.client == CLIENT
    assert REQUEST.attempt == ("crm", "nmk_secret", "192.0.2.7")
    assert "nmk_secret" not in repr(REQUEST)


def test_who_shows_no_name_has_none():
    for shown in ({}, {"auth_token": "t"}):
        assert read(sealed(jwt(claims(nats__connect_opts=shown)))).attempt[:2] == ("", "")


OTHER = Signer(make_seed(SERVER))
NOT_A_SERVER = Signer(make_seed(ACCOUNT))
ID = {"id": BROKER.public, "xkey": BROKER_CURVE.public}
TAMPERED = {
    "signed by another server": jwt(claims(), signer=OTHER),
    "issuer is not the server": jwt(claims(iss=OTHER.public), signer=OTHER),
    "signed by no server": jwt(
        claims(iss=NOT_A_SERVER.public, nats__server_id=ID | {"id": NOT_A_SERVER.public}),
        signer=NOT_A_SERVER,
    ),
    "other curve key": jwt(claims(nats__server_id=ID | {"xkey": OURS.public})),
    "no curve key": jwt(claims(nats__server_id={"id": BROKER.public})),
    "for others": jwt(claims(aud="nats-authorization-response")),
    "expired": jwt(claims(exp=NOW - 31)),
    "no end": jwt({k: v for k, v in claims().items() if k != "exp"}),
    "another question": jwt(claims(nats__type="authorization_response")),
    "client is no user": jwt(claims(nats__user_nkey=BROKER.public)),
    "client is nobody": jwt(claims(nats__user_nkey="")),
    "endless name": jwt(claims(nats__connect_opts={"user": "x" * 8193})),
    "name is a number": jwt(claims(nats__connect_opts={"user": 7})),
    "alg none": jwt(claims(), header={"typ": "JWT", "alg": "none"}),
    "alg hs256": jwt(claims(), header={"typ": "JWT", "alg": "HS256"}),
    "no signature": jwt(claims()).rpartition(b".")[0] + b".",
    "two parts": jwt(claims()).rpartition(b".")[0],
    "four parts": jwt(claims()) + b".x",
    "not base64": jwt(claims()).replace(b".", b".!", 1),
    "empty": b"",
    "deep": b".".join(packed(part).encode() for part in (b"{}", b"[" * 9000, b"")),
    "too long": b"x" * 70_000,
}


@pytest.mark.parametrize("raw", TAMPERED.values(), ids=TAMPERED)
def test_what_is_tampered_with_is_no_request(raw):
    with pytest.raises(ValueError, match=r"."):
        read(sealed(raw))


def test_a_signature_by_secret_is_none():
    """HS256 with what everybody knows, the public key, as the secret."""
    head = packed(b'{"typ":"JWT","alg":"HS256"}')
    signed = f"{head}.{packed(json.dumps(claims()).encode())}".encode()
    mac = hmac.new(BROKER.public.encode(), signed, hashlib.sha256).digest()
    with pytest.raises(ValueError, match="authorization request"):
        read(sealed(signed + b"." + packed(mac).encode()))


def test_what_is_not_sealed_for_us_by_the_sender_is_none():
    raw = jwt(claims())
    stranger = CurveKey(make_seed(CURVE))
    for data, sender in (
        (raw, BROKER_CURVE.public),
        (sealed(raw), stranger.public),
        (BROKER_CURVE.seal(raw, stranger.public), BROKER_CURVE.public),
        (sealed(raw)[:-1], BROKER_CURVE.public),
        (sealed(raw), ""),
        (sealed(raw), BROKER.public),
        (stranger.seal(raw, OURS.public), stranger.public),
    ):
        with pytest.raises(ValueError, match=r"."):
            read(data, sender)


@given(st.binary(max_size=400), st.text(max_size=80))
def test_no_bytes_end_in_anything_but_a_refusal(data, sender):
    for raw in (data, b"xkv1" + data, sealed(data)):
        for by in (sender, BROKER_CURVE.public):
            with pytest.raises(ValueError, match=r"."):
                read(raw, by)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
FIELDS = ["iss", "aud", "exp", "nats"]
INNER = ["type", "server_id", "user_nkey", "client_info", "connect_opts"]


@given(st.sampled_from(FIELDS + [f"nats__{name}" for name in INNER]), JSON)
def test_whatever_a_server_signs_is_read_or_refused(name, value):
    raw = sealed(jwt(claims(**{name: value})))
    try:
        request = read(raw)
    except ValueError:
        return
    assert request.client == CLIENT


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_one_byte_changed_anywhere_is_noticed(place, change):
    raw = bytearray(sealed(jwt(claims())))
    raw[place % len(raw)] ^= change
    with pytest.raises(ValueError, match=r"."):
        read(bytes(raw))


# -- answers ---------------------------------------------------------------------------------------


def opened(token: bytes | str) -> dict:
    """The claims, once their signature is checked with the driver's own nkeys."""
    token = token.encode() if isinstance(token, str) else token
    signed, _, signature = token.rpartition(b".")
    raw = base64.urlsafe_b64decode(signature + b"==")
    nkey.verify(nkey.decode_public(ISSUER.public, ACCOUNT), signed, raw)
    return json.loads(base64.urlsafe_b64decode(signed.split(b".")[1] + b"=="))


def test_a_grant_lets_in_with_exactly_what_is_granted():
    allowed = permissions.of_node("crm")
    grant = LoginGrant("crm", allowed, NOW + 60)
    answer = opened(login_jwt.sign_grant(ISSUER, REQUEST, grant, at_s=NOW))
    assert (answer["iss"], answer["aud"], answer["sub"]) == (ISSUER.public, BROKER.public, CLIENT)
    assert "error" not in answer["nats"]
    user = opened(answer["nats"]["jwt"])
    assert (user["sub"], user["aud"], user["name"]) == (CLIENT, "MESH", "crm")
    assert user["exp"] == NOW + 60
    assert user["nats"]["pub"] == {"allow": list(allowed.publish)}
    assert user["nats"]["sub"] == {"allow": list(allowed.subscribe)}
    assert "resp" not in user["nats"]


def test_without_an_end_it_has_none():
    grant = LoginGrant("crm", permissions.of_node("crm"))
    answer = opened(login_jwt.sign_grant(ISSUER, REQUEST, grant, at_s=NOW))
    assert "exp" not in opened(answer["nats"]["jwt"])


def test_a_refusal_holds_no_login_and_says_why_in_short():
    answer = opened(login_jwt.sign_refusal(ISSUER, REQUEST, "n" * 5000, at_s=NOW))
    assert answer["nats"] == {"type": "authorization_response", "version": 2, "error": "n" * 200}
    silent = opened(login_jwt.sign_refusal(ISSUER, REQUEST, "", at_s=NOW))
    assert silent["nats"]["error"], "an empty error would be neither yes nor no"


@given(st.text(max_size=70))
def test_no_name_but_a_token_is_ever_signed(name):
    grant = LoginGrant(name, permissions.of_node("crm"))
    try:
        answer = opened(login_jwt.sign_grant(ISSUER, REQUEST, grant, at_s=NOW))
    except InvalidError:
        return
    assert opened(answer["nats"]["jwt"])["name"] == name
    assert not set(name) & set("*>. \t\r\n")
    assert 1 <= len(name) <= 64


@given(st.lists(st.text(alphabet="ab.*> \r\n$", max_size=8), max_size=3), st.booleans())
def test_no_empty_or_odd_list_is_ever_signed(subjects, publish):
    fine = ("mesh.v1.hb.crm",)
    pair = (tuple(subjects), fine) if publish else (fine, tuple(subjects))
    try:
        login_jwt.sign_grant(ISSUER, REQUEST, LoginGrant("crm", Permissions(*pair)), at_s=NOW)
    except ValueError:
        return
    assert subjects
    for subject in subjects:
        first, *rest = subject.split(".")
        assert first not in ("", "*", ">")
        assert all(rest)
        assert not set(subject) & set(" \r\n")
        assert ">" not in subject[:-1]


def test_every_role_of_the_table_can_be_signed():
    joiner = "join-" + "0" * 32
    for name, allowed in (
        ("crm", permissions.of_node("crm")),
        ("ops", permissions.of_user("ops", ["search", "actions", "admin"])),
        ("app", permissions.of_user("app", ["actions:refund"])),
        ("app", permissions.of_user("app", [])),
        ("gateway", permissions.of_gateway()),
        (joiner, permissions.of_joiner(joiner)),
    ):
        assert login_jwt.sign_grant(ISSUER, REQUEST, LoginGrant(name, allowed), at_s=NOW)


# -- keys ------------------------------------------------------------------------------------------


def test_our_nkeys_are_those_of_the_driver():
    for kind in (USER, ACCOUNT, SERVER):
        seed = make_seed(kind)
        theirs = nkeys.from_seed(bytearray(seed.encode()))
        assert theirs.public_key.decode().rstrip("=") == nkey.public_of(seed)
        assert nkey.public_of(seed)[0] == kind
        assert theirs.sign(b"x") == Signer(seed).sign(b"x")


def test_curve_keys_look_like_those_of_nats():
    """Seed and public key as `nk -gen curve -pubout` of nkeys writes them."""
    seed = make_seed(CURVE)
    assert (seed[:2], len(seed)) == ("SX", 58)
    assert (nkey.public_of(seed)[0], len(nkey.public_of(seed))) == ("X", 56)


@given(st.text(max_size=70))
def test_no_text_is_a_key_by_accident(text):
    for attempt in (
        lambda: nkey.decode_seed(text),
        lambda: nkey.decode_public(text, USER),
        lambda: Signer(text),
        lambda: CurveKey(text),
    ):
        with pytest.raises(ValueError, match="key"):
            attempt()


def test_a_key_of_another_kind_is_refused_and_not_shown():
    seed = make_seed(USER)
    with pytest.raises(ValueError, match="curve") as caught:
        CurveKey(seed)
    assert seed not in str(caught.value)
    with pytest.raises(ValueError, match="kind A"):
        nkey.decode_public(nkey.public_of(seed), ACCOUNT)
    assert seed not in repr(Signer(seed))
