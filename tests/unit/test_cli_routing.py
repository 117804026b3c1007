"""`meshctl breakers`, `routes` and `explain`."""

from __future__ import annotations

import asyncio
import io
import json

import pytest
from cli_fake_mesh import START, FakeMesh, breaker, record, route

from cli import connection
from cli.meshctl import explain
from cli.meshctl.app import run
from cli.output import Output
from mesh import errors, messages
from mesh.types import BreakerState, Health, Status


@pytest.fixture
def mesh(monkeypatch):
    held = [messages.CollectionInfo(name="notes", shard="eu")]
    fake = FakeMesh(
        record("crm", collections=held),
        record("shop", health=Health.STALLED, reason="its loop is 3 s late"),
        record("old", status=Status.MAINTENANCE),
    )
    monkeypatch.setattr(connection, "connect", lambda _options: fake)
    monkeypatch.setattr(explain, "LOOK_AGAIN_S", 0)
    return fake


def answer(capsys):
    return json.loads(capsys.readouterr().out)


# -- breakers --------------------------------------------------------------------------------------


def test_breakers_are_listed_with_all_that_is_known_of_them(mesh, capsys):
    mesh.known_breakers = [
        breaker("crm", "act.refund", calls=3),
        breaker(
            "crm",
            "search",
            state=BreakerState.OPEN,
            failures=12,
            open_at=2,
            until=START,
            reason="5 failures in a row",
        ),
        breaker("shop", "fetch", state=BreakerState.HALF_OPEN),
    ]

    assert run(["breakers", "list"]) == 0
    _, refund, search, fetch = capsys.readouterr().out.splitlines()
    assert refund.split() == ["crm", "act.refund", "closed", "3", "0", "2", "0", "-", "-"]
    assert search.split("  ")[-1] == "5 failures in a row"
    assert "2026-01-02T03:04:05Z" in search
    assert "half open" in fetch
    assert run(["breakers", "list", "--node", "crm", "--json"]) == 0
    shown = answer(capsys)["breakers"]
    assert [(found["verb"], found["state"]) for found in shown] == [
        ("act.refund", "closed"),
        ("search", "open"),
    ]
    assert mesh.named("breakers") == [None, "crm"]


