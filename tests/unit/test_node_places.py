"""What takes a place of a node's and what does not: whoever waits keeps nobody out."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio
import structlog
from executor_world import World, turns
from fakes import MemoryBroker

from mesh.adapters.clock import SystemClock
from mesh.config import NodeConfig
from mesh.errors import OverloadedError
from mesh.runtime.node_doors import Doors
from mesh.runtime.sdk import Node
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    ActionRequest,
    ActionResult,
    PingResult,
    SearchRequest,
)


class Found:
    """`NodeSearch` that finds nothing, at once."""

    async def answer(self, _request):
        return {}


class Place:
    """A node's doors with two places and a queue of one, and someone before them."""

    def __init__(self):
        self.go_on, self.ran = asyncio.Event(), []
        node = Node("crm")

        async def slow(params: dict, ctx):
            self.ran.append(ctx.id)
            await self.go_on.wait()
            return ctx.id

        async def calls(params: dict, ctx):
            return await self.ask("quick", "inner")

        async def quick(params: dict):
            return "quick"

        node.action("slow")(slow)
        node.action("narrow", concurrency=1)(slow)
        node.action("calls", concurrency=1)(calls)
        node.action("quick")(quick)
        broker = MemoryBroker()
        self.bus = broker.bus("ops")
        self.world = World(node)
        self.doors = Doors(
            broker.bus("crm"),
            SystemClock(),
            NodeConfig(max_parallel_requests=2, max_queued_requests=1),
            greeting=PingResult(node="crm", incarnation=1, version="1"),
            search=Found(),
            documents=None,
            executor=self.world.executor,
            actions=node.actions,
            on_drain=lambda _draining: None,
        )

    async def ask(self, action, action_id):
        request = ActionRequest(id=action_id, action=action)
        reply = await self.bus.request(
            subjects.act("crm", action, "ops"),
            codec.encode(request),
            responder="crm",
            timeout_s=5,
        )
        return codec.result_of(reply, ActionResult).result

    def asked(self, action, action_id):
        return asyncio.ensure_future(self.ask(action, action_id))

    async def search(self):
        await self.bus.request(
            subjects.rpc("crm", "search", "ops"),
            codec.encode(SearchRequest(query="q")),
            responder="crm",
            timeout_s=5,
        )


@pytest_asyncio.fixture
async def place():
    made = Place()
    with structlog.testing.capture_logs():
        await made.doors.open()
        yield made
        made.go_on.set()
        await made.doors.drain(5)
        await made.world.executor.stop()


async def test_whoever_asks_again_for_what_runs_takes_no_place(place):
    asked = [place.asked("slow", "1") for _ in range(3)]  # no more than there is room for
    await turns()
    assert place.doors.responder.in_flight == 1
    asked += [place.asked("slow", "1") for _ in range(20)]
    await turns()
    assert place.doors.responder.in_flight == 1
    await place.search()
    place.go_on.set()
    assert await asyncio.gather(*asked) == ["1"] * 23
    assert place.ran == ["1"]
    assert (place.doors.responder.in_flight, place.doors.responder.queued) == (0, 0)


async def test_a_full_node_still_tells_who_asks_again(place):
    busy = [place.asked("slow", "a"), place.asked("slow", "b")]
    await turns()
    queued = place.asked("slow", "c")
    await turns()
    assert place.doors.responder.queued == 1
    with pytest.raises(OverloadedError):
        await place.ask("slow", "d")
    joins = place.asked("slow", "a")
    await turns()
    assert not joins.done()
    place.go_on.set()
    assert await asyncio.gather(*busy, queued, joins) == ["a", "b", "c", "a"]


async def test_those_who_wait_for_a_turn_keep_no_search_out(place):
    asked = [place.asked("narrow", f"{n}") for n in range(20)]
    await turns()
    assert place.ran == ["0"]
    assert place.doors.responder.in_flight == 0
    await place.search()
    place.go_on.set()
    assert await asyncio.gather(*asked) == [f"{n}" for n in range(20)]


async def test_one_that_calls_its_own_node_is_not_kept_out_by_others_of_its_kind(place):
    asked = [place.asked("calls", f"{n}") for n in range(20)]
    assert await asyncio.gather(*asked) == ["quick"] * 20
