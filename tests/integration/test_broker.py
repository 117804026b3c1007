"""The embedded broker against the real nats-server and the product's own configuration."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import nats
import psutil
import pytest
from processes import BrokerProcess

from mesh.adapters.nats import broker as broker_module
from mesh.adapters.nats.broker import EmbeddedBroker, find_conf, find_nats_server
from mesh.errors import StateError

USERS = EmbeddedBroker.USERS
PASSWORDS = dict.fromkeys(USERS, "a-password")


def connect(broker: BrokerProcess, user: str):
    return nats.connect(broker.url, allow_reconnect=False, **broker.login(user))


def answer_to_login(broker: BrokerProcess, **login: str) -> bytes:
    """What the server says to a client that logs in like this and pings."""
    with socket.create_connection(("127.0.0.1", broker.port), timeout=5) as connection:
        words = connection.makefile("rb")
        words.readline()  # INFO
        hello = {"verbose": False, "pedantic": False, "lang": "test", "version": "1"}
        if login:
            hello |= {"user": login["user"], "pass": login["password"]}
        connection.sendall(b"CONNECT " + json.dumps(hello).encode() + b"\r\nPING\r\n")
        return words.readline().strip()


@pytest.mark.parametrize("user", USERS)
def test_every_user_logs_in_with_its_password_alone(shared_broker, user):
    assert answer_to_login(shared_broker, **shared_broker.login(user)) == b"PONG"

    for password in ("", "wrong", shared_broker.passwords[user] + "x"):
        refused = answer_to_login(shared_broker, user=user, password=password)
        assert refused == b"-ERR 'Authorization Violation'"


def test_nobody_gets_in_without_a_login(shared_broker):
    assert answer_to_login(shared_broker) == b"-ERR 'Authorization Violation'"


async def test_limits_and_jetstream(shared_broker):
    client = await connect(shared_broker, "master")
    assert client.max_payload == 2 * 1024 * 1024
    account = await client.jetstream().account_info()
    assert account.limits.max_storage != 0
    await client.close()


async def test_sync_interval_is_a_duration_and_not_two_million_seconds(shared_broker):
    client = await connect(shared_broker, "sys")
    reply = await client.request("$SYS.REQ.SERVER.PING.JSZ", b"{}", timeout=5)
    assert json.loads(reply.data)["data"]["config"]["sync_interval"] == 120 * 10**9
    await client.close()


async def test_sync_always_reaches_the_server(tmp_path):
    broker = BrokerProcess(tmp_path)
    broker._broker = EmbeddedBroker(
        store=tmp_path / "broker", passwords=broker.passwords, sync_interval="always"
    )
    broker.start()
    try:
        client = await connect(broker, "sys")
        reply = await client.request("$SYS.REQ.SERVER.PING.JSZ", b"{}", timeout=5)
        assert json.loads(reply.data)["data"]["config"]["sync_always"] is True
        await client.close()
    finally:
        broker.kill()


@pytest.mark.parametrize(
    "password",
    ["1e500", "12345678", "true", "2m", "$HOME", 'q"uote\\back', "has space # {", "ünïcode"],
)
async def test_a_password_is_text_whatever_it_looks_like(tmp_path, password):
    broker = BrokerProcess(tmp_path)
    broker.passwords = {user: f"{password}{user}" for user in USERS} | {"node": password}
    broker._broker = EmbeddedBroker(store=tmp_path / "broker", passwords=broker.passwords)
    broker.start()
    try:
        client = await connect(broker, "node")
        assert client.is_connected
        await client.close()
    finally:
        broker.kill()


async def test_a_folder_with_odd_characters_holds_the_store(tmp_path):
    broker = BrokerProcess(tmp_path / 'it\'s "a" folder \\ #1')
    broker.folder.mkdir()
    broker.start()
    try:
        client = await connect(broker, "master")
        await client.jetstream().add_stream(name="KEPT", subjects=["kept"])
        assert (broker.folder / "broker" / "jetstream" / "MESH" / "streams" / "KEPT").is_dir()
        await client.close()
    finally:
        broker.kill()


async def test_a_restart_after_a_crash_keeps_port_and_data(broker):
    client = await connect(broker, "master")
    await client.jetstream().add_stream(name="KEPT", subjects=["kept"])
    acknowledged = await client.jetstream().publish("kept", b"x")
    await client.close()
    port, pid = broker.port, broker.pid

    broker.kill()
    broker.start()

    assert broker.port == port
    assert broker.pid != pid
    client = await connect(broker, "master")
    stored = await client.jetstream().get_msg("KEPT", acknowledged.seq)
    assert stored.data == b"x"
    await client.close()


async def test_a_paused_broker_is_not_ready(broker):
    broker.pause()
    assert not await asyncio.to_thread(broker._broker.probe, broker.pid)
    broker.resume()
    async with asyncio.timeout(5):
        while not await asyncio.to_thread(broker._broker.probe, broker.pid):
            await asyncio.sleep(0.01)


def test_it_listens_on_loopback_alone(shared_broker):
    addresses = {
        connection.laddr.ip
        for connection in psutil.Process(shared_broker.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


def test_no_secret_in_the_process_list_or_the_log(shared_broker):
    seen = " ".join(psutil.Process(shared_broker.pid).cmdline()) + shared_broker.log.read_text()
    assert not [user for user, password in shared_broker.passwords.items() if password in seen]


def test_a_taken_port_is_refused_by_its_number(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        broker = EmbeddedBroker(store=tmp_path / "broker", passwords=PASSWORDS, port=port)
        with pytest.raises(StateError, match=rf"port {port} is taken.*--nats-port"):
            broker.prepare()


def test_a_user_without_a_password_is_refused(tmp_path):
    """nats-server itself would take an empty password and let everybody in with it."""
    with pytest.raises(StateError, match="no password for node"):
        EmbeddedBroker(store=tmp_path, passwords=PASSWORDS | {"node": ""})


def test_a_configuration_that_cannot_be_names_the_reason(tmp_path):
    broker = EmbeddedBroker(store=tmp_path / "b", passwords=PASSWORDS, sync_interval="often")
    with pytest.raises(StateError, match=r"refuses its configuration.*sync_interval"):
        broker.prepare()


def test_the_configuration_needs_every_password():
    """A variable that is not set is an error of nats-server's, not an open door."""
    tested = subprocess.run(
        [find_nats_server(), "-t", "-c", find_conf()],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode
    assert "MESH_BROKER_" in tested.stderr


def test_the_store_is_private(shared_broker):
    mode = (shared_broker.folder / "broker").stat().st_mode
    assert stat.S_IMODE(mode) == 0o700


def _script(path: Path, says: str) -> None:
    path.write_text(f"#!/bin/sh\necho 'nats-server: {says}'\n")
    path.chmod(0o755)


def test_a_new_enough_server_on_the_path_goes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    _script(tmp_path / "nats-server", "v2.12.0")
    assert find_nats_server() == tmp_path / "nats-server"


def test_an_old_server_on_the_path_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    _script(tmp_path / "nats-server", "v2.11.9")
    assert find_nats_server() == Path(sys.executable).with_name("nats-server")


def test_without_any_server_it_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(broker_module, "_packaged", list)
    _script(tmp_path / "nats-server", "v2.10.1")
    with pytest.raises(StateError, match=r"2\.12 or newer .*2\.10\.1.*pip install"):
        find_nats_server()


def test_the_packaged_server_is_found_without_path_or_neighbour(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert find_nats_server().name == "nats-server"
