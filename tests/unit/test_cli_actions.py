from __future__ import annotations

import json

import pytest
from cli_fake_mesh import FAR, START, FakeMesh, record

from cli import connection
from cli.meshctl.app import run
from mesh import errors, messages
from mesh.types import ActionState

INDEX = messages.ActionDescription(
    name="index", builtin=True, idempotent=True, description="Upsert"
)
REFUND = messages.ActionDescription(
    name="refund",
    description="Give it back",
    compensate="unrefund",
    timeout_s=10,
    params={
        "$ref": "#/$defs/Refund",
        "$defs": {
            "Refund": {
                "type": "object",
                "required": ["order"],
                "properties": {
                    "order": {"type": "string", "maxLength": 9, "description": "Which."},
                    "cents": {"type": "integer", "exclusiveMinimum": 0, "default": 5},
                },
            }
        },
    },
)


@pytest.fixture
def mesh(monkeypatch):
    fake = FakeMesh(record("crm"), record("shop"))
    fake.offered = [
        messages.OfferedAction(nodes=["crm", "shop"], action=INDEX),
        messages.OfferedAction(nodes=["crm"], action=REFUND),
    ]
    monkeypatch.setattr(connection, "connect", lambda _options: fake)
    return fake


def step(**fields):
    known = {
        "id": "a1",
        "node": "crm",
        "action": "index",
        "state": ActionState.SUCCEEDED,
        "caller": "ops",
        "at": START,
        "duration_ms": 12.34,
    }
    return messages.HistoryRecord(**(known | fields))


def test_list_joins_nodes_that_offer_the_same(mesh, capsys):
    assert run(["actions", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["actions"] == [
        {
            "name": "index",
            "nodes": ["crm", "shop"],
            "builtin": True,
            "idempotent": True,
            "description": "Upsert",
            "timeout_s": None,
            "compensate": "",
            "retries": 0,
            "concurrency": 0,
        },
        {
            "name": "refund",
            "nodes": ["crm"],
            "builtin": False,
            "idempotent": False,
            "description": "Give it back",
            "timeout_s": 10.0,
            "compensate": "unrefund",
            "retries": 0,
            "concurrency": 0,
        },
    ]
    run(["actions", "list", "--node", "shop"])
    shown = capsys.readouterr().out
    assert "index" in shown
    assert "refund" not in shown


def test_run_shows_state_id_duration_and_result(mesh, capsys):
    mesh.outcomes["refund"] = {"paid": 5}
    typed = ["actions", "run", "refund", "--node", "id-crm", "--params", '{"order": "7"}']

    assert run([*typed, "--key", "k1", "--timeout", "3"]) == 0
    assert mesh.named("action") == [
        {
            "action": "refund",
            "params": {"order": "7"},
            "node": "crm",
            "id": "k1",
            "timeout_s": 3.0,
        }
    ]
    shown = capsys.readouterr().out
    assert shown.splitlines()[:4] == [
        "state        succeeded",
        "id           k1",
        "node         crm",
        "duration ms  12.5",
    ]
    assert json.loads(shown.split("\n", 4)[4]) == {"paid": 5}


def test_run_json(mesh, capsys):
    assert run(["--json", "actions", "run", "index"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["result"] == {"changed": 0}
    assert answer.keys() == {
        "id",
        "node",
        "action",
        "state",
        "result",
        "duration_ms",
        "attempt",
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BadRequestError("unknown action"), 2),
        (errors.InvalidError("params.cents: not a number"), 2),
        (errors.ConflictError("used with other parameters"), 2),
        (errors.ActionFailedError("no such order"), 1),
        (errors.NoRespondersError("nobody"), 1),
    ],
)
def test_run_tells_refusal_from_failure(mesh, error, code):
    mesh.action_errors["refund"] = error

    assert run(["actions", "run", "refund"]) == code


def test_history_is_a_table_and_a_page(mesh, capsys):
    mesh.page = messages.HistoryPage(actions=[step()], total=9)

    assert run(["actions", "history"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1].split() == (
        ["2026-01-02T03:04:05Z", "a1", "crm", "index", "succeeded", "ops", "12.3"]
    )
    assert "1 of 9" in captured.err
    run(["actions", "history", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["total"] == 9
    assert answer["actions"][0]["duration_ms"] == 12.34
    assert answer["actions"][0]["at"] == START
    assert answer["actions"][0]["result"] is None


def test_history_of_one_action_shows_what_went_in_and_came_out(mesh, capsys):
    mesh.page = messages.HistoryPage(
        actions=[
            step(params={"a": 1}, result={"b": 2}),
            step(error=messages.ErrorReply(code=400, kind="action_failed", message="no")),
        ],
        total=2,
    )

    run(["actions", "history", "--id", "a1"])
    shown = capsys.readouterr().out
    assert 'params  {"a":1}' in shown
    assert 'result  {"b":2}' in shown
    assert "error   action_failed: no" in shown


def test_history_passes_its_filters_on(mesh):
    typed = ["actions", "history", "--node", "crm", "--action", "index", "--caller", "ops"]
    typed += ["--state", "failed", "--since", "2026-01-02T03:04:05Z", "--limit", "5"]
    typed += ["--until", "2100-01-01"]

    assert run([*typed, "--offset", "10", "--id", "a1"]) == 0
    assert mesh.named("history") == [
        {
            "action_id": "a1",
            "node": "crm",
            "action": "index",
            "caller": "ops",
            "state": ActionState.FAILED,
            "since": START,
            "until": FAR,
            "limit": 5,
            "offset": 10,
        }
    ]


@pytest.mark.parametrize(
    "options",
    [
        ["--limit", "0"],
        ["--state", "done"],
        ["--since", "soon"],
        ["--until", "soon"],
        ["--since", "1h", "--until", "2h"],
        ["--follow", "--offset", "1"],
        ["--follow", "--until", "1h"],
    ],
    ids=" ".join,
)
def test_history_refuses_what_cannot_be(mesh, options):
    assert run(["actions", "history", *options]) == 2
    assert not mesh.calls
