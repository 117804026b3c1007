"""`meshctl actions`: describing, several nodes, the queue, following, stopping, repeating."""

from __future__ import annotations

import io
import json

import msgspec
import pytest
from cli_fake_mesh import FAR, START, FakeMesh, record

from cli import connection
from cli.meshctl import action_watch
from cli.meshctl.app import run
from mesh import errors, messages
from mesh.ports import Message
from mesh.types import ActionState

BUSY = messages.ErrorReply(code=503, kind="unavailable", message="the bank is away", retryable=True)
WRONG = messages.ErrorReply(code=400, kind="action_failed", message="no such order")


@pytest.fixture
def mesh(monkeypatch):
    fake = FakeMesh(record("crm"), record("shop"))
    monkeypatch.setattr(connection, "connect", lambda _options: fake)
    monkeypatch.setattr(action_watch, "LOOK_S", 0)
    return fake


def step(state: ActionState, id_: str = "k1", node: str = "crm", **fields):
    known = {"action": "refund", "caller": "ops", "at": START, "mode": "queue"}
    return messages.HistoryRecord(id=id_, node=node, state=state, **(known | fields))


def story(*attempts: messages.HistoryRecord) -> messages.ActionStory:
    return messages.ActionStory(action=attempts[-1], attempts=list(attempts))


def answer(capsys):
    return json.loads(capsys.readouterr().out)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# -- describe --------------------------------------------------------------------------------------

REFUND = messages.ActionDescription(
    name="refund",
    description="Give it back",
    compensate="unrefund",
    timeout_s=10,
    concurrency=2,
    params={
        "$ref": "#/$defs/Refund",
        "$defs": {
            "Refund": {
                "type": "object",
                "required": ["order"],
                "properties": {
                    "order": {"type": "string", "maxLength": 9, "description": "Which."},
                    "cents": {"type": "integer", "exclusiveMinimum": 0, "default": 5},
                    "reason": {"enum": ["late", "broken"], "default": "late"},
                    "lines": {"type": "array", "items": {"$ref": "#/$defs/Line"}},
                },
            },
            "Line": {"type": "object", "properties": {"sku": {"type": "string"}}},
        },
    },
)


def test_describe_is_a_table_of_parameters(mesh, capsys):
    mesh.offered = [messages.OfferedAction(nodes=["crm"], action=REFUND)]
    assert run(["actions", "describe", "refund"]) == 0
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "undone by unrefund" in shown
    assert "timeout s 10" in shown
    assert "at once 2" in shown
    assert "PARAMETER TYPE REQUIRED DEFAULT BOUNDS WHAT" in shown
    assert "order text yes - ≤ 9 characters Which." in shown
    assert "cents integer no 5 > 0 -" in shown
    assert 'reason "late", "broken" no "late" - -' in shown
    assert "lines list of object no - - -" in shown
    assert "lines[].sku text no - - -" in shown


def test_describe_in_json_has_the_schema(mesh, capsys):
    mesh.offered = [messages.OfferedAction(nodes=["crm"], action=REFUND)]
    assert run(["actions", "describe", "refund", "--json"]) == 0
    (offered,) = answer(capsys)["actions"]
    assert offered["nodes"] == ["crm"]
    assert offered["action"]["params"] == REFUND.params


def test_describe_of_nothing_names_what_there_is(mesh, capsys):
    mesh.offered = [messages.OfferedAction(nodes=["crm"], action=REFUND)]
    assert run(["actions", "describe", "fly"]) == 2
    assert "no action 'fly' on any node; there are: refund" in capsys.readouterr().err


# -- what does not go together ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["--node", "crm", "--all"],
        ["--all", "--collection", "c"],
        ["--expires", "2d"],
        ["--queue", "--expires", "soon"],
        ["--queue", "--expires", "0"],
        ["--queue", "--timeout", "5"],
        ["--parallel", "2"],
        ["--all", "--parallel", "0"],
        ["--node", "crm", "--sequential"],
        ["--on-failure", "stop"],
        ["--all", "--on-failure", "panic"],
        ["--all", "--sequential", "--parallel", "2"],
        ["--all", "--queue", "--on-failure", "stop"],
        ["--params", "{"],
        ["--params", "[1]"],
        ["--params", "@/no/such/file"],
    ],
    ids=" ".join,
)
def test_run_refuses_what_cannot_be_before_it_connects(mesh, options, capsys):
    assert run(["actions", "run", "refund", *options]) == 2
    assert mesh.calls == []
    assert capsys.readouterr().err


# -- one node --------------------------------------------------------------------------------------


