from __future__ import annotations

import io

import pytest
from cli_fake_mesh import START, record

from cli.output import Column, Output, ago, aligned, iso, plain, printable
from mesh import messages
from mesh.types import ActionState

COLUMNS = (Column("name"), Column("rows", align="right"))


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("age_s", "words"),
    [
        (-5, "now"),
        (0, "now"),
        (3, "3 s ago"),
        (59, "59 s ago"),
        (60, "1 min ago"),
        (3599, "59 min ago"),
        (7200, "2 h ago"),
        (86400 * 3, "3 d ago"),
    ],
)
def test_ages_are_in_the_largest_whole_unit(age_s, words):
    assert ago(START - age_s * 1000, START) == words


def test_iso():
    assert iso(START) == "2026-01-02T03:04:05Z"


def test_a_table_in_a_pipe_is_aligned_and_never_cut():
    long = "x" * 300

    lines = aligned(COLUMNS, [["crm", "5"], [long, "12345"]])

    assert lines[0] == "NAME".ljust(300) + "   ROWS"
    assert lines[1] == "crm".ljust(300) + "      5"
    assert lines[2] == long + "  12345"


def test_a_table_on_a_terminal_shows_styles_unless_no_color_is_set(monkeypatch):
    columns = (Column("health", styles={"healthy": "green"}),)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = Terminal()
    Output(as_json=False, stdout=coloured).table(columns, [["healthy"]])
    monkeypatch.setenv("NO_COLOR", "1")
    colourless = Terminal()
    Output(as_json=False, stdout=colourless).table(columns, [["healthy"]])

    assert "\x1b[32mhealthy" in coloured.getvalue()
    assert "\x1b[32m" not in colourless.getvalue()
    assert "healthy" in colourless.getvalue()


def test_times_are_relative_on_a_terminal_and_iso_in_a_pipe():
    assert Output(as_json=False, stdout=io.StringIO()).when(START) == "2026-01-02T03:04:05Z"
    assert Output(as_json=False, stdout=Terminal()).when(START).endswith("ago")
    assert Output(as_json=False, stdout=Terminal()).when(None) == "-"


def test_a_document_cannot_steer_the_terminal():
    assert printable("a\x1b[2Jb\n\tc\u202ed") == "a [2Jb c d"


def test_json_has_every_field():
    shown = plain(record("crm", collections=[messages.CollectionInfo(name="a", shard="s")]))

    assert shown["collections"][0]["rows"] == 0, "left out on the wire, present here"
    assert shown["health"] == "healthy"
    step = messages.HistoryRecord(
        id="1",
        node="crm",
        action="index",
        state=ActionState.FAILED,
        caller="ops",
        at=1,
        result={"a": 1},
    )
    assert plain(step)["result"] == {"a": 1}
    assert plain(step)["duration_ms"] is None


def test_json_is_one_line_in_a_pipe():
    out = io.StringIO()
    Output(as_json=True, stdout=out).json({"nodes": [], "n": 1.5})

    assert out.getvalue() == '{"nodes":[],"n":1.5}\n'
