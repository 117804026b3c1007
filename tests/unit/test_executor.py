"""What the executor does with one action at a time: stop it, try it again, let it wait, tell of it.

What it promises under crashes is in test_executor_stateful.
"""

from __future__ import annotations

import asyncio
import threading

import pytest
import structlog
from executor_world import World, read, turns

from mesh.errors import ConfigError, ConflictError, NotFoundError
from mesh.runtime.action_run import Alarms
from mesh.runtime.executor import Executor
from mesh.runtime.sdk import Node
from mesh.types import ActionState


@pytest.fixture(autouse=True)
def quiet():
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def node():
    return Node("crm")


async def test_what_runs_is_stopped_and_everybody_hears_the_same(node):
    began, ended = [], []

    @node.action("slow")
    async def slow(params: dict):
        began.append(1)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)

    world = World(node)
    running = world.ask("slow")
    await turns()
    stopped = await world.cancel("slow", caller="boss")
    assert (stopped.kind, stopped.code, stopped.attempt) == ("cancelled", 409, 1)
    assert stopped.message == "cancelled by boss"
    assert read(await running) == stopped
    assert (began, ended) == ([1], [1])
    assert world.records() == [("accepted", 1, True), ("cancelled", 1, True)]
    assert await world.run("slow") == stopped, "its id answers with its end"
    with pytest.raises(ConflictError, match="cancelled"):
        await world.cancel("slow")
    with pytest.raises(NotFoundError):
        await world.cancel("slow", id="2")


@pytest.mark.parametrize("threaded", [True, False])
async def test_what_is_cancelled_before_it_begins_never_runs(node, threaded, monkeypatch):
    began = []

    async def quick(params: dict):
        began.append(1)

    def slow(params: dict):
        began.append(1)

    node.action("work")(slow if threaded else quick)
    world = World(node)
    stored, append = asyncio.Event(), world.history.append

    async def late(record, *, timeout_s):
        await stored.wait()
        return await append(record, timeout_s=timeout_s)

    monkeypatch.setattr(world.history, "append", late)
    running = world.ask("work")
    await turns()
    stopping = asyncio.ensure_future(world.cancel("work"))
    await turns()
    stored.set()
    stopped = await stopping
    assert "nothing ran" in stopped.message
    assert read(await running) == stopped
    assert not began
    assert world.records() == [("accepted", 1, True), ("cancelled", 1, True)]


async def test_nobody_hears_an_outcome_that_the_history_does_not_have(node, monkeypatch):
    @node.action("work")
    async def work(params: dict): ...

    world = World(node)
    append = world.history.append
    stored = asyncio.Event()

    async def late(record, *, timeout_s):
        if record.state is ActionState.SUCCEEDED:
            await stored.wait()
        return await append(record, timeout_s=timeout_s)

    monkeypatch.setattr(world.history, "append", late)
    running = world.ask("work")
    again = world.ask("work")
    await turns()
    assert (await world.journal.find("1")).outcome is not None, "the journal has it first"
    assert not running.done()
    assert not again.done()
    stored.set()
    assert read(await running) == read(await again)
    assert world.records()[-1] == ("succeeded", 1, True)


async def test_who_may_run_one_action_cannot_stop_another(node):
    @node.action("mine")
    async def mine(params: dict): ...

    @node.action("theirs")
    async def theirs(params: dict):
        await asyncio.Event().wait()

    world = World(node)
    running = world.ask("theirs")
    await turns()
    with pytest.raises(NotFoundError):
        await world.cancel("mine")
    assert not running.done()
    await world.cancel("theirs")
    with pytest.raises(NotFoundError):
        await world.cancel("mine")
    await running


@pytest.mark.parametrize("looks", [True, False])
async def test_a_thread_is_asked_and_its_end_is_waited_for(node, looks):
    """One that looks has stopped; one that never does has done its work, and that is what is
    recorded.
    """
    go_on = threading.Event()

    @node.action("work")
    def work(params: dict, ctx) -> str:
        go_on.wait(10)
        return f"stopped: {ctx.cancelled}" if looks else "done"

    world = World(node)
    running = world.ask("work")
    await turns()
    stopping = asyncio.ensure_future(world.cancel("work"))
    await turns()
    assert not stopping.done(), "it runs on, so nobody may say that it does not"
    go_on.set()
    reply, stopped = read(await running), await stopping
    assert reply == stopped
    last = world.history.stream.records[-1]
    if looks:
        assert (last.state, last.result) == (ActionState.CANCELLED, "stopped: True")
    else:
        assert (last.state, last.result) == (ActionState.SUCCEEDED, "done")


