"""`MeshClient` over a bus in memory: where an action goes, and what a refresh may not do."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest
import structlog
from fakes import MemoryBroker

from mesh.adapters.clock import SystemClock
from mesh.config import MeshConfig
from mesh.core.route_table import RouteTable
from mesh.errors import (
    BadRequestError,
    InvalidError,
    NoRespondersError,
    NotFoundError,
    UnavailableError,
)
from mesh.runtime.client import MeshClient
from mesh.types import ActionState, Health, Status
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    ActionRequest,
    ActionResult,
    Candidates,
    CollectionInfo,
    RouteNode,
    RouteUpdate,
    SearchRequest,
)


def node(slug, *held, actions=("index",), **fields):
    collections = [CollectionInfo(name=name, shard=slug) for name in held]
    known = {"health": Health.HEALTHY, "actions": list(actions), "collections": collections}
    return RouteNode(slug=slug, **(known | fields))


AWAY = {"health": Health.UNREACHABLE, "reason": "nobody listens"}


class World:
    """A client, the nodes of its table, and who was asked to run something."""

    def __init__(self):
        self.broker = MemoryBroker()
        self.bus = self.broker.bus("ops")
        self.client = MeshClient(self.bus, MeshConfig(), SystemClock())
        self.ran = []
        self._newest = RouteUpdate(epoch=1, version=1)
        self.asked_for_routes = 0
        self.mute = False

    async def start(self):
        self._serving = self.broker.bus("everybody")
        await self._serving.subscribe(f"{subjects.PREFIX}.act.*.*.*", self._run)
        await self._serving.subscribe(subjects.master("routes", "ops"), self._routes)
        await self.client.start()

    def _run(self, message):
        self.ran.append(message.subject.split(".")[3])
        done = ActionResult(id="1", action="index", node=self.ran[-1], state=ActionState.SUCCEEDED)
        self._serving.publish(message.reply, codec.ok(done))

    def _routes(self, message):
        self.asked_for_routes += 1
        if self.mute:
            return
        self._serving.publish(message.reply, codec.ok(self._newest))

    def know(self, *nodes):
        update = RouteUpdate(epoch=2, version=1, nodes=list(nodes))
        self._serving.publish(subjects.ROUTES, codec.encode(update))

    async def index(self, collection, *nodes):
        self.know(*nodes)
        async with asyncio.timeout(5):
            while self.client.routes.epoch != 2:
                await asyncio.sleep(0)
        return await self.client.run_action("index", {"collection": collection, "documents": []})

    async def close(self):
        await self.client.close()
        await self._serving.close()


@pytest.fixture
async def world():
    made = World()
    await made.start()
    yield made
    await made.close()
    assert made.broker.handler_failures == 0


@pytest.mark.parametrize(
    ("collection", "nodes"),
    [
        ("notes", [node("crm", "notes"), node("shop", "orders")]),
        ("new", [node("crm")]),
        ("new", [node("crm"), node("shop", "new", actions=["refund"])]),
        ("notes", [node("crm", "notes"), node("shop", "orders", **AWAY)]),
    ],
)
async def test_an_action_goes_to_the_one_that_holds_or_else_offers(world, collection, nodes):
    await world.index(collection, *nodes)
    assert world.ran == ["crm"]


@pytest.mark.parametrize(
    ("holder", "reason"),
    [
        (AWAY, "'crm' cannot be asked now: unreachable: nobody listens"),
        ({"status": Status.MAINTENANCE}, "'crm' cannot be asked now: status is maintenance"),
    ],
)
async def test_what_is_meant_for_a_holder_that_is_away_goes_to_nobody_else(world, holder, reason):
    """Else there would be a second collection of that name."""
    with pytest.raises(UnavailableError, match=reason):
        await world.index("notes", node("crm", "notes", **holder), node("shop", "orders"))
    assert world.ran == []


@pytest.mark.parametrize(
    ("collection", "nodes", "message"),
    [
        ("notes", [], "no node offers 'index'; actions: none"),
        ("notes", [node("crm", actions=["refund"])], "no node offers 'index'; actions: refund"),
        ("new", [node("crm"), node("shop", **AWAY)], "2 nodes offer 'index'; say which: crm, shop"),
        (
            "notes",
            [node("a", "notes", **AWAY), node("b", "notes"), node("c")],
            "2 nodes hold 'notes'; say which: a, b",
        ),
    ],
)
async def test_where_not_exactly_one_qualifies_it_is_refused(world, collection, nodes, message):
    with pytest.raises(BadRequestError, match=message):
        await world.index(collection, *nodes)
    assert world.ran == []


async def test_a_refresh_in_the_background_that_fails_is_logged(world, monkeypatch):
    """Nobody awaits its task, so its error would be seen only when the task is collected."""

    async def broken():
        raise ZeroDivisionError

    monkeypatch.setattr(world.client._routes, "_fetch_pages", broken)
    routes = world.client._routes
    with structlog.testing.capture_logs() as logged:
        world.broker.stop()
        world.broker.start()
        async with asyncio.timeout(5):
            while not routes._refreshing or not routes._refreshing.done():
                await asyncio.sleep(0)
    assert [line["event"] for line in logged] == ["mesh.client.refresh_failed"]
    assert routes._refreshing.exception() is None


async def test_an_action_says_whom_it_is_for_and_finds_a_node_newer_than_the_table(world):
    asked = []
    await world._serving.subscribe(f"{subjects.PREFIX}.act.new.*.*", asked.append)
    world._newest = RouteUpdate(epoch=3, version=1, nodes=[node("new")])
    await world.client.run_action("index", node="new", id="k", on_behalf="alice")
    request = codec.decode(asked[0].data, ActionRequest)
    assert (request.id, request.on_behalf) == ("k", "alice")


async def test_an_action_that_the_named_node_does_not_have_is_not_sent(world):
    asked = []
    await world._serving.subscribe(f"{subjects.PREFIX}.act.crm.*.*", asked.append)
    table = RouteTable(epoch=2, version=1, nodes=[node("crm", actions=["refund"])])
    world.client._routes.follower.table = table
    with pytest.raises(BadRequestError, match="crm offers: refund"):
        await world.client.run_action("index", node="crm")
    assert asked == []
    world._newest = RouteUpdate(epoch=3, version=1, nodes=[node("crm", actions=["index"])])
    await asyncio.sleep(1.0)
    await world.client.run_action("index", node="crm")
    assert len(asked) == 1


async def test_a_search_that_is_made_already_gets_an_id_and_says_whom_it_is_for(world):
    asked = []

    def answer(message):
        asked.append(codec.decode(message.data, SearchRequest))
        world._serving.publish(message.reply, codec.ok(Candidates(node="crm", terms=[], shards=[])))

    await world._serving.subscribe(f"{subjects.PREFIX}.rpc.crm.search.*", answer)
    world.client._routes.follower.table = RouteTable(
        epoch=2, version=1, nodes=[node("crm", "notes")]
    )
    made = SearchRequest(query="late", trace="00-aa-bb-01")
    with pytest.raises(UnavailableError, match="it is gone there"):
        await world.client.submit(made, on_behalf="alice")
    assert (asked[0].on_behalf, asked[0].trace, len(asked[0].id)) == ("alice", "00-aa-bb-01", 36)
    with pytest.raises(UnavailableError):
        await world.client.submit(msgspec.structs.replace(made, id="mine", on_behalf="bob"))
    assert (asked[1].on_behalf, asked[1].id) == ("bob", "mine")


async def test_many_unknown_names_ask_for_the_table_once_a_second(world):
    before = world.asked_for_routes

    async def asked(name):
        with pytest.raises(NotFoundError):
            await world.client.run_action("index", node=name)

    await asyncio.gather(*(asked(f"n{number}") for number in range(20)))
    for number in range(5):
        await asked(f"m{number}")
        with pytest.raises(InvalidError):
            await world.client.search("late", nodes=[f"m{number}"])
    assert world.asked_for_routes == before + 1
    world.client._routes._learnt_at -= 1.0
    await asked("late")
    assert world.asked_for_routes == before + 2


async def test_an_unknown_name_costs_no_more_than_the_request_has(world):
    """The master hangs: whoever asked does not wait for it beyond the own time."""
    world.mute = True
    began = time.monotonic()
    with pytest.raises(NotFoundError):
        await world.client.run_action("index", node="nobody", timeout_s=0.05)
    world.client._routes._learnt_at -= 1.0
    with pytest.raises(InvalidError):
        await world.client.search("late", nodes=["nobody"], timeout_ms=50)
    assert time.monotonic() - began < 1.0


async def test_a_client_that_was_closed_begins_no_refresh(world):
    routes = world.client._routes
    await routes.stop()
    routes._on_connection(True)
    assert routes._refreshing is None or routes._refreshing.done()


async def test_a_client_knows_whether_its_broker_is_there(world):
    assert world.client.connected
    world.broker.stop()
    assert not world.client.connected
    world.broker.start()
    assert world.client.connected


async def test_a_node_that_nobody_hears_for_is_named(world):
    with pytest.raises(NoRespondersError, match="node 'crm' is away") as refused:
        await world.client.ping("crm")
    assert refused.value.retry_after_ms == 1000
    with pytest.raises(NoRespondersError, match="no master answers"):
        await world.client.stats()