def test_an_id_is_made_so_that_it_can_be_looked_at(mesh, capsys):
    assert run(["actions", "run", "refund", "--json"]) == 0
    assert len(answer(capsys)["id"]) == 36


def test_interrupted_the_id_is_told(mesh, capsys, monkeypatch):
    async def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(mesh, "run_action", interrupted)
    assert run(["actions", "run", "refund", "--key", "k1"]) == 130
    said = capsys.readouterr().err
    assert "meshctl actions show k1" in said
    assert "meshctl actions cancel k1" in said


def test_progress_is_shown_on_stderr(mesh, capsys):
    told = messages.ActionProgress(id="k1", action="refund", fraction=0.4, note="half\x1b[31m")
    other = messages.ActionProgress(id="k2", action="refund", note="not ours")
    mesh._bus.told = [
        Message("mesh.v1.evt.crm.progress", "", msgspec.json.encode(each)) for each in (told, other)
    ]
    mesh._bus.told.append(Message("mesh.v1.evt.crm.progress", "", b"{"))

    assert run(["actions", "run", "refund", "--key", "k1", "--follow"]) == 0
    captured = capsys.readouterr()
    assert "40% half" in captured.err
    assert "not ours" not in captured.err
    assert "succeeded" in captured.out


# -- the queue -------------------------------------------------------------------------------------


def test_what_is_queued_says_how_to_look(mesh, capsys):
    typed = ["actions", "run", "refund", "--node", "id-crm", "--queue", "--expires", "2d"]
    assert run([*typed, "--key", "k1", "--params", '{"a": 1}']) == 0
    assert mesh.named("queue action") == [
        {"action": "refund", "params": {"a": 1}, "node": "crm", "id": "k1", "expires_s": 172_800}
    ]
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].split() == ["state", "queued"]
    assert "meshctl actions show k1" in captured.err
    run([*typed, "--key", "k1", "--json"])
    assert answer(capsys) == {
        "id": "k1",
        "node": "crm",
        "action": "refund",
        "state": "queued",
        "expires": FAR,
    }


def test_following_the_queue_ends_with_the_action(mesh, capsys):
    mesh.page = messages.HistoryPage(actions=[step(ActionState.QUEUED)], total=1, sequence=7)
    mesh.changes = [
        step(ActionState.ACCEPTED),
        step(ActionState.FAILED, error=BUSY, final=False),
        step(ActionState.SUCCEEDED, result={"paid": 5}, attempt=2, duration_ms=3.0),
    ]
    assert run(["actions", "run", "refund", "--queue", "--follow", "--key", "k1"]) == 0
    captured = capsys.readouterr()
    assert "succeeded" in captured.out
    assert '"paid": 5' in captured.out
    assert "crm accepted" in captured.err
    assert mesh.named("follow") == [{"action_id": "k1", "id_prefix": "", "after": 7}]


def test_what_the_queue_gives_up_is_a_failure(mesh, capsys):
    mesh.changes = [step(ActionState.FAILED, error=WRONG)]
    assert run(["actions", "run", "refund", "--queue", "--follow", "--key", "k1", "--json"]) == 1
    assert answer(capsys)["error"]["message"] == "no such order"


def test_what_the_queue_will_repeat_is_waited_for(mesh, capsys):
    """A failure that may pass is over when the queue holds the action no more."""
    entry = messages.QueueEntry(id="k1", node="crm", action="refund", caller="ops", at=START)
    held = messages.QueueList(actions=[entry], total=1)
    mesh.waiting = [held, held, messages.QueueList(actions=[], total=0)]
    mesh.changes = [step(ActionState.FAILED, error=BUSY)]
    assert run(["actions", "run", "refund", "--queue", "--follow", "--key", "k1"]) == 1
    assert len(mesh.named("queue")) == 3
    assert "the bank is away" in capsys.readouterr().err


# -- several nodes ---------------------------------------------------------------------------------

DONE = messages.FanOutItem(
    node="crm", success=True, id="k1.crm", state=ActionState.SUCCEEDED, result=7, duration_ms=2.0
)
REFUSED = messages.FanOutItem(node="shop", success=False, id="k1.shop", error=BUSY)
KEPT = [
    messages.FanOutItem(node=node, success=True, id=f"k1.{node}", state=ActionState.QUEUED)
    for node in ("crm", "shop")
]