async def test_a_coroutine_that_will_not_stop_has_at_least_heard_of_it(node):
    @node.action("stubborn")
    async def stubborn(params: dict):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "half"

    @node.action("cleans-up-badly")
    async def cleans_up_badly(params: dict):
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("no broom")

    world = World(node)
    for action in ("stubborn", "cleans-up-badly"):
        running = world.ask(action, id=action)
        await turns()
        stopped = await world.cancel(action, id=action)
        assert stopped.kind == "cancelled"
        await running
    by_id = {one.id: one for one in world.history.stream.records}
    assert by_id["stubborn"].result == "half"
    assert "no broom" in by_id["cleans-up-badly"].error.message


async def test_one_that_waits_to_be_cancelled_hears_it(node):
    @node.action("patient")
    async def patient(params: dict, ctx):
        assert not ctx.cancelled
        try:
            await ctx.until_cancelled()
        except asyncio.CancelledError:
            assert ctx.cancelled
            raise

    world = World(node)
    running = world.ask("patient")
    await turns()
    assert (await world.cancel("patient")).kind == "cancelled"
    await running


async def test_the_node_stops_what_runs_and_does_not_say_that_anybody_cancelled_it(node):
    @node.action("slow")
    async def slow(params: dict):
        await asyncio.Event().wait()

    world = World(node)
    running = world.ask("slow")
    await turns()
    await world.executor.stop()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert world.records() == [("accepted", 1, True)]
    again = Executor(
        "crm",
        node.actions,
        journal=world.journal,
        history=world.history,
        clock=world.clock,
        default_timeout_s=5,
    )
    await again.start()
    await turns()
    await again.stop()
    assert world.records() == [("accepted", 1, True), ("interrupted", 1, True)]


# -- more than one attempt -------------------------------------------------------------------------


async def test_failed_attempts_are_repeated_and_every_one_is_recorded(node):
    attempts = []

    @node.action("tries", idempotent=True, retries=2, backoff_s=2.0)
    async def tries(params: dict, ctx):
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            raise OSError("the bank does not answer")
        return "paid"

    world = World(node)
    done = await world.run("tries")
    assert (done.result, done.attempt) == ("paid", 3)
    assert attempts == [1, 2, 3]
    assert world.clock.slept == [2.0, 4.0], "twice as long each time, jitter at its most"
    assert world.records() == [
        ("accepted", 1, True),
        ("failed", 1, False),
        ("accepted", 2, True),
        ("failed", 2, False),
        ("accepted", 3, True),
        ("succeeded", 3, True),
    ]


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(ValueError("odd"), 3), (OSError("away"), 3), (NotFoundError("no order"), 1)],
    ids=["a bug", "a failure", "for good"],
)
async def test_the_author_says_when_trying_again_is_no_use(node, error, attempts):
    @node.action("tries", idempotent=True, retries=2)
    async def tries(params: dict):
        raise error

    world = World(node)
    assert (await world.run("tries")).attempt == attempts
    assert world.records()[-1] == ("failed", attempts, True)


async def test_nothing_is_tried_again_past_the_deadline(node):
    @node.action("tries", idempotent=True, retries=5, backoff_s=10.0)
    async def tries(params: dict):
        raise OSError("away")

    world = World(node)
    ended = await world.run("tries", deadline=world.clock.now_ms + 15_000)
    assert ended.attempt == 2, "10 s are left for it, and the third one would come 20 s later"
    assert world.records()[-1] == ("failed", 2, True)


async def test_one_that_waits_for_its_next_attempt_can_be_cancelled(node):
    @node.action("tries", idempotent=True, retries=5)
    async def tries(params: dict):
        raise OSError("away")

    world = World(node)
    world.clock.hold = True
    running = world.ask("tries")
    await turns()
    stopped = await world.cancel("tries")
    assert (stopped.kind, stopped.attempt) == ("cancelled", 2)
    await running
    assert world.records()[-2:] == [("failed", 1, False), ("cancelled", 2, True)]


