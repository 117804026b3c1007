from __future__ import annotations

import asyncio
import io
import json

import pytest
from cli_fake_mesh import START, FakeMesh, breaker, record

from cli import connection
from cli.meshctl import draining, recovery
from cli.meshctl.app import run
from mesh import errors, messages
from mesh.types import BreakerState, Health, Status


@pytest.fixture
def mesh(monkeypatch):
    fake = FakeMesh(
        record("crm"),
        record("shop", health=Health.UNREACHABLE, reason="no heartbeat", failures=3),
    )
    monkeypatch.setattr(connection, "connect", lambda _options: fake)
    monkeypatch.setattr(recovery, "WAIT_S", 0)
    monkeypatch.setattr(draining, "LOOK_S", 0)
    monkeypatch.setattr(draining, "SETTLED_S", 0)
    return fake


def answer(capsys):
    return json.loads(capsys.readouterr().out)


def test_list_shows_every_column_in_full(mesh, capsys):
    assert run(["nodes", "list", "--status", "active", "--type", "child"]) == 0

    heading, crm, shop = capsys.readouterr().out.splitlines()
    assert heading.split("  ")[0] == "ID"
    assert crm.split() == [
        "id-crm",
        "CRM",
        "child",
        "active",
        "healthy",
        "1.2",
        "2026-01-02T03:04:05Z",
        "-",
    ]
    assert shop.split()[4:] == ["unreachable", "1.2", "2026-01-02T03:04:05Z", "3"]
    assert mesh.named("nodes") == [{"node": "", "status": Status.ACTIVE, "type": "child"}]


def test_list_leaves_failures_out_where_there_are_none(mesh, capsys):
    mesh.records.pop()
    run(["nodes", "list"])

    assert "FAILURES" not in capsys.readouterr().out


def test_list_sorts(mesh, capsys):
    mesh.records[0] = record("crm", response_time_ms=None)
    run(["nodes", "list", "--json", "--sort", "response"])
    assert [node["slug"] for node in answer(capsys)["nodes"]] == ["shop", "crm"]
    run(["nodes", "list", "--json", "--sort", "failures"])
    assert [node["slug"] for node in answer(capsys)["nodes"]] == ["shop", "crm"]
    run(["nodes", "list", "--json"])
    shown = answer(capsys)
    assert [node["slug"] for node in shown["nodes"]] == ["crm", "shop"]
    assert shown["nodes"][1]["last_ping_at"] == START


def test_an_empty_registry_is_a_warning(mesh, capsys):
    mesh.records.clear()

    assert run(["nodes", "list"]) == 0
    assert "warning" in capsys.readouterr().err
    assert run(["nodes", "ping", "--all"]) == 0
    assert run(["nodes", "monitor", "--once"]) == 0


def test_register_sends_the_defaults_and_shows_the_key_once(mesh, capsys):
    assert run(["nodes", "register", "CRM"]) == 0

    captured = capsys.readouterr()
    (sent,) = mesh.named("register")
    assert sent == messages.NodeRegister(name="CRM")
    assert captured.out.count("key-of-the-node") == 1
    assert "key-of-the-node" not in captured.err
    assert "not shown again" in captured.err
    names = [line.split("  ")[0].strip() for line in captured.out.splitlines()]
    assert names == ["ID", "name", "slug", "URL", "type", "capabilities", "weight", "API key"]


def test_register_takes_every_option(mesh, capsys):
    typed = ["nodes", "register", "CRM", "https://crm", "--type", "edge", "--weight", "2.5"]
    typed += ["--capability", "search", "--description", "d", "--domain", "a", "--domain", "b"]
    typed += ["--keyword", "k", "--metadata", '{"a": 1}', "--json"]

    assert run(typed) == 0
    assert answer(capsys)["api_key"] == "key-of-the-node"
    assert mesh.named("register") == [
        messages.NodeRegister(
            name="CRM",
            url="https://crm",
            type="edge",
            weight=2.5,
            capabilities=["search"],
            description="d",
            domains=["a", "b"],
            keywords=["k"],
            metadata={"a": 1},
        )
    ]


@pytest.mark.parametrize("metadata", ["[1]", "{", "1"])
def test_register_refuses_metadata_that_is_no_object(mesh, metadata):
    assert run(["nodes", "register", "CRM", "--metadata", metadata]) == 2
    assert not mesh.calls


def test_update_sends_what_was_given_alone(mesh, capsys):
    typed = ["nodes", "update", "crm", "--url", "http://new", "--status", "maintenance"]

    assert run([*typed, "--weight", "0.5", "--description", ""]) == 0
    change = messages.NodeUpdate(
        url="http://new", status=Status.MAINTENANCE, weight=0.5, description=""
    )
    assert mesh.named("update") == [("crm", change)]


