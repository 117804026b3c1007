from __future__ import annotations

import asyncio
import json
from unittest import mock

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mesh
from mesh import errors
from mesh.adapters.document_files import import_place
from mesh.bootstrap import ImportPlace
from mesh.runtime import importing


class Killed(BaseException):
    """What a kill is for the code in between: no handler of ours may see it."""


class FakeNode:
    """Upserts like a node; answers an id it knows from memory, and is away when told."""

    def __init__(self):
        self.stored = {}
        self.ids = {}
        self.sent = []
        self.running = []
        self.most_running = 0
        self.failures = []
        self.refused = frozenset()
        self.delays = ()

    async def index(self, params, action_id):
        documents = json.loads(msgspec.json.encode(params["documents"]))
        ids = [document["id"] for document in documents]
        assert not any(set(ids) & set(others) for others in self.running), "order is lost"
        self.sent.append(ids)
        self.running.append(ids)
        self.most_running = max(self.most_running, len(self.running))
        try:
            delay = self.delays[len(self.sent) % len(self.delays)] if self.delays else 0
            for _ in range(delay):
                await asyncio.sleep(0)
            return self._run(documents, action_id)
        finally:
            self.running.remove(ids)

    def _run(self, documents, action_id):
        if self.failures and (failure := self.failures.pop(0)) is not None:
            raise failure
        if action_id in self.ids:
            assert self.ids[action_id][0] == documents, "one id, two contents"
            return {"changed": self.ids[action_id][1]}
        if bad := [at for at, d in enumerate(documents) if d["content"] in self.refused]:
            named = {f"documents[{at}].content": ["is refused"] for at in bad[:20]}
            raise errors.InvalidError("no", fields=named)
        changed = sum(self.stored.get(d["id"]) != d for d in documents)
        self.stored |= {document["id"]: document for document in documents}
        self.ids[action_id] = (documents, changed)
        return {"changed": changed}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(importing, "_PAUSE_S", 0.0)


@pytest.fixture
def node():
    return FakeNode()


