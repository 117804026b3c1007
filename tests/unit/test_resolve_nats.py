"""Where the broker is: an address given, or what the state folder's mesh.json says."""

from __future__ import annotations

import json

import pytest

from mesh.bootstrap import resolve_nats
from mesh.config import NatsConfig
from mesh.errors import DisconnectedError, StateError

LOCAL = "nats://127.0.0.1:4222"


def resolve(folder, *, servers=(), url=None, credentials=None, role="operator"):
    config = NatsConfig(servers=list(servers))
    found = resolve_nats(config, url=url, state_dir=folder, credentials=credentials, role=role)
    return found.servers, found.credentials


@pytest.fixture
def folder(tmp_path):
    content = {
        "nats_url": "nats://127.0.0.1:7777",
        "credentials": {"operator": "/operator.json"},
        "pids": {},
        "started_at": "2026-01-02T03:04:05+00:00",
        "version": "1",
    }
    (tmp_path / "mesh.json").write_text(json.dumps(content))
    return tmp_path


def test_without_an_address_mesh_json_says(folder):
    assert NatsConfig().servers == []
    assert resolve(folder) == (["nats://127.0.0.1:7777"], "/operator.json")
    assert resolve(folder, credentials="mine.json")[1] == "mine.json"
    with pytest.raises(DisconnectedError, match=r"no mesh\.json"):
        resolve(folder / "none")


def test_an_address_given_counts_whichever_it_is(folder):
    assert resolve(folder, servers=[LOCAL]) == ([LOCAL], "")
    assert resolve(folder, servers=["nats://a:1"], url=LOCAL) == ([LOCAL], "")


def test_a_role_that_mesh_json_does_not_know_is_refused_with_what_to_do(folder):
    with pytest.raises(StateError, match=r"no credentials for 'node'.*--creds"):
        resolve(folder, role="node")
    assert resolve(folder, role="node", credentials="mine.json")[1] == "mine.json"
