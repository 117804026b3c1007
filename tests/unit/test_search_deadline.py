"""Back by the deadline and 50 ms, whatever hangs; and whom a search asks. In virtual time."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from search_world import ScriptedNode, SearchWorld
from virtual_time import virtual

from mesh.errors import UnavailableError

LATEST_S = 0.55
"""For half a second."""


def eight(**fields):
    return [ScriptedNode(f"n{number}", **fields) for number in range(8)]


async def timed(world, **options):
    began = world.clock.monotonic()
    answer = await world.search(timeout_ms=500, **options)
    return answer, world.clock.monotonic() - began


@virtual
async def test_one_that_hangs_is_named_and_the_rest_is_there_in_time():
    nodes = eight()
    nodes[3].hung = True
    async with SearchWorld(*nodes) as world:
        answer, took_s = await timed(world)
        assert took_s <= LATEST_S
        assert (answer.shards.total, answer.shards.ok, answer.shards.timed_out) == (8, 7, 1)
        (late,) = [report for report in answer.shards.details if report.status == "timed_out"]
        assert late.node == "n3"
        assert answer.count == 7


@pytest.mark.parametrize("hung", [True, False], ids=["a node hangs too", "all answer"])
@virtual
async def test_texts_that_do_not_come_are_not_waited_for(hung):
    nodes = eight()
    nodes[0].hung = hung
    nodes[1].long = nodes[1].mute = nodes[2].long = True
    async with SearchWorld(*nodes) as world:
        answer, took_s = await timed(world)
        assert took_s <= LATEST_S
        (lost,) = [report for report in answer.shards.details if report.status == "failed"]
        assert (lost.node, lost.reason) == ("n1", "its text did not come in time")
        contents = {hit.node: hit.content for hit in answer.results}
        assert (contents["n1"], contents["n2"]) == ("", "version 1")


@virtual
async def test_texts_that_do_not_fit_into_one_message_come_in_several():
    node = ScriptedNode("a")
    found = node.found()
    (shard,) = found.shards
    candidates = [
        msgspec.structs.replace(shard.candidates[0], id=str(n), hash=str(n), content=None)
        for n in range(10)
    ]
    shard = msgspec.structs.replace(shard, candidates=candidates)
    node.found = lambda: msgspec.structs.replace(found, shards=[shard])
    for node.most_texts, fetches in ((10, 1), (3, 7), (1, 19)):
        async with SearchWorld(node) as world:
            answer = await world.search()
            assert [hit.content for hit in answer.results] == ["version 1"] * 10
            assert not answer.partial
            assert node.fetches == fetches
            node.fetches = 0
    node.most_texts = 0
    async with SearchWorld(node) as world:
        assert (await world.search()).partial


@virtual
async def test_a_shard_whose_texts_are_lost_is_not_one_that_was_required():
    nodes = eight()
    nodes[1].long = nodes[1].mute = True
    async with SearchWorld(*nodes) as world:
        with pytest.raises(UnavailableError, match="7 of 8 shards answered, all required") as found:
            await world.search(timeout_ms=500, require="all")
        assert (found.value.shards.ok, found.value.shards.failed) == (7, 1)
        assert (await world.search(timeout_ms=500, require="quorum")).partial


@pytest.mark.parametrize("number", [1, 8])
@virtual
async def test_a_broker_that_hangs_keeps_nobody_waiting(number):
    """Breakers are judged by a round trip to it, which then takes 50 ms more."""
    nodes = eight()[:number]
    for node in nodes:
        node.hung = True
    async with SearchWorld(*nodes) as world:
        asking = asyncio.create_task(world.search(timeout_ms=500))
        began = world.clock.monotonic()
        await asyncio.sleep(0.2)
        world.broker.hang()
        with pytest.raises(Exception, match="no answer in time"):
            await asking
        assert world.clock.monotonic() - began <= 0.53
        world.broker.go_on()


@virtual
async def test_a_search_that_was_cancelled_leaves_nothing_behind():
    nodes = eight()
    for node in nodes:
        node.hung = True
    async with SearchWorld(*nodes) as world:
        for options in ({}, {"cache": False}):
            before = asyncio.all_tasks()
            asking = asyncio.create_task(world.search(timeout_ms=5000, **options))
            await asyncio.sleep(0.1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await asyncio.sleep(0.1)
            assert asyncio.all_tasks() == before
        assert [node.cancels for node in nodes] == [2] * 8


# -- whom a search asks ----------------------------------------------------------------------------


@virtual
async def test_who_does_not_search_is_skipped_and_not_missed():
    one, other = ScriptedNode("a", capabilities=["search"]), ScriptedNode("b")
    silent = ScriptedNode("c", capabilities=["actions", "rag"])
    async with SearchWorld(one, other, silent) as world:
        answer = await world.search(require="all")
        assert not answer.partial
        assert (answer.shards.ok, answer.shards.skipped) == (2, 1)
        (skipped,) = [report for report in answer.shards.details if report.status == "skipped"]
        assert (skipped.node, skipped.reason) == ("c", "its node does not search")
        assert silent.searches == []
        assert (await world.search()).cached


@virtual
async def test_of_replicas_one_is_asked_that_searches():
    one = ScriptedNode("a", shard="x", capabilities=["actions"])
    other = ScriptedNode("b", shard="x", capabilities=["search"])
    async with SearchWorld(one, other) as world:
        for number in range(4):
            answer = await world.search(f"query {number}")
            assert (answer.shards.total, answer.shards.ok) == (1, 1)
        assert (len(one.searches), len(other.searches)) == (0, 4)


@virtual
async def test_only_the_nodes_that_are_named_are_asked():
    nodes = eight()
    async with SearchWorld(*nodes) as world:
        answer = await world.search(nodes=["n1", "n5"], collections=["notes"])
        assert answer.node_breakdown == {"n1": 1, "n5": 1}
        assert [node.slug for node in nodes if node.searches] == ["n1", "n5"]