def test_update_of_nothing_is_wrong_usage(mesh, capsys):
    assert run(["nodes", "update", "crm"]) == 2
    assert not mesh.calls


def test_remove_needs_yes_where_nobody_can_answer(mesh, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))

    assert run(["nodes", "remove", "crm"]) == 2
    assert not mesh.calls
    assert run(["nodes", "remove", "crm", "--yes"]) == 0
    assert mesh.named("remove") == ["crm"]


@pytest.mark.parametrize(("reply", "code", "removed"), [("y\n", 0, ["crm"]), ("n\n", 1, [])])
def test_remove_asks_on_a_terminal(mesh, monkeypatch, reply, code, removed):
    class Keyboard(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Keyboard(reply))

    assert run(["nodes", "remove", "crm"]) == code
    assert mesh.named("remove") == removed


def test_stats(mesh, capsys):
    run(["nodes", "stats"])
    shown = {
        name.strip(): value.strip()
        for name, _, value in (
            line.partition("  ") for line in capsys.readouterr().out.splitlines()
        )
    }
    assert shown["active"] == "2"
    assert shown["avg response ms"] == "2.3"
    assert shown["by health"] == "healthy 2, unreachable 1"
    assert shown["breakers"] == "open 1, half open 0"
    assert shown["callers"] == "3"
    assert shown["search"].split() == ["60", "0", "1.0", "4.0", "-", "40.0", "0", "0"]
    run(["nodes", "stats", "--json"])
    assert answer(capsys) == {
        "total": 3,
        "active": 2,
        "inactive": 1,
        "error": 0,
        "healthy": 2,
        "avg_response_time_ms": 2.345,
        "by_type": {"child": 3},
        "by_health": {"healthy": 2, "unreachable": 1},
        "collections": 4,
        "documents": 1234,
        "blind": False,
        "verbs": {
            "search": {
                "calls": 60,
                "failures": 0,
                "per_s": 1.0,
                "p50_ms": 4.0,
                "p95_ms": 0.0,
                "p99_ms": 40.0,
                "retried": 0,
                "hedged": 0,
            }
        },
        "breakers": {"open": 1, "half_open": 0},
        "callers": 3,
    }


def test_show_is_a_whole_health_report(mesh, capsys):
    mesh.records[0] = record(
        "crm",
        in_flight=7,
        verbs={"search": messages.VerbStats(count=12, ewma_ms=3.21, p99_ms=9.87)},
        collections=[messages.CollectionInfo(name="notes", shard="crm", rows=42)],
        actions=[messages.ActionInfo(name="refund", description="Give it back")],
        metadata={"owner": "ann"},
    )

    assert run(["nodes", "show", "crm"]) == 0
    shown = capsys.readouterr().out
    for part in ("in flight", "7", "3.2", "9.9", "notes", "42", "refund", "Give it back", "ann"):
        assert part in shown
    assert run(["nodes", "show", "shop"]) == 0
    assert "unreachable (no heartbeat)" in capsys.readouterr().out


def test_show_of_an_unknown_node_is_wrong_input(mesh, capsys):
    assert run(["nodes", "show", "nope", "--json"]) == 2
    assert answer(capsys)["kind"] == "not_found"


