"""Where the broker is: an address given, or what the state folder's mesh.json says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mesh.bootstrap import find_operator, resolve_nats
from mesh.config import NatsConfig
from mesh.errors import ConfigError, DisconnectedError, StateError

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


def test_an_address_given_counts_and_mesh_json_is_for_its_own_mesh_alone(folder):
    with pytest.raises(StateError, match=r"no credentials for nats://.*--creds"):
        resolve(folder, servers=[LOCAL])
    own = "nats://127.0.0.1:7777"
    assert resolve(folder, servers=[LOCAL], credentials="mine.json") == ([LOCAL], "mine.json")
    assert resolve(folder, servers=["nats://a:1"], url=own) == ([own], "/operator.json")
    assert find_operator([own], folder) == Path("/operator.json")
    assert find_operator([LOCAL], folder) is None
    assert find_operator([own], folder / "none") is None


def test_a_node_has_credentials_of_its_own_or_none(folder):
    assert resolve(folder, role=None) == (["nats://127.0.0.1:7777"], "")
    assert resolve(folder, role=None, credentials="mine.json")[1] == "mine.json"
    assert resolve(folder, servers=[LOCAL], role=None) == ([LOCAL], "")


def test_a_role_that_mesh_json_does_not_know_is_refused_with_what_to_do(folder):
    with pytest.raises(StateError, match=r"no credentials of its 'gateway'.*--creds.*start the"):
        resolve(folder, role="gateway")
    assert resolve(folder, role="gateway", credentials="mine.json")[1] == "mine.json"


def test_the_certificate_of_the_folders_broker_is_known_unless_another_is_given(folder):
    file = folder / "mesh.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tls_ca": "/ca.pem"}))

    def tls_of(config):
        found = resolve_nats(config, url=None, state_dir=folder, credentials=None, role="operator")
        return found.tls_ca

    assert tls_of(NatsConfig()) == "/ca.pem"
    assert tls_of(NatsConfig(tls_ca="/mine.pem")) == "/mine.pem"


@pytest.mark.parametrize(
    "address",
    ["nats://ann:geheim@a:4222", "nats://geheim@a", "a:4222", "http://a:1", "nats://", "nats://a:x",
     "nats://a:0", "nats://a:65536", "nats://[::1", "nats://a b", "nats://a:1,nats://b:1", ""],
)  # fmt: skip
def test_what_is_no_address_of_a_broker_is_refused_and_not_shown(folder, address):
    with pytest.raises(ConfigError, match=r"^nats\.servers: ") as refused:
        resolve(folder, servers=[LOCAL, address])
    assert "geheim" not in str(refused.value)
    if address:
        with pytest.raises(ConfigError, match=r"^--url/MESH_URL: "):
            resolve(folder, url=address)


@pytest.mark.parametrize("address", ["nats://a", "tls://a.example:1", "nats://[::1]:4222/"])
def test_addresses_of_brokers(folder, address):
    assert resolve(folder, url=address, credentials="mine.json")[0] == [address]
