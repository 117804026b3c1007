"""The durable queue of a mesh in memory: everything once, in order, whatever goes away."""

from __future__ import annotations

import asyncio

import pytest
from queue_world import World
from virtual_time import virtual

from mesh.errors import (
    ActionFailedError,
    BadRequestError,
    ConflictError,
    DrainingError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from mesh.types import ActionState, Health, Status
from mesh.wire.messages import ActionNamed, QueueItem, QueueQuery


@virtual
async def test_what_waits_is_done_in_order_as_soon_as_its_node_is_there():
    world = await World().start("crm")
    crm = world.nodes["crm"]
    await crm.kill()
    for number in range(100):
        await world.put(f"{number}")
    await asyncio.sleep(5)
    assert crm.effects == []
    assert world.states("99") == ["queued0"]
    await crm.start()
    await world.until(lambda: crm.effects, within_s=0.2)
    assert await world.empty() < 2.0
    assert crm.effects == [f"{number}" for number in range(100)]
    assert crm.most == 1, "one after another"
    assert world.states("7") == ["queued0", "accepted1", "succeeded1"]
    row = await world.row("7")
    assert (row.mode, row.caller, row.state) == ("queue", "ops", ActionState.SUCCEEDED)
    assert all(request.mode == "queue" for request in crm.asked)
    await world.stop()


@virtual
async def test_nothing_is_lost_where_nobody_tells_of_it():
    world = await World().start("crm")
    world.hints = False
    await world.put("1")
    assert await world.empty() <= 2.5
    await world.stop()


@virtual
async def test_a_slow_node_delays_nobody_else():
    world = await World().start("slow", "crm")
    world.nodes["slow"].takes_s = 30.0
    for number in range(20):
        await world.put(f"{number}", node="slow")
        await world.put(f"{number}", node="crm")
    await world.until(lambda: len(world.nodes["crm"].effects) == 20, within_s=2.0)
    assert await world.empty(within_s=700) > 500
    assert world.nodes["slow"].effects == [f"{number}" for number in range(20)]
    await world.stop()


@virtual
async def test_another_leader_goes_on_in_the_middle_of_an_action():
    world = await World(masters=2).start("crm")
    crm = world.nodes["crm"]
    crm.takes_s = 1.0
    for number in range(5):
        await world.put(f"{number}")
    for turn in range(8):
        await asyncio.sleep(0.7)
        world.lead(world.masters[turn % 2 - 1])
    await world.empty()
    assert crm.effects == [f"{number}" for number in range(5)]
    assert world.states("2") == ["queued0", "accepted1", "succeeded1"]
    await world.stop()


@virtual
async def test_two_that_both_think_they_lead_do_no_harm():
    world = await World(masters=2).start("crm")
    world.lead(world.masters[1], alone=False)
    for number in range(50):
        await world.put(f"{number}")
    await world.empty()
    assert world.nodes["crm"].effects == [f"{number}" for number in range(50)]
    assert not world.queue.letters
    await world.stop()


@pytest.mark.parametrize("idempotent", [True, False])
@virtual
async def test_a_node_that_dies_during_an_action(idempotent):
    """It runs again if that does no harm, else a person has to look: it is a dead letter."""
    world = await World().start("crm")
    crm = world.nodes["crm"]
    crm.idempotent, crm.takes_s = idempotent, 1.0
    await world.put("1")
    await world.put("2")
    await world.until(lambda: crm.effects == ["1"])
    await crm.kill()
    await asyncio.sleep(3)
    await crm.start()
    await world.empty()
    assert crm.effects == (["1", "1", "2"] if idempotent else ["1", "2"])
    if idempotent:
        assert not world.queue.letters
    else:
        [letter] = world.queue.letters.values()
        assert (letter.id, letter.error.kind, letter.attempts) == ("1", "interrupted", 1)
        assert world.states("1") == ["queued0", "accepted1", "interrupted1"]
    await world.stop()


@virtual
async def test_what_was_for_a_node_that_is_removed_has_failed():
    """What nobody will ever run is in the history; dead letters are of what a node knew."""
    world = await World().start("crm")
    crm = world.nodes["crm"]
    crm.takes_s, crm.idempotent = 1.0, False
    await world.put("1")
    await world.put("2")
    await world.until(lambda: crm.effects)
    await crm.kill()
    del world.records["crm"]
    await world.put("3", node="nobody")
    await world.empty()
    ends = {letter.id: letter for letter in world.queue.letters.values()}
    assert {each: ends[each].error.kind for each in ends} == {"1": "interrupted"}
    assert world.states("1")[-1] == "interrupted1", "it may have taken effect"
    assert world.states("2") == ["queued0", "failed0"]
    assert world.states("3", "nobody") == ["queued0", "failed0"]
    error = (await world.row("3", "nobody")).error
    assert error.kind == "not_found"
    assert "node 'nobody' is not registered" in error.message
    again = await world.ask("action-retry", ActionNamed(action_id="2"))
    assert again.node == "crm", "the history has its parameters"
    await world.stop()


@virtual
async def test_what_cannot_be_read_keeps_nobody_from_going_on():
    world = await World().start("crm")
    world.queue.keep("crm", "pay", "ops", None, "not valid JSON")
    await world.put("1")
    await world.empty()
    [letter] = world.queue.letters.values()
    assert (letter.id, letter.node, letter.error.message) == (
        "unreadable-1",
        "crm",
        "not valid JSON",
    )
    assert world.nodes["crm"].effects == ["1"]
    await world.stop()


@virtual
async def test_a_failure_that_may_pass_is_tried_again_five_times_in_all():
    world = await World().start("crm")
    crm = world.nodes["crm"]
    crm.script = {"1": [UnavailableError("no")] * 2, "2": [UnavailableError("no")] * 9}
    for each in "123":
        await world.put(each)
    took = await world.empty()
    assert crm.effects == ["1"] * 3 + ["2"] * 5 + ["3"], "the order is kept"
    assert 1 + 2 + 1 + 2 + 4 + 8 < took < 20
    [letter] = world.queue.letters.values()
    assert (letter.id, letter.attempts, letter.error.message) == ("2", 5, "no")
    assert world.states("1")[-1] == "succeeded3"
    assert world.states("2")[-1] == "failed5", "as its node recorded it"
    await world.stop()


@pytest.mark.parametrize(
    "error", [ActionFailedError("no such order"), InvalidError("bad", fields={"a": ["b"]})]
)
@virtual
async def test_other_failures_are_dead_letters_at_once(error):
    world = await World().start("crm")
    world.nodes["crm"].script = {"1": [error]}
    await world.put("1", params={"order": 7})
    assert await world.empty() < 1.0
    [letter] = world.queue.letters.values()
    assert (letter.attempts, letter.error.kind, letter.params) == (1, error.kind, {"order": 7})
    await world.stop()


@virtual
async def test_what_its_node_refuses_is_recorded_by_the_master():
    world = await World().start("crm")
    world.nodes["crm"].answer = BadRequestError("unknown action 'pay'")
    await world.put("1")
    await world.empty()
    assert world.states("1") == ["queued0", "failed0"]
    assert (await world.row("1")).error.kind == "bad_request"
    [letter] = world.queue.letters.values()
    assert letter.attempts == 0
    await world.stop()


@virtual
async def test_an_id_that_stands_for_another_action_leaves_that_ones_history_alone():
    world = await World().start("crm")
    await world.put("1")
    await world.empty()
    before = await world.row("1")
    await world.put("1", params={"n": 2}, digest="other")
    await world.empty()
    assert await world.row("1") == before
    [letter] = world.queue.letters.values()
    assert letter.error.kind == "conflict"
    assert world.nodes["crm"].effects == ["1"]
    await world.stop()


@pytest.mark.parametrize("away", ["draining", "overloaded", "maintenance", "stalled"])
@virtual
async def test_a_node_that_takes_nothing_now_costs_no_attempt(away):
    world = await World().start("crm")
    crm = world.nodes["crm"]
    if away == "maintenance":
        crm.health(Health.HEALTHY, status=Status.MAINTENANCE)
    elif away == "stalled":
        crm.health(Health.STALLED)
    else:
        crm.answer = DrainingError("later", retry_after_ms=1000)
    await world.put("1")
    await asyncio.sleep(60)
    assert list(world.queue.stored) == [1]
    crm.answer = None
    crm.health(Health.HEALTHY)
    assert await world.empty() < 3.0
    assert world.states("1") == ["queued0", "accepted1", "succeeded1"]
    assert not world.queue.letters
    await world.stop()


# -- in time or not at all -------------------------------------------------------------------------


@virtual
async def test_what_expires_before_its_node_is_there_is_never_begun():
    world = await World().start("crm")
    crm = world.nodes["crm"]
    await crm.kill()
    await world.put("1", expires=world.clock.unix_ms() + 5000)
    await world.put("2", expires=world.clock.unix_ms() + 60_000)
    await world.until(lambda: world.queue.letters, within_s=10)
    await crm.start()
    await world.empty()
    assert crm.effects == ["2"]
    assert world.states("1") == ["queued0", "expired0"]
    [letter] = world.queue.letters.values()
    assert (letter.id, letter.error.kind) == ("1", "deadline_exceeded")
    await world.stop()


@virtual
async def test_what_was_begun_in_time_does_not_expire():
    """Its node died while it ran and is away until later: whatever it says then is the outcome."""
    world = await World().start("crm")
    crm = world.nodes["crm"]
    crm.takes_s = 2.0
    await world.put("1", expires=world.clock.unix_ms() + 3000)
    await world.until(lambda: crm.effects)
    await crm.kill()
    await asyncio.sleep(30)
    assert list(world.queue.stored) == [1]
    await crm.start()
    await world.empty()
    assert world.states("1") == ["queued0", "accepted1", "succeeded2"]
    assert not world.queue.letters
    await world.stop()


@virtual
async def test_what_takes_longer_than_its_time_goes_on():
    world = await World().start("crm")
    world.nodes["crm"].takes_s = 60.0
    await world.put("1", expires=world.clock.unix_ms() + 3000)
    await world.empty(within_s=100)
    assert world.states("1") == ["queued0", "accepted1", "succeeded1"]
    assert not world.queue.letters
    await world.stop()


# -- JetStream away --------------------------------------------------------------------------------


@virtual
async def test_while_jetstream_is_away_nothing_is_lost_or_doubled():
    world = await World().start("crm")
    crm = world.nodes["crm"]
    for number in range(30):
        await world.put(f"{number}")
    await world.until(lambda: len(crm.effects) == 10)
    world.queue.available = world.history.available = False
    await asyncio.sleep(20)
    assert len(crm.effects) <= 12
    world.queue.available = world.history.available = True
    assert await world.empty() < 12
    assert crm.effects == [f"{number}" for number in range(30)]
    assert not world.queue.letters
    await world.stop()


@virtual
async def test_while_the_broker_is_away_nothing_is_lost_or_doubled():
    world = await World().start("crm")
    crm = world.nodes["crm"]
    crm.takes_s = 0.5
    for number in range(10):
        await world.put(f"{number}")
    for _ in range(3):
        await asyncio.sleep(0.8)
        world.broker.stop()
        await asyncio.sleep(0.4)
        world.broker.start()
    await world.empty()
    assert crm.effects == [f"{number}" for number in range(10)]
    await world.stop()


# -- what people ask for ---------------------------------------------------------------------------


@pytest.mark.parametrize("master", [0, 1])
@virtual
async def test_any_master_says_what_waits_and_what_could_not_be_done(master):
    world = await World(masters=2).start("crm", "shop")
    await world.nodes["crm"].kill()
    for number in range(5):
        await world.put(f"{number}", caller="gateway", on_behalf="alice")
    world.nodes["shop"].script = {"x": [ActionFailedError("no")], "y": [ActionFailedError("no")]}
    await world.put("x", node="shop")
    await world.put("y", node="shop")
    await asyncio.sleep(5)
    found = await world.ask("queue", QueueQuery(limit=2, offset=1), master)
    assert [each.id for each in found.actions] == ["1", "2"]
    assert (found.total, found.waiting) == (5, {"crm": 5})
    assert found.actions[0].caller == "alice"
    assert (await world.ask("queue", QueueQuery(node="shop"), master)).total == 0
    dead = await world.ask("dead-letters", QueueQuery(), master)
    assert [(each.id, each.node, each.error.message) for each in dead.actions] == [
        ("y", "shop", "no"),
        ("x", "shop", "no"),
    ]
    assert (await world.masters[master].find("3")).state is ActionState.QUEUED
    assert await world.masters[master].find("x") is None
    await world.stop()


@virtual
async def test_the_leader_says_why_the_first_one_waits():
    world = await World().start("crm")
    world.nodes["crm"].script = {"1": [UnavailableError("bank closed")] * 9}
    await world.put("1")
    await asyncio.sleep(4)
    [entry] = (await world.ask("queue", QueueQuery())).actions
    assert (entry.attempts, entry.error.message) == (3, "bank closed")
    await world.nodes["crm"].kill()
    await asyncio.sleep(20)
    [entry] = (await world.ask("queue", QueueQuery())).actions
    assert "'crm' cannot be asked now: unreachable" in entry.error.message
    await world.stop()


@pytest.mark.parametrize("node_is", ["there", "away"])
@virtual
async def test_what_waits_can_be_cancelled(node_is):
    world = await World(masters=2).start("crm")
    crm = world.nodes["crm"]
    if node_is == "away":
        await crm.kill()
    else:
        crm.health(Health.HEALTHY, status=Status.MAINTENANCE)
    await world.put("1")
    await world.put("2")
    await asyncio.sleep(1)
    record = await world.ask("action-cancel", ActionNamed(action_id="1"), master=1)
    assert (record.state, record.node) == (ActionState.CANCELLED, "crm")
    if node_is == "away":
        assert record.error.message == "cancelled by ops; nothing ran"
    with pytest.raises(ConflictError, match="cancelled"):
        await world.ask("action-cancel", ActionNamed(action_id="1"))
    if node_is == "away":
        await crm.start()
    crm.health(Health.HEALTHY)
    await world.empty()
    assert crm.effects == ["2"]
    assert world.states("1") == ["queued0", f"cancelled{int(node_is == 'there')}"]
    await world.stop()


@virtual
async def test_what_runs_is_stopped_by_its_node():
    world = await World().start("crm")
    world.nodes["crm"].takes_s = 4.0
    await world.put("1")
    await world.put("2")
    await world.until(lambda: "1" in world.nodes["crm"].journal)
    record = await world.ask("action-cancel", ActionNamed(action_id="1"))
    assert (record.state, record.attempt) == (ActionState.CANCELLED, 1)
    await world.empty()
    assert world.nodes["crm"].effects == ["2"]
    assert not world.queue.letters, "as somebody wanted it"
    with pytest.raises(ConflictError, match="succeeded"):
        await world.ask("action-cancel", ActionNamed(action_id="2"))
    with pytest.raises(NotFoundError):
        await world.ask("action-cancel", ActionNamed(action_id="3"))
    await world.stop()


@virtual
async def test_of_several_nodes_one_must_be_named():
    world = await World().start("crm", "shop")
    for slug in ("crm", "shop"):
        await world.nodes[slug].kill()
        await world.put("1", node=slug)
    await asyncio.sleep(1)
    with pytest.raises(BadRequestError, match="say which: crm, shop"):
        await world.ask("action-cancel", ActionNamed(action_id="1"))
    await world.ask("action-cancel", ActionNamed(action_id="1", node="shop"))
    assert [each.node for each in world.queue.stored.values()] == ["crm"]
    await world.stop()


@virtual
async def test_what_ended_badly_can_be_tried_again():
    world = await World().start("crm")
    crm = world.nodes["crm"]
    crm.script = {"1": [ActionFailedError("no"), ActionFailedError("still not")]}
    await world.put("1", params={"order": 7}, caller="ops")
    await world.empty()
    for attempt, by in ((2, "ann"), (3, "bob")):
        queued = await world.ask("action-retry", ActionNamed(action_id="1"), caller=by)
        assert (queued.id, queued.node, queued.state) == ("1", "crm", ActionState.QUEUED)
        await world.empty()
        row = await world.row("1")
        assert (row.attempt, row.caller) == (attempt, by)
    assert world.states("1") == [
        *("queued0", "accepted1", "failed1"),
        *("queued2", "accepted2", "failed2"),
        *("queued3", "accepted3", "succeeded3"),
    ]
    assert crm.effects == ["1"] * 3
    assert not world.queue.letters, "a letter that was answered is thrown away"
    with pytest.raises(ConflictError, match="succeeded"):
        await world.ask("action-retry", ActionNamed(action_id="1"))
    with pytest.raises(NotFoundError):
        await world.ask("action-retry", ActionNamed(action_id="2"))
    await world.stop()


@pytest.mark.parametrize("how", ["cancelled", "expired"])
@virtual
async def test_what_was_never_begun_can_be_queued_again(how):
    world = await World().start("crm")
    crm = world.nodes["crm"]
    await crm.kill()
    expires = world.clock.unix_ms() + (1000 if how == "expired" else 10**9)
    for again in range(2):
        if not again:
            await world.put("1", expires=expires)
        else:
            queued = await world.ask("action-retry", ActionNamed(action_id="1"))
            assert queued.expires > world.clock.unix_ms() + 10**8
            with pytest.raises(ConflictError, match="waits in the queue of 'crm'"):
                await world.ask("action-retry", ActionNamed(action_id="1"))
        await asyncio.sleep(1)
        if how == "cancelled":
            await world.ask("action-cancel", ActionNamed(action_id="1"))
        elif not again:
            await world.empty()
        assert (await world.row("1")).state == (
            how if not again or how == "cancelled" else "queued"
        )
    if how == "cancelled":
        await world.ask("action-retry", ActionNamed(action_id="1"))
    await crm.start()
    await world.empty()
    assert crm.effects == ["1"]
    assert (await world.row("1")).state is ActionState.SUCCEEDED
    assert not world.queue.letters
    await world.stop()


@virtual
async def test_an_answer_that_got_lost_queues_nothing_twice():
    world = await World().start("crm")
    crm = world.nodes["crm"]
    crm.script = {"1": [ActionFailedError("no")]}
    await world.put("1")
    await world.empty()
    await crm.kill()
    asked = ActionNamed(action_id="1")
    ends = await asyncio.gather(
        *(world.ask("action-retry", asked) for _ in range(5)), return_exceptions=True
    )
    assert any(not isinstance(end, Exception) for end in ends)
    assert len(world.queue.stored) == 1
    await world.stop()


@virtual
async def test_parameters_that_nobody_kept_cannot_be_guessed():
    world = await World().start("crm")
    crm = world.nodes["crm"]
    crm.script = {"1": [ActionFailedError("no")] * 2}
    await world.put("1", params={"x": "y" * 5000})
    await world.empty()
    await world.ask("action-retry", ActionNamed(action_id="1"))
    await world.empty()
    assert crm.asked[-1].params == {"x": "y" * 5000}, "the dead letter had them"
    await world.stop()


@virtual
async def test_only_our_own_processes_speak_for_others():
    world = await World().start("crm")
    for number, caller in enumerate(("ops", "gateway", "bridge", "master", "evil")):
        await world.put(f"{number}", caller=caller, on_behalf="alice")
    await world.empty()
    who = [request.on_behalf for request in world.nodes["crm"].asked]
    assert who == ["ops", "alice", "alice", "alice", "evil"]
    await world.stop()


@virtual
async def test_a_poisoned_answer_ends():
    world = await World().start("crm")
    await world.queue.put("crm", "ops", QueueItem(id="1", action="pay", params={}), timeout_s=1)
    crm = world.nodes["crm"]
    real, crm._done = crm._done, None

    async def garbage(_request):
        return b"\xff\xfe"

    crm._done = garbage
    await world.empty()
    [letter] = world.queue.letters.values()
    assert letter.error.kind == "unreadable_reply"
    crm._done = real
    await world.put("2")
    await world.empty()
    assert crm.effects == ["2"]
    await world.stop()
