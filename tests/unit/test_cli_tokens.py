from __future__ import annotations

import json

import pytest
from cli_fake_mesh import START, FakeMesh, record, token

from cli import connection
from cli.meshctl.app import run


@pytest.fixture
def mesh(monkeypatch):
    fake = FakeMesh(record("crm"))
    monkeypatch.setattr(connection, "connect", lambda _options: fake)
    return fake


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ([], ("operator", ["search", "actions"], 3600, False)),
        (["--scope", "search, admin"], ("operator", ["search", "admin"], 3600, False)),
        (
            ["--scope", "search", "--scope", "actions:refund,search"],
            ("operator", ["search", "actions:refund"], 3600, False),
        ),
        (["--ttl", "90"], ("operator", ["search", "actions"], 90, False)),
        (["--ttl", "15m"], ("operator", ["search", "actions"], 900, False)),
        (["--ttl", "12h"], ("operator", ["search", "actions"], 43_200, False)),
        (["--ttl", "30d"], ("operator", ["search", "actions"], 2_592_000, False)),
        (["--subject", "shop", "--refresh"], ("shop", ["search", "actions"], 3600, True)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "asked",
)
def test_issue_asks_for_what_was_typed(mesh, capsys, arguments, asked):
    assert run(["tokens", "issue", *arguments]) == 0
    assert mesh.named("issue") == [asked]
    told = capsys.readouterr()
    assert told.out.count("secret-access") == 1
    assert told.out.count("secret-refresh") == asked[3]
    assert told.err == "warning: keep the token now: it is not shown again\n"


def test_issue_in_json_is_the_grant(mesh, capsys):
    assert run(["tokens", "issue", "--json", "--refresh"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == {
        "id": "t1",
        "subject": "operator",
        "scopes": ["search", "actions"],
        "access_token": "secret-access",
        "token_type": "Bearer",
        "expires_in": 3600,
        "refresh_token": "secret-refresh",
        "refresh_expires_in": 9,
        "node": None,
    }
    assert "not shown again" in told.err


@pytest.mark.parametrize("ttl", ["soon", "-1", "1.5h", "", "1y", "٣h"])
def test_a_lifetime_that_is_none_is_usage(mesh, capsys, ttl):
    for command in (["tokens", "issue"], ["nodes", "join-token", "create"]):
        assert run([*command, f"--ttl={ttl}"]) == 2
        assert "15m, 12h, 30d" in capsys.readouterr().err
    assert mesh.calls == []


def test_list_shows_what_each_is_worth(mesh, capsys):
    mesh.access.issued = [
        token("a"),
        token("b", kind="refresh", revoked_at=START + 1),
        token("c", kind="join", subject="new shops", uses_left=0),
        token("d", expires_at=START + 1),
    ]
    assert run(["tokens", "list", "--subject", "x", "--all"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["ID", "KIND", "SUBJECT", "SCOPES", "ISSUED", "EXPIRES", "STATE"]
    assert [row.split()[0] for row in rows] == ["a", "b", "c", "d"]
    assert [row.rsplit("  ", 1)[1] for row in rows] == ["good", "revoked", "used up", "expired"]
    assert "2026-01-02T03:04:05Z  2100-01-01T00:00:00Z" in rows[0]
    assert mesh.named("tokens") == [("x", True)]


def test_an_empty_list_is_a_warning(mesh, capsys):
    assert run(["tokens", "list"]) == 0
    assert run(["nodes", "join-token", "list"]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("warning") == 2
    assert run(["tokens", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"tokens": []}


def test_revoke_takes_an_id_or_a_subject(mesh, capsys):
    assert run(["tokens", "revoke", "t1"]) == 0
    assert run(["tokens", "revoke", "--subject", "shop"]) == 0
    assert mesh.named("revoke") == [("t1", ""), ("", "shop")]
    assert capsys.readouterr().out == "1 revoked\n" * 2
    assert run(["tokens", "revoke"]) == 2
    assert run(["tokens", "revoke", "t1", "--subject", "shop"]) == 2
    assert len(mesh.named("revoke")) == 2


def test_revoking_nothing_that_was_good_says_so(mesh, capsys):
    mesh.access.revoked = 0
    assert run(["tokens", "revoke", "t1", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == {"revoked": 0}
    assert "nothing of it was good" in told.err


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ([], (["search", "actions"], 86_400, 1, "")),
        (
            ["--uses", "5", "--ttl", "1h", "--scope", "search", "--description", "shops"],
            (["search"], 3600, 5, "shops"),
        ),
        (["--unlimited"], (["search", "actions"], 86_400, None, "")),
    ],
    ids=["defaults", "all given", "unlimited"],
)
def test_join_token_create(mesh, capsys, arguments, asked):
    assert run(["nodes", "join-token", "create", *arguments]) == 0
    assert mesh.named("join token") == [asked]
    told = capsys.readouterr()
    assert told.out.count("secret-join") == 1
    assert "uses        " + ("unlimited" if asked[2] is None else str(asked[2])) in told.out
    assert "not shown again" in told.err


def test_join_token_uses_and_unlimited_exclude_each_other(mesh):
    assert run(["nodes", "join-token", "create", "--uses", "2", "--unlimited"]) == 2
    assert run(["nodes", "join-token", "create", "--uses", "0"]) == 2
    assert mesh.calls == []


def test_join_token_list_has_only_those(mesh, capsys):
    mesh.access.issued = [token("a"), token("j", kind="join", subject="shops", uses_left=None)]
    assert run(["nodes", "join-token", "list"]) == 0
    _, row = capsys.readouterr().out.splitlines()
    assert row.split()[:2] == ["j", "shops"]
    assert row.split()[-2:] == ["unlimited", "good"]
    assert run(["nodes", "join-token", "list", "--json"]) == 0
    assert [item["id"] for item in json.loads(capsys.readouterr().out)["tokens"]] == ["j"]


def test_join_token_revoke(mesh, capsys):
    assert run(["nodes", "join-token", "revoke", "j1"]) == 0
    assert mesh.named("revoke") == [("j1", "")]
    assert capsys.readouterr().out == "1 revoked\n"


def test_rotate_key_shows_the_new_key_once(mesh, capsys):
    assert run(["nodes", "rotate-key", "crm"]) == 0
    told = capsys.readouterr()
    assert told.out.count("secret-key") == 1
    assert "not shown again" in told.err
    assert run(["nodes", "rotate-key", "crm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["api_key"] == "secret-key"
    assert mesh.named("rotate") == [("crm", 0), ("crm", 0)]


def test_every_command_of_a_nested_group_names_the_common_options(mesh, capsys):
    assert run(["nodes", "join-token", "list", "--help"]) == 0
    assert "--state-dir" in capsys.readouterr().out
