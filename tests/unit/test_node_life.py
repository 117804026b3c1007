"""A node's life in memory: one at a time under a name, whole starts and ends, a heartbeat that
outlives every error, and searches of its author's that fail alone.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time

import pytest
import pytest_asyncio
from action_world import MemoryJournal
from fakes import MemoryBroker, MemoryHistory

import mesh
from agents.node import _LoadedNode
from mesh.adapters.clock import SystemClock
from mesh.adapters.embedders.hashing import HashEmbedder
from mesh.config import HealthConfig, MeshConfig
from mesh.errors import ConflictError, DeadlineExceededError, OverloadedError, UnavailableError
from mesh.ports import Message
from mesh.runtime.discovery import Discovery
from mesh.runtime.heartbeat import HeartbeatThread
from mesh.runtime.node import NodeServer
from mesh.runtime.node_search import NodeSearch
from mesh.runtime.serving import Responder
from mesh.wire import codec
from mesh.wire.messages import Heartbeat, NodeEvent, SearchOptions, SearchRequest

STARTED = "mesh.v1.evt.crm.started"
SOON_S = 10.0


async def until(condition):
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0.005)


class NoDocuments:
    """`mesh.ports.Documents` of a node that stores nothing."""

    def __init__(self):
        self.closed = False

    def collections(self):
        return ()

    async def search(self, _query, **_options):
        return ()

    async def close(self):
        self.closed = True


class World:
    def __init__(self):
        self.broker = MemoryBroker()
        self.servers = []
        self.buses = []
        self.documents = []

    def node(self, declared=None):
        bus, documents = self.broker.bus("crm"), NoDocuments()
        other = MemoryBroker()  # what heartbeats reach is not looked at

        async def connect_heartbeat():
            return other.bus("crm")

        server = NodeServer(
            declared or mesh.Node("crm"),
            MeshConfig(health=HealthConfig(heartbeat_interval_s=0.05)),
            slug="crm",
            version="1.0.0",
            bus=bus,
            connect_heartbeat=connect_heartbeat,
            documents=documents,
            embedder=HashEmbedder(),
            journal=MemoryJournal(),
            history=MemoryHistory(bus),
            clock=SystemClock(),
            incarnation=SystemClock().unix_ms(),
            rng=random.Random(1),
        )
        self.servers.append(server)
        self.buses.append(bus)
        self.documents.append(documents)
        return server

    def heard(self, subject):
        return [message for message in self.broker.sent if message.subject == subject]


@pytest_asyncio.fixture
async def world():
    made = World()
    yield made
    for server in made.servers:
        await server.stop()


# -- one life at a time ----------------------------------------------------------------------------


async def test_an_older_life_closes_its_doors_when_a_newer_one_starts(world):
    old = world.node()
    await old.start()
    world.broker.muted = lambda subject: subject.startswith("mesh.v1.rpc.")  # it seems to hang
    await asyncio.sleep(0.002)  # incarnations are milliseconds
    new = world.node()
    await new.start()
    world.broker.muted = lambda _subject: False
    async with asyncio.timeout(SOON_S):
        await old.superseded()
    await until(lambda: not any(".act." in s.subject for s in world.buses[0].subscriptions))
    assert any(".act." in s.subject for s in world.buses[1].subscriptions)
    assert not new._superseded.is_set()


async def test_a_node_that_hears_an_older_life_says_that_it_is_newer(world):
    server = world.node()
    await server.start()
    before = len(world.heard(STARTED))
    world.broker.bus("crm").publish(STARTED, codec.encode(NodeEvent(incarnation=1)))
    await until(lambda: len(world.heard(STARTED)) >= before + 2)
    assert codec.decode(world.heard(STARTED)[-1].data, NodeEvent).incarnation > 1
    assert not server._superseded.is_set()


async def test_a_life_that_was_away_tells_of_itself_when_the_broker_is_back(world):
    server = world.node()
    await server.start()
    before = len(world.heard(STARTED))
    world.broker.stop()
    world.broker.start()
    await until(lambda: len(world.heard(STARTED)) > before)


async def test_an_agent_ends_with_an_error_when_its_node_is_superseded(world, tmp_path):
    class Opened:
        async def __aenter__(self):
            server = world.node()
            await server.start()
            return server

        async def __aexit__(self, *_error):
            pass

    async def stay():
        async with _LoadedNode(Opened(), tmp_path, ()):
            world.broker.bus("crm").publish(STARTED, codec.encode(NodeEvent(incarnation=2**52)))
            await asyncio.Event().wait()

    async with asyncio.timeout(SOON_S):
        with pytest.raises(ConflictError, match="newer node"):
            await stay()


# -- whole starts, whole ends ----------------------------------------------------------------------


async def test_a_start_that_fails_leaves_nothing_running(world, monkeypatch):
    async def fails(_self):
        raise RuntimeError("no discovery")

    server = world.node()
    mine = set(world.buses[0].subscriptions)
    stopped = []
    stop = server.executor.stop

    async def stop_executor():
        stopped.append(True)
        await stop()

    monkeypatch.setattr(server.executor, "stop", stop_executor)
    monkeypatch.setattr(Discovery, "start", fails)
    with pytest.raises(RuntimeError, match="no discovery"):
        await server.start()
    assert set(world.buses[0].subscriptions) == mine
    assert stopped


async def test_a_stop_closes_everything_though_steps_fail(world, monkeypatch):
    async def fails(*_arguments):
        raise RuntimeError("cannot end")

    server = world.node()
    await server.start()
    world.servers.clear()
    monkeypatch.setattr(server._doors, "drain", fails)
    monkeypatch.setattr(server._discovery, "stop", fails)
    with pytest.raises(RuntimeError, match="cannot end"):
        await server.stop()
    assert world.documents[0].closed
    assert not world.buses[0].connected
    assert server._heartbeat is not None
    assert not server._heartbeat._thread.is_alive()


# -- heartbeat -------------------------------------------------------------------------------------


def heartbeat(connect):
    return HeartbeatThread(
        connect,
        lambda: Heartbeat(node="crm", incarnation=1, sequence=0),
        node="crm",
        interval_s=0.02,
        clock=SystemClock(),
        rng=random.Random(1),
    )


@pytest.mark.parametrize("error", [DeadlineExceededError("late"), ValueError("half a file")])
async def test_heartbeat_goes_on_whatever_connecting_raised(error):
    broker, tries = MemoryBroker(), []

    async def connect():
        tries.append(True)
        if len(tries) < 3:
            raise error
        return broker.bus("crm")

    beating = heartbeat(connect)
    beating.start()
    try:
        await until(lambda: len(broker.sent) >= 2)
    finally:
        await beating.stop()
    assert not beating._thread.is_alive()


async def test_heartbeat_that_still_looks_for_the_broker_can_be_stopped():
    looking = []

    async def connect():
        looking.append(True)
        await asyncio.Event().wait()

    beating = heartbeat(connect)
    beating.start()
    await until(lambda: looking)
    await beating.stop()
    assert not beating._thread.is_alive()


# -- replies ---------------------------------------------------------------------------------------


async def test_a_reply_that_cannot_be_sent_is_lost_and_harms_nobody():
    class Congested:
        tries = 0

        def publish(self, _subject, _payload):
            self.tries += 1
            raise OverloadedError("congested")

    failures = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, told: failures.append(told))
    bus = Congested()
    responder = Responder(bus, SystemClock(), name="crm", max_parallel=1, max_queued=0)

    async def answer(_caller):
        return b"{}"

    message = Message("mesh.v1.rpc.crm.x.ops", "mesh.v1.re.crm.ops.c.1", b"{}")
    responder.serve(message, answer)
    await responder.drain(SOON_S)
    assert bus.tries == 1
    for _ in range(3):
        await asyncio.sleep(0)
    assert not failures
    responder._reply(message, b"{}")


# -- an author's searches --------------------------------------------------------------------------


def searching(embedder=None, **searches):
    node = mesh.Node("crm")
    for name, function in searches.items():
        node.search(name)(function)
    return NodeSearch(
        "crm",
        MeshConfig(),
        documents=NoDocuments(),
        embedder=embedder or HashEmbedder(),
        searches=node.searches,
        clock=SystemClock(),
    )


async def good(_request):
    return [mesh.Document(id="1", content="a late invoice")]


async def bad(_request):
    raise RuntimeError("password=hunter2")


async def hangs(_request):
    await asyncio.Event().wait()


def asked(*, candidates=True, timeout_ms=300):
    options = SearchOptions(timeout_ms=timeout_ms)
    return SearchRequest(query="late invoice", candidates=candidates, options=options)


async def test_a_search_that_fails_or_hangs_costs_its_collection_alone():
    part = await searching(good=good, bad=bad, hangs=hangs).answer(asked())
    assert [hits.collection for hits in part.shards] == ["good"]
    assert set(part.failed) == {"bad", "hangs"}
    assert "hunter2" not in part.failed["bad"]
    assert "in time" in part.failed["hangs"]


async def test_a_node_asked_directly_names_the_collection_that_failed():
    found = await searching(good=good, bad=bad).answer(asked(candidates=False))
    assert [hit.collection for hit in found.results] == ["good"]
    assert found.partial
    assert [report.collection for report in found.shards.details if report.status == "failed"] == [
        "bad"
    ]


async def test_an_author_may_say_why_and_nothing_else_was_asked():
    async def away(_request):
        raise UnavailableError("the CRM is being updated")

    with pytest.raises(UnavailableError, match="being updated"):
        await searching(away=away).answer(asked(candidates=False))


class Away(HashEmbedder):
    """An endpoint that does not answer, after a while."""

    def __init__(self, after_s):
        super().__init__()
        self.ended = threading.Event()
        self.after_s = after_s
        self.tried = 0

    def embed_documents(self, _texts):
        self.tried += 1
        self.ended.wait(self.after_s)
        raise UnavailableError("the embedder does not answer")

    def embed_query(self, text):
        self.embed_documents([text])


@pytest.mark.parametrize("after_s", [0, 60])
async def test_what_a_function_found_is_ranked_by_words_where_the_embedder_is_away(after_s):
    embedder = Away(after_s)
    node = searching(embedder, good=good)
    began = time.perf_counter()
    [hits] = (await node.answer(asked())).shards
    assert time.perf_counter() - began < 0.3
    [found] = hits.candidates
    assert (found.cosine, found.vector_hit, found.text_hit) == (None, False, True)
    assert "the embedder" in hits.no_vectors
    assert embedder.tried == 1
    embedder.ended.set()
    by_vector = SearchRequest(
        query="late invoice",
        candidates=True,
        options=SearchOptions(timeout_ms=300, mode="vector"),
    )
    with pytest.raises(UnavailableError, match="the embedder"):
        await node.answer(by_vector)


async def test_by_words_alone_nothing_of_a_function_is_embedded():
    embedder = Away(0)
    options = SearchOptions(timeout_ms=300, mode="text")
    request = SearchRequest(query="late invoice", candidates=True, options=options)
    [hits] = (await searching(embedder, good=good).answer(request)).shards
    assert ([found.text_hit for found in hits.candidates], hits.no_vectors) == ([True], "")
    assert embedder.tried == 0


async def test_long_texts_of_a_function_are_cut_for_no_fetch_would_find_them():
    async def long(_request):
        return [mesh.Document(id=str(at), content="late \u00e4" * 20_000) for at in range(100)]

    part = await searching(long=long).answer(asked(timeout_ms=60_000))
    sizes = [len(found.content.encode()) for found in part.shards[0].candidates]
    assert all(sizes)
    assert max(sizes) <= 16_384
    assert sum(sizes) <= 524_288
