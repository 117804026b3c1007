from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

from agents import samples
from agents.samples import Sample, count_documents, make_samples, part_of, plan_samples
from agents.samples.handbook import handbook_documents
from agents.samples.packages import package_documents
from agents.samples.passages import MAX_CHARS, split_at_headings, split_at_paragraphs
from agents.samples.stdlib import stdlib_documents

NOT_TO_BE_IMPORTED = ("antigravity", "this", "turtle", "tkinter")


@pytest.fixture(scope="module")
def imported():
    """Of `NOT_TO_BE_IMPORTED`, while `stdlib` was made."""
    return set[str]()


@pytest.fixture(scope="module")
def stdlib(imported):
    for module in NOT_TO_BE_IMPORTED:
        sys.modules.pop(module, None)
    documents = {document["id"]: document for document in stdlib_documents()}
    imported.update(set(NOT_TO_BE_IMPORTED) & set(sys.modules))
    return documents


@pytest.fixture(scope="module")
def packages():
    return {document["id"]: document for document in package_documents()}


def read(sample: Sample) -> list[dict]:
    return [json.loads(line) for line in sample.file.read_text(encoding="utf-8").splitlines()]


# -- the standard library --------------------------------------------------------------------------


def test_there_are_some_thousands_and_each_is_whole(stdlib):
    assert 3000 < len(stdlib) < 20_000
    for document in stdlib.values():
        assert document.keys() == {"id", "title", "content", "kind", "module"}
        assert all(value and isinstance(value, str) for value in document.values())
        assert document["content"].startswith(document["title"])
        assert len(document["id"]) <= 512
        assert len(document["content"]) < 100_000


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("time.strptime", "Parse a string to a time tuple"),
        ("datetime.datetime.strptime", "parsed from a string"),
        ("datetime.datetime.fromisoformat", "ISO 8601"),
        ("datetime.date.fromisoformat", "date"),
        ("json.loads", "Deserialize"),
        ("math.sqrt", "square root"),
        ("itertools.chain", "chain"),
        ("builtins.str.split", "substrings"),
        ("collections.deque.append", "right side"),
        ("os.listdir", "directory"),
        ("pathlib.Path.read_text", "text mode"),
        ("argparse", "Command-line parsing library"),
    ],
)
def test_what_people_look_up_is_in_with_its_text(stdlib, name, words):
    assert words in stdlib[name]["content"]


def test_a_signature_stands_in_the_title_without_the_first_argument(stdlib):
    title = stdlib["datetime.datetime.fromisoformat"]["title"]
    assert title == "datetime.datetime.fromisoformat(date_string)"
    assert stdlib["json.loads"]["title"].startswith("json.loads(s, *, cls=None")


def test_what_nobody_looks_up_is_out(stdlib):
    def private(name: str) -> bool:
        return any(part.startswith("_") for part in name.partition("#")[0].split("."))

    assert [name for name in stdlib if private(name)] == []
    tops = {document["module"] for document in stdlib.values()}
    assert not tops & {"test", "idlelib", "lib2to3", "turtledemo", "encodings", "posix"}
    assert [name for name in stdlib if ".test." in name or ".tests." in name] == []


def test_modules_written_in_python_are_read_and_not_imported(stdlib, imported):
    """Importing `antigravity` opens a browser, `this` prints a poem."""
    assert {"antigravity", "turtle"} & {document["module"] for document in stdlib.values()}
    assert not imported


# -- installed packages ----------------------------------------------------------------------------


def test_packages_have_their_summary_and_passages(packages):
    assert packages["msgspec"]["content"].startswith("msgspec: ")
    assert packages["msgspec"]["version"] == importlib.metadata.version("msgspec")
    passages = [d for d in packages.values() if d["package"] == "msgspec"]
    assert len(passages) > 3
    assert {d["kind"] for d in passages} == {"summary", "description"}
    assert not [d["id"] for d in packages.values() if "<img" in d["content"]]


def test_a_package_that_was_half_removed_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "broken-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert "msgspec" in {document["id"] for document in package_documents()}


# -- the handbook ----------------------------------------------------------------------------------


def test_the_handbook_of_a_wheel_is_read_from_beside_the_module(tmp_path):
    (tmp_path / "adr").mkdir()
    (tmp_path / "README.md").write_text("# Nodemesh\n\nOne search.\n\n## First minutes\n\nGo.\n")
    (tmp_path / "adr" / "0001.md").write_text("# Why NATS\n\nBecause.\n")
    assert [(d["id"], d["title"], d["content"]) for d in handbook_documents(tmp_path)] == [
        ("README.md#1", "Nodemesh", "Nodemesh\n\nOne search."),
        ("README.md#2", "Nodemesh: First minutes", "Nodemesh: First minutes\n\nGo."),
        ("adr/0001.md#1", "Why NATS", "Why NATS\n\nBecause."),
    ]


