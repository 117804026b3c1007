"""What comes of a queue when somebody puts nonsense into it, a master sleeps or forgets, or a node
is away for a day: nobody else waits, and nothing that was said turns out to be wrong.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from queue_world import World
from virtual_time import virtual

from mesh.errors import (
    ActionFailedError,
    ConflictError,
    DeadlineExceededError,
    InvalidError,
    UnavailableError,
)
from mesh.types import ActionState, Health, Status
from mesh.wire.messages import ActionNamed, QueueItem

HOUR_S = 3600

# -- nonsense --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [("", "", ""), ("a~b", "pay", "ops"), ("crm", "bad~x", "ops")])
@virtual
async def test_what_stands_where_nothing_can_wait_is_thrown_away(place):
    world = await World().start("crm")
    await world.nodes["crm"].kill()
    for each in "123":
        await world.put(each)
    await asyncio.sleep(1)
    world.queue.keep(*place, QueueItem(id="x", action="pay"))
    await asyncio.sleep(10)
    assert [each.item.id for each in world.queue.stored.values()] == ["1", "2", "3"]
    assert (world.queue.strays, world.queue.letters) == (1, {})
    await world.nodes["crm"].start()
    await world.put("4")
    await world.empty()
    assert world.nodes["crm"].effects == ["1", "2", "3", "4"]
    await world.stop()


@pytest.mark.parametrize("where", ["history", "bury"])
@virtual
async def test_what_cannot_be_written_down_keeps_nobody_from_going_on(where):
    """Its own master refuses it for good: those behind it must not wait."""
    world = await World().start("crm", "shop")
    real = world.history.append if where == "history" else world.queue.bury

    async def refuse(record, **more):
        if record.id == "odd":
            raise InvalidError("not a name")
        return await real(record, **more)

    setattr(*((world.history, "append") if where == "history" else (world.queue, "bury")), refuse)
    world.nodes["crm"].script = {"odd": [ActionFailedError("no")]}
    if where == "bury":
        await world.put("odd")
    else:
        world.nodes["crm"].answer = InvalidError("odd")
        await world.put("odd")
        await world.put("1", node="shop")
        await world.until(lambda: world.nodes["shop"].effects, within_s=5)
        await world.until(lambda: len(world.queue.stored) == 0)
        world.nodes["crm"].answer = None
    await world.put("2")
    await world.empty()
    assert "2" in world.nodes["crm"].effects
    await world.stop()


@virtual
async def test_who_is_no_master_cannot_say_that_it_is_tried_again():
    world = await World().start("crm")
    await world.put("1")
    await world.empty()
    before = await world.row("1")
    await world.nodes["crm"].kill()
    await world.put("1", caller="evil", retry=999_999, requeued=1)
    await asyncio.sleep(5)
    assert await world.row("1") == before
    await world.nodes["crm"].start()
    await world.empty()
    assert await world.row("1") == before
    assert world.nodes["crm"].effects == ["1"]
    await world.stop()


@virtual
async def test_an_accepted_item_under_the_id_of_another_action_does_not_vanish():
    world = await World().start("crm")
    await world.put("1")
    await world.empty()
    await world.nodes["crm"].kill()
    await world.put("1", params={"n": 2}, expires=world.clock.unix_ms() + 1000)
    await world.empty()
    [letter] = world.queue.letters.values()
    assert (letter.params, letter.error.kind) == ({"n": 2}, "conflict")
    assert world.states("1")[-1] == "succeeded1"
    await world.stop()


@virtual
async def test_what_is_unreadable_and_for_nobody_makes_no_dead_letters():
    world = await World().start("crm")
    world.queue.keep("nobody", "pay", "evil", None, "not valid JSON")
    await world.empty()
    assert world.queue.letters == {}
    await world.stop()


@virtual
async def test_a_master_keeps_nothing_of_nodes_that_have_nothing_waiting():
    world = await World().start("crm")
    for number in range(50):
        await world.put("1", node=f"nobody-{number}")
    await world.put("1")
    await world.empty()
    await asyncio.sleep(5)
    assert world.masters[0]._lanes == {}
    await world.put("2")
    await world.empty()
    await world.stop()


# -- time ------------------------------------------------------------------------------------------


@virtual
async def test_what_runs_long_is_asked_for_seldom():
    world = await World().start("crm")
    world.nodes["crm"].takes_s = 2000.0
    await world.put("1")
    await world.empty(within_s=2500)
    assert len(world.nodes["crm"].asked) <= 5
    await world.stop()


@virtual
async def test_what_ran_before_its_node_forgot_it_does_not_run_again():
    """Its removal failed, and the node was away for longer than it remembers ids."""
    world = await World().start("crm")
    crm, remove = world.nodes["crm"], world.queue.remove

    async def fails(_sequence):
        raise UnavailableError("away")

    world.queue.remove = fails
    await world.put("1")
    await world.until(lambda: crm.effects)
    await asyncio.sleep(1)
    await crm.kill()
    world.masters[0].follow()
    await asyncio.sleep(26 * HOUR_S)
    crm.journal.clear()
    world.queue.remove = remove
    world.lead(world.masters[0])
    await crm.start()
    await world.empty()
    assert crm.effects == ["1"]
    assert world.states("1") == ["queued0", "accepted1", "succeeded1"]
    await world.stop()


@virtual
async def test_what_waited_for_a_day_is_tried_as_often_as_anything_else():
    world = await World().start("crm")
    crm = world.nodes["crm"]
    await crm.kill()
    crm.script = {"1": [UnavailableError("no")] * 9}
    await world.put("1")
    await world.put("2")
    world.masters[0].follow()
    await asyncio.sleep(26 * HOUR_S)
    world.lead(world.masters[0])
    await crm.start()
    await world.empty()
    assert crm.effects == ["1"] * 5 + ["2"]
    [letter] = world.queue.letters.values()
    assert letter.attempts == 5
    await world.stop()


@virtual
async def test_what_waits_behind_another_expires_in_time():
    world = await World().start("crm")
    await world.nodes["crm"].kill()
    now = world.clock.unix_ms()
    await world.put("head", expires=now + 7 * 24 * HOUR_S * 1000)
    for number in range(5):
        await world.put(f"{number}", expires=now + 1000 + number * 10_000)
    await asyncio.sleep(30)
    assert [world.states(f"{number}")[-1] for number in range(5)] == [
        *("expired0", "expired0", "expired0"),
        *("queued0", "queued0"),
    ]
    await asyncio.sleep(60)
    assert len(world.queue.letters) == 5
    await world.nodes["crm"].start()
    await world.empty()
    assert world.nodes["crm"].effects == ["head"]
    await world.stop()


# -- cancelling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("forgot", [False, True])
@virtual
async def test_a_master_that_has_not_seen_it_finds_it_all_the_same(forgot):
    world = await World(masters=2).start("crm")
    await world.nodes["crm"].kill()
    await world.put("1")
    await asyncio.sleep(3)
    places = world.masters[1]._places
    places._by_id.clear()
    places._places.clear()
    places._forgot = forgot
    if not forgot:
        places._read_to = 0
    record = await world.ask("action-cancel", ActionNamed(action_id="1"), master=1)
    assert record.state is ActionState.CANCELLED
    assert not world.queue.stored
    await world.nodes["crm"].start()
    await asyncio.sleep(5)
    assert world.nodes["crm"].effects == []
    await world.stop()


@pytest.mark.parametrize("node_is", ["away", "there"])
@virtual
async def test_a_leader_that_slept_sends_nothing_that_was_cancelled_meanwhile(node_is):
    """It had seen the item in the queue, then somebody stopped its process."""
    world = await World(masters=2).start("crm")
    crm, read, awake = world.nodes["crm"], world.queue.read, asyncio.Event()
    await crm.kill()
    await world.put("1")
    await asyncio.sleep(3)

    async def sleeps(sequence):
        found = await read(sequence)
        await awake.wait()
        return found

    world.queue.read = sleeps
    await crm.start()
    await asyncio.sleep(1)
    world.queue.read = read
    if node_is == "away":
        await crm.kill()
    record = await world.ask("action-cancel", ActionNamed(action_id="1"), master=1)
    assert record.state is ActionState.CANCELLED
    if node_is == "away":
        await crm.start()
        await asyncio.sleep(1)
    awake.set()
    await asyncio.sleep(10)
    assert crm.effects == []
    assert (await world.row("1")).state is ActionState.CANCELLED
    await world.stop()


@virtual
async def test_what_is_on_its_way_while_it_is_cancelled_does_not_run():
    """Its node knows the id as cancelled before the late request comes."""
    world = await World(masters=2).start("crm")
    crm = world.nodes["crm"]
    crm.health(Health.HEALTHY, status=Status.MAINTENANCE)
    await world.put("1")
    await asyncio.sleep(3)
    await world.ask("action-cancel", ActionNamed(action_id="1"), master=1)
    late = SimpleNamespace(
        data=b'{"id":"1","action":"pay","params":{"n":1},"mode":"queue"}', reply="x.y"
    )
    crm._on_action(late)
    await asyncio.sleep(1)
    assert crm.effects == []
    await world.stop()


@virtual
async def test_all_that_wait_under_an_id_are_cancelled():
    world = await World().start("crm")
    await world.nodes["crm"].kill()
    for _ in range(3):
        await world.put("1")
    await world.ask("action-cancel", ActionNamed(action_id="1"))
    assert not world.queue.stored
    await world.stop()


@virtual
async def test_a_cancelled_action_does_not_expire():
    world = await World().start("crm")
    await world.nodes["crm"].kill()
    await world.put("1", expires=world.clock.unix_ms() + 10_000)
    await asyncio.sleep(3)
    await world.ask("action-cancel", ActionNamed(action_id="1"))
    await asyncio.sleep(60)
    assert (world.states("1"), world.queue.letters) == (["queued0", "cancelled0"], {})
    await world.stop()


@virtual
async def test_what_was_cancelled_can_be_put_again():
    world = await World().start("crm")
    await world.nodes["crm"].kill()
    await world.put("1")
    await world.ask("action-cancel", ActionNamed(action_id="1"))
    sequence = await world.put("1")
    assert sequence in world.queue.stored
    await world.nodes["crm"].start()
    await world.empty()
    assert world.nodes["crm"].effects == ["1"]
    await world.stop()


@virtual
async def test_while_its_node_is_silent_nobody_says_that_it_is_cancelled():
    world = await World().start("crm")
    crm = world.nodes["crm"]
    real = crm._done

    async def silent(_request):
        await asyncio.sleep(10**6)

    await world.put("head")
    await world.put("1")
    crm._done = silent
    await asyncio.sleep(1)
    with pytest.raises(UnavailableError, match="may have begun"):
        await world.ask("action-cancel", ActionNamed(action_id="1"))
    crm._done = real
    await crm.kill()
    await crm.start()
    await world.empty(within_s=300)
    assert world.states("1")[-1] == "succeeded1", "it waited on"
    await world.stop()


@virtual
async def test_a_cancel_that_fails_half_way_leaves_nothing_that_waits_for_ever():
    world = await World().start("crm")
    remove = world.queue.remove
    await world.nodes["crm"].kill()
    await world.put("1")
    await asyncio.sleep(1)

    async def fails(_sequence):
        raise DeadlineExceededError("away")

    world.queue.remove = fails
    with pytest.raises(DeadlineExceededError):
        await world.ask("action-cancel", ActionNamed(action_id="1"))
    world.queue.remove = remove
    record = await world.ask("action-cancel", ActionNamed(action_id="1"))
    assert record.state is ActionState.CANCELLED
    assert not world.queue.stored
    await world.stop()


@pytest.mark.parametrize("node_is", ["away", "there"])
@virtual
async def test_what_is_tried_again_can_be_cancelled(node_is):
    """Its node knows the id: of an attempt before."""
    world = await World().start("crm")
    crm = world.nodes["crm"]
    crm.script = {"1": [ActionFailedError("no")]}
    await world.put("1")
    await world.empty()
    if node_is == "away":
        await crm.kill()
    else:
        crm.health(Health.HEALTHY, status=Status.MAINTENANCE)
    await world.ask("action-retry", ActionNamed(action_id="1"))
    await asyncio.sleep(1)
    record = await world.ask("action-cancel", ActionNamed(action_id="1"))
    assert (record.state, record.attempt) == (ActionState.CANCELLED, 2)
    if node_is == "there":
        assert "1" in crm.journal
        assert crm.journal["1"].attempt == 2, "it knows, whatever is still on its way"
    with pytest.raises(ConflictError, match="cancelled"):
        await world.ask("action-cancel", ActionNamed(action_id="1"))
    if node_is == "away":
        await crm.start()
    crm.health(Health.HEALTHY)
    await asyncio.sleep(5)
    assert crm.effects == ["1"]
    assert not world.queue.stored
    await world.stop()


@virtual
async def test_what_waits_is_found_by_its_node_too():
    world = await World().start("crm", "shop")
    for slug in ("crm", "shop"):
        await world.nodes[slug].kill()
        await world.put("1", node=slug)
    for slug in ("crm", "shop"):
        assert (await world.masters[0].find("1", slug)).node == slug
    assert await world.masters[0].find("1", "docs") is None
    await world.stop()