def test_no_breakers_are_no_failure(mesh, capsys):
    assert run(["breakers", "list"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no calls" in captured.err
    assert run(["breakers", "list", "--json"]) == 0
    assert answer(capsys) == {"breakers": []}


def test_breakers_are_reset_all_or_one(mesh, capsys):
    mesh.known_breakers = [breaker("crm", "search"), breaker("crm", "act.refund")]

    assert run(["breakers", "reset", "crm"]) == 0
    assert capsys.readouterr().out == "reset at crm: search, act.refund\n"
    assert run(["breakers", "reset", "crm", "--verb", "act.refund", "--json"]) == 0
    assert [found["verb"] for found in answer(capsys)["breakers"]] == ["act.refund"]
    assert run(["breakers", "reset", "shop", "--verb", "ping"]) == 0
    assert "no calls of ping to shop" in capsys.readouterr().out
    assert mesh.named("reset") == [("crm", None), ("crm", "act.refund"), ("shop", "ping")]


@pytest.mark.parametrize("verb", ["export", "refund", "act.", "act.a b", "search\n"], ids=repr)
def test_a_verb_that_there_is_not_is_refused(mesh, capsys, verb):
    assert run(["breakers", "reset", "crm", "--verb", verb, "--json"]) == 2
    assert "act.ACTION" in answer(capsys)["message"]
    assert not mesh.calls


def test_breakers_of_an_unknown_node_are_wrong_input(mesh):
    async def unknown(node, verb=None):
        raise errors.NotFoundError(f"no node {node!r}")

    mesh.breakers = mesh.reset_breakers = unknown

    assert run(["breakers", "list", "--node", "nope"]) == 2
    assert run(["breakers", "reset", "nope"]) == 2


# -- routes ----------------------------------------------------------------------------------------


def test_routes_tell_who_is_asked_and_why_not(mesh, capsys):
    mesh.routed["crm"] = route(
        mesh.records[0],
        load=messages.NodeLoad(busy=4, search_ms=2.5),
        breakers={
            "search": messages.BreakerWord(state=BreakerState.OPEN, turn=1),
            "ping": messages.BreakerWord(state=BreakerState.CLOSED, turn=1),
        },
    )

    assert run(["routes"]) == 0
    _, crm, old, shop, note = capsys.readouterr().out.splitlines()
    assert crm.split() == [
        "crm",
        "active",
        "healthy",
        "yes",
        "1",
        "4",
        "2.5",
        "eu",
        "search",
        "open",
    ]
    assert "no: status is maintenance" in old
    assert "no: stalled: its loop is 3 s late" in shop
    assert note == "route table 1.1: 3 nodes, 1 asked"
    assert run(["routes", "--json"]) == 0
    shown = answer(capsys)
    assert (shown["epoch"], shown["version"], shown["blind"]) == (1, 1, False)
    first = shown["nodes"][0]
    assert first["asked"] is True
    assert first["shards"] == ["eu"]
    assert first["load"] == {"busy": 4, "search_ms": 2.5}
    assert first["breakers"]["search"]["state"] == "open"
    assert [node["why_not"] for node in shown["nodes"][1:]] == [
        "status is maintenance",
        "stalled: its loop is 3 s late",
    ]


def test_routes_say_when_they_are_old_or_nobodys(mesh, capsys):
    mesh.blind = True
    run(["routes"])
    assert "cannot see the broker" in capsys.readouterr().out
    mesh.epoch = 0
    run(["routes"])
    assert "no master answered" in capsys.readouterr().out


def test_routes_are_watched_until_ctrl_c_and_shown_when_they_change(mesh, capsys, monkeypatch):
    pauses = []

    async def pause(_seconds):
        pauses.append(1)
        if len(pauses) == 2:
            mesh.epoch = 2
        if len(pauses) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(asyncio, "sleep", pause)

    assert run(["routes", "--watch", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]


# -- explain ---------------------------------------------------------------------------------------


def step(at_ms, what, node="crm", why=""):
    return messages.Step(at_ms=at_ms, node=node, what=what, why=why)


def trace(*steps, **fields):
    known = {
        "id": "r1",
        "caller": "ann",
        "verb": "search",
        "at": START,
        "took_ms": 12.5,
        "outcome": "ok",
        "steps": list(steps),
    }
    return messages.CallTrace(**(known | fields))


def test_explain_shows_steps_in_order_and_the_outcome(mesh, capsys):
    steps = [
        step(9.0, "answered", "shop"),
        step(0.1, "skipped", "old", "status is maintenance"),
        step(0.2, "chosen", "crm", "p2c"),
        step(5.0, "hedged", "shop", "slower than p95"),
    ]
    failed = trace(step(1.0, "refused"), verb="act.refund", outcome="circuit_open", took_ms=1.0)
    mesh.explanations = [messages.Explanation(request="r1", calls=[trace(*steps), failed])]

    assert run(["explain", "r1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "r1: search for ann, 2026-01-02T03:04:05Z: answered after 12.5 ms"
    assert [line.split()[2] for line in lines[2:6]] == ["skipped", "chosen", "hedged", "answered"]
    assert lines[2].endswith("status is maintenance")
    assert lines[7].startswith("r1: act.refund for ann")
    assert lines[7].endswith("circuit open after 1.0 ms")
    assert run(["explain", "r1", "--json"]) == 0
    shown = answer(capsys)
    assert shown["request"] == "r1"
    assert shown["calls"][0]["steps"][0] == {
        "at_ms": 9.0,
        "node": "shop",
        "what": "answered",
        "why": "",
    }


@pytest.mark.parametrize("nothing", ["empty", "not-found"])
def test_explain_waits_for_what_is_on_its_way(mesh, nothing):
    none = (
        messages.Explanation(request="r1", calls=[])
        if nothing == "empty"
        else errors.NotFoundError("unknown")
    )
    known = messages.Explanation(request="r1", calls=[trace()])
    mesh.explanations = [none, none, known]

    assert run(["explain", "r1"]) == 0
    assert len(mesh.named("explain")) == 3


def test_explain_asks_again_where_parts_may_be_missing(mesh, capsys, monkeypatch):
    monkeypatch.setattr(explain, "now_ms", lambda: START + 100)
    early = messages.Explanation(request="r1", calls=[trace()])
    whole = messages.Explanation(request="r1", calls=[trace(), trace(verb="fetch")])
    mesh.explanations = [early, whole]

    assert run(["explain", "r1", "--json"]) == 0
    assert len(answer(capsys)["calls"]) == 2


def test_explain_of_what_nobody_knows_fails_and_says_how_long_it_is_known(mesh, capsys):
    mesh.explanations = [messages.Explanation(request="x", calls=[])]

    assert run(["explain", "x", "--json"]) == 1
    shown = answer(capsys)
    assert shown["kind"] == "not_traced"
    assert "10,000" in shown["message"]
    assert len(mesh.named("explain")) == 6


def test_explain_without_a_master_is_exit_3(mesh):
    mesh.explanations = [errors.NoRespondersError("nobody")]

    assert run(["explain", "x"]) == 3


# -- what leads there ------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_hint_is_for_terminals_alone(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    terminal, pipe, asked = Terminal(), io.StringIO(), Terminal()
    Output(as_json=False, stdout=terminal).hint("meshctl explain r1")
    Output(as_json=False, stdout=pipe).hint("meshctl explain r1")
    Output(as_json=True, stdout=asked).hint("meshctl explain r1")

    assert "meshctl explain r1" in terminal.getvalue()
    assert (pipe.getvalue(), asked.getvalue()) == ("", "")


def test_progress_takes_its_line_back_on_a_terminal(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with Output(as_json=False, stdout=io.StringIO()).progress() as tell:
        tell("2 running")
        tell("1 running")

    assert screen.getvalue().split("\r\x1b[2K") == ["", "2 running", "1 running", ""]
