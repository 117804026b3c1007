"""What a node answers for an id that it knows, or is to know: whatever it offers by now, whoever
asks for which attempt, and whatever its disk and the history make of it.
"""

from __future__ import annotations

import asyncio
import threading

import msgspec
import pytest
import structlog
from executor_world import World, read, turns

from mesh.errors import (
    BadRequestError,
    ConflictError,
    InvalidError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from mesh.runtime.action_context import Control
from mesh.runtime.executor import _MOST_WAITING
from mesh.runtime.sdk import Node
from mesh.types import ActionState
from mesh.wire.messages import ActionRequest


class Strict(msgspec.Struct):
    order: str


@pytest.fixture(autouse=True)
def quiet():
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def node():
    return Node("crm")


def offers(name="pay", *, strict=False, idempotent=False, ran=None, fails=False):
    """A node with one action, or (no name) none."""
    node = Node("crm")
    if name:

        async def work(params):
            if ran is not None:
                ran.append(1)
            if fails:
                raise OSError("away")
            return "paid"

        work.__annotations__["params"] = Strict if strict else dict
        node.action(name, idempotent=idempotent)(work)
    return node


# -- what the node offers by now -------------------------------------------------------------------


@pytest.mark.parametrize("now", [offers(None), offers(strict=True)], ids=["gone", "other type"])
async def test_what_has_run_is_answered_whatever_is_offered_by_now(now):
    """Else a saga would take it for something that never ran."""
    before = World(offers())
    done = await before.run("pay")
    world = World(now, before)
    assert await world.run("pay") == done
    with pytest.raises((BadRequestError, InvalidError)):
        await world.run("pay", params={"other": 1})
    with pytest.raises((BadRequestError, InvalidError)):
        await world.run("pay", id="new")


@pytest.mark.parametrize("now", [offers(None), offers(strict=True)], ids=["gone", "other type"])
async def test_another_attempt_at_what_does_not_fit_says_so_and_which_one_was_the_last(now):
    before = World(offers(fails=True))
    await before.run("pay")
    answer = await World(now, before).run("pay", retry=1)
    assert (answer.code in {400, 422}, answer.attempt) == (True, 1)
    assert "no other attempt was begun" in answer.message


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("gone", [True, False])
async def test_what_was_left_halfway_ends_though_it_does_not_fit_any_more(begun, idempotent, gone):
    ran = []
    before = World(offers(idempotent=idempotent))
    request = ActionRequest(id="1", action="pay")
    await before.journal.accept(request, caller="ops", digest="", accepted_at=5)
    if begun:
        await before.journal.begin("1", 1)
    now = offers(None) if gone else offers(strict=True, idempotent=idempotent, ran=ran)
    for _ in range(2):
        world = World(now, before)
        await world.executor.start()
        await turns()
        await world.executor.stop()
    assert not ran
    state = "interrupted" if begun else "failed"
    assert before.records() == [(state, 1, True)]
    ended = await world.run("pay")
    assert ended.attempt == 1
    assert ("nothing ran" in ended.message) is not begun


# -- which attempt ---------------------------------------------------------------------------------


async def test_an_attempt_after_one_that_there_has_not_been_is_refused_and_nothing_runs():
    ran = []
    world = World(offers(ran=ran, fails=True))
    await world.run("pay")
    with pytest.raises(ConflictError, match="no attempt 5"):
        await world.run("pay", retry=5)
    assert ran == [1]
    assert world.records() == [("accepted", 1, True), ("failed", 1, True)]


async def test_who_finds_that_another_life_was_quicker_runs_nothing(monkeypatch):
    ran = []
    world = World(offers(ran=ran, fails=True))
    await world.run("pay")
    stale = await world.journal.find("1")
    other = World(offers(ran=ran, fails=True), world)
    await other.run("pay", retry=1)
    accept = world.journal.accept

    async def late(request, **fields):
        return stale if not fields.get("again") else await accept(request, **fields)

    monkeypatch.setattr(world.journal, "accept", late)
    assert (await world.run("pay", retry=1)).attempt == 2
    assert ran == [1, 1]


# -- stopped before it comes -----------------------------------------------------------------------


async def test_what_a_master_stops_before_it_comes_never_runs():
    ran = []
    world = World(offers(ran=ran))
    stopped = await world.cancel("pay", caller="master", on_behalf="boss")
    assert (stopped.kind, stopped.attempt) == ("cancelled", 1)
    assert "nothing ran" in stopped.message
    assert "boss" in stopped.message
    assert world.records() == [("cancelled", 1, True)]
    assert await world.run("pay", params={"order": "A-7"}) == stopped
    assert await World(offers(ran=ran), world).run("pay", params={"order": "A-7"}) == stopped
    with pytest.raises(ConflictError):
        await world.cancel("pay", caller="master")
    assert not ran
    again = await world.run("pay", params={"order": "A-7"}, retry=1)
    assert (again.state, again.attempt) == (ActionState.SUCCEEDED, 2)


@pytest.mark.parametrize("caller", ["ops", "gateway", "bridge"])
async def test_nobody_else_leaves_anything_behind(caller):
    world = World(offers())
    with pytest.raises(NotFoundError):
        await world.cancel("pay", caller=caller)
    assert await world.journal.find("1") is None


async def test_the_next_attempt_is_stopped_before_it_comes():
    ran = []
    world = World(offers(ran=ran, fails=True))
    await world.run("pay")
    stopped = await world.cancel("pay", caller="master", retry=1)
    assert (stopped.kind, stopped.attempt) == ("cancelled", 2)
    assert await world.run("pay", retry=1) == stopped
    assert ran == [1]


async def test_a_stop_that_a_crash_cut_short_still_stops():
    ran = []
    world = World(offers(ran=ran))
    world.history.stream.away = True
    stopping = world.ask("pay", cancel=True, caller="master")
    joining = world.ask("pay", params={"order": "A-7"})
    await turns(3)
    entry = await world.journal.find("1")
    await world.executor.stop()
    await asyncio.gather(stopping, joining, return_exceptions=True)
    world.journal._entries["1"] = entry._replace(state=ActionState.ACCEPTED, outcome=None)
    world.history.stream.away = False
    after = World(offers(ran=ran), world)
    await after.executor.start()
    await turns()
    assert (await after.run("pay", params={"order": "A-7"})).kind == "cancelled"
    await after.executor.stop()
    assert not ran


# -- what can be written ---------------------------------------------------------------------------


async def test_an_error_that_is_no_text_is_an_outcome_all_the_same(node):
    @node.action("opens")
    async def opens(params: dict, ctx):
        ctx.progress(0.5, "at \ud800")
        raise ValueError("bad \ud800 name é")

    world = World(node)
    failed = await world.run("opens")
    assert (failed.kind, failed.attempt) == ("action_failed", 1)
    assert "bad ? name é" in failed.message
    assert world.records() == [("accepted", 1, True), ("failed", 1, True)]


async def test_an_outcome_that_does_not_fit_anywhere_is_kept_without_its_bulk(monkeypatch):
    world = World(offers(fails=True))
    settle = world.journal.settle

    async def picky(outcome):
        if outcome.error is not None and "could not be stored" not in outcome.error.message:
            raise InvalidError("not such a text")
        await settle(outcome)

    monkeypatch.setattr(world.journal, "settle", picky)
    failed = await world.run("pay")
    assert (failed.kind, failed.attempt) == ("internal", 1)
    assert (await world.run("pay")) == failed
    assert world.records() == [("accepted", 1, True), ("failed", 1, True)]


async def test_while_the_history_refuses_the_journal_does_not_grow():
    ran = []
    world = World(offers(ran=ran))
    world.clock.hold = True  # nobody looks yet whether it has come back
    await world.run("pay", id="known")
    world.history.stream.away = True
    await world.executor.start()
    for number in range(20):
        with pytest.raises(UnavailableError, match="nothing was run"):
            await world.run("pay", id=f"{number}")
    assert len(world.journal._entries) == 2, "the one that found out, and the one before"
    assert (await world.run("pay", id="known")).result == "paid", "what is known is answered"
    await world.executor.stop()
    world.history.stream.away = world.clock.hold = False
    after = World(offers(ran=ran), world)
    await after.executor.start()
    await turns()
    assert (await after.run("pay", id="0")).result == "paid"
    await after.executor.stop()


async def test_the_history_is_noticed_to_be_back():
    world = World(offers())
    world.history.stream.away = True
    await world.executor.start()
    for number in range(3):
        with pytest.raises(UnavailableError):
            await world.run("pay", id=f"{number}")
    world.history.stream.away = False
    await turns()
    assert (await world.run("pay", id="2")).result == "paid"
    await world.executor.stop()


async def test_a_thousand_leftovers_are_recorded_a_few_at_a_time(monkeypatch):
    world = World(offers())
    for number in range(1000):
        await world.run("pay", id=f"{number}")
        world.journal._change(f"{number}", recorded=False)
    asked, unrecorded = [], world.journal.unrecorded

    async def counted(limit=256):
        asked.append(limit)
        return await unrecorded(limit)

    monkeypatch.setattr(world.journal, "unrecorded", counted)
    after = World(offers(), world)
    await after.executor.start()
    await turns(200)
    await after.executor.stop()
    assert not await unrecorded(1000)
    assert len(asked) == 5
    assert max(asked) <= 256


async def test_nobody_is_told_that_nothing_runs_before_that_is_on_the_disk(monkeypatch):
    ran = []
    world = World(offers(ran=ran))
    world.history.stream.away = True
    settle, full = world.journal.settle, True

    async def settles(outcome):
        if full:
            raise UnavailableError("the disk is full")
        await settle(outcome)

    monkeypatch.setattr(world.journal, "settle", settles)
    with pytest.raises(UnavailableError, match="it may yet") as caught:
        await world.run("pay")
    assert "nothing was run" not in str(caught.value)
    again = world.ask("pay")
    await turns()
    assert not again.done(), "it is refused still"
    full = False
    with pytest.raises(UnavailableError, match="nothing was run"):
        await again
    assert not ran
    assert (await world.journal.find("1")).state is ActionState.CANCELLED


# -- threads whose time is up ----------------------------------------------------------------------


async def test_a_thread_keeps_its_turn_after_its_time(node):
    go_on, inside, most = threading.Event(), [], []

    @node.action("slow", concurrency=1, timeout_s=0.05)
    def slow(params: dict):
        inside.append(1)
        most.append(len(inside))
        go_on.wait(10)
        inside.pop()

    world = World(node)
    late = await world.run("slow")
    assert late.kind == "deadline_exceeded"
    assert "whether it took effect is not known" in late.message
    waits = world.ask("slow", id="2")
    with pytest.raises(UnavailableError, match="still at work"):
        await world.run("slow", retry=1)
    await turns()
    assert world.records("2") == [("accepted", 1, True)]
    go_on.set()
    assert read(await waits).state is ActionState.SUCCEEDED
    assert (await world.run("slow", retry=1)).attempt == 2
    assert most == [1, 1, 1]


@pytest.mark.parametrize("ends", [True, False])
async def test_no_attempt_begins_beside_a_thread_that_is_still_at_work(node, ends):
    inside, most, over = [], [], threading.Event()

    @node.action("tries", idempotent=True, retries=1, timeout_s=0.05)
    def tries(params: dict, ctx):
        inside.append(1)
        most.append(len(inside))
        while ctx.attempt == 1 and not (ends and ctx.cancelled) and not over.wait(0.005):
            pass
        inside.pop()
        return "done"

    world = World(node)
    ended = await world.run("tries")
    over.set()
    assert max(most) == 1
    if ends:
        assert (ended.result, ended.attempt) == ("done", 2)
    else:
        assert (ended.kind, ended.attempt) == ("deadline_exceeded", 1)
        assert world.records()[-1] == ("expired", 1, True)


async def test_a_thread_that_was_left_behind_may_tell_and_look_when_the_node_is_gone():
    gone = asyncio.new_event_loop()
    control = Control(loop=gone)
    gone.close()
    await asyncio.to_thread(control.progress, 0.5, "still here")


async def test_who_waits_to_be_cancelled_in_another_loop_wakes():
    control = Control(loop=asyncio.get_running_loop())
    waiting = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(control.until_stopped())))
    async with asyncio.timeout(5):
        while not control._waiting:
            await asyncio.sleep(0.005)
        control.stop()
        await waiting


