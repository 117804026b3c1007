from __future__ import annotations

import json

import pytest
from cli_fake_mesh import FakeMesh, record

from cli import connection
from cli.meshctl.app import run
from mesh import errors, messages
from mesh.bootstrap import ImportPlace
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


def test_bad_lines_are_put_aside_as_they_stand(mesh, tmp_path, capsys):
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(b'{"id": "1", "content": "a"}\noops\n{"id": "2", "content": "\xff"}\n')
    mesh.refuse = lambda document: document["id"] == "1"

    assert importing(path) == 1
    rejects = tmp_path / "mixed.jsonl.notes@crm.rejects.jsonl"
    assert json.loads(capsys.readouterr().out)["rejects"] == str(rejects)
    assert [json.loads(line) for line in rejects.read_text().splitlines()] == [
        {
            "source": "mixed.jsonl",
            "line": 1,
            "reason": "documents: one is wrong",
            "raw": '{"id": "1", "content": "a"}',
        },
        {
            "source": "mixed.jsonl",
            "line": 2,
            "reason": "not JSON: JSON is malformed: invalid character (byte 0)",
            "raw": "oops",
        },
        {
            "source": "mixed.jsonl",
            "line": 3,
            "reason": "not UTF-8",
            "raw": "eyJpZCI6ICIyIiwgImNvbnRlbnQiOiAi/yJ9",
            "encoding": "base64",
        },
    ]
    mesh.refuse = lambda _document: False
    path.write_text('{"id": "1", "content": "a"}\n')
    assert importing(path) == 0
    assert not rejects.exists()


def test_rejects_go_where_they_are_told(mesh, tmp_path, capsys):
    path = tmp_path / "mixed.jsonl"
    path.write_text('{"id": "1", "content": "a"}\n' + "oops\n" * 30)
    aside = tmp_path / "aside.jsonl"

    assert importing(path, "--rejects", str(aside), "--max-rejects", "3") == 1
    assert len(aside.read_text().splitlines()) >= 4
    assert json.loads(capsys.readouterr().out)["stopped"]
    assert importing(path, "--rejects", str(path)) == 2
    assert path.read_text().endswith("oops\n")


def test_a_file_that_is_not_of_an_import_is_not_deleted(mesh, tmp_path, capsys):
    path, own = tmp_path / "a.jsonl", tmp_path / "thesis.txt"
    path.write_text("oops\n")
    for text in ("ten years of work\n", '{"source": "x"}\n', "\n"):
        own.write_text(text)
        assert importing(path, "--rejects", str(own)) == 2
        assert "holds something else" in json.loads(capsys.readouterr().out)["message"]
        assert own.read_text() == text


def test_imports_into_two_collections_put_aside_in_two_files(mesh, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text("oops\n")
    for collection in ("notes", "others"):
        assert importing(path, "--collection", collection) == 1
        assert (tmp_path / f"a.jsonl.{collection}@crm.rejects.jsonl").exists()
    assert (tmp_path / "a.jsonl.notes@crm.rejects.jsonl").exists()


def test_an_import_goes_on_after_a_batch_that_failed_in_an_earlier_run(mesh, file, capsys):
    """Its node remembers the failure, and answers it to the id until it is told to try again."""
    full = {"now": True, "retries": []}
    run_action = mesh.run_action
    remembered: set[str] = set()

    async def failing(action, params, *, retry=0, **options):
        name = options["id"]
        if (full["now"] and mesh.ran) or (name in remembered and not retry):
            remembered.add(name)
            full["retries"].append(retry)
            error = errors.StateError("the disk is full")
            error.attempt = max(retry, 1)
            raise error
        return await run_action(action, params, **options)

    mesh.run_action = failing
    assert importing(file) == 1
    assert sorted(set(full["retries"])) == [0, 1], "it is asked once more, and not for ever"
    full["now"] = False
    assert importing(file) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["documents"] == 25
    assert len(mesh.stored) == 25


def test_an_import_that_was_cut_off_goes_on(mesh, file, capsys):
    mesh.cut_after = 1
    assert importing(file) == 4
    assert "cut off after line 10 of" in capsys.readouterr().err
    mesh.cut_after = None

    assert importing(file) == 0
    captured = capsys.readouterr()
    assert "going on after line 10 of" in captured.err
    answer = json.loads(captured.out)
    assert (answer["documents"], answer["batches"], answer["resumed"]) == (25, 3, True)
    assert len(mesh.stored) == 25
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("change", ["file", "options", "restart", "dropped"])
def test_it_begins_anew_where_going_on_would_lose_something(mesh, file, capsys, change):
    mesh.cut_after = 1
    assert importing(file) == 4
    mesh.cut_after = None
    options = {"options": ["--id-column", "id"], "restart": ["--restart"]}.get(change, [])
    if change == "file":
        with file.open("a") as more:
            more.write('{"id": "new", "content": "text"}\n')
    if change == "dropped":
        mesh.records[0] = record("crm")
        mesh.stored.clear()

    assert importing(file, *options) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not answer["resumed"]
    assert answer["documents"] == len(mesh.stored) == 25 + (change == "file")


def test_several_files_give_sums(mesh, file, tmp_path, capsys):
    other = tmp_path / "other.csv"
    other.write_text("id,content\nx,text\nbad\n")

    assert importing(file, str(other)) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["documents"], answer["bad"], len(answer["files"])) == (26, 1, 2)
    assert importing(file, str(other), "--rejects", "x") == 2


def test_two_imports_of_one_file_do_not_share_a_place(mesh, file, capsys):
    with ImportPlace(file, collection="notes", node="crm", fallback=file.parent):
        assert importing(file) == 1
    assert "already" in json.loads(capsys.readouterr().out)["message"]
    assert importing(file) == 0


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
