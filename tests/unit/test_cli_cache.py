"""`meshctl cache`: words and forms."""

from __future__ import annotations

import json

import pytest
from cli_fake_mesh import FakeMesh, cache, record

from cli import connection
from cli.meshctl.app import run


@pytest.fixture
def mesh(monkeypatch):
    fake = FakeMesh(record("crm"))
    fake.known_caches = [
        cache("web-1:4711"),
        cache("web-2:99", max_bytes=0, entries=0, bytes=0, hits=0, misses=0, hit_rate=None),
    ]
    monkeypatch.setattr(connection, "connect", lambda _options: fake)
    return fake


def test_each_gateway_tells_what_it_keeps(mesh, capsys):
    assert run(["cache", "stats"]) == 0
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert first.split() == ["web-1:4711", "3", "3.0", "64", "9", "3", "75.0%", "1", "0"]
    assert second.split()[:4] == ["web-2:99", "0", "0.0", "off"]
    assert mesh.named("caches") == [False]


def test_each_gateway_tells_what_it_forgot(mesh, capsys):
    mesh.known_caches = [cache("web-1:4711", entries=0, cleared=3)]
    assert run(["cache", "clear"]) == 0
    assert capsys.readouterr().out == "web-1:4711: 3 forgotten\n"
    assert mesh.named("caches") == [True]


def test_json_is_what_the_gateways_said(mesh, capsys):
    assert run(["cache", "stats", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["gateways"]
    assert [one["gateway"] for one in told] == ["web-1:4711", "web-2:99"]
    assert told[0]["stats"]["hit_rate"] == 0.75
    assert told[1]["cleared"] is None


@pytest.mark.parametrize("command", ["stats", "clear"])
def test_where_there_is_no_gateway_it_is_said(mesh, capsys, command):
    mesh.known_caches = []
    assert run(["cache", command]) == 0
    told = capsys.readouterr()
    assert "no gateway answers" in told.out + told.err
    assert run(["cache", command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"gateways": []}