def write(path, rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def doc(name, content="text"):
    return {"id": str(name), "content": str(content)}


async def imported(path, node, **options):
    report = await mesh.import_documents(
        mesh.read_documents(path), node.index, collection="notes", **options
    )
    assert not node.running
    return report


async def test_several_batches_are_on_their_way_once_one_arrived(tmp_path, node):
    path = write(tmp_path / "a.jsonl", [doc(n) for n in range(95)])
    node.delays = (10_000, 5_000)

    report = await imported(path, node, batch=10, in_flight=4)
    assert (report.documents, report.batches, len(node.stored)) == (95, 10, 95)
    assert node.most_running == 4
    assert node.sent[0] == [str(n) for n in range(10)]


async def test_of_two_lines_with_one_id_the_later_one_wins(tmp_path, node):
    """In one batch, in neighbours, and far apart: the second is not sent before the first ended."""
    rows = [doc(n % 7, n) for n in range(100)]
    path = write(tmp_path / "a.jsonl", rows)
    node.delays = (5000, 0, 3000, 1)

    report = await imported(path, node, batch=3, in_flight=4)
    assert report.documents == 100
    assert {d["id"]: d["content"] for d in node.stored.values()} == {
        row["id"]: row["content"] for row in rows
    }


async def test_a_batch_that_comes_again_is_no_repetition(tmp_path, node):
    path = write(tmp_path / "a.jsonl", [doc(1, "a"), doc(1, "b"), doc(1, "a")])

    await imported(path, node, batch=1)
    assert node.stored["1"]["content"] == "a"


async def test_a_refused_line_gives_its_place_back_to_the_one_before(tmp_path, node):
    path = write(tmp_path / "a.jsonl", [doc(1, "good"), doc(2), doc(1, "evil"), doc(3)])
    node.refused = {"evil"}

    report = await imported(path, node)
    assert node.stored["1"]["content"] == "good"
    assert (report.documents, report.bad) == (3, 1)
    assert report.bad_lines == [("a.jsonl", 3, "content is refused")]


async def test_push_back_is_honoured_and_the_id_stays(tmp_path, node, monkeypatch):
    path = write(tmp_path / "a.jsonl", [doc(1)])
    waited, asked = [], []

    async def sleep(seconds):
        waited.append(seconds)

    async def index(params, action_id):
        asked.append(action_id)
        return await node.index(params, action_id)

    node.failures = [
        errors.OverloadedError("busy", retry_after_ms=1500),
        errors.DeadlineExceededError("late"),
        errors.DisconnectedError("gone"),
    ]
    monkeypatch.setattr(importing, "_sleep", sleep)
    report = await mesh.import_documents(mesh.read_documents(path), index, collection="notes")
    assert report.documents == 1
    assert waited[0] == 1.5
    assert len(asked) == 4
    assert len(set(asked)) == 1


async def test_a_mesh_that_never_takes_anything_is_given_up(tmp_path, node, monkeypatch):
    monkeypatch.setattr(importing, "_PATIENCE_FIRST_S", 0.0)
    monkeypatch.setattr(importing, "_PAUSE_S", 0.001)
    path = write(tmp_path / "a.jsonl", [doc(1)])
    node.failures = [errors.NoRespondersError("nobody")] * 9

    with pytest.raises(errors.NoRespondersError):
        await imported(path, node)
    assert len(node.failures) == 8


@pytest.mark.parametrize(
    "error",
    [
        errors.ForbiddenError("no"),
        errors.InvalidError("no", fields={"params.collection": ["is no name"]}),
        errors.StateError("disk full"),
    ],
    ids=["forbidden", "collection", "disk"],
)
async def test_what_is_not_the_documents_fault_ends_the_import(tmp_path, node, error):
    path = write(tmp_path / "a.jsonl", [doc(n) for n in range(50)])
    node.failures = [None, None, error]
    with pytest.raises(type(error)):
        await imported(path, node, batch=5, in_flight=4)


async def test_bad_lines_are_bounded_in_memory(tmp_path, node):
    """Each commit holds no more of them than a batch may hold documents."""
    commits = []

    class Keeper:
        def commit(self, report, mark, rejected):
            commits.append((mark, [bad.line for bad in rejected]))

    path = write(tmp_path / "a.jsonl", ["oops"] * 950 + [doc(1)] + ["x" * 100_000] * 10)
    report = await imported(path, node, batch=100, keeper=Keeper())

    assert report.bad == 960
    assert len(report.bad_lines) == 20
    assert max(len(lines) for _, lines in commits) <= 100
    assert [n for _, lines in commits for n in lines] == [*range(1, 951), *range(952, 962)]
    assert commits[-1][0] == (path.stat().st_size, 961)


async def test_too_many_bad_lines_stop_it(tmp_path, node):
    path = write(tmp_path / "a.jsonl", [doc(1), *["oops"] * 500, doc(2)])

    report = await imported(path, node, batch=10, most_bad=25)
    assert report.stopped
    assert 25 < report.bad < 60
    assert list(node.stored) == ["1"]


async def test_cancelling_leaves_nothing_running(tmp_path, node):
    path = write(tmp_path / "a.jsonl", [doc(n) for n in range(100)])
    node.delays = (10**9,)
    task = asyncio.create_task(imported(path, node, batch=10, in_flight=4))
    async with asyncio.timeout(30):
        while not node.running:
            await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not node.running


# -- killed and resumed ----------------------------------------------------------------------------


LINES = st.lists(
    st.one_of(
        st.builds(doc, st.integers(0, 12), st.sampled_from(["a", "b", "evil"])),
        st.builds(lambda content: {"content": content}, st.sampled_from(["a", "evil"])),
        st.sampled_from(["oops", "", "[1]", '{"id": 1}', '{"content": "a", "content": "b"}']),
    ),
    max_size=40,
)


def expected(rows):
    """What has to be in the end: good documents, later ones over earlier ones; and bad lines."""
    good, bad = {}, []
    for number, row in enumerate(rows, start=1):
        if isinstance(row, str):
            bad += [number] if row else []
        elif row["content"] == "evil":
            bad.append(number)
        else:
            name = row.get("id", f"a-{number}")
            good[name] = {**row, "id": name}
    return good, bad


def replaced(rows, number):
    """Whether a later line has the id of this one, and is good."""
    row = rows[number - 1]
    return isinstance(row, dict) and any(
        isinstance(later, dict) and later.get("id", 0) == row.get("id") and later != row
        for later in rows[number:]
    )


@settings(deadline=None)  # it writes files
@given(
    rows=LINES,
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 4)),
    kills=st.lists(
        st.tuples(st.sampled_from(["before", "between", "after", "node"]), st.integers(0, 9)),
        max_size=4,
    ),
    delays=st.lists(st.sampled_from([0, 1, 1000]), min_size=1, max_size=5),
)
def test_however_often_it_is_killed_exactly_the_good_documents_are_there(
    tmp_path_factory, rows, sizes, kills, delays
):
    """Killed before, while or after a place is written, or with batches taken and not
    acknowledged.
    """
    folder = tmp_path_factory.mktemp("killed")
    path = write(folder / "a.jsonl", rows)
    node = FakeNode()
    node.refused, node.delays = {"evil"}, delays

    for kill in [*kills, None]:
        try:
            report, place = asyncio.run(attempt(path, node, kill, *sizes))
        except Killed:
            continue

    good, bad = expected(rows)
    assert node.stored == good
    aside = place.rejects.read_text().splitlines() if place.rejects.exists() else []
    rejected = [json.loads(line)["line"] for line in aside]
    # A line that a later one of its batch takes the place of is not judged.
    unjudged = [number for number in bad if number not in rejected]
    assert sorted([*rejected, *unjudged]) == bad
    assert all(replaced(rows, number) for number in unjudged)
    assert report.bad == len(rejected)
    assert report.documents == sum(bool(row) for row in rows) - len(rejected)
    assert [entry.name for entry in folder.iterdir() if ".import" in entry.name] == []