def test_ping_shows_each_and_fails_if_one_does(mesh, capsys):
    assert run(["nodes", "ping", "crm"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["crm", "active", "ok", "1.23"]
    mesh.ping_errors["shop"] = errors.NoRespondersError("nobody listens")

    assert run(["nodes", "ping", "--all", "--json"]) == 1
    assert answer(capsys)["nodes"] == [
        {
            "node": "crm",
            "status": "active",
            "ok": True,
            "result": "ok",
            "round_trip_ms": 1.234,
            "shard": None,
        },
        {
            "node": "shop",
            "status": "active",
            "ok": False,
            "result": "nobody listens",
            "round_trip_ms": None,
            "shard": None,
        },
    ]


def test_ping_takes_an_id_for_a_slug(mesh, capsys):
    assert run(["nodes", "ping", "id-crm", "--timeout", "0.5"]) == 0
    assert mesh.named("ping") == [("crm", 0.5)]


def test_ping_of_a_shard_says_who_answered(mesh, capsys):
    assert run(["nodes", "ping", "--shard", "eu", "--timeout", "0.5"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[:2] == ["SHARD", "NODE"]
    assert row.split() == ["eu", "crm", "active", "ok", "2.35"]
    assert mesh.named("ping shard") == [("eu", 0.5)]

    mesh.ping_errors["us"] = errors.CircuitOpenError("all of its replicas fail")
    assert run(["nodes", "ping", "--shard", "us", "--json"]) == 1
    assert answer(capsys)["nodes"] == [
        {
            "node": "",
            "status": "-",
            "ok": False,
            "result": "all of its replicas fail",
            "round_trip_ms": None,
            "shard": "us",
        }
    ]
    mesh.ping_errors["none"] = errors.NotFoundError("no such shard")
    assert run(["nodes", "ping", "--shard", "none"]) == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidError("no name"), 2),
        (errors.ForbiddenError("not yours"), 4),
        (errors.DisconnectedError("gone"), 3),
    ],
)
def test_ping_stops_at_what_is_no_nodes_fault(mesh, error, code):
    mesh.ping_errors["crm"] = error

    assert run(["nodes", "ping", "crm"]) == code


@pytest.mark.parametrize(
    "typed", [[], ["crm", "--all"], ["crm", "--shard", "eu"], ["--all", "--shard", "eu"]]
)
def test_ping_wants_either_nodes_or_all(mesh, typed):
    assert run(["nodes", "ping", *typed]) == 2
    assert not mesh.calls


def test_monitor_once_checks_the_active_nodes(mesh, capsys):
    mesh.records.append(record("old", status=Status.INACTIVE))

    assert run(["nodes", "monitor", "--once"]) == 0
    shown = capsys.readouterr().out
    assert [name for name, _ in mesh.named("ping")] == ["crm", "shop"]
    assert "3 nodes, 2 healthy" in shown
    assert not mesh.named("probe")


def test_monitor_recovers_what_is_not_well(mesh, capsys):
    mesh.records.append(record("kb"))
    mesh.ping_errors["kb"] = errors.DeadlineExceededError("no answer")
    mesh.probed = record("any", health=Health.HEALTHY)

    assert run(["nodes", "monitor", "--once", "--auto-recover", "--json"]) == 0
    seen = answer(capsys)
    assert mesh.named("probe") == ["shop", "kb"]
    assert seen["recoveries"] == [
        {"node": "shop", "recovered": True, "message": "healthy again", "reset": []},
        {"node": "kb", "recovered": False, "message": "does not answer, healthy", "reset": []},
    ]
    assert [node["ok"] for node in seen["nodes"]] == [True, True, False]


def test_monitor_shows_breakers_and_closes_those_of_nodes_that_answer(mesh, capsys):
    mesh.known_breakers = [
        breaker("crm", "search", state=BreakerState.OPEN, open_at=2),
        breaker("crm", "fetch", open_at=1),
        breaker("crm", "ping"),
        breaker("shop", "search", state=BreakerState.HALF_OPEN),
    ]
    mesh.ping_errors["shop"] = errors.NoRespondersError("nobody")

    assert run(["nodes", "monitor", "--once"]) == 0
    assert not mesh.named("reset"), "it was not asked to recover anything"
    shown = capsys.readouterr().out
    assert "search open" in shown
    assert "search half open" in shown

    assert run(["nodes", "monitor", "--once", "--auto-recover", "--json"]) == 0
    seen = answer(capsys)
    assert [node["breakers"] for node in seen["nodes"]] == [
        {"search": "open"},
        {"search": "half_open"},
    ]
    assert mesh.named("reset") == [("crm", None)], "a node that does not answer is not trusted"
    crm, shop = seen["recoveries"]
    assert (crm["recovered"], crm["reset"]) == (True, ["search", "fetch"])
    assert "breakers reset: search, fetch" in crm["message"]
    assert (shop["recovered"], shop["reset"]) == (False, [])


def test_monitor_leaves_alone_what_an_operator_drains(mesh):
    mesh.records[:] = [record("crm", health=Health.DRAINING)]

    assert run(["nodes", "monitor", "--once", "--auto-recover"]) == 0
    assert not mesh.named("probe")


def test_monitor_survives_a_failing_probe(mesh, capsys):
    async def gone(_node):
        raise errors.NoRespondersError("nobody")

    mesh.probe_node = gone

    assert run(["nodes", "monitor", "--once", "--auto-recover"]) == 0
    assert "shop: not recovered (the probe failed" in capsys.readouterr().out


def test_monitor_goes_on_until_ctrl_c_through_an_empty_registry_and_a_missing_master(
    mesh, capsys, monkeypatch
):
    """Its rounds are counted by their pauses; the fourth one is where the person has enough."""
    nodes = mesh.records[:]
    mesh.records.clear()
    rounds = []
    listed = mesh.nodes

    async def no_master(**_query):
        raise errors.NoRespondersError("nobody")

    async def pause(seconds):
        rounds.append(seconds)
        if len(rounds) == 1:
            mesh.nodes = no_master
        elif len(rounds) == 2:
            mesh.nodes = listed
            mesh.records.extend(nodes)
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr(asyncio, "sleep", pause)

    assert run(["nodes", "monitor", "--interval", "7", "--json"]) == 0
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [len(line["nodes"]) for line in lines] == [0, 2]
    assert rounds == [7, 7, 7]
    assert "no nodes are registered yet" in captured.err
    assert "no master answers" in captured.err


def test_monitor_once_without_a_master_is_exit_3(mesh):
    async def no_master(**_query):
        raise errors.NoRespondersError("nobody")

    mesh.nodes = no_master

    assert run(["nodes", "monitor", "--once"]) == 3


def test_list_watch_shows_it_again_until_ctrl_c(mesh, capsys, monkeypatch):
    pauses = iter([None, KeyboardInterrupt])

    async def pause(_seconds):
        if (end := next(pauses)) is not None:
            raise end

    monkeypatch.setattr(asyncio, "sleep", pause)

    assert run(["nodes", "list", "--watch", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


# -- drain -----------------------------------------------------------------------------------------


def seen(*looks):
    return [record("crm", **look) for look in looks]


def test_drain_says_what_happened(mesh, capsys):
    mesh.drained = seen({"health": Health.DRAINING, "in_flight": 2, "queued": 1})

    assert run(["nodes", "drain", "crm"]) == 0
    captured = capsys.readouterr()
    assert "crm takes no new work any more" in captured.out
    assert "2 running, 1 waiting" in captured.out
    assert mesh.named("drain") == ["crm"]


def test_drain_waits_until_nothing_runs(mesh, capsys):
    draining = {"health": Health.DRAINING}
    mesh.drained = seen(draining | {"in_flight": 2}, draining | {"in_flight": 1}, draining)

    assert run(["nodes", "drain", "crm", "--wait", "30"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "nothing runs on it: it can be stopped"
    assert captured.err.splitlines() == ["crm: 2 running", "crm: 1 running", "crm: 0 running"]


@pytest.mark.parametrize(
    ("look", "idle", "code"),
    [
        ({"health": Health.DRAINING, "in_flight": 1}, False, 1),
        ({"health": Health.HEALTHY, "in_flight": 1}, False, 1),
        ({"health": Health.UNREACHABLE, "reason": "stopped"}, True, 0),
        ({"health": Health.UNREACHABLE, "reason": "no sign of life"}, False, 1),
    ],
    ids=["too-long", "undrained", "stopped", "lost"],
)
def test_drain_ends_also_otherwise(mesh, capsys, look, idle, code):
    mesh.drained = seen(look)

    assert run(["nodes", "drain", "crm", "--wait", "0.1", "--json"]) == code
    captured = capsys.readouterr()
    assert json.loads(captured.out)["idle"] is idle
    assert captured.err == ""


@pytest.mark.parametrize("health", [Health.HEALTHY, Health.UNREACHABLE], ids=str)
def test_drain_calls_nothing_idle_that_may_take_work(mesh, capsys, health):
    mesh.drained = seen({"health": Health.DRAINING, "in_flight": 1}, {"health": health})

    assert run(["nodes", "drain", "crm", "--wait", "5"]) == 1
    assert "can be stopped" not in capsys.readouterr().out


def test_drain_that_nobody_waits_for_any_more_says_that_it_goes_on(mesh, capsys, monkeypatch):
    async def pause(_seconds):
        raise KeyboardInterrupt

    mesh.drained = seen({"health": Health.DRAINING, "in_flight": 1})
    monkeypatch.setattr(asyncio, "sleep", pause)

    assert run(["nodes", "drain", "crm", "--wait", "30"]) == 130
    assert "meshctl nodes undrain crm" in capsys.readouterr().err


def test_drain_of_an_unknown_node_is_wrong_input(mesh, capsys):
    assert run(["nodes", "drain", "nope", "--json"]) == 2
    assert answer(capsys)["kind"] == "not_found"


def test_undrain(mesh, capsys):
    assert run(["nodes", "undrain", "crm"]) == 0
    assert "takes work again" in capsys.readouterr().out
    assert run(["nodes", "undrain", "crm", "--json"]) == 0
    assert answer(capsys)["node"]["slug"] == "crm"
    assert mesh.named("undrain") == ["crm", "crm"]
