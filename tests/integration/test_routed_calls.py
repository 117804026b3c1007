"""Calls over replicas on a real broker: one is killed, one hangs, one drains, and no call fails."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter

import pytest_asyncio

from mesh.adapters.clock import SystemClock
from mesh.adapters.nats.bus import NatsBus
from mesh.config import BreakerConfig, MeshConfig, NatsConfig, RoutingConfig
from mesh.core.route_table import RouteTable
from mesh.errors import DeadlineExceededError, DrainingError
from mesh.runtime.caller import Caller
from mesh.runtime.federation import Federation
from mesh.types import Health
from mesh.wire import codec
from mesh.wire.messages import (
    CancelRequest,
    Candidate,
    Candidates,
    CollectionInfo,
    FetchRequest,
    FetchResult,
    Outcomes,
    PingRequest,
    PingResult,
    RouteNode,
    SearchOptions,
    SearchRequest,
    ShardHits,
    StoredDocument,
)


def found(node, *collections, content="late"):
    document = Candidate(id="1", cosine=0.9, vector_hit=True, length=1, hash="1", content=content)
    shards = [
        ShardHits(
            collection=name,
            shard="x",
            rows=1,
            tokens=1,
            df=[],
            fingerprint="f",
            data_version=1,
            candidates=[document],
        )
        for name in collections
    ]
    return Candidates(node=node, terms=[], shards=shards)


def replica(slug, *collections, health=Health.HEALTHY):
    held = [CollectionInfo(name=name, shard="x", rows=1) for name in collections or ("notes",)]
    return RouteNode(slug=slug, health=health, incarnation=1, collections=held)


class Replica:
    """Answers whatever it is asked, until `hung` or closed."""

    def __init__(self, slug, bus):
        self.slug, self.bus = slug, bus
        self.hung = self.draining = False
        self.texts = True
        self.content: str | None = "late"
        self.asked = Counter()
        self.cancelled = []
        self.searched = []

    def handle(self, message):
        verb = message.subject.split(".")[4]
        self.asked[verb] += 1
        if verb == "cancel":
            self.cancelled.append(codec.decode(message.data, CancelRequest).request)
        elif self.draining:
            refusal = DrainingError(f"{self.slug} is going")
            self.bus.publish(message.reply, codec.encode(codec.error_reply(refusal)))
        elif not (self.hung or (verb == "fetch" and not self.texts)):
            self.bus.publish(message.reply, codec.ok(self._answer(verb, message.data)))

    def _answer(self, verb, data):
        if verb == "ping":
            return PingResult(node=self.slug, incarnation=1)
        if verb == "fetch":
            ids = codec.decode(data, FetchRequest).ids
            return FetchResult(documents=[StoredDocument(id=each, content="long") for each in ids])
        self.searched.append(codec.decode(data, SearchRequest).options.collections)
        return found(self.slug, *self.searched[-1], content=self.content)


class Mesh:
    def __init__(self, broker):
        self._broker = broker
        self._open = contextlib.AsyncExitStack()
        self.replicas = {}

    async def bus(self, identity):
        config = NatsConfig(servers=[self._broker.url])
        bus = await NatsBus.connect(identity, config, login=self._broker.login())
        self._open.push_async_callback(bus.close)
        return bus

    async def start(self, *slugs, breaker=None, **routing):
        for slug in slugs:
            bus = await self.bus(slug)
            self.replicas[slug] = Replica(slug, bus)
            await bus.subscribe(f"mesh.v1.rpc.{slug}.*.*", self.replicas[slug].handle)
        self.client = await self.bus("ops")
        config = MeshConfig(
            routing=RoutingConfig(**routing), breaker=BreakerConfig(**(breaker or {}))
        )
        self.caller = Caller(self.client, SystemClock(), config)
        self.federation = Federation(self.caller, SystemClock())
        self.table = RouteTable(epoch=1, version=1, nodes=[replica(slug) for slug in slugs])
        self.caller.adopt(self.table)
        self.group = self.caller.group(slugs, "ping")
        return self.replicas

    async def ping(self, timeout_s=1.0):
        return (await self.caller.any(self.group, PingRequest(), PingResult, timeout_s))[1].node

    async def search(self, id, **options):  # noqa: A002
        request = SearchRequest(id=id, query="late", options=SearchOptions(**options))
        return await self.federation.search(request, self.table)

    async def close(self):
        self.caller.close()
        await self._open.aclose()


@pytest_asyncio.fixture
async def mesh(shared_broker):
    made = Mesh(shared_broker)
    yield made
    await made.close()


async def test_one_killed_and_one_hung_of_three_cost_no_call(mesh):
    replicas = await mesh.start("a", "b", "c")
    answered, began = Counter(), time.monotonic()

    async def caller():
        while time.monotonic() - began < 1.5:
            answered[await mesh.ping()] += 1
            await asyncio.sleep(0.005)

    async def faults():
        await asyncio.sleep(0.3)
        await replicas["a"].bus.close()
        await asyncio.sleep(0.3)
        replicas["b"].hung = True

    await asyncio.gather(faults(), *(caller() for _ in range(8)))
    assert answered["c"] > 100
    assert sum(answered.values()) > 300


async def test_after_a_broker_that_hung_every_node_is_called_at_once(broker):
    """All calls of three seconds failed, and that was no node's fault."""
    mesh = Mesh(broker)
    await mesh.start("a", "b", breaker={"failure_threshold": 2, "retry_timeout_s": 30})
    ends, over = Counter(), asyncio.Event()

    async def caller():
        while not over.is_set():
            try:
                await mesh.ping(timeout_s=0.4)
                ends["answered"] += 1
            except DeadlineExceededError:
                ends["late"] += 1
            await asyncio.sleep(0.01)

    calling = asyncio.gather(*(caller() for _ in range(8)))
    try:
        await asyncio.sleep(0.2)
        assert set(ends) == {"answered"}
        broker.pause()
        await asyncio.sleep(3)
        assert ends["late"] > 20
        broker.resume()
        await asyncio.sleep(0.5)
        ends.clear()
        await asyncio.sleep(0.3)
        assert ends["answered"] > 50
        assert set(ends) == {"answered"}
    finally:
        broker.resume()
        over.set()
        await calling
        await mesh.close()