@pytest.mark.parametrize("moment", ["before", "between", "after", "node"])
@pytest.mark.parametrize("when", range(4))
def test_killed_at_any_moment_it_goes_on(tmp_path, node, moment, when):
    """Of what repeats: bad lines, and one text that comes back after another one."""
    rows = ["oops", doc(1, "a"), doc(1, "b"), "oops", "oops", doc(1, "a"), doc(2), "oops"]
    path = write(tmp_path / "a.jsonl", rows)

    with pytest.raises(Killed):
        asyncio.run(attempt(path, node, (moment, when), 1, 1))
    report, place = asyncio.run(attempt(path, node, None, 1, 1))

    assert node.stored == {"1": doc(1, "a"), "2": doc(2)}
    lines = [json.loads(line)["line"] for line in place.rejects.read_text().splitlines()]
    assert lines == [1, 4, 5, 8]
    assert (report.documents, report.bad) == (4, 4)


async def attempt(path, node, kill, batch, in_flight):
    """One run, killed at the given moment."""
    how, when = kill or ("", 0)
    seen = 0

    def due(moment):
        nonlocal seen
        seen += how == moment
        return how == moment and seen > when

    class Keeper:
        def commit(self, *arguments):
            if due("before"):
                raise Killed
            place.commit(*arguments)
            if due("after"):
                raise Killed

    async def index(params, action_id):
        answer = await node.index(params, action_id)
        if due("node"):
            raise Killed
        return answer

    def written(file, data):
        if due("between"):
            raise Killed
        write_place(file, data)

    write_place = import_place._write
    place = ImportPlace(path, collection="notes", node="crm", fallback=path.parent)
    with mock.patch.object(import_place, "_write", written), place:
        report = await mesh.import_documents(
            mesh.read_documents(path, after=place.mark),
            index,
            collection="notes",
            batch=batch,
            in_flight=in_flight,
            keeper=Keeper(),
            report=mesh.ImportReport(**place.counts._asdict()),
            import_id=place.import_id,
        )
        place.finish()
    return report, place