async def test_retry_is_one_more_attempt_after_the_one_that_ended_badly(node):
    fails = [True, True, False]

    @node.action("pays")
    async def pays(params: dict):
        if fails.pop(0):
            raise OSError("away")
        return "paid"

    world = World(node)
    assert (await world.run("pays")).attempt == 1
    assert (await world.run("pays")).attempt == 1, "the id answers"
    first, second = await asyncio.gather(world.run("pays", retry=1), world.run("pays", retry=1))
    assert first == second
    assert (first.kind, first.attempt) == ("internal", 2)
    assert (await world.run("pays", retry=1)).attempt == 2, "that attempt has been followed"
    assert (await world.run("pays", retry=2)).result == "paid"
    assert (await world.run("pays", retry=3)).attempt == 3, "it succeeded: nothing to try again"
    assert not fails
    with pytest.raises(ConflictError):
        await world.run("pays", retry=3, params={"other": 1})


async def test_a_retry_of_what_is_not_known_here_counts_on(node):
    """The node's memory is a day long; the mesh's is longer, and goes by the attempt."""

    @node.action("pays")
    async def pays(params: dict): ...

    world = World(node)
    assert (await world.run("pays", retry=4)).attempt == 5
    assert world.records() == [("accepted", 5, True), ("succeeded", 5, True)]


# -- waiting for a place ---------------------------------------------------------------------------


async def test_no_more_run_at_once_than_allowed_and_those_who_wait_are_accepted(node):
    inside, most, go_on = [], [], asyncio.Event()

    @node.action("narrow", concurrency=2)
    async def narrow(params: dict):
        inside.append(1)
        most.append(len(inside))
        await go_on.wait()
        inside.pop()

    world = World(node)
    running = [world.ask("narrow", id=f"{n}") for n in range(5)]
    await turns()
    assert len(inside) == 2
    assert [world.records(f"{n}") for n in range(5)] == [[("accepted", 1, True)]] * 5
    stopped = await world.cancel("narrow", id="3")
    assert "nothing ran" in stopped.message
    go_on.set()
    ended = [read(await one) for one in running]
    assert [getattr(one, "kind", "ok") for one in ended] == ["ok", "ok", "ok", "cancelled", "ok"]
    assert len(most) == 4
    assert max(most) == 2


async def test_one_that_waits_past_its_deadline_expires_and_takes_nobodys_place(node):
    go_on = asyncio.Event()

    @node.action("narrow", concurrency=1)
    async def narrow(params: dict):
        await go_on.wait()

    world = World(node)
    first = world.ask("narrow", id="first")
    await turns()
    late = await world.run("narrow", id="late", deadline=world.clock.now_ms + 2000)
    assert (late.kind, late.attempt) == ("deadline_exceeded", 1)
    assert "nothing ran" in late.message
    assert world.records("late") == [("accepted", 1, True), ("expired", 1, True)]
    assert 2.0 in world.clock.slept
    third = world.ask("narrow", id="third")
    await turns()
    go_on.set()
    assert read(await first).state is ActionState.SUCCEEDED
    assert read(await third).state is ActionState.SUCCEEDED


# -- words -----------------------------------------------------------------------------------------


async def test_progress_is_told_from_thread_and_loop_seldom_and_the_newest(node):
    @node.action("counts")
    async def counts(params: dict, ctx):
        for number in range(100):
            ctx.progress(number / 10, f"number {number}")
        await turns(3)
        await asyncio.to_thread(ctx.progress, None, "x" * 900)
        await turns(3)

    world = World(node)
    await world.run("counts")
    [told] = world.progress
    assert (told.id, told.action, told.fraction, told.note) == ("1", "counts", 1.0, "number 99")


async def test_an_action_that_is_undone_by_nobody_keeps_the_node_from_starting(node):
    @node.action("refund", compensate="unrefund")
    async def refund(params: dict): ...

    with pytest.raises(ConfigError, match="unrefund"):
        await World(node).executor.start()


async def test_an_alarm_that_is_called_off_does_not_ring():
    rung, alarms = [], Alarms()
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    alarms.set(0.0, lambda: rung.append("a"))
    alarms.set(0.0, lambda: rung.append("b"))()
    alarms.set(0.011, lambda: done.set_result(None))
    await done
    assert rung == ["a"]
