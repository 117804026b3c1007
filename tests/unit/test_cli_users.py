"""`meshctl users`, `keys` and nodes that wait: what is asked, and what becomes of keys."""

from __future__ import annotations

import json
import stat

import pytest
from cli_fake_mesh import FAR, START, FakeMesh, record, waiting

from cli import connection
from cli.meshctl.app import run
from mesh import messages
from mesh.errors import NoMasterError, UnauthorizedError


@pytest.fixture
def mesh(monkeypatch):
    fake = FakeMesh(record("crm"))
    monkeypatch.setattr(connection, "connect", lambda _options: fake)
    return fake


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        (["users", "create", "shop"], ("create user", ("shop", ["search", "actions"], ""))),
        (
            ["users", "create", "shop", "--scope", "search:notes,admin", "--description", "A shop"],
            ("create user", ("shop", ["search:notes", "admin"], "A shop")),
        ),
        (["users", "rotate-key", "shop"], ("rotate user", ("shop", 0))),
        (["users", "rotate-key", "shop", "--overlap", "15m"], ("rotate user", ("shop", 900))),
        (["users", "remove", "shop", "--yes"], ("remove user", "shop")),
        (["nodes", "rotate-key", "crm", "--overlap", "60"], ("rotate", ("crm", 60))),
        (["nodes", "approve", "crm", "--yes"], ("approve", ("crm", ["search", "actions"]))),
        (
            ["nodes", "approve", "crm", "--scope", "search", "-y"],
            ("approve", ("crm", ["search"])),
        ),
        (["nodes", "reject", "crm", "--yes"], ("reject", "crm")),
        (["keys", "rotate"], ("rotate signing keys", 86_400)),
        (["keys", "rotate", "--overlap", "0"], ("rotate signing keys", 0)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "asked",
)
def test_what_was_typed_is_what_is_asked(mesh, capsys, typed, asked):
    assert run(typed) == 0
    assert mesh.calls == [asked]
    told = capsys.readouterr()
    is_key = "rotate-key" in typed or "create" in typed
    assert told.out.count("secret-key") == is_key
    assert ("not shown again" in told.err) is is_key


@pytest.mark.parametrize(
    "typed",
    [
        ["users", "create", "shop"],
        ["users", "rotate-key", "shop"],
        ["nodes", "register", "crm"],
        ["nodes", "rotate-key", "crm"],
    ],
    ids=" ".join,
)
def test_a_file_gets_the_key_and_nobody_sees_it(mesh, capsys, tmp_path, typed):
    file = tmp_path / "login.json"
    assert run([*typed, "--out", str(file), "--json"]) == 0
    told = capsys.readouterr()
    login = json.loads(file.read_bytes())
    assert login == {"user": typed[2], "password": login["password"]}
    assert "key" in login["password"]
    assert login["password"] not in told.out + told.err
    assert json.loads(told.out)["file"] == str(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_that_cannot_be_is_refused_before_a_key_is_made(mesh, tmp_path):
    there = tmp_path / "there.json"
    there.write_text("mine")
    for file in (tmp_path / "none" / "login.json", tmp_path, there):
        assert run(["users", "create", "shop", "--out", str(file)]) == 2
        assert run(["nodes", "register", "shop", "--out", str(file)]) == 2
        assert run(["users", "rotate-key", "shop", "--out", str(file)]) == 2
        assert run(["nodes", "rotate-key", "crm", "--out", str(file)]) == 2
    assert not mesh.calls
    assert there.read_text() == "mine"


@pytest.mark.parametrize("typed", [["users", "rotate-key", "shop"], ["nodes", "rotate-key", "crm"]])
def test_a_new_key_takes_the_place_of_that_user_s_alone(mesh, capsys, tmp_path, typed):
    file = tmp_path / "login.json"
    file.write_text('{"user": "ann", "password": "nmk_x"}')
    assert run([*typed, "--out", str(file)]) == 2
    assert "not the credentials of" in capsys.readouterr().err
    assert not mesh.calls
    file.write_text(json.dumps({"user": typed[2], "password": "nmk_x"}))
    assert run([*typed, "--out", str(file)]) == 0
    assert json.loads(file.read_bytes())["password"] != "nmk_x"


def test_an_overlap_says_until_when(mesh, capsys):
    run(["nodes", "rotate-key", "crm", "--overlap", "60"])
    assert "old key until  2100-01-01T00:00:00Z" in capsys.readouterr().out


@pytest.mark.parametrize(
    "typed", [["users", "remove", "shop"], ["nodes", "approve", "crm"], ["nodes", "reject", "crm"]]
)
def test_nobody_to_ask_is_no_yes(mesh, typed):
    assert run(typed) == 2
    assert not mesh.calls


def test_those_who_wait_are_listed_with_their_fingerprints(mesh, capsys):
    assert run(["nodes", "pending"]) == 0
    assert "no node waits" in capsys.readouterr().err
    mesh.access.waiting = [waiting("shop")]
    run(["nodes", "pending"])
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == [
        "id-shop", "shop", "0123456789abcdef", "192.0.2.7",
    ]  # fmt: skip
    run(["nodes", "pending", "--json"])
    assert json.loads(capsys.readouterr().out)["nodes"][0]["name"] == "shop"


def test_users_are_listed_without_keys(mesh, capsys):
    assert run(["users", "list"]) == 0
    assert "there are no users" in capsys.readouterr().err
    mesh.access.known_users = [
        messages.User(name="ops", scopes=["admin"], description="Us", created_at=START)
    ]
    run(["users", "list"])
    assert capsys.readouterr().out.splitlines()[1].split() == [
        "ops", "admin", "Us", "2026-01-02T03:04:05Z",
    ]  # fmt: skip


def test_the_ring_is_listed_by_what_each_key_does(mesh, capsys):
    mesh.access.ring = [
        messages.SigningKey(kid="c", created_at=START),
        messages.SigningKey(kid="b", created_at=START, retires_at=FAR),
        messages.SigningKey(kid="a", created_at=START, retires_at=START),
    ]
    assert run(["keys", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [(line.split()[0], line.split()[-1]) for line in lines] == [
        ("c", "signs"),
        ("b", "verifies"),
        ("a", "retired"),
    ]
    mesh.access.ring = []
    run(["keys", "list"])
    assert "security.jwt_secret" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("failure", "code", "kind"),
    [
        (NoMasterError("no master answered the login"), 3, "no_master"),
        (UnauthorizedError("refused"), 4, "unauthorized"),
    ],
)
def test_a_login_that_nobody_answers_is_not_one_that_is_refused(mesh, capsys, failure, code, kind):
    mesh.failure = failure
    assert run(["users", "list", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["kind"] == kind
