"""The embedded broker against the real nats-server and the product's own configuration."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import nats
import psutil
import pytest
from processes import BrokerProcess

from mesh.adapters.nats import broker as broker_module
from mesh.adapters.nats.broker import EmbeddedBroker, find_conf, find_nats_server
from mesh.adapters.nats.keys import BrokerKeys, broker_keys, make_gateway, make_master
from mesh.core import permissions
from mesh.errors import StateError

KEYS = broker_keys(make_master(), make_gateway())


def connect(broker: BrokerProcess, user: str = "master"):
    return nats.connect(
        broker.url,
        allow_reconnect=False,
        nkeys_seed_str=seeds(broker)[user],
        inbox_prefix=f"mesh.v1.re.srv.{user}",
    )


def seeds(broker: BrokerProcess) -> dict[str, str]:
    keys = broker.keys
    return {
        "master": keys.nkey,
        "auth": keys.auth_nkey,
        "sys": keys.sys_nkey,
        "gateway": broker.login("gateway").nkey,
    }


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


@pytest.mark.parametrize(
    ("user", "account"),
    [("master", "MESH"), ("gateway", "MESH"), ("auth", "AUTH"), ("sys", "SYS")],
)
async def test_every_static_user_logs_in_to_its_account(shared_broker, user, account):
    client = await connect(shared_broker, user)
    watcher = await connect(shared_broker, "sys")
    inbox = "mesh.v1.re.srv.sys.test"
    heard = await watcher.subscribe(inbox)
    question = json.dumps({"auth": True, "cid": client.client_id}).encode()
    await watcher.publish("$SYS.REQ.SERVER.PING.CONNZ", question, reply=inbox)
    (found,) = json.loads((await heard.next_msg(timeout=5)).data)["data"]["connections"]
    assert found["account"] == account
    await client.close()
    await watcher.close()


def test_nobody_gets_in_without_a_login_or_with_a_password(shared_broker):
    keys = json.loads(shared_broker.credentials("broker").read_bytes())
    users = ("master", "node", keys["master"], keys["sys"])
    passwords = ("", seeds(shared_broker)["master"])
    shown = [{}, *({"user": user, "password": word} for user in users for word in passwords)]
    with ThreadPoolExecutor(len(shown)) as threads:  # no master answers: each takes 2 s
        answers = list(threads.map(lambda login: answer_to_login(shared_broker, **login), shown))
    assert answers == [b"-ERR 'Authorization Violation'"] * len(shown)


def test_the_gateways_permissions_are_those_of_the_table():
    """What the broker makes of the file, tests/integration/test_refused_by_broker.py tries out."""
    text = find_conf().read_text()
    block = text[text.index("nkey: $MESH_BROKER_GATEWAY") :]
    written = [
        tuple(
            re.findall(r'"([^"]+)"', block[block.index(act) : block.index("]", block.index(act))])
        )
        for act in ("publish {", "subscribe {")
    ]
    assert written == list(permissions.of_gateway())


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
        store=tmp_path / "broker", keys=broker._broker._keys, sync_interval="always"
    )
    broker.start()
    try:
        client = await connect(broker, "sys")
        reply = await client.request("$SYS.REQ.SERVER.PING.JSZ", b"{}", timeout=5)
        assert json.loads(reply.data)["data"]["config"]["sync_always"] is True
        await client.close()
    finally:
        broker.kill()


async def test_a_folder_with_odd_characters_holds_the_store(tmp_path):
    broker = BrokerProcess(tmp_path / 'it\'s "a" folder \\ #1')
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


def test_it_is_given_no_secret(shared_broker):
    """Not in an argument, its environment or its log: it has none."""
    process = psutil.Process(shared_broker.pid)
    seen = " ".join([*process.cmdline(), *process.environ().values()])
    seen += shared_broker.log.read_text()
    secrets = [*seeds(shared_broker).values()]
    secrets += [shared_broker.keys.issuer_nkey, shared_broker.keys.xkey]
    secrets += [shared_broker.login("operator").password]
    assert not [secret for secret in secrets if secret in seen]
    assert json.loads(shared_broker.credentials("broker").read_bytes())["issuer"] in seen


def test_a_taken_port_is_refused_by_its_number(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        broker = EmbeddedBroker(store=tmp_path / "broker", keys=KEYS, port=port)
        with pytest.raises(StateError, match=rf"port {port} is taken.*--nats-port"):
            broker.prepare()


@pytest.mark.parametrize("name", BrokerKeys.__struct_fields__)
@pytest.mark.parametrize(
    "wrong",
    ["", "x", KEYS.master[:-1], make_master().nkey, "another"],
    ids=["empty", "short", "cut", "seed", "another"],
)
def test_a_key_that_is_missing_or_none_is_refused(tmp_path, name, wrong):
    """nats-server itself would take some of these and let everybody in."""
    if wrong == "another":  # a key, of another kind
        wrong = KEYS.master if name in ("issuer", "xkey") else KEYS.issuer
    keys = msgspec.structs.replace(KEYS, **{name: wrong})
    with pytest.raises(StateError, match=f"never open: it needs a public key for '{name}'"):
        EmbeddedBroker(store=tmp_path, keys=keys)


def test_a_configuration_that_cannot_be_names_the_reason(tmp_path):
    broker = EmbeddedBroker(store=tmp_path / "b", keys=KEYS, sync_interval="often")
    with pytest.raises(StateError, match=r"refuses its configuration.*sync_interval"):
        broker.prepare()


def test_the_configuration_needs_every_key():
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
