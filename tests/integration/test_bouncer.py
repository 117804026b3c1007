"""Cutting live connections, at one server and at two of a cluster."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time

import nats
import pytest
import pytest_asyncio
from fakes import MemoryTrail

import mesh.adapters.nats.bouncer as bouncer_module
from mesh import bootstrap
from mesh.adapters.clock import SystemClock
from mesh.adapters.nats.bouncer import NatsBouncer
from mesh.adapters.nats.broker import EmbeddedBroker
from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.callout import NatsDoorman
from mesh.adapters.nats.keys import make_login
from mesh.config import NatsConfig
from mesh.core import permissions
from mesh.errors import InvalidError, UnauthorizedError
from mesh.ports import LoginGrant
from mesh.runtime.background import Background
from mesh.runtime.kicks import Kicks


class Gate:
    """Lets everybody in but those in `banned`, and throws out."""

    def __init__(self, keys, urls: list[str]) -> None:
        self._keys, self.urls = keys, urls
        self.banned: set[str] = set()
        self._buses: list[NatsBus] = []
        self.clients: list[nats.NATS] = []

    async def open(self) -> None:
        config = NatsConfig(servers=self.urls[:1])
        for login in (self._keys.auth_login(), self._keys.sys_login()):
            self._buses.append(await NatsBus.connect(login.user, config, login=login))
        self._doorman = NatsDoorman(self._buses[0], self._keys, SystemClock())
        await self._doorman.start(self._judge)
        self.bouncer = NatsBouncer(self._buses[1])

    async def _judge(self, attempt):
        if attempt.user in self.banned:
            raise UnauthorizedError("banned")
        return LoginGrant(attempt.user, permissions.of_node(attempt.user))

    async def close(self) -> None:
        for client in self.clients:
            await client.close()
        await self._doorman.stop()
        for bus in self._buses:
            await bus.close()

    async def enter(self, name: str, url: str = "") -> asyncio.Event:
        """Set when the connection has ended."""
        gone = asyncio.Event()

        async def ended() -> None:
            gone.set()

        client = await nats.connect(
            url or self.urls[0],
            user=name,
            password="x",
            allow_reconnect=False,
            disconnected_cb=ended,
            closed_cb=ended,
        )
        self.clients.append(client)
        return gone


@pytest_asyncio.fixture
async def gate(broker):
    made = Gate(broker.keys, [broker.url])
    await made.open()
    yield made
    await made.close()


async def test_every_connection_of_a_name_ends_and_no_other_one(gate):
    first, heartbeats = await gate.enter("crm"), await gate.enter("crm")
    others = [await gate.enter(name) for name in ("crm2", "cr", "shop")]
    began = time.monotonic()
    kicking = asyncio.create_task(gate.bouncer.kick(["crm"]))
    async with asyncio.timeout(1):
        await first.wait()
        await heartbeats.wait()
    gone_s = time.monotonic() - began
    assert await kicking == {"crm": 2}
    assert gone_s < 0.5
    assert not any(other.is_set() for other in others)
    for client in gate.clients[2:]:
        await client.flush()


async def test_whoever_is_not_there_is_no_error(gate):
    await gate.enter("shop")
    assert await gate.bouncer.kick(["crm"]) == {}


@pytest.mark.parametrize("name", ["*", "crm*", "", "a.b"])
async def test_a_name_that_is_none_is_refused(gate, name):
    with pytest.raises(InvalidError):
        await gate.bouncer.kick([name])


async def test_masters_and_gateway_are_never_cut(gate, broker):
    config = NatsConfig(servers=[broker.url])
    master = await NatsBus.connect("master", config, login=broker.login())
    gateway = await NatsBus.connect("gateway", config, login=broker.login("gateway"))
    states = []
    for bus in (master, gateway):
        bus.on_connection(states.append)
    for name in ("master", "gateway", "auth", "sys", "MESH"):
        assert await gate.bouncer.kick([name]) == {}
    for bus in (master, gateway):
        await bus.flush()
        await bus.close()
    assert states == []


@pytest.mark.alone
async def test_sixty_names_at_once_are_out_within_a_second(gate):
    names = [f"n{number}" for number in range(60)]
    gone = await asyncio.gather(*(gate.enter(name) for name in names))
    stays = await gate.enter("shop")
    clock, trail = SystemClock(), MemoryTrail()
    background = Background(clock)
    kicks = Kicks(gate.bouncer, trail, clock, background)
    began = time.monotonic()
    for name in names:
        kicks.kick(name, by="ops")
    async with asyncio.timeout(5):
        await asyncio.gather(*(each.wait() for each in gone))
    assert time.monotonic() - began < 1
    async with asyncio.timeout(5):
        while len(trail.entries) < len(names):
            await asyncio.sleep(0.01)
    assert {entry.subject for entry in trail.entries} == set(names)
    assert not stays.is_set()
    await background.stop()


async def test_more_connections_than_one_page_holds(gate, monkeypatch):
    monkeypatch.setattr(bouncer_module, "_PAGE", 5)
    gone = await asyncio.gather(*(gate.enter("crm") for _ in range(23)))
    stays = await gate.enter("shop")
    assert await gate.bouncer.kick(["crm"]) == {"crm": 23}
    async with asyncio.timeout(2):
        await asyncio.gather(*(each.wait() for each in gone))
    assert not stays.is_set()


async def test_who_was_banned_and_kicked_stays_out_though_it_tries_again(gate, broker):
    config = NatsConfig(servers=[broker.url])
    crm = await NatsBus.connect("crm", config, login=make_login("crm"))
    gate.banned.add("crm")
    await gate.bouncer.kick(["crm"])
    await asyncio.sleep(0.5)
    assert not crm.connected
    gate.banned.clear()
    async with asyncio.timeout(5):
        while not crm.connected:
            await asyncio.sleep(0.01)
    await crm.close()


@pytest.fixture
def cluster(tmp_path):
    """Two servers of one cluster, with the product's own configuration."""
    secrets = tmp_path / "credentials"
    secrets.mkdir()
    made = bootstrap.make_credentials(secrets)
    ports = [free_port(), free_port()]
    brokers, processes = [], []
    try:
        for number, port in enumerate(ports):
            store = tmp_path / f"broker-{number}"
            broker = EmbeddedBroker(store=store, keys=made.broker, name=f"server-{number}")
            broker.prepare()
            argv = [*broker.command(), "--cluster_name", "test"]
            argv += ["--cluster", f"nats://127.0.0.1:{port}"]
            argv += ["--routes", ",".join(f"nats://127.0.0.1:{other}" for other in ports)]
            with (tmp_path / f"{number}.log").open("wb") as log:
                environment = os.environ | broker.environment()
                processes.append(subprocess.Popen(argv, env=environment, stderr=log, stdout=log))
            brokers.append(broker)
        until = time.monotonic() + 20
        for broker, process in zip(brokers, processes, strict=True):
            while not broker.probe(process.pid):
                assert time.monotonic() < until
                time.sleep(0.01)
        yield bootstrap.read_master_credentials(made.files["master"]), [b.url for b in brokers]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def test_at_every_server_of_a_cluster(cluster):
    keys, urls = cluster
    gate = Gate(keys, urls)
    await gate.open()
    try:
        async with asyncio.timeout(20):
            while True:  # until the second server has found the first, where logins are judged
                try:
                    far = await gate.enter("crm", urls[1])
                    break
                except (nats.errors.Error, OSError):
                    await asyncio.sleep(0.1)
        near, other = await gate.enter("crm", urls[0]), await gate.enter("shop", urls[1])
        assert await gate.bouncer.kick(["crm"]) == {"crm": 2}
        async with asyncio.timeout(2):
            await near.wait()
            await far.wait()
        assert not other.is_set()
    finally:
        await gate.close()