def test_several_nodes_are_a_table_and_exit_1_if_one_failed(mesh, capsys):
    mesh.items = [DONE, REFUSED]
    typed = ["actions", "run", "refund", "--node", "crm", "--node", "id-shop", "--key", "k1"]
    assert run([*typed, "--sequential", "--on-failure", "stop"]) == 1
    (asked,) = mesh.named("fan out")
    assert asked == {
        "action": "refund",
        "params": {},
        "nodes": ["crm", "shop"],
        "all": False,
        "collection": None,
        "id": "k1",
        "timeout_s": None,
        "parallel": 10,
        "sequential": True,
        "on_failure": "stop",
        "mode": "sync",
        "expires_s": None,
    }
    _, crm, shop, summary = capsys.readouterr().out.splitlines()
    assert crm.split() == ["crm", "succeeded", "2.0", "7"]
    assert shop.split(None, 3) == [
        "shop",
        "unavailable",
        "-",
        "unavailable: the bank is away",
    ]
    assert summary == "1 succeeded, 1 failed; id k1"
    mesh.items = [DONE]
    assert run(["actions", "run", "refund", "--all", "--parallel", "3", "--json"]) == 0
    assert answer(capsys)["results"]["crm"]["result"] == 7
    assert mesh.named("fan out")[1]["parallel"] == 3


def test_several_in_the_queue(mesh, capsys):
    mesh.items = KEPT
    typed = ["actions", "run", "refund", "--all", "--queue", "--expires", "60", "--key", "k1"]
    assert run(typed) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "2 queued; id k1"
    assert "meshctl actions show k1" in captured.err
    (asked,) = mesh.named("fan out")
    assert (asked["mode"], asked["expires_s"]) == ("queue", 60)


def test_several_in_the_queue_are_followed_to_their_ends(mesh, capsys):
    mesh.items = KEPT
    mesh.changes = [
        step(ActionState.SUCCEEDED, "k1.crm", result=7),
        step(ActionState.SUCCEEDED, "k10.crm", "wiki"),
        step(ActionState.FAILED, "k1.shop", "shop", error=WRONG),
    ]
    typed = ["actions", "run", "refund", "--all", "--queue", "--follow", "--key", "k1", "--json"]
    assert run(typed) == 1
    told = answer(capsys)
    assert (told["success"], told["success_count"], told["failure_count"]) == (False, 1, 1)
    assert told["results"]["crm"]["result"] == 7
    assert told["results"]["shop"]["error"]["kind"] == "action_failed"
    assert mesh.named("follow")[0]["id_prefix"] == "k1."


def test_on_a_terminal_several_nodes_are_one_live_table(mesh, monkeypatch):
    mesh.items = [DONE]
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(["actions", "run", "refund", "--all", "--key", "k1"]) == 0
    shown = terminal.getvalue()
    assert "1 succeeded; id k1" in shown
    assert "\x1b[3" not in shown  # no colour


def test_that_it_cannot_be_watched_does_not_matter(mesh, monkeypatch, capsys):
    async def away(**_query):
        raise errors.NoRespondersError("no master")

    mesh.items = [DONE]
    monkeypatch.setattr(mesh, "history", away)
    assert run(["actions", "run", "refund", "--all", "--follow"]) == 0
    assert "1 succeeded" in capsys.readouterr().out


# -- history and show ------------------------------------------------------------------------------


