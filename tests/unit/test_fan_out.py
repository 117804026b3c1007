"""One action on several nodes: whom it goes to, and that each of them fares on its own."""

from __future__ import annotations

import asyncio

import pytest
from fakes import MemoryBroker

from mesh.adapters.clock import SystemClock
from mesh.config import MeshConfig
from mesh.core import targets
from mesh.core.route_table import RouteTable
from mesh.errors import (
    ActionFailedError,
    BadRequestError,
    InvalidError,
    MeshError,
    NotFoundError,
    UnavailableError,
)
from mesh.runtime.client import MeshClient
from mesh.types import ActionState, Health, Status
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    ActionRequest,
    ActionResult,
    CollectionInfo,
    RouteNode,
    RouteUpdate,
)

ANYWHERE = {"nodes": None, "all": False, "collection": None}


def node(slug, *held, shard="", actions=("index", "update"), **fields):
    collections = [CollectionInfo(name=name, shard=shard or slug) for name in held]
    known = {"health": Health.HEALTHY, "actions": list(actions), "collections": collections}
    return RouteNode(slug=slug, **(known | fields))


def chosen(*nodes, action="update", **where):
    table = RouteTable(epoch=1, version=1, nodes=nodes)
    return targets.several(table, action, **(ANYWHERE | where))


# -- whom ------------------------------------------------------------------------------------------

AWAY = {"health": Health.UNREACHABLE}
RESTING = {"status": Status.MAINTENANCE}


@pytest.mark.parametrize(
    ("where", "asked", "refused"),
    [
        ({"nodes": ["b", "a", "b"]}, ["b", "a"], []),
        ({"nodes": ["away", "resting"]}, ["away"], ["resting"]),
        ({"all": True}, ["a", "b"], ["away"]),
        ({"collection": "notes"}, ["a"], ["away", "resting"]),
        ({"collection": "orders"}, ["b"], []),
    ],
    ids=["list", "list with absent ones", "all", "collection", "collection of one"],
)
def test_targets_in_order_with_those_that_are_not_asked(where, asked, refused):
    """`a` and `b` are replicas of one shard: a write to one of them reaches the other."""
    nodes = [
        node("a", "notes", shard="x"),
        node("away", "notes", **AWAY),
        node("b", "notes", "orders", shard="x"),
        node("other", actions=["refund"]),
        node("resting", "notes", **RESTING),
    ]
    found = chosen(*nodes, **where)
    assert [slug for slug, error in found.items() if error is None] == asked
    assert [slug for slug, error in found.items() if error is not None] == refused
    assert all(isinstance(error, UnavailableError) for error in found.values() if error)


@pytest.mark.parametrize(
    ("where", "fields"),
    [
        ({}, ["nodes", "all", "collection"]),
        ({"nodes": ["a"], "all": True}, ["nodes", "all"]),
        ({"all": True, "collection": "notes"}, ["all", "collection"]),
        ({"nodes": []}, ["nodes"]),
        ({"nodes": ["a", "*"]}, ["nodes"]),
        ({"collection": "nope"}, ["collection"]),
    ],
    ids=["none", "two", "two others", "nobody", "wildcard", "unknown collection"],
)
def test_where_is_said_once_and_can_be(where, fields):
    with pytest.raises(InvalidError) as caught:
        chosen(node("a", "notes"), **where)
    assert list(caught.value.fields) == fields


@pytest.mark.parametrize(
    ("action", "where", "error", "message"),
    [
        ("update", {"nodes": ["a", "nobody"]}, NotFoundError, "'nobody'; there are: a, b"),
        ("index", {"collection": "notes"}, BadRequestError, "say which node: a, b"),
        ("nope", {"all": True}, BadRequestError, "no node offers 'nope'; actions: index, update"),
        ("nope", {"collection": "notes"}, BadRequestError, "no node offers 'nope'"),
    ],
    ids=["unknown node", "index on two", "unknown action", "unknown action by collection"],
)
def test_what_cannot_be_is_refused_as_a_whole(action, where, error, message):
    with pytest.raises(error, match=message):
        chosen(node("a", "notes"), node("b", "notes"), action=action, **where)


def test_index_by_the_collection_of_one_holder_goes_there():
    assert chosen(node("a", "notes"), node("b"), action="index", collection="notes") == {"a": None}


def test_all_where_everybody_rests_is_unavailable():
    with pytest.raises(UnavailableError, match="is active"):
        chosen(node("a", **RESTING), all=True)


def test_ids_are_the_nodes_own_and_never_longer_than_an_executor_takes():
    assert targets.ids("k", ["a", "bb"]) == {"a": "k.a", "bb": "k.bb"}
    longest = "k" * (targets.LONGEST_ID - len(".bb"))
    assert len(targets.ids(longest, ["a", "bb"])["bb"]) == targets.LONGEST_ID
    for bad in (longest + "k", "line\nbreak"):
        with pytest.raises(InvalidError) as caught:
            targets.ids(bad, ["a", "bb"])
        assert list(caught.value.fields) == ["id"]


# -- how -------------------------------------------------------------------------------------------


