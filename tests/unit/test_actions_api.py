"""Fan-out in order and with an end, and what a client puts into the queue."""

from __future__ import annotations

import asyncio

import pytest
from fakes import MemoryBroker
from queue_fakes import MemoryQueue

from mesh.adapters.clock import SystemClock
from mesh.config import MeshConfig
from mesh.core.route_table import RouteTable
from mesh.errors import (
    ActionFailedError,
    BadRequestError,
    ConflictError,
    InvalidError,
    MeshError,
    NotFoundError,
    UnavailableError,
)
from mesh.runtime.action_records import fingerprint_of
from mesh.runtime.client import MeshClient
from mesh.types import ActionState, Health, Status
from mesh.wire import codec, subjects
from mesh.wire.messages import ActionCheck, ActionRequest, ActionResult, CollectionInfo, RouteNode


def node(slug, *held, health=Health.HEALTHY, status=Status.ACTIVE):
    collections = [CollectionInfo(name=name, shard=slug) for name in held]
    return RouteNode(
        slug=slug, health=health, status=status, actions=["update"], collections=collections
    )


class World:
    def __init__(self):
        self.broker = MemoryBroker()
        self.queue = MemoryQueue()
        self.client = MeshClient(
            self.broker.bus("gateway"), MeshConfig(), SystemClock(), queue=self.queue
        )
        self.serving = self.broker.bus("everybody")
        self.asked = []
        self.answers = {}
        self.checked = []
        self.verdict = None
        self.verdicts = {}
        """Of a node; None: no answer."""

    async def start(self, *nodes):
        await self.serving.subscribe(f"{subjects.PREFIX}.act.*.*.*", self._act)
        await self.client.start()
        table = RouteTable(epoch=9, version=1, nodes=list(nodes))
        self.client._routes.follower.table = table
        return self

    async def master(self):
        await self.serving.subscribe(f"{subjects.PREFIX}.master.action-check.*", self._check)

    def _act(self, message):
        slug = message.subject.split(".")[3]
        request = codec.decode(message.data, ActionRequest)
        self.asked.append(slug)
        error = self.answers.get(slug)
        if error is not None:
            self.serving.publish(message.reply, codec.encode(codec.error_reply(error)))
            return
        done = ActionResult(
            id=request.id, node=slug, action="update", state=ActionState.SUCCEEDED, result=1
        )
        self.serving.publish(message.reply, codec.ok(done))

    def _check(self, message):
        self.checked.append(codec.decode(message.data, ActionCheck))
        verdict = self.verdicts.get(self.checked[-1].node, self.verdict)
        if self.checked[-1].node in self.verdicts and verdict is None:
            return
        if verdict is None:
            self.serving.publish(message.reply, codec.ok(None))
        elif isinstance(verdict, MeshError):
            reply = codec.encode(codec.error_reply(verdict))
            self.serving.publish(message.reply, reply)

    async def close(self):
        await self.client.close()
        await self.serving.close()


@pytest.fixture
async def world():
    made = World()
    yield made
    await made.close()
    assert made.broker.handler_failures == 0


FOUR = [node("a"), node("b"), node("c"), node("d")]


async def test_one_after_another_in_the_order_given(world):
    await world.start(*FOUR)
    done = await world.client.fan_out("update", nodes=["c", "a", "b"], sequential=True)
    assert world.asked == list(done.results) == ["c", "a", "b"]


@pytest.mark.parametrize("on_failure", ["continue", "stop"])
async def test_after_a_failure_it_goes_on_or_not(world, on_failure):
    await world.start(*FOUR)
    world.answers = {"b": ActionFailedError("no")}
    done = await world.client.fan_out(
        "update", all=True, sequential=True, on_failure=on_failure, id="k"
    )
    kinds = [item.error.kind if item.error else "" for item in done.results.values()]
    if on_failure == "continue":
        assert (world.asked, kinds) == (["a", "b", "c", "d"], ["", "action_failed", "", ""])
        return
    assert (world.asked, kinds) == (["a", "b"], ["", "action_failed", "skipped", "skipped"])
    assert (done.success_count, done.failure_count) == (1, 3)
    skipped = done.results["d"]
    assert (skipped.id, skipped.state, skipped.error.code) == ("k.d", None, 424)
    assert skipped.error.message == "not asked: 'b' had failed before"


async def test_who_cannot_be_asked_has_failed_too(world):
    await world.start(node("a", health=Health.UNREACHABLE), *FOUR[1:])
    done = await world.client.fan_out("update", all=True, sequential=True, on_failure="stop")
    assert world.asked == []
    assert done.failure_count == 4


async def test_the_queue_takes_it_for_a_node_that_is_away(world):
    await world.start(node("a", health=Health.UNREACHABLE, status=Status.MAINTENANCE))
    kept = await world.client.queue_action(
        "update", {"x": 1}, node="a", id="k", expires_s=60, on_behalf="alice"
    )
    assert (kept.id, kept.node, kept.action, kept.state) == ("k", "a", "update", "queued")
    [waiting] = world.queue.stored.values()
    assert (waiting.node, waiting.action, waiting.caller, waiting.who) == (
        *("a", "update"),
        *("gateway", "alice"),
    )
    assert waiting.item.digest == fingerprint_of(waiting.item).digest
    assert abs(waiting.item.expires - SystemClock().unix_ms() - 60_000) < 5000
    again = await world.client.queue_action("update", {"x": 1}, node="a", id="k", expires_s=60)
    assert again.id == "k"
    assert len(world.queue.stored) == 2, "its node runs it once; nobody drops what was acknowledged"


