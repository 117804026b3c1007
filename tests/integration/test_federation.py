"""Scatter and gather over a real broker, with nodes that answer, hang, lie and leave."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest
import pytest_asyncio

from mesh.adapters.clock import SystemClock
from mesh.adapters.nats.bus import NatsBus
from mesh.config import NatsConfig
from mesh.core.route_table import RouteTable
from mesh.errors import ForbiddenError, InvalidError, OverloadedError, UnavailableError
from mesh.runtime.caller import Caller
from mesh.runtime.federation import Federation
from mesh.runtime.serving import Responder
from mesh.types import Health, Status
from mesh.wire import codec
from mesh.wire.messages import (
    CancelRequest,
    Candidate,
    Candidates,
    CollectionInfo,
    FetchRequest,
    FetchResult,
    RouteNode,
    SearchOptions,
    SearchRequest,
    ShardHits,
    StoredDocument,
)


def part(node, *documents, collection="notes"):
    candidates = [
        Candidate(
            id=f"{node}-{number}",
            cosine=cosine,
            vector_hit=True,
            text_hit=True,
            length=3,
            tf=[1],
            hash=f"{node}{number}",
            content=content,
        )
        for number, (content, cosine) in enumerate(documents)
    ]
    hits = ShardHits(
        collection=collection,
        shard=node,
        rows=10,
        tokens=30,
        df=[len(documents)],
        fingerprint="f",
        data_version=1,
        candidates=candidates,
    )
    return Candidates(node=node, terms=["late"], shards=[hits])


def route(slug, *, health=Health.HEALTHY, status=Status.ACTIVE, shard=None, collection="notes"):
    info = CollectionInfo(name=collection, shard=shard or slug, rows=10)
    return RouteNode(slug=slug, health=health, status=status, collections=[info])


class Mesh:
    """Nodes by script, one client."""

    def __init__(self, broker):
        self._broker = broker
        self._buses = []
        self.asked = []

    async def bus(self, identity):
        config = NatsConfig(servers=[self._broker.url])
        bus = await NatsBus.connect(identity, config, login=self._broker.login())
        self._buses.append(bus)
        return bus

    async def node(self, slug, answer):
        """`answer(verb, data)` gives bytes, or None for silence."""
        bus = await self.bus(slug)

        def handle(message):
            verb = message.subject.split(".")[4]
            self.asked.append((slug, verb, message.data))
            reply = answer(verb, message.data)
            if reply is not None:
                bus.publish(message.reply, reply)

        await bus.subscribe(f"mesh.v1.rpc.{slug}.*.*", handle)

    async def search(self, *routes, timeout_ms=800, **options):
        federation = Federation(Caller(await self.bus("ops"), SystemClock()), SystemClock())
        limit = options.pop("limit", 10)
        request = SearchRequest(
            id=options.pop("id", ""),
            query="late",
            limit=limit,
            options=SearchOptions(timeout_ms=timeout_ms, **options),
        )
        return await federation.search(request, RouteTable(epoch=1, version=1, nodes=routes))

    async def close(self):
        for bus in self._buses:
            await bus.close()


@pytest_asyncio.fixture
async def mesh(shared_broker):
    made = Mesh(shared_broker)
    yield made
    await made.close()


def says(found):
    return lambda _verb, _data: codec.ok(found)


async def test_answers_of_all_nodes_are_one_ranking(mesh):
    await mesh.node("a", says(part("a", ("late a", 0.9), ("late b", 0.1))))
    await mesh.node("b", says(part("b", ("late c", 0.5))))
    answer = await mesh.search(route("a"), route("b"))
    assert [hit.id for hit in answer.results] == ["a-0", "b-0", "a-1"]
    assert (answer.partial, answer.nodes_searched, answer.count) == (False, 2, 3)
    assert answer.node_breakdown == {"a": 2, "b": 1}
    assert (answer.shards.total, answer.shards.ok) == (2, 2)


async def test_hung_node_costs_the_others_nothing_and_is_named(mesh):
    await mesh.node("a", says(part("a", ("late a", 0.9))))
    await mesh.node("hung", lambda _verb, _data: None)
    began = time.monotonic()
    answer = await mesh.search(route("a"), route("hung"), timeout_ms=300)
    assert time.monotonic() - began < 1
    assert [hit.id for hit in answer.results] == ["a-0"]
    assert answer.partial
    (late,) = [report for report in answer.shards.details if report.status == "timed_out"]
    assert (late.node, late.reason) == ("hung", "no answer in time")


async def test_dead_node_is_named_at_once(mesh):
    await mesh.node("a", says(part("a", ("late a", 0.9))))
    began = time.monotonic()
    answer = await mesh.search(route("a"), route("dead"), timeout_ms=20_000)
    assert time.monotonic() - began < 5
    (failed,) = [report for report in answer.shards.details if report.status == "failed"]
    assert failed.node == "dead"
    assert "nobody listens" in failed.reason


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"not json",
        b'{"type":"ok","result":7}',
        codec.encode(codec.error_reply(OverloadedError("full"))),
    ],
    ids=["empty", "junk", "wrong type", "overloaded"],
)
async def test_node_that_answers_wrongly_costs_the_others_nothing(mesh, reply):
    await mesh.node("a", says(part("a", ("late a", 0.9))))
    await mesh.node("odd", lambda _verb, _data: reply)
    answer = await mesh.search(route("a"), route("odd"))
    assert [hit.id for hit in answer.results] == ["a-0"]
    assert answer.partial
    assert answer.shards.ok == 1


@pytest.mark.parametrize(
    ("away", "reason"),
    [
        ({"health": Health.UNREACHABLE}, "unreachable"),
        ({"health": Health.STALLED}, "stalled"),
        ({"health": Health.DRAINING}, "draining"),
        ({"status": Status.MAINTENANCE}, "maintenance"),
    ],
)
async def test_node_that_may_not_be_asked_is_not_asked_but_named(mesh, away, reason):
    await mesh.node("a", says(part("a", ("late a", 0.9))))
    await mesh.node("away", says(part("away", ("late b", 0.8))))
    answer = await mesh.search(route("a"), route("away", **away))
    assert {slug for slug, _, _ in mesh.asked} == {"a"}
    assert answer.partial
    (failed,) = [report for report in answer.shards.details if report.status == "failed"]
    assert failed.node == "away"
    assert reason in failed.reason


async def test_one_replica_of_a_shard_is_asked_the_healthy_one(mesh):
    await mesh.node("a", says(part("a", ("late a", 0.9))))
    await mesh.node("b", says(part("b", ("late a", 0.9))))
    answer = await mesh.search(
        route("a", shard="x", health=Health.UNREACHABLE), route("b", shard="x")
    )
    assert not answer.partial
    assert [slug for slug, _, _ in mesh.asked] == ["b"]


async def test_all_holders_away_is_unavailable_not_unknown(mesh):
    with pytest.raises(UnavailableError, match="unreachable"):
        await mesh.search(route("a", health=Health.UNREACHABLE))


async def test_more_shards_required_than_there_are(mesh):
    await mesh.node("a", says(part("a", ("late a", 0.9))))
    with pytest.raises(UnavailableError, match="1 of 2 shards answered, all required"):
        await mesh.search(route("a"), route("dead"), require="all")


@pytest.mark.parametrize(("option", "value"), [("collections", ["nope"]), ("nodes", ["nobody"])])
async def test_unknown_name_is_refused_with_the_known_ones(mesh, option, value):
    with pytest.raises(InvalidError) as caught:
        await mesh.search(route("a"), **{option: value})
    assert list(caught.value.fields) == [f"options.{option}"]
    assert ("notes" if option == "collections" else "a") in str(caught.value)
    assert mesh.asked == []


async def test_what_every_node_refuses_is_refused(mesh):
    refusal = InvalidError("filters.x: unknown column", fields={"filters.x": ["unknown column"]})
    await mesh.node("a", lambda _verb, _data: codec.encode(codec.error_reply(refusal)))
    with pytest.raises(InvalidError) as caught:
        await mesh.search(route("a"), filters={"x": 1})
    assert list(caught.value.fields) == ["filters.x"]


async def test_who_may_ask_no_node_is_told_so(mesh):
    forbidden = codec.encode(codec.error_reply(ForbiddenError("not you")))
    await mesh.node("a", lambda _verb, _data: forbidden)
    await mesh.node("b", lambda _verb, _data: forbidden)
    with pytest.raises(ForbiddenError, match="takes the scope 'search'"):
        await mesh.search(route("a"), route("b"))
    await mesh.node("c", says(part("c", ("late c", 0.9))))
    assert (await mesh.search(route("a"), route("c"))).partial


async def test_shard_that_cannot_match_a_filter_is_skipped(mesh):
    refusal = InvalidError("filters.x: unknown column", fields={"filters.x": ["unknown column"]})
    await mesh.node("a", says(part("a", ("late a", 0.9))))
    await mesh.node("b", lambda _verb, _data: codec.encode(codec.error_reply(refusal)))
    answer = await mesh.search(route("a"), route("b"), filters={"x": 1})
    assert (answer.partial, answer.shards.skipped, answer.shards.ok) == (False, 1, 1)


async def test_collection_of_a_node_that_lacks_a_column_is_skipped_and_its_sibling_is_not(mesh):
    found = part("a", ("late a", 0.9))
    bare = msgspec.structs.replace(
        part("a", collection="bare").shards[0], unmatched=True, candidates=[]
    )
    await mesh.node("a", says(msgspec.structs.replace(found, shards=[*found.shards, bare])))
    infos = [CollectionInfo(name=name, shard="a") for name in ("notes", "bare")]
    node = RouteNode(slug="a", health=Health.HEALTHY, collections=infos)
    answer = await mesh.search(node, filters={"x": 1}, require="all")
    assert (answer.partial, answer.shards.skipped, answer.shards.ok) == (False, 1, 1)
    (skipped,) = [report for report in answer.shards.details if report.status == "skipped"]
    assert (skipped.collection, skipped.reason) == ("bare", "it lacks a column of the filter")


async def test_metadata_that_is_none_costs_one_hit_its_own(mesh):
    odd = codec.ok(part("a", ("late a", 0.9))).replace(b'"length":3', b'"length":3,"metadata":7')
    assert b'"metadata":7' in odd
    await mesh.node("a", lambda _verb, _data: odd)
    await mesh.node("b", says(part("b", ("late b", 0.8))))
    answer = await mesh.search(route("a"), route("b"))
    assert [(hit.id, hit.metadata) for hit in answer.results] == [("a-0", {}), ("b-0", {})]


async def test_empty_mesh_finds_nothing(mesh):
    answer = await mesh.search()
    assert (answer.results, answer.partial, answer.shards.total) == ([], False, 0)


async def test_long_texts_are_fetched_for_the_final_hits_alone(mesh):
    found = part("a", (None, 0.9), (None, 0.1))

    def answer(verb, data):
        if verb == "search":
            return codec.ok(found)
        ids = codec.decode(data, FetchRequest).ids
        return codec.ok(
            FetchResult(documents=[StoredDocument(id=name, content=f"long {name}") for name in ids])
        )

    await mesh.node("a", answer)
    result = await mesh.search(route("a"), limit=1)
    assert [(hit.id, hit.content) for hit in result.results] == [("a-0", "long a-0")]
    assert [verb for _, verb, _ in mesh.asked] == ["search", "fetch"]


async def test_texts_that_exceed_one_message_together_all_come(mesh):
    found = part("a", *((None, 0.9 - n / 100) for n in range(6)))
    bus = await mesh.bus("a")
    responder = Responder(bus, SystemClock(), name="a", max_parallel=1, max_queued=1)

    def handle(message):
        mesh.asked.append(message.subject.split(".")[4])
        if mesh.asked[-1] == "search":
            return responder.answer(message, codec.ok(found))
        ids = codec.decode(message.data, FetchRequest).ids
        texts = [StoredDocument(id=name, content=name * 200_000) for name in ids]
        return responder.answer(message, codec.ok(FetchResult(documents=texts)))

    await bus.subscribe("mesh.v1.rpc.a.*.*", handle)
    result = await mesh.search(route("a"), timeout_ms=5_000)
    assert [hit.content[:3] for hit in result.results] == [f"a-{n}" for n in range(6)]
    assert not result.partial
    assert mesh.asked == ["search", *["fetch"] * 3]


async def test_nodes_are_asked_for_as_many_texts_as_can_be_among_the_hits(mesh):
    await mesh.node("a", says(part("a", ("late a", 0.9))))
    await mesh.search(route("a"), limit=3)
    ((_, _, asked),) = mesh.asked
    assert codec.decode(asked, SearchRequest).texts == 3


async def test_each_part_of_a_search_can_be_stopped_without_the_others(mesh):
    """Two collections of one node: their texts are asked for under ids of their own."""
    two = [part("a", (None, 0.9), collection=name).shards[0] for name in ("notes", "tickets")]
    found = msgspec.structs.replace(part("a"), shards=two)
    ids = {}

    def answer(verb, data):
        if verb == "search":
            return codec.ok(found)
        asked = codec.decode(data, FetchRequest)
        ids[asked.collection] = asked.id
        texts = [StoredDocument(id=name, content="long") for name in asked.ids]
        return codec.ok(FetchResult(documents=texts))

    await mesh.node("a", answer)
    infos = [CollectionInfo(name=name, shard="a") for name in ("notes", "tickets")]
    result = await mesh.search(RouteNode(slug="a", health=Health.HEALTHY, collections=infos))
    assert sorted(ids) == ["notes", "tickets"]
    assert len({result.id, *ids.values()}) == 3


async def test_text_that_does_not_come_makes_the_answer_partial(mesh):
    found = part("a", (None, 0.9))
    await mesh.node("a", lambda verb, _data: codec.ok(found) if verb == "search" else None)
    answer = await mesh.search(route("a"), timeout_ms=300)
    assert [(hit.id, hit.content) for hit in answer.results] == [("a-0", "")]
    assert answer.partial
    (report,) = answer.shards.details
    assert (report.status, report.reason) == ("failed", "its text did not come in time")


async def test_collection_that_its_node_names_as_failed_is_reported_alone(mesh):
    found = msgspec.structs.replace(part("a", ("late a", 0.9)), failed={"tickets": "it broke"})
    await mesh.node("a", says(found))
    infos = [CollectionInfo(name=name, shard="a") for name in ("notes", "tickets")]
    answer = await mesh.search(RouteNode(slug="a", health=Health.HEALTHY, collections=infos))
    reports = {
        report.collection: (report.status, report.reason) for report in answer.shards.details
    }
    assert reports == {"notes": ("ok", ""), "tickets": ("failed", "it broke")}


async def test_refusal_of_one_is_not_the_answer_while_another_is_silent(mesh):
    """The silent one may have the column."""
    refusal = InvalidError("filters.x: unknown column", fields={"filters.x": ["unknown column"]})
    await mesh.node("a", lambda _verb, _data: codec.encode(codec.error_reply(refusal)))
    await mesh.node("hung", lambda _verb, _data: None)
    with pytest.raises(UnavailableError, match="no answer in time"):
        await mesh.search(route("a"), route("hung"), timeout_ms=300, filters={"x": 1})


async def test_cancelled_search_leaves_nothing_behind(mesh):
    await mesh.node("hung", lambda _verb, _data: None)
    task = asyncio.create_task(mesh.search(route("hung"), timeout_ms=30_000))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    ours = [other for other in asyncio.all_tasks() if "_ask" in str(other.get_coro())]
    assert ours == []


async def test_who_did_not_answer_is_told_to_stop_and_nobody_else(mesh):
    await mesh.node("a", says(part("a", ("late a", 0.9))))
    await mesh.node("hung", lambda _verb, _data: None)
    await mesh.search(route("a"), route("hung"), timeout_ms=200, id="mine")
    async with asyncio.timeout(5):
        while len(mesh.asked) < 3:
            await asyncio.sleep(0.01)
    verbs = {(slug, verb) for slug, verb, _ in mesh.asked}
    assert verbs == {("a", "search"), ("hung", "search"), ("hung", "cancel")}
    (told,) = [data for _, verb, data in mesh.asked if verb == "cancel"]
    assert codec.decode(told, CancelRequest).request == "mine"


async def test_cancelled_search_tells_every_node_that_has_not_answered(mesh):
    for slug in ("one", "two"):
        await mesh.node(slug, lambda _verb, _data: None)
    task = asyncio.create_task(mesh.search(route("one"), route("two"), timeout_ms=30_000, id="x"))
    async with asyncio.timeout(5):
        while len(mesh.asked) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while len(mesh.asked) < 4:
            await asyncio.sleep(0.01)
    assert sorted((slug, verb) for slug, verb, _ in mesh.asked[2:]) == [
        ("one", "cancel"),
        ("two", "cancel"),
    ]


async def test_a_plan_is_made_anew_for_a_new_table_and_for_other_options(mesh):
    await mesh.node("a", says(part("a", ("late a", 0.9))))
    await mesh.node("b", says(part("b", ("late b", 0.8))))
    federation = Federation(Caller(await mesh.bus("ops"), SystemClock()), SystemClock())
    everywhere = SearchRequest(query="late")
    first = RouteTable(epoch=1, version=1, nodes=[route("a")])
    second = RouteTable(epoch=1, version=2, nodes=[route("a"), route("b")])
    for table, options, nodes in [
        (first, SearchOptions(), 1),
        (first, SearchOptions(), 1),
        (second, SearchOptions(), 2),
        (second, SearchOptions(nodes=["b"]), 1),
        (second, SearchOptions(collections=["notes"]), 2),
    ]:
        asked = msgspec.structs.replace(everywhere, options=options)
        assert (await federation.search(asked, table)).nodes_searched == nodes