def test_following_the_history_goes_on_from_the_page(mesh, capsys, monkeypatch):
    mesh.page = messages.HistoryPage(
        actions=[step(ActionState.SUCCEEDED, "b"), step(ActionState.SUCCEEDED, "a")],
        total=2,
        sequence=9,
    )

    async def one_then_ctrl_c(**query):
        mesh.calls.append(("follow", query))
        yield step(ActionState.FAILED, "c")
        raise KeyboardInterrupt

    monkeypatch.setattr(mesh, "follow_actions", one_then_ctrl_c)
    assert run(["actions", "history", "--follow", "--node", "crm"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["TIME", "ID", "NODE"]
    assert [line.split()[1] for line in lines] == ["a", "b", "c"]
    ((_, query),) = [call for call in mesh.calls if call[0] == "follow"]
    assert (query["after"], query["node"]) == (9, "crm")
    run(["actions", "history", "--follow", "--json"])
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a", "b", "c"]


def test_show_has_every_attempt(mesh, capsys):
    first = step(ActionState.FAILED, error=BUSY, final=False, accepted_at=START)
    second = step(
        ActionState.SUCCEEDED, attempt=2, params={"a": 1}, result={"b": 2}, accepted_at=START
    )
    mesh.stories = [story(first, second)]
    assert run(["actions", "show", "k1"]) == 0
    shown = capsys.readouterr().out
    assert 'params  {"a":1}' in shown
    assert 'result  {"b":2}' in shown
    attempts = shown.split("ATTEMPT")[1].splitlines()[1:]
    assert [line.split()[:2] for line in attempts] == [["1", "failed"], ["2", "succeeded"]]
    assert "the bank is away" in attempts[0]
    run(["actions", "show", "k1", "--json"])
    assert len(answer(capsys)["stories"][0]["attempts"]) == 2


def test_show_of_a_fan_out_has_every_part(mesh, capsys):
    mesh.stories = [
        story(step(ActionState.SUCCEEDED, "k1.crm")),
        story(step(ActionState.FAILED, "k1.shop", "shop", error=WRONG)),
    ]
    run(["actions", "show", "k1"])
    shown = capsys.readouterr().out
    assert shown.count("k1.crm") == 2
    assert "action_failed: no such order" in shown


def test_show_of_nothing_is_usage(mesh, capsys):
    assert run(["actions", "show", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err


# -- queue, dead, cancel, retry --------------------------------------------------------------------

ENTRY = messages.QueueEntry(
    id="k1", node="crm", action="refund", caller="ops", at=START, attempts=2, error=BUSY
)


def test_queue_and_dead_letters_are_tables(mesh, capsys):
    mesh.waiting = [messages.QueueList(actions=[ENTRY], total=9, waiting={"crm": 9})]
    assert run(["actions", "queue", "--node", "id-crm", "--limit", "1", "--offset", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1].split()[1:6] == ["k1", "crm", "refund", "ops", "-"]
    assert "waiting: crm 9" in captured.out
    assert "1 of 9" in captured.err
    assert mesh.named("queue") == [("crm", 1, 2)]
    mesh.dead = messages.QueueList(actions=[ENTRY], total=1)
    assert run(["actions", "dead"]) == 0
    assert "unavailable: the bank is away" in capsys.readouterr().out
    run(["actions", "dead", "--json"])
    assert answer(capsys)["actions"][0]["attempts"] == 2


def test_nothing_waits(mesh, capsys):
    assert run(["actions", "queue"]) == 0
    assert run(["actions", "dead"]) == 0
    assert run(["actions", "queue", "--node", "nobody"]) == 2
    assert "unknown node 'nobody'" in capsys.readouterr().err


def test_cancel_stops_it_where_it_runs(mesh, capsys):
    mesh.stories = [story(step(ActionState.RUNNING))]
    assert run(["actions", "cancel", "k1"]) == 0
    assert mesh.named("cancel") == [("k1", "crm")]
    assert "cancelled" in capsys.readouterr().out
    mesh.action_errors["k1"] = errors.ConflictError("it has succeeded")
    assert run(["actions", "cancel", "k1"]) == 2
    assert "it has succeeded" in capsys.readouterr().err


def test_cancel_of_a_fan_out_stops_what_goes_on(mesh, capsys):
    mesh.stories = [
        story(step(ActionState.RUNNING, "k1.crm")),
        story(step(ActionState.SUCCEEDED, "k1.shop", "shop")),
        story(step(ActionState.ACCEPTED, "k1.wiki", "wiki")),
    ]
    mesh.action_errors["k1.wiki"] = errors.NoRespondersError("nobody")
    assert run(["actions", "cancel", "k1", "--json"]) == 1
    assert answer(capsys)["actions"] == [
        {"node": "crm", "id": "k1.crm", "state": "cancelled", "error": None},
        {"node": "wiki", "id": "k1.wiki", "state": "accepted", "error": "nobody"},
    ]
    assert run(["actions", "cancel", "k1", "--node", "crm"]) == 0
    assert mesh.named("cancel")[-1] == ("k1.crm", "crm")
    assert run(["actions", "cancel", "k1", "--node", "elsewhere"]) == 2


def test_retry_says_how_to_look(mesh, capsys):
    mesh.stories = [story(step(ActionState.FAILED))]
    assert run(["actions", "retry", "k1"]) == 0
    assert mesh.named("retry") == [("k1", "crm")]
    captured = capsys.readouterr()
    assert "queued" in captured.out
    assert "meshctl actions show k1" in captured.err


def test_retry_of_a_fan_out_takes_what_ended_badly(mesh, capsys):
    mesh.stories = [
        story(step(ActionState.INTERRUPTED, "k1.crm")),
        story(step(ActionState.SUCCEEDED, "k1.shop", "shop")),
    ]
    assert run(["actions", "retry", "k1"]) == 0
    assert mesh.named("retry") == [("k1.crm", "crm")]
    mesh.stories = [
        story(step(ActionState.SUCCEEDED, f"k1.{node}", node)) for node in ("crm", "shop")
    ]
    assert run(["actions", "retry", "k1"]) == 2
    assert "nothing to do" in capsys.readouterr().err