async def test_where_nobody_is_named_the_holder_is_meant_although_it_is_away(world):
    await world.start(node("a", "notes", health=Health.UNREACHABLE), node("b"))
    kept = await world.client.queue_action("update", {"collection": "notes"})
    assert kept.node == "a"


async def test_a_fan_out_can_be_queued(world):
    await world.start(node("a", health=Health.UNREACHABLE), node("b"))
    world.queue.room = 200
    done = await world.client.fan_out("update", {"x": 1}, all=True, mode="queue", id="k")
    assert world.asked == []
    assert [each.item.id for each in world.queue.stored.values()] == ["k.a"]
    assert (done.results["a"].success, done.results["a"].state) == (True, ActionState.QUEUED)
    assert done.results["b"].error.kind == "unavailable", "the queue was full"


@pytest.mark.parametrize(
    "verdict",
    [
        InvalidError("bad", fields={"params.x": ["expected int"]}),
        BadRequestError("unknown action"),
        ConflictError("other parameters"),
    ],
)
@pytest.mark.parametrize("mode", ["queue", "fan-out"])
async def test_what_a_master_refuses_is_not_sent(world, verdict, mode):
    await world.start(*FOUR)
    await world.master()
    world.verdict = verdict
    asked = {
        "queue": lambda: world.client.queue_action("update", {"x": "1"}, node="a", id="k"),
        "fan-out": lambda: world.client.fan_out("update", {"x": "1"}, all=True),
    }
    with pytest.raises(type(verdict)) as refused:
        await asked[mode]()
    assert refused.value.fields == verdict.fields
    assert world.asked == []
    assert not world.queue.stored


async def test_what_a_node_that_is_away_would_refuse_is_told(world):
    await world.start(node("a", health=Health.UNREACHABLE), node("b"))
    await world.master()
    world.verdict = InvalidError("bad", fields={"params.x": ["expected int"]})
    with pytest.raises(InvalidError):
        await world.client.run_action("update", {"x": "1"}, node="a", timeout_s=0.2)
    assert (await world.client.run_action("update", {"x": "1"}, node="b")).result == 1
    assert len(world.checked) == 1, "one that is there checks it itself"
    assert world.asked == ["b"]
    world.verdict = None
    world.answers["a"] = UnavailableError("away")
    with pytest.raises(UnavailableError):
        await world.client.run_action("update", {"x": 1}, node="a", timeout_s=0.2)


async def test_a_master_that_does_not_answer_is_not_waited_for(world):
    await world.start(*FOUR)
    await world.master()
    world.verdict = "silence"
    async with asyncio.timeout(3):
        await world.client.queue_action("update", node="a")
    assert len(world.checked) == 1
    await world.client.queue_action("update", node="a", check=False)
    assert len(world.checked) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"node": "nobody"}, NotFoundError),
        ({"node": "a", "expires_s": 0}, InvalidError),
        ({"node": "a", "expires_s": 1e12}, InvalidError),
        ({"node": "a", "id": "k" * 201}, InvalidError),
        ({}, BadRequestError),
    ],
    ids=["unknown node", "no time", "too much time", "long id", "nobody named"],
)
async def test_a_refusal_comes_before_anything_is_stored(world, arguments, error):
    await world.start(*FOUR)
    with pytest.raises(error):
        await world.client.queue_action("update", **arguments)
    assert not world.queue.stored


async def test_a_queue_that_is_away_says_so(world):
    await world.start(*FOUR)
    world.queue.available = False
    with pytest.raises(UnavailableError) as refused:
        await world.client.queue_action("update", node="a")
    assert (refused.value.code, refused.value.retry_after_ms) == (503, 1000)


@pytest.mark.parametrize("silent", ["a", "b"])
async def test_a_refusal_counts_whoever_else_does_not_answer(world, silent):
    await world.start(*FOUR)
    await world.master()
    world.verdicts = {silent: None, "c": InvalidError("params.n", fields={"params.n": ["no"]})}
    with pytest.raises(InvalidError):
        await world.client.fan_out("update", nodes=["a", "b", "c"])
    assert world.asked == []
    world.verdicts = {silent: None, "c": UnavailableError("no database")}
    done = await world.client.fan_out("update", nodes=["a", "b", "c"])
    assert done.success, "the nodes check it"


async def test_many_nodes_have_the_time_that_many_take(world):
    many = [node(f"n{number:02}") for number in range(40)]
    await world.start(*many)
    await world.master()
    refuses = world._check

    def slowly(message):
        asyncio.get_running_loop().call_later(0.4, refuses, message)

    world._check = slowly
    world.verdicts = {"n39": BadRequestError("unknown action")}
    await world.serving.subscribe(f"{subjects.PREFIX}.master.action-check.*", slowly)
    with pytest.raises(BadRequestError):
        await world.client.fan_out("update", nodes=[one.slug for one in many])
