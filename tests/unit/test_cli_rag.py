from __future__ import annotations

import io
import json
from inspect import signature

import msgspec
import pytest
from cli_fake_mesh import FakeMesh, record

from cli import connection
from cli.meshctl.app import run
from cli.meshctl.rag import rag
from cli.meshctl.search import search
from mesh import messages

SOURCE = messages.Source(
    node="docs",
    collection="kb",
    shard="docs",
    id="7",
    title="Billing",
    url="https://x.example/7",
    part=2,
    parts=3,
    start=10,
    end=40,
)
TEXT = "Late\tinvoices \x1b[31mare red.\nSo they say."
PROMPT = f"[1] Billing\n{TEXT}\n\nSources:\n[1] docs/kb/7, part 2 of 3, https://x.example/7"


def answer(*passages, reports=(), **fields):
    missing = [report for report in reports if report.status != "ok"]
    skipped = sum(report.status == "skipped" for report in reports)
    known = {
        "passages": list(passages),
        "count": len(passages),
        "prompt": PROMPT if passages else "",
        "tokens": 40,
        "budget": 1500,
        "truncated": False,
        "documents": len(passages),
        "duration_ms": 12.4,
        "nodes_searched": 2,
        "partial": len(missing) > skipped,
        "shards": messages.Shards(
            total=len(reports),
            ok=len(reports) - len(missing),
            failed=0,
            skipped=skipped,
            timed_out=len(missing) - skipped,
            details=list(reports),
        ),
    }
    return messages.RagResult(**(known | fields))


PASSAGE = messages.Passage(number=1, text=TEXT, tokens=12, score=0.98765, source=SOURCE)


@pytest.fixture
def mesh(monkeypatch):
    fake = FakeMesh(record("docs"), record("crm"))
    fake.passages = answer(PASSAGE)
    monkeypatch.setattr(connection, "connect", lambda _options: fake)
    return fake


def test_in_a_pipe_there_is_the_prompt_and_nothing_else(mesh, capsys):
    assert run(["rag", "late"]) == 0
    shown = capsys.readouterr()
    assert shown.out == PROMPT.replace("\t", " ").replace("\x1b", " ") + "\n"
    assert shown.err == "1 passage from 1 document, 40 of 1500 tokens, in 12 ms from 2 nodes\n"


def test_a_terminal_shows_numbers_scores_and_sources(mesh, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    mesh.passages = msgspec.structs.replace(mesh.passages, id="r1", truncated=True)
    assert run(["rag", "late"]) == 0
    shown = terminal.getvalue()
    assert "[1] Billing  0.9877" in shown
    assert "docs/kb/7, part 2 of 3, https://x.example/7" in shown
    assert "\x1b[1;33mLate\x1b[0m" in shown
    assert "\x1b[31m" not in shown
    assert "; there is more" in shown
    assert "meshctl explain r1" in shown


def test_nothing_found_is_said_and_is_no_failure(mesh, capsys):
    mesh.passages = answer()
    assert run(["rag", "late"]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "nothing found\n")


def test_a_partial_answer_says_so_beside_the_prompt(mesh, capsys):
    mesh.passages = answer(
        PASSAGE,
        reports=[
            messages.ShardReport(collection="kb", shard="docs", node="docs", status="ok"),
            messages.ShardReport(
                collection="notes", shard="crm", node="crm", status="timed_out", reason="800 ms"
            ),
            messages.ShardReport(collection="wiki", shard="x", node="x", status="skipped"),
        ],
    )
    assert run(["rag", "late"]) == 0
    shown = capsys.readouterr()
    assert "PARTIAL" not in shown.out
    assert "PARTIAL: 2 of 3 shards missing" in shown.err
    assert "notes on crm timed out: 800 ms" in shown.err
    assert "1 shard skipped" in shown.err


def test_json_is_the_whole_answer(mesh, capsys):
    assert run(["rag", "late", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["passages"][0]["source"]["part"] == 2
    assert shown["prompt"] == PROMPT


def test_every_option_reaches_the_mesh(mesh):
    typed = ["rag", "late invoice", "--budget", "300", "--passages", "4", "--limit", "3"]
    typed += ["--collection", "a", "--collection", "b", "--mode", "text", "--threshold", "0.2"]
    typed += ["--node", "id-crm", "--filter", "year>=2020", "--strategy", "round_robin"]

    assert (
        run([*typed, "--require", "all", "--timeout-ms", "50", "--no-deduplicate", "--no-cache"])
        == 0
    )
    assert mesh.named("rag") == [
        {
            "query": "late invoice",
            "budget": 300,
            "passages": 4,
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
            "cache": False,
        }
    ]


def test_every_flag_of_a_search_is_one_of_rag_too():
    assert set(signature(search).parameters) - set(signature(rag).parameters) == {"explain"}


@pytest.mark.parametrize(
    "options",
    [["--budget", "99"], ["--budget", "100001"], ["--passages", "0"], ["--limit", "101"]],
)
def test_bad_options_are_refused_before_anything_is_asked(mesh, options):
    assert run(["rag", "q", *options]) == 2
    assert not mesh.calls
