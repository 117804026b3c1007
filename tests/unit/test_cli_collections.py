from __future__ import annotations

import json

import pytest
from cli_fake_mesh import FakeMesh, record

from cli import connection
from cli.meshctl.app import run
from mesh import errors, messages
from mesh.types import ActionState


class RememberingMesh(FakeMesh):
    """A mesh whose node remembers what ids did, as the real one does."""

    def __init__(self, *nodes):
        super().__init__(*nodes)
        self.ran: dict[str, dict] = {}
        self.states: dict[str, ActionState] = {}
        self.stored: dict[str, dict] = {}
        self.cut_after: int | None = None
        self.refuse = lambda _document: False

    async def run_action(self, action, params, **options):
        name = options["id"]
        if self.cut_after is not None and len(self.ran) >= self.cut_after:
            raise errors.ForbiddenError("the import is cut off here")
        if name not in self.ran:
            self.ran[name] = dict(params)
            if any(self.refuse(document) for document in params["documents"]):
                self.states[name] = ActionState.FAILED
                raise errors.InvalidError("documents: one is wrong")
            self.states[name] = ActionState.SUCCEEDED
            self.stored |= {document["id"]: document for document in params["documents"]}
        elif self.ran[name] != dict(params):
            raise errors.ConflictError("other parameters")
        elif self.states[name] is ActionState.FAILED:
            raise errors.InvalidError("documents: one was wrong")
        return await super().run_action(action, params, **options)

    async def history(self, *, action_id, **_query):
        state = self.states.get(action_id)
        steps = [] if state is None else [step(action_id, state)]
        return messages.HistoryPage(actions=steps, total=len(steps))


def step(action_id, state):
    return messages.HistoryRecord(
        id=action_id, node="crm", action="index", state=state, caller="ops", at=1
    )


@pytest.fixture
def mesh(monkeypatch):
    notes = messages.CollectionInfo(
        name="notes", shard="crm", rows=12, data_version=3, fingerprint="wl-256"
    )
    fake = RememberingMesh(record("crm", collections=[notes]), record("shop"))
    monkeypatch.setattr(connection, "connect", lambda _options: fake)
    return fake


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "notes.jsonl"
    path.write_text("".join(f'{{"id": "{i}", "content": "text {i}"}}\n' for i in range(25)))
    return path


def importing(path, *options):
    return run(
        [
            "collections",
            "import",
            str(path),
            "-c",
            "notes",
            "--node",
            "crm",
            "--batch",
            "10",
            "--json",
            *options,
        ]
    )


def test_list(mesh, capsys):
    assert run(["collections", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == (
        ["notes", "crm", "crm", "12", "3", "wl-256", "healthy"]
    )
    run(["collections", "list", "--json"])
    assert json.loads(capsys.readouterr().out) == {
        "collections": [
            {
                "collection": "notes",
                "shard": "crm",
                "node": "crm",
                "rows": 12,
                "data_version": 3,
                "embedder": "wl-256",
                "health": "healthy",
            }
        ]
    }


def test_import_sends_bounded_batches_and_counts(mesh, file, capsys):
    assert importing(file) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["documents"], answer["batches"], answer["bad"]) == (25, 3, 0)
    assert answer["node"] == "crm"
    assert [len(asked["params"]["documents"]) for asked in mesh.named("action")] == [10, 10, 5]
    assert len(mesh.stored) == 25


def test_a_batch_is_bounded_in_bytes_too(mesh, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text("".join(f'{{"id": "{i}", "content": "{"x" * 200_000}"}}\n' for i in range(5)))

    assert importing(path) == 0
    assert [len(asked["params"]["documents"]) for asked in mesh.named("action")] == [2, 2, 1]


def test_bad_lines_are_named_and_the_good_ones_are_in(mesh, tmp_path, capsys):
    path = tmp_path / "mixed.jsonl"
    path.write_text('{"id": "1", "content": "a"}\noops\n{"id": "3", "content": "c"}\n')

    assert importing(path) == 1
    captured = capsys.readouterr()
    assert set(mesh.stored) == {"1", "3"}
    assert "mixed.jsonl:2: not JSON" in captured.err
    assert json.loads(captured.out)["bad_lines"][0]["line"] == 2


def test_of_many_bad_lines_twenty_are_named(mesh, tmp_path, capsys):
    path = tmp_path / "mixed.jsonl"
    path.write_text('{"id": "1", "content": "a"}\n' + "oops\n" * 30)

    assert importing(path) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "… and 10 more"


def test_a_refused_document_is_named_by_its_line(mesh, file, capsys):
    mesh.refuse = lambda document: document["id"] == "17"

    assert importing(file) == 1
    captured = capsys.readouterr()
    assert "notes.jsonl:18: " in captured.err
    assert len(mesh.stored) == 24


def test_what_is_refused_for_every_document_is_no_documents_fault(mesh, file, capsys):
    mesh.refuse = lambda _document: True

    assert importing(file) == 2
    assert not mesh.stored


@pytest.mark.parametrize(
    "options",
    [
        ["notes.txt", "-c", "n"],
        ["missing.jsonl", "-c", "n"],
        ["notes.jsonl"],
        ["notes.jsonl", "-c", "n", "--batch", "0"],
        ["notes.jsonl", "-c", "n", "--batch", "1001"],
    ],
)
def test_import_refuses_what_cannot_be(mesh, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    for name in ("notes.txt", "notes.jsonl"):
        (tmp_path / name).write_text('{"content": "a"}\n')

    assert run(["collections", "import", *options]) == 2
    assert not mesh.named("action")


def test_drop_goes_to_every_holder(mesh, capsys, monkeypatch):
    dropped = []

    async def run_action(action, params, *, node):
        dropped.append((action, params, node))
        if node == "shop":
            raise errors.NoRespondersError("nobody listens")

    mesh.run_action = run_action
    mesh.records[1] = record(
        "shop", collections=[messages.CollectionInfo(name="notes", shard="shop")]
    )

    assert run(["collections", "drop", "notes", "--yes"]) == 1
    assert [node for _, _, node in dropped] == ["crm", "shop"]
    assert dropped[0][:2] == ("drop", {"collection": "notes"})
    assert capsys.readouterr().out.splitlines() == ["crm: dropped", "shop: nobody listens"]
    dropped.clear()
    assert run(["collections", "drop", "notes", "--node", "id-crm", "--yes"]) == 0
    assert [node for _, _, node in dropped] == ["crm"]


def test_drop_of_nothing_is_wrong_input(mesh, capsys):
    assert run(["collections", "drop", "nope", "--yes", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["kind"] == "not_found"
