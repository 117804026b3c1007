"""Replicas of a shard on a real broker, with real masters and collections on disk."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

import mesh
from mesh import bootstrap
from mesh.config import MeshConfig, NatsConfig, NodeConfig, ReplicasConfig, SearchConfig
from mesh.errors import (
    ConflictError,
    DisconnectedError,
    ForbiddenError,
    InvalidError,
    MeshError,
    OverloadedError,
    UnavailableError,
)
from mesh.ports import NotStoredError
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    CopyState,
    ExportQuery,
    FetchRequest,
    FetchResult,
    LoggedWrite,
    ReplicaList,
    ReplicasQuery,
    SearchRequest,
    WriteEntry,
    WritesPage,
    WritesQuery,
)

SOON_S = 20.0


class Live:
    """A broker, a master, and nodes that come and go."""

    def __init__(self, broker, folder):
        self.broker, self.folder = broker, folder
        self.nodes = {}
        self._stacks = {}

    def config(self, shard="", **node):
        return MeshConfig(
            nats=NatsConfig(servers=[self.broker.url]),
            node=NodeConfig(shard=shard, stop_grace_s=0.5, **node),
            search=SearchConfig(embedder="hash"),
            replicas=ReplicasConfig(poll_s=0.3),
        )

    async def start_master(self):
        nats = NatsConfig(
            servers=[self.broker.url], credentials=str(self.broker.credentials("master"))
        )
        await self._enter(
            "master", bootstrap.master(MeshConfig(nats=nats), data_dir=self.folder / "master")
        )

    async def start(self, name, shard=""):
        self.nodes[name] = await self._enter(
            name,
            bootstrap.node(
                mesh.Node(name),
                self.config(shard),
                data_dir=self.folder / name,
                operator=self.broker.credentials("operator"),
            ),
        )
        return self.nodes[name]

    async def _enter(self, name, manager):
        stack = self._stacks[name] = AsyncExitStack()
        return await stack.enter_async_context(manager)

    async def stop(self, name):
        self.nodes.pop(name, None)
        await self._stacks.pop(name).aclose()

    async def stop_all(self):
        for name in reversed(list(self._stacks)):
            await self.stop(name)

    def replica(self, name):
        return self.nodes[name]._replica


@pytest_asyncio.fixture
async def live(broker, tmp_path):
    world = Live(broker, tmp_path)
    await world.start_master()
    yield world
    await world.stop_all()


@pytest_asyncio.fixture
async def client(live):
    async with mesh.connect(
        url=live.broker.url, credentials=live.broker.credentials("operator")
    ) as opened:
        yield opened


async def until(condition, within_s=SOON_S):
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)


async def following(live, *names):
    await until(lambda: all(live.replica(name).following for name in names))


async def contents(live, name, collection="notes"):
    documents = live.nodes[name]._documents
    if collection not in {info.name for info in documents.collections()}:
        return None
    census = await documents.census(collection)
    found = await documents.fetch(collection, [each for each, _ in census.page("", 1000)])
    return {each.id: (each.content, each.metadata) for each in found}


async def until_equal(live, *names, collection="notes"):
    async with asyncio.timeout(SOON_S):
        while True:
            one, *others = [await contents(live, name, collection) for name in names]
            if all(other == one for other in others):
                return one
            await asyncio.sleep(0.02)


async def until_routed(client, *names):
    def there():
        return all(
            name in client.routes.nodes and client.routes.nodes[name].health == "healthy"
            for name in names
        )

    await until(there)


async def start_both(live, client):
    """Two replicas of one shard, of which everybody knows."""
    for name in ("one", "two"):
        await live.start(name, "notes")
    await following(live, "one", "two")
    await until_routed(client, "one", "two")


def note(name, text="late invoice", **metadata):
    return {"id": name, "content": text, **metadata}


async def run(client, action, params, node=None, **options):
    answer = await client.run_action(
        action, {"collection": "notes", **params}, node=node, timeout_s=15, **options
    )
    return answer.result


async def test_every_kind_of_write_reaches_every_replica(live, client):
    await start_both(live, client)
    notes = [note("1", cents=5), note("2", cents=7), note("3", cents=7)]
    assert (await run(client, "index", {"documents": notes}))["changed"] == 3
    await until_equal(live, "one", "two")
    done = await run(client, "update", {"id": "1", "fields": {"cents": 6}}, node="two")
    assert (done["updated"], done["id"]) == (1, "1")
    again = await run(client, "update", {"id": "1", "fields": {"cents": 6}}, node="one")
    assert again["updated"] == 0
    done = await run(client, "delete", {"filter": {"cents": 7}}, node="one")
    assert (done["deleted"], done["ids"]) == (2, ["2", "3"])
    found = await until_equal(live, "one", "two")
    assert found == {"1": ("late invoice", {"cents": 6})}
    done = await run(client, "index", {"documents": [{"content": "without an id"}]}, node="two")
    found = await until_equal(live, "one", "two")
    assert done["ids"][0] in found
    hits = await client.search("without id", collections=["notes"], nodes=["one"], timeout_ms=5000)
    assert hits.results[0].id == done["ids"][0]
    await run(client, "drop", {}, node="one")
    assert await until_equal(live, "one", "two") is None
    await run(client, "index", {"documents": [note("1")]}, node="two")
    assert await until_equal(live, "one", "two") == {"1": ("late invoice", {})}


async def test_what_is_refused_is_refused_on_every_replica_and_is_in_no_log(live, client):
    await start_both(live, client)
    await run(client, "index", {"documents": [note("1", year=1999)]}, node="one")
    for node in ("two", "one"):
        with pytest.raises(InvalidError):
            await run(client, "index", {"documents": [note("2", year="last")]}, node=node)
        with pytest.raises(MeshError, match="no document"):
            await run(client, "update", {"id": "9", "fields": {"year": 1}}, node=node)
        with pytest.raises(InvalidError):
            await run(client, "delete", {"filter": {"nope": 1}}, node=node)
        with pytest.raises(InvalidError, match="unknown collection"):
            await client.run_action("drop", {"collection": "nope"}, node=node)
    await until_equal(live, "one", "two")
    [one, two] = (await client._caller.master("replicas", ReplicasQuery(), ReplicaList, 5)).copies
    assert one.sequence == two.sequence == 2
    assert one.collections[0].hash == two.collections[0].hash != ""


async def test_one_id_has_one_effect_whichever_replica_is_asked(live, client):
    await start_both(live, client)
    params = {"documents": [note("1"), {"content": "made an id for"}]}
    first = await run(client, "index", params, node="one", id="k")
    second = await run(client, "index", params, node="two", id="k")
    assert (first["ids"], first["changed"]) == (second["ids"], second["changed"])
    await run(client, "index", {"documents": [note("2")]}, node="two", id="k2")
    with pytest.raises(ConflictError):
        await run(client, "index", {"documents": [note("3")]}, node="one", id="k2")
    assert len(await until_equal(live, "one", "two")) == 3
    many = await asyncio.gather(
        *(run(client, "index", params, node=("one", "two")[n % 2], id="m") for n in range(16))
    )
    assert len({tuple(each["ids"]) for each in many}) == 1


async def test_a_lone_node_with_documents_gets_its_first_replica(live, client):
    await live.start("one")
    await until_routed(client, "one")
    await run(client, "index", {"documents": [note("old")]}, node="one")
    assert not live.replica("one").logged
    await live.start("two", "one")
    await following(live, "one", "two")
    assert await until_equal(live, "one", "two") == {"old": ("late invoice", {})}
    await run(client, "index", {"documents": [note("new")]}, node="one")
    assert len(await until_equal(live, "one", "two")) == 2
    await live.stop("two")
    await run(client, "index", {"documents": [note("newer")]}, node="one")
    await live.stop("one")
    await live.start("one")
    assert live.replica("one").logged, "it does not forget that others hold its shard"
    await live.start("two", "one")
    await following(live, "one", "two")
    assert len(await until_equal(live, "one", "two")) == 3


async def test_replicas_go_on_writing_and_hearing_each_other_without_a_master(live, client):
    await start_both(live, client)
    await run(client, "index", {"documents": [note("1")]}, node="one")
    await until_equal(live, "one", "two")
    await live.stop("master")
    for number in range(2, 8):
        node = ("one", "two")[number % 2]
        await run(client, "index", {"documents": [note(f"{number}")]}, node=node)
        assert len(await until_equal(live, "one", "two")) == number
    await live.start_master()
    await following(live, "one", "two")


async def test_what_is_told_while_nobody_reads_the_log_is_not_taken_for_missing(
    live, client, monkeypatch
):
    await start_both(live, client)
    await run(client, "index", {"documents": [note("1")]}, node="one")
    await until_equal(live, "one", "two")
    await live.stop("master")
    place = live.replica("two")._place
    looking, told = asyncio.Event(), asyncio.Event()

    async def no_answer(_after):
        looking.set()
        await told.wait()
        raise UnavailableError("nobody reads the log")

    monkeypatch.setattr(place, "_read", no_answer)
    await looking.wait()
    await run(client, "index", {"documents": [note("2")]}, node="one")
    await until(lambda: len(place.arrivals))
    told.set()
    assert len(await until_equal(live, "one", "two")) == 2
    assert place.following


async def test_sync_repairs_a_copy_that_somebody_has_spoilt(live, client):
    await start_both(live, client)
    await run(client, "index", {"documents": [note(f"{n}") for n in range(50)]}, node="one")
    good = await until_equal(live, "one", "two")
    documents = live.nodes["two"]._documents
    await documents.delete("notes", ids=["7"])
    await documents.update("notes", "8", {"content": "spoilt"})
    await documents.replace("other", puts=[])
    done = (await client.run_action("sync", {"from": "one"}, node="two", timeout_s=15)).result
    assert (done["fetched"], done["deleted"]) == (2, 0)
    assert await until_equal(live, "one", "two") == good
    assert await contents(live, "two", "other") is None
    await documents.update("notes", "8", {"content": "spoilt"})
    done = await run(client, "sync", {"from": "one", "collection": "notes"}, node="two")
    assert done["fetched"] == 1
    assert await until_equal(live, "one", "two") == good
    with pytest.raises(InvalidError):
        await run(client, "sync", {"from": "one", "collection": "nope"}, node="two")
    await run(client, "index", {"documents": [note("after")]}, node="two")
    assert len(await until_equal(live, "one", "two")) == 51


async def test_documents_are_shown_to_replicas_of_the_shard_alone(live, client):
    await live.start("one", "notes")
    await live.start("stranger")
    await until_routed(client, "one", "stranger")
    await following(live, "one")
    await run(client, "index", {"documents": [note("1")]}, node="one")
    bus = live.nodes["stranger"]._bus

    async def asked(subject, message, responder, kind):
        reply = await bus.request(subject, codec.encode(message), responder=responder, timeout_s=5)
        return codec.result_of(reply, kind)

    for what in ("state", "index", "documents", "applied"):
        query = ExportQuery(what=what, shard="notes", collection="notes", ids=["1"])
        with pytest.raises(ForbiddenError):
            await asked(subjects.rpc("one", "export", "stranger"), query, "one", CopyState)
    query = WritesQuery(shard="notes")
    with pytest.raises(ForbiddenError):
        await asked(subjects.master("writes", "stranger"), query, "master", WritesPage)
    position = live.replica("one")._copy.position
    lie = LoggedWrite(
        sequence=position.sequence + 1, entry=WriteEntry(prev=position.sequence), log=position.log
    )
    bus.publish(subjects.rpc("one", "replicate", "stranger"), codec.encode(lie))
    await bus.flush()
    await asyncio.sleep(0.2)
    assert live.replica("one")._copy.position == position
    with pytest.raises(ForbiddenError):
        await client.run_action("sync", {"from": "one"}, node="stranger")
    assert not live.replica("stranger").logged


async def test_a_write_whose_log_is_away_is_refused_and_has_done_nothing(live, client, monkeypatch):
    monkeypatch.setattr("mesh.runtime.replication._PATIENCE_S", 0.5)
    await live.start("one", "notes")
    await following(live, "one")
    await until_routed(client, "one")
    log = live.replica("one")._place._log

    async def away(*_args, **_options):
        raise NotStoredError("the log is away")

    monkeypatch.setattr(log, "append", away)
    with pytest.raises(UnavailableError):
        await run(client, "index", {"documents": [note("1")]}, node="one")
    assert await contents(live, "one") is None
    monkeypatch.undo()
    await run(client, "index", {"documents": [note("2")]}, node="one")
    assert await contents(live, "one") == {"2": ("late invoice", {})}


async def test_an_acknowledgement_that_is_lost_with_the_broker_is_no_failed_write(
    live, client, monkeypatch
):
    """The log has the write, the writer does not know, and is not told for longer than it would
    wait for anything else.
    """
    monkeypatch.setattr("mesh.runtime.replication._PATIENCE_S", 0.2)
    await start_both(live, client)
    log = live.replica("one")._place._log
    append, until_s = log.append, asyncio.get_running_loop().time() + 2

    async def deaf(shard, entry, *, after, timeout_s):
        if asyncio.get_running_loop().time() < until_s:
            with contextlib.suppress(MeshError):
                await append(shard, entry, after=after, timeout_s=timeout_s)
            raise DisconnectedError("the broker is away")
        return await append(shard, entry, after=after, timeout_s=timeout_s)

    monkeypatch.setattr(log, "append", deaf)
    done = await run(client, "index", {"documents": [note("1")]}, node="one")
    assert done["changed"] == 1
    assert await until_equal(live, "one", "two") == {"1": ("late invoice", {})}


async def test_a_node_that_is_given_a_shard_keeps_the_documents_it_had(live, client):
    """Copying would remove them, and nobody else has them."""
    await live.start("one", "notes")
    await live.start("two")
    await until_routed(client, "one", "two")
    await following(live, "one")
    await run(client, "index", {"documents": [note("1")]}, node="one")
    await run(client, "index", {"collection": "mine", "documents": [note("2")]}, node="two")
    await live.stop("two")
    await live.start("two", "notes")
    two = live.replica("two")
    await until(lambda: "run sync from one here" in two._place.why)
    await asyncio.sleep(1)
    assert not two.following
    assert await contents(live, "two", "mine") == {"2": ("late invoice", {})}
    await until_routed(client, "two")
    await client.run_action("sync", {"from": "one"}, node="two", timeout_s=15)
    await following(live, "two")
    assert await contents(live, "two", "mine") is None
    assert await until_equal(live, "one", "two") == {"1": ("late invoice", {})}
    # Back among the others it follows; with another shard in between it would not.
    await live.stop("two")
    await live.start("two", "notes")
    await following(live, "two")
    await live.stop("two")
    await live.start("two")
    await live.stop("two")
    await live.start("two", "notes")
    await until(lambda: "run sync from one here" in live.replica("two")._place.why)


async def test_what_can_be_filtered_by_is_the_same_on_every_replica(live, client):
    """Also where one was away while a column came and its document went."""
    await start_both(live, client)
    await run(client, "index", {"documents": [note("1")]}, node="one")
    await until_equal(live, "one", "two")
    await live.stop("two")
    await run(client, "index", {"documents": [note("2", price=5)]}, node="one")
    await run(client, "delete", {"ids": ["2"]}, node="one")
    await live.start("two", "notes")
    await following(live, "two")
    for name in ("one", "two"):
        assert live.nodes[name]._documents.columns("notes") == {"price": "number"}
    await until_routed(client, "two")
    with pytest.raises(InvalidError):
        await run(client, "index", {"documents": [note("3", price="cheap")]}, node="two")
    query = ReplicasQuery(shard="notes")

    async def hashes():
        found = await client._caller.master("replicas", query, ReplicaList, 5)
        return {one.node: one.collections[0].hash for one in found.copies}

    assert len(set((await hashes()).values())) == 1
    await live.nodes["two"]._documents.replace("notes", columns={"odd": "text"})
    assert len(set((await hashes()).values())) == 2
    await client.run_action("sync", {"from": "one"}, node="two", timeout_s=15)
    assert len(set((await hashes()).values())) == 1


async def test_a_replica_that_is_behind_leaves_every_question_to_the_others(live, client):
    await start_both(live, client)
    await run(client, "index", {"documents": [note("1")]}, node="one")
    await until_equal(live, "one", "two")
    two = live.replica("two")
    await until(two._neighbours.healthy)
    asked = {
        "fetch": FetchRequest(collection="notes", ids=["1"]),
        "search": SearchRequest(query="late invoice"),
    }
    async with two._lock:  # it cannot look
        two._place.lag()
        for verb, message in asked.items():
            reply = await client._bus.request(
                subjects.rpc("two", verb, "operator"),
                codec.encode(message),
                responder="two",
                timeout_s=5,
            )
            with pytest.raises(OverloadedError, match="catching up"):
                codec.result_of(reply, FetchResult)