async def test_a_slow_search_is_hedged_and_the_loser_told_to_stop(mesh):
    replicas = await mesh.start("a", "b", strategy="round_robin")
    for number in range(60):
        await mesh.search(f"r{number}")
    replicas["a"].hung = True
    began = time.monotonic()
    results = [await mesh.search(f"s{number}", timeout_ms=4000) for number in range(2)]
    assert time.monotonic() - began < 1.5
    assert all(result.results[0].node == "b" for result in results)
    async with asyncio.timeout(5):
        while not any(each.startswith("s") for each in replicas["a"].cancelled):
            await asyncio.sleep(0.01)


async def test_a_draining_replica_is_passed_over(mesh):
    replicas = await mesh.start("a", "b")
    replicas["a"].draining = True
    results = [await mesh.search(f"r{number}") for number in range(20)]
    assert {result.results[0].node for result in results} == {"b"}
    assert not any(result.partial for result in results)
    assert replicas["a"].asked["search"] <= 2


async def test_collections_of_the_same_replicas_are_one_request_reported_by_who_answered(mesh):
    replicas = await mesh.start("a", "b")
    nodes = [replica(slug, "notes", "orders") for slug in "ab"]
    mesh.table = RouteTable(epoch=1, version=2, nodes=nodes)
    result = await mesh.search("both")
    asked = [each for each in replicas.values() if each.searched]
    assert [each.searched for each in asked] == [[["notes", "orders"]]]
    assert {report.node for report in result.shards.details} == {asked[0].slug}
    assert (result.nodes_searched, result.shards.ok, result.id) == (1, 2, "both")
    (other,) = [slug for slug in "ab" if slug != asked[0].slug]
    narrowed = await mesh.search("narrow", nodes=[other])
    assert {report.node for report in narrowed.shards.details} == {other}


async def test_texts_come_from_another_replica_where_the_first_one_fails(mesh):
    replicas = await mesh.start("a", "b")
    for each in replicas.values():
        each.content = None
    first = await mesh.search("one")
    assert [hit.content for hit in first.results] == ["long"]
    finder = first.results[0].node
    assert replicas[finder].asked["fetch"] == 1
    for each in replicas.values():
        each.texts = each.slug == "b"
    for number in range(5):
        result = await mesh.search(f"r{number}", timeout_ms=400)
        assert [hit.content for hit in result.results] == ["long"]


async def test_the_masters_hear_of_it(mesh):
    master = await mesh.bus("master")
    heard = []
    await master.subscribe("mesh.v1.outcome.ops", lambda message: heard.append(message.data))
    await mesh.start("a", outcome_interval_s=0.05)
    await mesh.search("seen")
    async with asyncio.timeout(5):
        while not heard:
            await asyncio.sleep(0.01)
    report = codec.decode(heard[0], Outcomes)
    assert [(outcome.node, outcome.verb, outcome.calls) for outcome in report.verbs] == [
        ("a", "search", 1)
    ]
    assert [trace.id for trace in report.traces] == ["seen"]
