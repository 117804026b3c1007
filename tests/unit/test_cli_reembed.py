"""`meshctl collections reembed`: what it asks, says and ends with."""

from __future__ import annotations

import io
import json

import msgspec
import pytest
from cli_fake_mesh import FakeMesh, record

from cli import connection
from cli.meshctl.app import run
from mesh import errors, messages
from mesh.ports import Message

OLD, NEW = "hash-512/1", "wl-256/abc"
DONE = {"reembedded": 12, "from": OLD, "to": NEW, "data_version": 4}


class EmbeddingMesh(FakeMesh):
    """Nodes that tell how far they are before they answer."""

    def __init__(self, *nodes):
        super().__init__(*nodes)
        self.tell = [(0.5, "6 of 12 documents\x1b[31m")]
        self.handler = None
        self._bus.subscribe = self.subscribe

    async def subscribe(self, _subject, handler):
        self.handler = handler
        return self._bus

    async def run_action(self, action, params, **options):
        for id_ in (options["id"], "somebody-else-s"):
            for fraction, note in self.tell:
                told = messages.ActionProgress(
                    id=id_, action=action, fraction=fraction, note=f"{note} of {id_}"
                )
                subject = f"mesh.v1.evt.{options['node']}.progress"
                self.handler(Message(subject, "", msgspec.json.encode(told)))
        return await super().run_action(action, params, **options)


def holder(slug):
    notes = messages.CollectionInfo(name="notes", shard=slug, rows=12, fingerprint=OLD)
    return record(slug, collections=[notes])


@pytest.fixture
def mesh(monkeypatch):
    fake = EmbeddingMesh(holder("crm"), record("shop"))
    fake.outcomes["reembed"] = DONE
    monkeypatch.setattr(connection, "connect", lambda _options: fake)
    return fake


def asked(mesh):
    return [(call["node"], call["params"]) for call in mesh.named("action")]


def test_the_only_holder_is_asked(mesh, capsys):
    assert run(["collections", "reembed", "notes"]) == 0
    assert asked(mesh) == [("crm", {"collection": "notes"})]
    [call] = mesh.named("action")
    assert call["action"] == "reembed"
    assert call["timeout_s"] >= 3600  # it takes as long as it takes
    captured = capsys.readouterr()
    assert captured.out == "crm: 12 documents embedded by wl-256/abc\n"
    assert "crm: 50% 6 of 12 documents [31m" in captured.err
    assert "somebody-else-s" not in captured.err


def test_of_several_holders_one_has_to_be_named(mesh, capsys):
    mesh.records[1] = holder("shop")
    assert run(["collections", "reembed", "notes"]) == 2
    assert "is on crm, shop; say which with --node, or --all" in capsys.readouterr().err
    assert run(["collections", "reembed", "notes", "--node", "id-shop"]) == 0
    assert run(["collections", "reembed", "notes", "--all", "--node", "shop"]) == 2
    assert asked(mesh) == [("shop", {"collection": "notes"})]


def test_all_of_them(mesh, capsys):
    mesh.records[1] = holder("shop")
    assert run(["collections", "reembed", "notes", "--all", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {
        "collection": "notes",
        "nodes": [{"node": node, **DONE, "message": ""} for node in ("crm", "shop")],
    }
    ids = {call["id"] for call in mesh.named("action")}
    assert len(ids) == 2


def test_one_that_fails_keeps_no_other_from_it(mesh, capsys):
    mesh.records[1] = holder("shop")
    mesh.action_errors["crm"] = errors.UnavailableError("the embedder does not answer")
    assert run(["collections", "reembed", "notes", "--all"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "crm: the embedder does not answer",
        "shop: 12 documents embedded by wl-256/abc",
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidError("unknown collection"), 2),
        (errors.UnavailableError("away"), 1),
        (errors.ForbiddenError("no"), 4),
        (errors.DisconnectedError("gone"), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_exit_code_of_one_node_is_its_error_s(mesh, error, code):
    mesh.action_errors["crm"] = error
    assert run(["collections", "reembed", "notes"]) == code


def test_nothing_to_do_is_said(mesh, capsys):
    mesh.outcomes["reembed"] = {"reembedded": 0, "from": NEW, "to": NEW, "data_version": 4}
    assert run(["collections", "reembed", "notes"]) == 0
    assert capsys.readouterr().out == "crm: nothing to do, it is embedded by wl-256/abc\n"
    mesh.outcomes["reembed"] = DONE | {"from": NEW}  # an upgrade
    assert run(["collections", "reembed", "notes"]) == 0
    assert capsys.readouterr().out == "crm: the words of 12 documents taken apart anew\n"
    mesh.outcomes["reembed"] = DONE | {"reembedded": 0}  # an empty one
    assert run(["collections", "reembed", "notes"]) == 0
    assert capsys.readouterr().out == "crm: 0 documents embedded by wl-256/abc\n"


def test_a_collection_that_nobody_holds(mesh, capsys):
    assert run(["collections", "reembed", "nothing", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["kind"] == "not_found"
    assert asked(mesh) == []


def test_beside_json_nothing_is_told(mesh, capsys):
    assert run(["collections", "reembed", "notes", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out)["nodes"][0]["to"] == NEW


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_there_is_a_bar_that_goes_away(mesh, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    mesh.tell = [(None, "waiting"), (0.25, "3 of 12 documents"), (1.0, "writing")]
    assert run(["collections", "reembed", "notes"]) == 0
    assert "crm" in screen.getvalue()


def test_in_a_pipe_there_is_a_line_now_and_then(mesh, capsys):
    mesh.tell = [(number / 1000, f"{number} of 1000 documents") for number in range(1000)]
    assert run(["collections", "reembed", "notes"]) == 0
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_interrupted_it_says_that_it_goes_on(mesh, capsys, monkeypatch):
    async def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(mesh, "run_action", interrupted)
    assert run(["collections", "reembed", "notes"]) == 130
    assert "it goes on" in capsys.readouterr().err
