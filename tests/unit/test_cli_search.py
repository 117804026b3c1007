from __future__ import annotations

import io
import json

import msgspec
import pytest
from cli_fake_mesh import FakeMesh, record

from cli import connection
from cli.meshctl.app import run
from cli.meshctl.search import excerpt, query_words
from mesh import messages


def hit(**fields):
    known = {
        "id": "a",
        "content": "Parse a date from a string",
        "score": 0.98765,
        "model_class": "stdlib",
        "model_type": "stdlib",
        "metadata": {},
        "node": "docs",
        "collection": "stdlib",
        "shard": "docs",
    }
    return messages.Hit(**(known | fields))


def result(*hits, reports=()):
    missing = [report for report in reports if report.status != "ok"]
    return messages.SearchResult(
        results=list(hits),
        count=len(hits),
        total_results=len(hits),
        duration_ms=12.4,
        nodes_searched=2,
        node_breakdown={},
        type_breakdown={},
        merge_strategy="score",
        avg_score=0.5,
        partial=bool(missing),
        shards=messages.Shards(
            total=len(reports),
            ok=len(reports) - len(missing),
            failed=0,
            skipped=0,
            timed_out=len(missing),
            details=list(reports),
        ),
    )


@pytest.fixture
def mesh(monkeypatch):
    fake = FakeMesh(record("docs"), record("crm"))
    fake.found = result(hit())
    monkeypatch.setattr(connection, "connect", lambda _options: fake)
    return fake


def test_results_are_readable(mesh, capsys):
    mesh.found = result(hit(), hit(id="b", shard="x", content="two\nlines", explain={"bm25": 1.5}))

    assert run(["search", "date"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        " 1. 0.9877  a  docs/stdlib",
        "   Parse a date from a string",
        " 2. 0.9877  b  docs (shard x)/stdlib",
        "   two lines",
        "   bm25 1.5",
        "2 results of 2 candidates in 12 ms from 2 nodes",
    ]


def test_nothing_found_is_said_and_is_no_failure(mesh, capsys):
    mesh.found = result()

    assert run(["search", "date"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "nothing found"


def test_a_partial_answer_names_what_is_missing(mesh, capsys):
    mesh.found = result(
        hit(),
        reports=[
            messages.ShardReport(collection="stdlib", shard="docs", node="docs", status="ok"),
            messages.ShardReport(
                collection="notes", shard="crm", node="crm", status="timed_out", reason="800 ms"
            ),
            messages.ShardReport(collection="wiki", shard="x", node="kb", status="failed"),
        ],
    )

    assert run(["search", "date"]) == 0
    shown = capsys.readouterr().out
    assert "PARTIAL: 2 of 3 shards missing" in shown
    assert "notes on crm timed out: 800 ms" in shown
    assert "wiki on kb, shard x failed" in shown
    assert "stdlib on docs" not in shown


def test_json_is_the_whole_answer(mesh, capsys):
    assert run(["search", "date", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["results"][0]["id"] == "a"
    assert answer["shards"] == {
        "total": 0,
        "ok": 0,
        "failed": 0,
        "skipped": 0,
        "timed_out": 0,
        "details": [],
    }


def test_every_option_reaches_the_mesh(mesh):
    typed = ["search", "late invoice", "--limit", "3", "--collection", "a", "--collection", "b"]
    typed += ["--mode", "text", "--threshold", "0.2", "--node", "id-crm", "--filter", "year>=2020"]
    typed += ["--strategy", "round_robin", "--require", "all", "--timeout-ms", "50"]

    assert run([*typed, "--no-deduplicate", "--explain", "--no-cache"]) == 0
    assert mesh.named("search") == [
        {
            "query": "late invoice",
            "limit": 3,
            "collections": ["a", "b"],
            "mode": "text",
            "threshold": 0.2,
            "filters": {"year": messages.Range(gte=2020)},
            "nodes": ["crm"],
            "strategy": "round_robin",
            "require": "all",
            "timeout_ms": 50,
            "deduplicate": False,
            "explain": True,
            "cache": False,
        }
    ]


def test_what_is_not_said_is_left_to_the_mesh(mesh):
    run(["search", "q"])
    (asked,) = mesh.named("search")
    unsaid = ("collections", "threshold", "filters", "nodes", "strategy", "timeout_ms")
    assert [asked[name] for name in (*unsaid, "deduplicate")] == [None] * 7


@pytest.mark.parametrize(
    "options",
    [
        ["--limit", "0"],
        ["--limit", "101"],
        ["--mode", "x"],
        ["--threshold", "2"],
        ["--filter", "x"],
        ["--require", "most"],
        ["--strategy", "best"],
        ["--timeout-ms", "0"],
    ],
)
def test_bad_options_are_refused_before_anything_is_asked(mesh, options):
    assert run(["search", "q", *options]) == 2
    assert not mesh.calls


def test_an_excerpt_is_cut_at_a_word():
    assert excerpt("short") == "short"
    assert excerpt("word " * 100) == ("word " * 39) + "word …"
    assert excerpt("words " * 100) == ("words " * 32) + "words …"
    assert len(excerpt("x" * 500)) == 202


def test_the_querys_words_are_highlighted_on_a_terminal(mesh, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    mesh.found = msgspec.structs.replace(mesh.found, id="r1")
    run(["search", "dates? string a"])
    assert "meshctl explain r1" in terminal.getvalue()
    assert "\x1b[1;33mstring\x1b[0m" in terminal.getvalue()
    assert "[1;33mdate" not in terminal.getvalue()


def test_words_of_a_query_match_longer_ones_and_never_as_patterns():
    assert query_words("pars. +").findall("Parsing pars.") == ["Parsing", "pars"]
    assert query_words("a + .") is None


def test_a_mesh_without_anybody_is_not_reachable_rather_than_empty(mesh, capsys):
    mesh.records.clear()
    mesh.epoch = 0

    assert run(["search", "q"]) == 3
    assert "neither a master nor a node answers" in capsys.readouterr().err