class World:
    """A client; nodes that answer by script, or not at all."""

    def __init__(self):
        self.broker = MemoryBroker()
        self.client = MeshClient(self.broker.bus("gateway"), MeshConfig(), SystemClock())
        self.serving = self.broker.bus("everybody")
        self.asked = []
        self.answers = {}
        self.running = self.most = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.tasks = []

    async def start(self, *nodes):
        self.update = RouteUpdate(epoch=1, version=1, nodes=list(nodes))
        for route in nodes:
            subject = f"{subjects.PREFIX}.act.{route.slug}.*.*"
            if route.health is Health.HEALTHY:
                await self.serving.subscribe(subject, self._on_action)
        await self.serving.subscribe(subjects.master("routes", "gateway"), self._on_routes)
        await self.client.start()

    def _on_routes(self, message):
        self.serving.publish(message.reply, codec.ok(self.update))

    def _on_action(self, message):
        self.tasks.append(asyncio.create_task(self._run(message)))

    async def _run(self, message):
        slug = message.subject.split(".")[3]
        request = codec.decode(message.data, ActionRequest)
        self.asked.append((slug, request))
        self.running += 1
        self.most = max(self.most, self.running)
        await self.gate.wait()
        self.running -= 1
        answer = self.answers.get(slug, {"on": slug})
        if isinstance(answer, MeshError):
            self.serving.publish(message.reply, codec.encode(codec.error_reply(answer)))
        elif answer is not None:
            done = ActionResult(
                id=request.id,
                action=request.action,
                node=slug,
                state=ActionState.SUCCEEDED,
                result=answer,
                duration_ms=1.5,
            )
            self.serving.publish(message.reply, codec.ok(done))

    async def close(self):
        self.gate.set()
        await asyncio.gather(*self.tasks)
        await self.client.close()
        await self.serving.close()


@pytest.fixture
async def world():
    made = World()
    yield made
    await made.close()
    assert made.broker.handler_failures == 0


async def test_parameters_that_cannot_be_sent_reach_nobody(world):
    await world.start(node("a"), node("b"))
    with pytest.raises(TypeError):
        await world.client.fan_out("update", {"when": object()}, all=True)
    assert world.asked == []


async def test_parameters_arrive_as_they_are(world):
    await world.start(node("a"), node("b"))
    params = {"n": [1, {"x": None}], "é": "ü"}
    await world.client.fan_out("update", params, all=True)
    assert [request.params for _, request in world.asked] == [params, params]


async def test_every_node_runs_it_under_an_id_of_its_own(world):
    await world.start(node("a"), node("b"))
    done = await world.client.fan_out(
        "update", {"x": 1}, nodes=["a", "b", "a"], id="key", on_behalf="alice"
    )
    assert (done.id, done.action, done.success) == ("key", "update", True)
    assert (done.success_count, done.failure_count) == (2, 0)
    assert {slug: (item.id, item.result) for slug, item in done.results.items()} == {
        "a": ("key.a", {"on": "a"}),
        "b": ("key.b", {"on": "b"}),
    }
    assert done.results["a"].state is ActionState.SUCCEEDED
    assert done.results["a"].duration_ms == 1.5
    assert sorted((slug, asked.id, asked.on_behalf) for slug, asked in world.asked) == [
        ("a", "key.a", "alice"),
        ("b", "key.b", "alice"),
    ]
    assert [asked.params for _, asked in world.asked] == [{"x": 1}] * 2


async def test_nodes_that_fail_hang_or_are_away_cost_the_others_nothing(world):
    await world.start(node("a"), node("fails"), node("hangs"), node("dead", **AWAY))
    world.answers = {"fails": ActionFailedError("no such order"), "hangs": None}
    done = await world.client.fan_out(
        "update", nodes=["dead", "hangs", "fails", "a"], timeout_s=0.2
    )
    assert (done.success, done.success_count, done.failure_count) == (False, 1, 3)
    outcomes = {
        slug: (item.success, item.state, item.error and item.error.kind)
        for slug, item in done.results.items()
    }
    assert outcomes == {
        "dead": (False, None, "no_responders"),
        "hangs": (False, None, "deadline_exceeded"),
        "fails": (False, ActionState.FAILED, "action_failed"),
        "a": (True, ActionState.SUCCEEDED, None),
    }
    assert done.results["fails"].error.message == "no such order"


async def test_what_cannot_be_asked_is_not_asked_but_told(world):
    await world.start(node("a", "notes"), node("gone", "notes", **AWAY))
    done = await world.client.fan_out("update", collection="notes")
    assert [slug for slug, _ in world.asked] == ["a"]
    assert done.results["gone"].error.kind == "unavailable"
    assert "cannot be asked now" in done.results["gone"].error.message


async def test_at_most_so_many_at_a_time(world):
    await world.start(*(node(f"n{at}") for at in range(7)))
    world.gate.clear()
    running = asyncio.create_task(world.client.fan_out("update", all=True, parallel=3))
    async with asyncio.timeout(5):
        while world.running < 3:
            await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert world.running == 3
    world.gate.set()
    assert (await running).success_count == 7
    assert world.most == 3


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"nodes": ["a", "nobody"]}, NotFoundError),
        ({"all": True, "id": "k" * 199}, InvalidError),
        ({"all": True, "parallel": 0}, InvalidError),
    ],
    ids=["unknown node", "long id", "nobody at a time"],
)
async def test_a_refusal_comes_before_anything_is_sent(world, arguments, error):
    await world.start(node("a"), node("b"))
    with pytest.raises(error):
        await world.client.fan_out("update", **arguments)
    assert world.asked == []


@pytest.mark.parametrize("where", [{"nodes": ["b"]}, {"collection": "notes"}], ids=str)
async def test_a_name_newer_than_the_table_is_found(world, where):
    await world.start(node("a"))
    world.update = RouteUpdate(epoch=1, version=2, nodes=[node("a"), node("b", "notes")])
    await world.serving.subscribe(f"{subjects.PREFIX}.act.b.*.*", world._on_action)
    assert (await world.client.fan_out("update", **where)).success_count == 1