# -- how many wait ---------------------------------------------------------------------------------


async def test_no_more_wait_for_a_turn_than_there_is_room_for(node):
    go_on = asyncio.Event()

    @node.action("narrow", concurrency=1)
    async def narrow(params: dict):
        await go_on.wait()
        return "done"

    world = World(node)
    asked = [world.ask("narrow", id=f"{n}") for n in range(_MOST_WAITING + 1)]
    await turns()
    with pytest.raises(OverloadedError):
        await world.run("narrow", id="late")
    assert await world.journal.find("late") is None
    joins = world.ask("narrow", id="7")
    await turns()
    go_on.set()
    assert read(await joins) == read(await asked[7])
    await asyncio.gather(*asked)
    assert (await world.run("narrow", id="late")).result == "done"


async def test_who_asks_without_end_is_told_to_come_back_and_the_first_one_hears_the_end(node):
    go_on = asyncio.Event()

    @node.action("slow")
    async def slow(params: dict):
        await go_on.wait()
        return "done"

    world = World(node)
    first = world.ask("slow")
    await turns()
    more = [world.ask("slow") for _ in range(1100)]
    await turns()
    go_on.set()
    assert read(await first).result == "done"
    ended = await asyncio.gather(*more, return_exceptions=True)
    refused = [one for one in ended if isinstance(one, UnavailableError)]
    assert len(refused) == 1100 - 1023
    assert not isinstance(ended[-1], Exception)


async def test_a_node_that_ends_lets_what_nobody_waits_for_finish():
    go_on, ends = asyncio.Event(), []
    node = Node("crm")

    @node.action("slow", idempotent=True)
    async def slow(params: dict):
        await go_on.wait()
        ends.append(1)

    world = World(node)
    running = world.ask("slow")
    await turns()
    running.cancel()
    draining = asyncio.ensure_future(world.executor.drain(5))
    await turns()
    assert not draining.done()
    go_on.set()
    await draining
    assert ends == [1]
    assert world.records()[-1] == ("succeeded", 1, True)
