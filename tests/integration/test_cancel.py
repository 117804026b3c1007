"""Work that nobody waits for any more is stopped: over a real broker, on a node that is slow."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
import pytest_asyncio
from action_world import MemoryJournal
from fakes import MemoryBroker, MemoryHistory

import mesh
from mesh.adapters.clock import SystemClock
from mesh.adapters.embedders.hashing import HashEmbedder
from mesh.adapters.nats.bus import NatsBus
from mesh.config import MeshConfig, NatsConfig, NodeConfig
from mesh.errors import DeadlineExceededError, UnavailableError
from mesh.runtime.caller import Caller
from mesh.runtime.client import MeshClient
from mesh.runtime.node import NodeServer
from mesh.types import ActionState
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    ActionRequest,
    ActionResult,
    CancelRequest,
    CancelResult,
    Candidates,
    SearchOptions,
    SearchRequest,
)

SOON_S = 10.0
AT_ONCE_S = 1.0
PATIENT = SearchOptions(timeout_ms=60_000, collections=["slow"])
QUICK = SearchOptions(collections=["quick"])


async def until(condition):
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0.002)


class Documents:
    """`mesh.ports.Documents` of a node that stores nothing, and may take its time to say so."""

    def __init__(self):
        self.hangs = False
        self.stopped = 0

    def collections(self):
        return ()

    async def search(self, _query, **_options):
        if self.hangs:
            try:
                await asyncio.Event().wait()
            finally:
                self.stopped += 1
        return ()

    async def close(self):
        pass


class World:
    """The node `lazy`, whose searches and actions of that name never end; `ops`, who asks."""

    def __init__(self, broker):
        self._config = NatsConfig(servers=[broker.url])
        self._login = broker.login()
        self.begun = []
        self.stopped = 0
        self.gate = asyncio.Event()
        self.documents = Documents()
        self.history = MemoryHistory()
        self._buses = []

    async def bus(self, identity):
        bus = await NatsBus.connect(identity, self._config, login=self._login)
        self._buses.append(bus)
        return bus

    def _declared(self):
        node = mesh.Node("lazy")

        @node.search("slow")
        async def slow(request):
            self.begun.append(request.id)
            try:
                await asyncio.Event().wait()
            finally:
                self.stopped += 1

        @node.search("quick")
        async def quick(_request):
            return [mesh.Document(id="1", content="a late invoice")]

        @node.action("work")
        async def work(params: dict, _context) -> dict:
            self.begun.append(params["name"])
            await self.gate.wait()
            return {}

        return node

    async def start(self, *, max_parallel=10):
        async def connect_heartbeat():
            return MemoryBroker().bus("lazy")

        self.server = NodeServer(
            self._declared(),
            MeshConfig(node=NodeConfig(max_parallel_requests=max_parallel, stop_grace_s=0.1)),
            slug="lazy",
            version="1.0.0",
            bus=await self.bus("lazy"),
            connect_heartbeat=connect_heartbeat,
            documents=self.documents,
            embedder=HashEmbedder(),
            journal=MemoryJournal(),
            history=self.history,
            clock=SystemClock(),
            incarnation=SystemClock().unix_ms(),
            rng=random.Random(1),
        )
        await self.server.start()
        self.responder = self.server._doors.responder
        self.ops = await self.bus("ops")
        self.client = MeshClient(self.ops, MeshConfig(), SystemClock())
        await self.client.start()
        return self

    async def begin(self, count):
        tasks = [
            asyncio.create_task(
                self.client.submit(SearchRequest(id=f"s{at}", query="late", options=PATIENT))
            )
            for at in range(count)
        ]
        await until(lambda: self.busy == (count, 0) and len(self.begun) == count)
        return tasks

    def act(self, name):
        request = ActionRequest(id=name, action="work", params={"name": name})
        caller = Caller(self.ops, SystemClock())
        return asyncio.create_task(caller.action("lazy", "work", request, ActionResult, 60.0))

    async def cancel(self, request, *, bus=None):
        caller = Caller(bus or self.ops, SystemClock())
        asked = CancelRequest(request=request)
        return (await caller.node("lazy", "cancel", asked, CancelResult, 5.0)).cancelled

    @property
    def busy(self):
        return self.responder.in_flight, self.responder.queued

    async def close(self):
        self.gate.set()
        await self.server.stop()
        for bus in self._buses:
            await bus.close()


@pytest_asyncio.fixture
async def world(shared_broker):
    made = World(shared_broker)
    yield made
    await made.close()


async def gone(task):
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_search_whose_caller_is_gone_frees_its_slot_at_once(world):
    await world.start()
    (task,) = await world.begin(1)
    began = time.monotonic()
    await gone(task)
    await until(lambda: world.busy == (0, 0))
    assert time.monotonic() - began < AT_ONCE_S
    assert world.stopped == 1


async def test_a_node_full_of_searches_nobody_waits_for_serves_others_again(world):
    await world.start()
    tasks = await world.begin(10)
    waiting = asyncio.create_task(world.client.submit(SearchRequest(query="late", options=QUICK)))
    await until(lambda: world.busy == (10, 1))
    for task in tasks:
        await gone(task)
    assert [hit.collection for hit in (await waiting).results] == ["quick"]
    await until(lambda: world.busy == (0, 0))
    assert world.stopped == 10


async def test_a_queued_search_leaves_the_queue_and_never_begins(world):
    await world.start(max_parallel=1)
    (running,) = await world.begin(1)
    queued = asyncio.create_task(
        world.client.submit(SearchRequest(id="late", query="late", options=PATIENT))
    )
    await until(lambda: world.busy == (1, 1))
    await gone(queued)
    await until(lambda: world.busy == (1, 0))
    await gone(running)
    await until(lambda: world.busy == (0, 0))
    assert world.begun == ["s0"]


async def test_nobody_stops_what_another_caller_asked(world):
    await world.start()
    (task,) = await world.begin(1)
    assert not await world.cancel("s0", bus=await world.bus("mallory"))
    assert not await world.cancel("s1")
    assert not await world.cancel("")
    assert world.busy == (1, 0)
    assert await world.cancel("s0")
    await until(lambda: world.busy == (0, 0))
    await gone(task)


async def test_a_node_that_is_full_still_takes_a_cancel(world):
    await world.start(max_parallel=1)
    (task,) = await world.begin(1)
    async with asyncio.timeout(5):
        assert await world.cancel("s0")
    await gone(task)


async def test_an_action_is_dropped_from_the_queue_but_goes_on_once_accepted(world):
    await world.start(max_parallel=1)
    first = world.act("first")
    await until(lambda: world.begun == ["first"])
    second = world.act("second")
    await until(lambda: world.busy == (1, 1))
    assert await world.cancel("second")
    assert not await world.cancel("first")
    await until(lambda: world.busy == (1, 0))
    world.gate.set()
    assert (await first).state is ActionState.SUCCEEDED
    await gone(second)
    assert world.begun == ["first"]
    assert [(record.id, record.state) for record in world.history.stored] == [
        ("first", ActionState.ACCEPTED),
        ("first", ActionState.SUCCEEDED),
    ]


async def test_work_ends_with_the_deadline_of_its_request(world):
    """Also where no cancel comes: the caller may have crashed."""
    await world.start()
    world.documents.hangs = True
    request = SearchRequest(
        query="late", candidates=True, deadline=SystemClock().unix_ms() + 150, options=QUICK
    )
    subject = subjects.rpc("lazy", "search", "ops")
    reply = await world.ops.request(subject, codec.encode(request), responder="lazy", timeout_s=5)
    with pytest.raises(DeadlineExceededError, match="it was ended"):
        codec.result_of(reply, Candidates)
    await until(lambda: world.busy == (0, 0))
    assert world.documents.stopped == 1


async def test_a_scatter_that_gives_up_tells_the_node(world):
    """The node's own clock may be behind, so its deadline may be far."""
    await world.start()
    world.documents.hangs = True
    world.server._doors._clock = SlowClock()
    request = SearchRequest(
        query="late", options=SearchOptions(collections=["quick"], timeout_ms=100)
    )
    with pytest.raises(UnavailableError, match="no answer in time"):
        await world.client.submit(request)
    began = time.monotonic()
    await until(lambda: world.busy == (0, 0))
    assert time.monotonic() - began < AT_ONCE_S
    assert world.documents.stopped == 1


class SlowClock(SystemClock):
    def unix_ms(self):
        return super().unix_ms() - 3_600_000


async def test_a_cancel_that_cannot_be_read_is_counted_and_harms_nobody(world):
    await world.start()
    (task,) = await world.begin(1)
    for data in (b"", b"junk", b"{}", b'{"request": 7}'):
        world.ops.publish(subjects.rpc("lazy", "cancel", "ops"), data)
    await until(lambda: world.responder.dropped == 4)
    assert world.busy == (1, 0)
    await gone(task)
