"""What `mesh-agent up` says in the end: it is read by people and pasted into shells."""

from __future__ import annotations

import json
import shlex

import pytest

from agents.up.run import Ready
from cli.up_view import UpView

TOKEN = "e30." + "x" * 300


def said(capsys, **changed) -> list[str]:
    known = {
        "nats_url": "nats://127.0.0.1:4222",
        "http_url": "http://127.0.0.1:8080",
        "prefix": "/api/ai-engine",
        "certificate": "",
        "token": TOKEN,
        "nodes": ["stdlib", "packages"],
        "collection": "python",
    }
    with UpView(meshctl="meshctl --state-dir .mesh") as view:
        view.ready(Ready(**(known | changed)))
    told = capsys.readouterr()
    assert told.err == ""
    return told.out.splitlines()


def curl_of(lines: list[str]) -> list[str]:
    (line,) = [line for line in lines if line.startswith("curl ")]
    return shlex.split(line)


def test_the_curl_line_is_whole_and_searches(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = said(capsys)
    command = curl_of(lines)
    assert command[2] == "http://127.0.0.1:8080/api/ai-engine/search"
    assert f"Authorization: Bearer {TOKEN}" in command
    assert json.loads(command[-1])["options"] == {"collections": ["python"]}
    assert lines[0] == "mesh ready  http://127.0.0.1:8080/api/ai-engine"
    assert "  docs      http://127.0.0.1:8080/api/ai-engine/docs" in lines
    assert "    meshctl --state-dir .mesh tokens issue --scope search,actions --ttl 1d" in lines


@pytest.mark.parametrize("changed", [{"nodes": [], "collection": None}], ids=["no sample nodes"])
def test_without_nodes_it_searches_everywhere(capsys, changed):
    assert "options" not in json.loads(curl_of(said(capsys, **changed))[-1])


def test_without_a_token_it_says_how_to_get_one(capsys):
    lines = said(capsys, token=None)
    assert not [line for line in lines if line.startswith("curl")]
    assert [line for line in lines if "tokens issue" in line]