def test_the_handbook_of_a_checkout_is_its_readme_and_docs():
    top = Path(__file__).parents[2]
    names = {document["file"] for document in handbook_documents()}
    written = {
        file.relative_to(top / "docs").as_posix()
        for file in (top / "docs").rglob("*.md")
        if file.read_text().strip()
    }
    readme = {"README.md"} if (top / "README.md").read_text().strip() else set()
    assert names == written | readme


# -- passages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "passages"),
    [
        ("", []),
        ("only text", [("", "only text")]),
        ("intro\n# One\na\n## Two ##\nb\n", [("", "intro"), ("One", "a"), ("Two", "b")]),
        ("One\n===\na\n\nTwo\n---\nb", [("One", "a"), ("Two", "b")]),
        ("=====\nOver\n=====\na", [("Over", "a")]),
        ("# One\n```\n# a comment\n```\nb", [("One", "```\n# a comment\n```\nb")]),
        ("# Empty\n\n# Full\na", [("Full", "a")]),
        ("a\n\n---\n\nb", [("", "a\n\n---\n\nb")]),
        ("one two three\nfour five\n---\nb", [("", "one two three\nfour five\n---\nb")]),
        ("| a | b |\n|---|---|\n| 1 | 2 |", [("", "| a | b |\n|---|---|\n| 1 | 2 |")]),
    ],
)
def test_texts_are_split_at_headings(text, passages):
    assert list(split_at_headings(text)) == passages


def test_long_sections_are_split_at_paragraphs_and_lose_nothing():
    paragraphs = [f"{number} {'word ' * 60}".strip() for number in range(40)]
    parts = list(split_at_paragraphs("\n\n".join(paragraphs)))
    assert len(parts) > 3
    assert all(len(part) <= MAX_CHARS for part in parts)
    assert "\n\n".join(parts).split("\n\n") == paragraphs


# -- the plan and the files ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "slugs"),
    [
        (0, []),
        (1, ["stdlib"]),
        (2, ["stdlib", "packages"]),
        (3, ["stdlib", "packages", "handbook"]),
        (5, ["stdlib", "stdlib-2", "stdlib-3", "packages", "handbook"]),
    ],
)
def test_which_nodes_there_are(tmp_path, nodes, slugs):
    plan = plan_samples(nodes, tmp_path)
    assert [sample.slug for sample in plan] == slugs
    assert len({sample.file for sample in plan}) == nodes
    assert {sample.collection for sample in plan} <= {"python", "packages", "handbook"}


def test_more_nodes_share_the_standard_library_by_module(tmp_path, stdlib, monkeypatch):
    monkeypatch.setitem(samples._MAKERS, "python", lambda: iter(stdlib.values()))
    plan = plan_samples(5, tmp_path)
    make_samples(plan)
    parts = [read(sample) for sample in plan if sample.collection == "python"]
    assert all(parts)
    dealt = [document["id"] for part in parts for document in part]
    assert sorted(dealt) == sorted(stdlib)
    homes = [{document["module"] for document in part} for part in parts]
    assert sum(map(len, homes)) == len(set().union(*homes))
    assert part_of(stdlib["time.strptime"], 3) == part_of(stdlib["time.sleep"], 3)


def test_files_are_made_once_and_counted(tmp_path):
    plan = plan_samples(2, tmp_path)
    plan[0].file.write_text('{"id": "mine"}\n')
    make_samples(plan)
    assert count_documents(plan[0].file) == 1
    assert count_documents(plan[1].file) == len(read(plan[1])) > 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packages.jsonl", "python.jsonl"]


def test_a_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def breaks_off():
        yield {"id": "1", "title": "t", "content": "c"}
        raise OSError("disk full")

    monkeypatch.setitem(samples._MAKERS, "packages", breaks_off)
    with pytest.raises(OSError, match="disk full"):
        make_samples([Sample("packages", "packages", tmp_path / "packages.jsonl")])
    assert list(tmp_path.iterdir()) == []


def test_a_lone_surrogate_does_not_stop_the_others(tmp_path, monkeypatch):
    documents = [{"id": "1", "content": "a\udc80b"}, {"id": "2", "content": "c"}]
    monkeypatch.setitem(samples._MAKERS, "packages", lambda: iter(documents))
    sample = Sample("packages", "packages", tmp_path / "packages.jsonl")
    make_samples([sample])
    assert [document["content"] for document in read(sample)] == ["a?b", "c"]
