"""Draining by an operator's word: the masters' verbs, and what a node does and does not do then."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest
import pytest_asyncio
from action_world import MemoryJournal
from fakes import MemoryBroker, MemoryHistory, MemoryTrail

import mesh
from mesh.adapters.clock import SystemClock
from mesh.adapters.embedders.hashing import HashEmbedder
from mesh.config import HealthConfig, MeshConfig, NodeConfig
from mesh.errors import (
    DeadlineExceededError,
    DrainingError,
    ForbiddenError,
    NotFoundError,
    UnavailableError,
)
from mesh.runtime.draining import Draining
from mesh.runtime.node import NodeServer
from mesh.types import Health
from mesh.wire import codec
from mesh.wire.messages import ActionResult, Heartbeat, NodeEvent, NodeName, NodeRecord, PingResult

SOON_S = 10.0
PAST, FUTURE = 1000, 4_000_000_000_000


class NoDocuments:
    def collections(self):
        return ()

    async def search(self, _query, **_options):
        return ()

    async def close(self):
        pass


class World:
    """One node, a master's connection and a caller's."""

    def __init__(self):
        self.broker = MemoryBroker()
        self.heartbeats = MemoryBroker()
        self.gate = asyncio.Event()
        self.runs = []
        declared = mesh.Node("crm")

        @declared.action("slow")
        async def slow(params: dict) -> str:
            self.runs.append("slow")
            await self.gate.wait()
            return "done"

        @declared.search("notes")
        async def notes(_request):
            self.runs.append("search")
            await self.gate.wait()
            return [mesh.Document(id="1", content="late invoice")]

        async def connect_heartbeat():
            return self.heartbeats.bus("crm")

        bus = self.broker.bus("crm")
        self.server = NodeServer(
            declared,
            MeshConfig(
                health=HealthConfig(heartbeat_interval_s=60),
                node=NodeConfig(max_parallel_requests=2, max_queued_requests=8),
            ),
            slug="crm",
            version="1.0.0",
            bus=bus,
            connect_heartbeat=connect_heartbeat,
            documents=NoDocuments(),
            embedder=HashEmbedder(),
            journal=MemoryJournal(),
            history=MemoryHistory(bus),
            clock=SystemClock(),
            incarnation=SystemClock().unix_ms(),
            rng=random.Random(1),
        )
        self.ops = self.broker.bus("ops")
        self.master = self.broker.bus("master")

    async def ask(self, verb, kind, *, bus=None, act=False, **body):
        asker = bus or self.ops
        door = "act" if act else "rpc"
        reply = await asker.request(
            f"mesh.v1.{door}.crm.{verb}.{asker.identity}",
            codec.encode(body),
            responder="crm",
            timeout_s=SOON_S,
        )
        return codec.result_of(reply, kind)

    async def drain(self, verb="drain"):
        return await self.ask(verb, NodeEvent, bus=self.master)

    def slow(self, action_id, **body):
        body = {"action": "slow", "params": {}, "id": action_id} | body
        return self.ask("slow", ActionResult, act=True, **body)

    def search(self, **body):
        options = {"timeout_ms": 5000}
        return self.ask("search", msgspec.Raw, **{"query": "late", "options": options} | body)

    async def until(self, condition):
        async with asyncio.timeout(SOON_S):
            while not condition():
                await asyncio.sleep(0.002)

    def beats(self):
        return [codec.decode(message.data, Heartbeat) for message in self.heartbeats.sent]

    def events(self, name):
        return [one for one in self.broker.sent if one.subject == f"mesh.v1.evt.crm.{name}"]


@pytest_asyncio.fixture
async def world():
    made = World()
    await made.server.start()
    await made.until(made.beats)
    yield made
    made.gate.set()
    await made.server.stop()


# -- a node ----------------------------------------------------------------------------------------


async def test_a_draining_node_takes_nothing_new_and_finishes_what_runs(world):
    running = [asyncio.create_task(one) for one in (world.slow("a1"), world.search())]
    waiting = asyncio.create_task(world.search())
    await world.until(lambda: len(world.runs) == 2 and world.server._doors.responder.queued)
    assert (await world.drain()).incarnation == world.server._incarnation
    for refused in (world.slow("a2"), world.slow(""), world.search()):
        with pytest.raises(DrainingError) as caught:
            await refused
        assert caught.value.retry_after_ms == 1000
    assert (await world.ask("ping", PingResult)).node == "crm"
    world.gate.set()
    await asyncio.gather(*running, waiting)
    assert world.runs == ["slow", "search", "search"]
    assert not world.server._doors.responder.refused_within(60)


async def test_a_duplicate_of_what_runs_or_has_run_is_answered_while_draining(world):
    first = asyncio.create_task(world.slow("a1"))
    await world.until(lambda: world.runs)
    await world.drain()
    again = asyncio.create_task(world.slow("a1"))
    await asyncio.sleep(0.02)
    assert not again.done()
    world.gate.set()
    assert (await first).result == (await again).result == (await world.slow("a1")).result
    assert world.runs == ["slow"]


async def test_it_is_told_at_once_by_event_and_beat_and_taken_back(world):
    await world.drain()
    await world.until(lambda: world.beats()[-1].draining)
    (told,) = [codec.decode(one.data, NodeEvent) for one in world.events("draining")]
    assert all(beat.draining is (beat.sequence > told.sequence) for beat in world.beats())
    assert 0 < told.sequence < world.beats()[-1].sequence
    await world.drain()  # no error, and whoever missed it hears it now
    await world.drain("undrain")
    await world.until(lambda: not world.beats()[-1].draining)
    world.gate.set()
    assert (await world.slow("a1")).state == "succeeded"
    await world.drain("undrain")


@pytest.mark.parametrize("verb", ["drain", "undrain"])
async def test_nobody_but_the_masters_may_ask_for_it(world, verb):
    with pytest.raises(ForbiddenError, match="masters"):
        await world.ask(verb, NodeEvent)
    assert not world.server._doors.draining


async def test_a_stopping_node_is_not_taken_back(world):
    world.server._tell_draining()
    await world.drain("undrain")
    with pytest.raises(DrainingError):
        await world.search()


# -- what has expired ------------------------------------------------------------------------------


async def test_nothing_is_done_for_whom_nobody_waits(world):
    requests = [
        world.search(deadline=PAST),
        world.slow("a1", deadline=PAST),
        world.ask("fetch", msgspec.Raw, collection="notes", ids=["1"], deadline=PAST),
        world.ask("ping", PingResult, deadline=PAST),
        world.ask("drain", NodeEvent, bus=world.master, deadline=PAST),
    ]
    for request in requests:
        with pytest.raises(DeadlineExceededError) as caught:
            await request
        assert "deadline" in caught.value.fields
    assert world.runs == []
    assert world.server.describe().expired == 5
    assert not world.server._doors.draining
    await world.ask("ping", PingResult, deadline=FUTURE)
    assert world.server.describe().expired == 5


async def test_what_expires_in_the_queue_is_not_begun(world):
    running = [asyncio.create_task(world.slow(f"a{number}")) for number in range(2)]
    await world.until(lambda: len(world.runs) == 2)
    soon = SystemClock().unix_ms() + 50
    waiting = [
        asyncio.create_task(one)
        for one in (world.slow("late", deadline=soon), world.search(deadline=soon))
    ]
    await asyncio.sleep(0.1)
    world.gate.set()
    await asyncio.gather(*running)
    for late in waiting:
        with pytest.raises(DeadlineExceededError) as caught:
            await late
        assert "deadline" in caught.value.fields
    assert world.runs == ["slow", "slow"]
    assert world.server.describe().expired == 2


async def test_expired_requests_are_refused_before_they_take_a_place(world):
    """After a pause there may be thousands: they must not push out what somebody waits for."""
    late = [asyncio.create_task(world.search(deadline=PAST)) for _ in range(100)]
    done = await asyncio.gather(*late, return_exceptions=True)
    assert {type(one) for one in done} == {DeadlineExceededError}
    assert not world.server._doors.responder.refused_within(60)


@pytest.mark.parametrize(
    "payload",
    [b"", b"{}", b"nonsense", b'{"deadline":"soon"}', b'{"deadline":0}'],
    ids=["nothing", "empty", "nonsense", "no number", "no deadline"],
)
async def test_a_ping_is_answered_whatever_it_says(world, payload):
    reply = await world.ops.request(
        "mesh.v1.rpc.crm.ping.ops", payload, responder="crm", timeout_s=SOON_S
    )
    pong = codec.result_of(reply, PingResult)
    assert (pong.node, pong.incarnation) == ("crm", world.server._incarnation)
    assert abs(pong.at - SystemClock().unix_ms()) < 10_000
    assert world.server.describe().verbs["ping"].count == 1


# -- the masters -----------------------------------------------------------------------------------


class Registry:
    """What a master knows: the node, and whether it has heard that it is draining."""

    def __init__(self, world):
        self._world = world

    async def find(self, name):
        if name not in ("crm", "id-crm", "away"):
            raise NotFoundError(f"no node {name!r}")
        slug = name.removeprefix("id-")
        draining = self._world.server._doors.draining
        health = Health.DRAINING if draining else Health.HEALTHY
        return NodeRecord(id=f"id-{slug}", slug=slug, name=slug, health=health)


@pytest.fixture
def verbs(world):
    trail = MemoryTrail()
    made = Draining(world.master, SystemClock(), find=Registry(world).find, audit=trail)
    return made.verbs, trail


async def test_masters_drain_and_undrain_and_write_it_down(world, verbs):
    asked, trail = verbs
    request = NodeName(node="id-crm", origin="10.0.0.7")
    record = await asked["drain"][1](request, "ops")
    assert (record.slug, record.health) == ("crm", Health.DRAINING)
    assert world.server._doors.draining
    record = await asked["undrain"][1](request, "ops")
    assert record.health is Health.HEALTHY
    assert [(one.kind, one.actor, one.subject, one.origin) for one in trail.entries] == [
        ("node-drained", "ops", "crm", "10.0.0.7"),
        ("node-undrained", "ops", "crm", "10.0.0.7"),
    ]


async def test_a_node_that_is_away_or_unknown_is_said_so(world, verbs):
    asked, trail = verbs
    with pytest.raises(UnavailableError, match="'away' is away; nothing was changed"):
        await asked["drain"][1](NodeName(node="away"), "ops")
    with pytest.raises(NotFoundError):
        await asked["drain"][1](NodeName(node="nobody"), "ops")
    assert trail.entries == []
