"""A node that was away runs all that was queued for it: once, in order, soon after its return."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest
import pytest_asyncio
from queue_mesh import NODE, QueueMesh, until

from mesh.errors import MeshError
from mesh.types import ActionState, Health

pytestmark = [pytest.mark.chaos, pytest.mark.alone, pytest.mark.timeout(300)]

WITHIN_S = 10.0
"""Of its return, everything has run."""


@pytest_asyncio.fixture
async def queued(broker):
    running = QueueMesh(broker)
    try:
        await running.start()
        yield running
    finally:
        running.stop()


async def insist(step, within_s=20.0):
    """As a caller does who wants to be sure: the same again until it is acknowledged."""
    give_up = time.monotonic() + within_s
    while True:
        try:
            return await step()
        except MeshError:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.1)


async def arrive(client, count, over_s):
    """Queue so many, evenly."""
    began = time.monotonic()
    for number in range(count):
        kept = await insist(
            lambda key=f"k{number}": client.queue_action("note", {"key": key}, node=NODE, id=key)
        )
        assert kept.state is ActionState.QUEUED
        due = began + (number + 1) * over_s / count
        await asyncio.sleep(max(0.0, due - time.monotonic()))


async def break_it(queued, what, at):
    """In the middle of the delivery."""
    await until(lambda: len(queued.runs) >= at, 60, lambda: repr(queued.runs[-3:]))
    if what == "master":
        queued.leader().end(signal.SIGKILL)
    elif what == "broker":
        queued.broker.kill()
        queued.broker.start()


async def away_and_back(queued, *, count, away_s, what):
    client = await queued.connect()
    try:
        queued.node.end(signal.SIGKILL)
        await queued.healthy(client, Health.UNREACHABLE)
        await arrive(client, count, away_s)
        waiting = await client.queue(NODE, limit=3)
        assert (waiting.total, [each.id for each in waiting.actions]) == (count, ["k0", "k1", "k2"])
        assert queued.runs == []
        queued.node.start()
        breaking = asyncio.create_task(break_it(queued, what, at=count // 3))
        await until(lambda: queued.runs, 60, lambda: queued.node.log.read_text()[-3000:])
        began = time.monotonic()
        await until(
            lambda: len(queued.runs) >= count,
            WITHIN_S,
            lambda: f"{len(queued.runs)} of {count} ran; {queued.leader().log.read_text()[-3000:]}",
        )
        took_s = time.monotonic() - began
        await breaking
        await asyncio.sleep(1.0)  # a doubled one would come now
        assert queued.runs == [f"k{number}" for number in range(count)]
        print(f"{count} queued, {what} killed: all ran {took_s:.1f} s after the first")  # noqa: T201
        # An attempt whose record did not reach a broker that died has failed; it did not run.
        await recorded(client, count, most_attempts=2 if what == "broker" else 1)
    finally:
        await client.close()


async def recorded(client, count, *, most_attempts):
    """The history has the one outcome of each, and the queue is empty."""
    async with asyncio.timeout(30):
        while (await insist(lambda: client.queue(NODE))).total:
            await asyncio.sleep(0.1)
    page = await insist(lambda: client.history(node=NODE, state=ActionState.SUCCEEDED, limit=1000))
    assert sorted(each.id for each in page.actions) == sorted(f"k{at}" for at in range(count))
    assert {each.mode for each in page.actions} == {"queue"}
    assert max(each.attempt for each in page.actions) <= most_attempts
    assert not (await insist(client.dead_letters)).total


@pytest.mark.parametrize(
    "what",
    [*(pytest.param(one, marks=pytest.mark.long) for one in ("nothing", "master")), "broker"],
)
async def test_all_that_was_queued_runs_once_and_in_order(queued, what):
    await away_and_back(queued, count=60, away_s=1.0, what=what)


@pytest.mark.long
@pytest.mark.parametrize("what", ["nothing", "master", "broker"])
async def test_five_hundred_in_a_minute_run_once_and_in_order(queued, what):
    await away_and_back(queued, count=500, away_s=60.0, what=what)


async def test_a_node_that_is_killed_again_and_again_doubles_nothing(queued):
    """What it had begun and cannot know is `interrupted`, and a dead letter; the rest goes on."""
    client = await queued.connect()
    try:
        for number in range(60):
            key = f"k{number}"
            await client.queue_action("note", {"key": key}, node=NODE, id=key)
            if number in (20, 40):
                queued.node.end(signal.SIGKILL)
                await asyncio.sleep(0.5)
                queued.node.start()
        async with asyncio.timeout(60):
            while (await client.queue(NODE)).total:
                await asyncio.sleep(0.1)
        dead = {each.id for each in (await client.dead_letters()).actions}
        page = await client.history(node=NODE, limit=1000)
        states = {each.id: each.state for each in page.actions}
        assert set(states.values()) <= {ActionState.SUCCEEDED, ActionState.INTERRUPTED}
        assert dead == {each for each in states if states[each] is ActionState.INTERRUPTED}
        assert len(states) == 60
        assert len(queued.runs) == len(set(queued.runs)), "doubled"
        assert set(states) - dead <= set(queued.runs), "unrecorded, or lost"
        assert queued.runs == sorted(queued.runs, key=lambda key: int(key[1:])), "in order"
    finally:
        await client.close()
