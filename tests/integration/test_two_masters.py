"""Two real masters, one broker, one database: one leads, and nobody notices when it goes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable

import pytest_asyncio
from live_mesh import START_S, LiveNode, agent, clean_environment
from processes import BrokerProcess, pause

import mesh
from mesh import bootstrap
from mesh.adapters.nats.bus import NatsBus
from mesh.config import NatsConfig
from mesh.errors import MeshError
from mesh.ports import Message
from mesh.types import Health
from mesh.wire import codec, subjects
from mesh.wire.messages import PingResult, RoutesRequest, RouteUpdate

TTL = 1


class World:
    """A broker, two masters on one database, a node, and somebody who hears all that is said."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.broker = broker
        self.folder = broker.folder
        files = bootstrap.make_credentials(self.folder / "credentials", nodes=["crm"]).files
        self.operator = files["operator"]
        database = f"sqlite+aiosqlite:///{self.folder / 'mesh.db'}"
        self.masters = {
            name: self._agent(
                name, "master", "--database", database, MESH_CREDS=str(files["master"])
            )
            for name in ("first", "second")
        }
        self.node = self._agent(
            "crm",
            "run",
            "--name",
            "crm",
            MESH_CREDS=str(files["nodes/crm"]),
            MESH_SEARCH__EMBEDDER="hash",
        )
        self.heard: list[tuple[float, RouteUpdate]] = []

    def _agent(self, name: str, *arguments: str, **environment: str) -> LiveNode:
        argv = agent(*arguments, "--state-dir", self.folder / name, "--url", self.broker.url)
        environment = clean_environment(MESH_MASTER__LEASE_TTL_S=str(TTL), **environment)
        return LiveNode(name, argv, self.folder, environment)

    def on_routes(self, message: Message) -> None:
        self.heard.append((time.monotonic(), codec.decode(message.data, RouteUpdate)))

    @property
    def epoch(self) -> int:
        return self.heard[-1][1].epoch if self.heard else 0

    def led(self, name: str) -> int:
        """How often it began to."""
        log = self.masters[name].log
        return log.read_text().count("mesh.master.leading") if log.exists() else 0

    async def start_master(self, name: str) -> None:
        log = self.masters[name].log
        started = log.read_text().count("mesh.master.started") if log.exists() else 0
        self.masters[name].start()
        await until(
            lambda: log.read_text().count("mesh.master.started") > started, START_S, log.read_text
        )

    async def successor(self, epoch: int, within_s: float) -> float:
        """Seconds until the routes go on under a later epoch."""
        began = time.monotonic()
        await until(lambda: self.epoch > epoch, within_s, lambda: f"still {epoch}")
        return time.monotonic() - began


async def until(true: Callable[[], bool], within_s: float, why: Callable[[], str]) -> None:
    give_up = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < give_up, why()
        await asyncio.sleep(0.002)


@pytest_asyncio.fixture
async def world(broker):
    world = World(broker)
    bus = await NatsBus.connect("ops", NatsConfig(servers=[broker.url]), login=broker.login())
    await bus.subscribe(subjects.ROUTES, world.on_routes)
    world.bus = bus
    try:
        await world.start_master("first")
        world.node.start()
        await world.start_master("second")
        yield world
    finally:
        await bus.close()
        world.node.end()
        for master in world.masters.values():
            master.end(signal.SIGKILL)


async def is_healthy(world: World, client: mesh.MeshClient) -> None:
    def healthy() -> bool:
        node = client.routes.node("crm")
        return node is not None and node.health is Health.HEALTHY

    await until(healthy, START_S, lambda: repr(client.routes) + world.node.log.read_text())


async def masters_that_answer(world: World) -> Counter[int]:
    answered: Counter[int] = Counter()
    for _ in range(20):
        reply = await world.bus.request(
            subjects.master("ping", "ops"), b"", responder="master", timeout_s=5
        )
        answered[codec.result_of(reply, PingResult).incarnation] += 1
    return answered


class Pinging:
    """Calls that go on whoever leads."""

    def __init__(self, client: mesh.MeshClient) -> None:
        self.client = client
        self.answers = 0
        self.failures: list[str] = []

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def __aexit__(self, *_exc: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        assert self.failures == []
        assert self.answers > 50

    async def _run(self) -> None:
        while True:
            try:
                await self.client.ping("crm")
                self.answers += 1
            except MeshError as error:
                self.failures.append(str(error))
            await asyncio.sleep(0.005)


async def test_one_leads_and_another_one_takes_over(world):
    async with mesh.connect(world.broker.url, credentials=world.operator) as client:
        await is_healthy(world, client)
        assert (world.led("first"), world.led("second")) == (1, 0)
        assert len(await masters_that_answer(world)) == 2
        for _ in range(6):  # whichever of them is asked
            reply = await world.bus.request(
                subjects.master("routes", "ops"),
                codec.encode(RoutesRequest()),
                responder="master",
                timeout_s=5,
            )
            page = codec.result_of(reply, RouteUpdate)
            assert page.epoch == world.epoch
            assert [node.slug for node in page.nodes] == ["crm"]
        world.heard.clear()
        async with Pinging(client):
            await crash(world)
            # Two who listen hear of it one after the other.
            await until(
                lambda: client.routes.epoch == world.epoch, 5, lambda: f"{client.routes.epoch}"
            )
            await world.start_master("first")
            await hang(world)
            await polite_end(world)
        assert {node.health for _, update in world.heard for node in update.nodes} == {
            Health.HEALTHY
        }, "no takeover took the node out of rotation"
        epochs = [update.epoch for _, update in world.heard]
        assert epochs == sorted(epochs), "nobody spoke under an epoch that was over"


async def crash(world: World) -> None:
    """The broker tells; nobody waits for the lease."""
    epoch = world.epoch or (await heard_epoch(world))
    os.kill(world.masters["first"].pid, signal.SIGKILL)
    took_s = await world.successor(epoch, 5)
    assert took_s < TTL / 2
    assert world.led("second") == 1
    world.masters["first"].wait(10)


async def heard_epoch(world: World) -> int:
    await until(lambda: world.epoch > 0, 10, lambda: "no routes")
    return world.epoch


async def hang(world: World) -> None:
    """The lease runs out; whoever goes on then has lost it."""
    epoch, second = world.epoch, world.masters["second"]
    pause(second.pid)
    took_s = await world.successor(epoch, 10)
    assert 0.2 * TTL < took_s < 3 * TTL
    os.kill(second.pid, signal.SIGCONT)
    await until(lambda: "stepped_down" in second.log.read_text(), 5, second.log.read_text)
    assert world.led("first") == 2


async def polite_end(world: World) -> None:
    """It gives the lease back, and hangs up."""
    epoch, first = world.epoch, world.masters["first"]
    ending = asyncio.create_task(asyncio.to_thread(first.end))
    await until(lambda: "mesh.master.stopped" in first.log.read_text(), 10, first.log.read_text)
    took_s = await world.successor(epoch, 5)
    assert took_s < TTL / 2
    assert await ending == 0
    assert world.led("second") == 2
