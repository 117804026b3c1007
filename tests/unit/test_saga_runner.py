"""Sagas on masters, in virtual time: answers get lost, nodes go, the lead is lost unawares."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from saga_fakes import saga
from saga_world import World, definition
from virtual_time import virtual

from mesh.errors import ConflictError, NotFoundError, TooLargeError, UnavailableError
from mesh.types import ActionState, Health, SagaState, StepState
from mesh.wire import codec
from mesh.wire.messages import HistoryRecord


def asked(world, step: str) -> list:
    return [request for request in world.node.heard if request.id == f"x.{step}"]


@virtual
async def test_a_saga_is_run_step_by_step_for_whoever_asked():
    async with World() as world:
        master = await world.master()
        begun = await master.run()
        assert (begun.state, begun.caller) == (SagaState.RUNNING, "ann")
        ended = await master.until("succeeded")
        assert world.node.effects == ["x.s0", "x.s1"]
        assert {request.on_behalf for request in world.node.heard} == {"ann"}
        assert ended.steps[1].result == {"of": "x.s1"}
        # accepted, s0 begins, s1 begins, ended: one record a transition
        assert [each.version for each in world.log.appended] == [1, 2, 3, 4]
        assert (await master.list()).total == 1


@virtual
async def test_a_failure_undoes_what_was_done():
    async with World() as world:
        world.node.script["s2"] = ["fail"]
        master = await world.master()
        await master.run(definition(3))
        ended = await master.until("compensated")
        assert world.node.effects == ["x.s0", "x.s1", "x.s1.undo", "x.s0.undo"]
        assert ended.reason == "step 's2' failed: fail"


@virtual
async def test_an_answer_that_is_lost_is_asked_for_again_under_the_same_id():
    async with World() as world:
        world.node.lost = 1
        master = await world.master()
        await master.run()
        world.add("shop", incarnation=2)  # so that nobody waits for the first answer
        await master.until("succeeded")
        assert len(asked(world, "s0")) == 2
        assert world.node.effects == ["x.s0", "x.s1"]


@virtual
async def test_an_acknowledgement_that_is_lost_stores_nothing_twice():
    async with World() as world:
        master = await world.master(leads=False)
        await master.run()
        world.log.deaf = 2
        master.lead()
        await master.until("succeeded")
        assert [each.version for each in world.log.appended] == [1, 2, 3, 4]
        assert world.node.effects == ["x.s0", "x.s1"]


@virtual
async def test_without_its_stream_a_saga_waits_and_a_new_one_is_refused():
    async with World() as world:
        world.node.script["s0"] = ["ok 5"]
        master = await world.master()
        await master.run()
        await asyncio.sleep(1)
        world.log.away = True
        with pytest.raises(UnavailableError):
            await master.run(definition(id="y"))
        await asyncio.sleep(60)
        assert world.node.effects == ["x.s0"]
        assert (await master.show()).steps[0].state is StepState.RUNNING, "of the copy"
        world.log.away = False
        await master.until("succeeded")
        assert world.node.effects == ["x.s0", "x.s1"]


@virtual
async def test_who_leads_next_goes_on_where_it_stood():
    async with World() as world:
        world.node.script["s1"] = ["ok 30"]
        first = await world.master()
        second = await world.master(leads=False)
        await first.run(definition(3))
        await asyncio.sleep(5)
        first.follow()
        second.lead()
        await second.until("succeeded")
        assert world.node.effects == ["x.s0", "x.s1", "x.s2"]
        assert len(asked(world, "s1")) == 2, "asked again, run once"


@virtual
async def test_two_that_believe_they_lead_do_nothing_twice():
    """The first was paused, say, and has not noticed that it lost the lead."""
    async with World() as world:
        world.node.script |= {"s1": ["ok 10"], "s2": ["fail"]}
        first = await world.master()
        second = await world.master(leads=False)
        await first.run(definition(4))
        await asyncio.sleep(5)
        second.lead()
        await second.until("compensated")
        assert world.node.effects == ["x.s0", "x.s1", "x.s1.undo", "x.s0.undo"]


@virtual
async def test_who_was_paused_between_storing_and_sending_does_no_harm():
    """It asks for a step that somebody else has stopped and undone meanwhile: its id is known."""
    async with World() as world:
        first = await world.master(leads=False)
        await first.run()
        held = asyncio.Event()
        steps = first.runner._workshop.steps
        ask = steps._ask

        async def late(*args):
            async def send():
                await held.wait()
                return await ask(*args)

            # What a process that stands still has begun, nobody can call off.
            return await asyncio.shield(asyncio.create_task(send()))

        steps._ask = late
        first.lead()
        await asyncio.sleep(1)
        assert not world.node.heard, "stored, and not sent"
        second = await world.master()
        await second.abort()
        await second.until("compensated")
        before = list(world.node.effects)
        held.set()
        await asyncio.sleep(100)
        assert len(asked(world, "s0")) > 1
        assert world.node.effects == before
        assert before in ([], ["x.s0", "x.s0.undo"])


@virtual
async def test_any_master_aborts_what_the_leader_runs():
    async with World() as world:
        world.node.script["s1"] = ["ok 1000"]
        leader = await world.master()
        other = await world.master(leads=False)
        await leader.run(definition(3))
        await asyncio.sleep(5)
        stopping = await other.abort()
        assert (stopping.stop, stopping.reason) == (True, "aborted by ann")
        ended = await other.until("compensated", within_s=10)
        assert [step.state for step in ended.steps] == ["undone", "undone", "waiting"]
        # s1 was stopped in the middle: it may have done something.
        assert world.node.effects == ["x.s0", "x.s1.undo", "x.s0.undo"]
        assert world.audit.last("saga-aborted").actor == "ann"
        with pytest.raises(ConflictError, match="has ended"):
            await other.abort()


@virtual
async def test_a_compensation_of_a_node_that_never_returns_can_be_given_up():
    async with World() as world:
        world.node.script["s2"] = ["fail"]
        world.node.script["s1"] = ["ok 5"]
        leader = await world.master()
        other = await world.master(leads=False)
        await leader.run(definition(3))
        await asyncio.sleep(1)
        world.node.lost = 10**6
        await asyncio.sleep(600)
        world.node.lost = 0
        world.node.script["s1.undo"] = ["ok 100000"]
        await other.until("compensating")
        await asyncio.sleep(200)
        noted = len(world.audit.entries)
        with pytest.raises(ConflictError, match="being undone already"):
            await other.abort()
        assert len(world.audit.entries) == noted
        await other.abort(give_up="s1")
        ended = await other.until("failed", within_s=10)
        assert [step.state for step in ended.steps] == ["undone", "not_undone", "failed"]
        given_up = world.audit.last("saga-step-given-up")
        assert (given_up.actor, given_up.subject) == ("ann", "x.s1")


@virtual
async def test_what_was_never_sent_is_not_waited_for():
    async with World() as world:
        await world.node.close()
        master = await world.master()
        await master.run()
        await asyncio.sleep(30)
        await master.abort()
        ended = await master.until("compensated", within_s=5)
        assert [step.state for step in ended.steps] == ["waiting", "waiting"]
        await world.node.open()
        await asyncio.sleep(100)
        assert not world.node.heard


@virtual
async def test_what_may_have_been_sent_is_waited_for():
    """Another runner may have sent it: only its node can tell."""
    async with World() as world:
        world.node.script["s0"] = ["ok 2"]
        first = await world.master()
        await first.run()
        await asyncio.sleep(1)
        first.follow()
        await world.node.close()
        second = await world.master()
        await second.abort()
        await asyncio.sleep(200)
        assert (await second.show()).state is SagaState.RUNNING
        await world.node.open()
        await second.until("compensated")
        assert world.node.effects == ["x.s0", "x.s0.undo"]


@virtual
async def test_what_takes_too_long_is_stopped_and_undone():
    async with World() as world:
        world.node.script["s1"] = ["ok 1000"]
        master = await world.master()
        body = definition(3)
        body["steps"][1]["timeout_s"] = 20
        await master.run(body)
        ended = await master.until("compensated", within_s=25)
        assert ended.reason == "step 's1' took longer than 20 s"
        assert world.node.effects == ["x.s0", "x.s1.undo", "x.s0.undo"]
        world.node.script["s0"] = ["ok 1000"]
        await master.run(definition(id="y", timeout_s=50))
        late = await master.until("compensated", saga_id="y", within_s=55)
        assert late.reason == "the saga took longer than it may"


@virtual
async def test_what_ended_in_the_moment_it_was_stopped_is_undone():
    async with World() as world:
        world.node.script["s0"] = ["ok 10"]
        world.node.lost = 1
        master = await world.master()
        await master.run(definition(2, timeout_s=20))
        await master.until("compensated", within_s=60)
        assert world.node.effects == ["x.s0", "x.s0.undo"]


@virtual
async def test_what_was_interrupted_waits_for_a_person():
    async with World() as world:
        world.node.script["s1"] = ["interrupt", "ok"]
        master = await world.master()
        await master.run(definition(3))
        paused = await master.until("paused")
        assert paused.steps[1].state is StepState.UNCERTAIN
        await asyncio.sleep(5000)
        assert (await master.show()).state is SagaState.PAUSED, "its time does not run"
        await master.resume()
        await master.until("succeeded")
        assert [request.retry for request in asked(world, "s1")] == [0, 1]
        assert world.audit.last("saga-resumed").subject == "x"
        with pytest.raises(ConflictError, match="does not wait"):
            await master.resume()


@virtual
async def test_who_takes_a_resumed_step_over_repeats_it_once():
    async with World() as world:
        world.node.script["s0"] = ["interrupt", "ok 10"]
        first = await world.master()
        await first.run()
        await first.until("paused")
        await first.resume()
        await asyncio.sleep(2)
        first.follow()
        second = await world.master()
        await second.until("succeeded")
        assert world.node.effects == ["x.s0", "x.s0", "x.s1"]


@virtual
async def test_compensations_are_tried_again_with_pauses_and_then_named():
    async with World(compensation_attempts=4, backoff_s=1.0) as world:
        world.node.script |= {"s1": ["fail"], "s0.undo": ["fail", "cut", "fail", "fail"]}
        master = await world.master()
        began = world.clock.monotonic()
        await master.run()
        ended = await master.until("failed")
        assert world.clock.monotonic() - began >= 1 + 2 + 4
        assert [request.retry for request in asked(world, "s0.undo")] == [0, 1, 2, 3]
        assert ended.reason == "step 's1' failed: fail; not undone: s0"
        assert ended.steps[0].undo_attempts == 4


@virtual
async def test_a_node_that_is_away_is_waited_for():
    async with World() as world:
        await world.node.close()
        master = await world.master()
        await master.run()
        await asyncio.sleep(100)
        await world.node.open()
        world.add("shop", incarnation=2)
        await master.until("succeeded", within_s=3)


@virtual
async def test_a_node_that_dies_with_the_question_is_asked_again_in_its_next_life():
    async with World() as world:
        world.node.script["s0"] = ["ok 100000"]
        master = await world.master()
        await master.run()
        await asyncio.sleep(10)
        world.node.running["x.s0"].cancel()
        world.node.known.clear()
        world.node.lost = 1
        world.add("shop", incarnation=2)
        await master.until("paused", "succeeded", "compensated", within_s=10)
        assert len(asked(world, "s0")) == 2


@virtual
async def test_what_a_node_took_with_it_is_for_a_person_to_tell():
    async with World() as world:
        world.node.script["s1"] = ["ok 100000"]
        master = await world.master()
        await master.run()
        await asyncio.sleep(10)
        await world.node.close()
        del world.records["shop"]
        paused = await master.until("paused")
        assert "registered no more" in paused.steps[1].error.message
        world.add("shop")
        await world.node.open()
        await master.abort()
        await master.until("compensated")


@virtual
async def test_the_history_tells_what_a_node_cannot_any_more():
    async with World() as world:
        world.node.script["s0"] = ["ok 100000"]
        master = await world.master()
        await master.run()
        await asyncio.sleep(10)
        world.add("shop2")
        world.history["x.s0", "shop"] = HistoryRecord(
            id="x.s0",
            node="shop",
            action="do",
            state=ActionState.FAILED,
            caller="ann",
            at=1,
            error=codec.error_reply(ConflictError("sold out")),
        )
        del world.records["shop"]
        ended = await master.until("compensated")
        assert ended.reason == "step 's0' failed: sold out"


@virtual
async def test_a_step_for_a_node_that_nobody_knows_any_more_has_failed():
    async with World() as world:
        master = await world.master(leads=False)
        await master.run()
        del world.records["shop"]
        master.lead()
        ended = await master.until("compensated")
        assert not world.node.heard
        assert "no node 'shop'" in ended.reason


@virtual
async def test_after_half_a_day_the_history_is_asked_before_the_node():
    """A node answers an id for a day; one that has forgotten it would run it again."""
    async with World(timeout_s=10**6) as world:
        world.node.script["s0"] = ["ok"]
        world.node.lost = 1
        master = await world.master()
        await master.run()
        await asyncio.sleep(1)
        await world.node.close()
        world.add("shop", health=Health.UNREACHABLE)
        await asyncio.sleep(0.3 * 86_400)
        world.node.known.clear()
        world.history["x.s0", "shop"] = HistoryRecord(
            id="x.s0", node="shop", action="do", state=ActionState.SUCCEEDED, caller="ann", at=1
        )
        await world.node.open()
        world.add("shop", incarnation=2)
        await master.until("succeeded")
        assert world.node.effects == ["x.s0", "x.s1"]


@virtual
async def test_a_record_that_the_stream_lost_is_restored_from_the_copy():
    async with World() as world:
        world.node.script["s0"] = ["interrupt", "ok"]
        master = await world.master()
        await master.run()
        await master.until("paused")
        await asyncio.sleep(5)
        world.log.records.clear()
        await master.resume()
        await master.until("succeeded")
        assert await world.log.last("x")


@virtual
async def test_what_is_open_does_not_age_away_and_what_has_ended_does():
    async with World(days=0.1) as world:
        world.node.script["s0"] = ["interrupt"]
        master = await world.master()
        await master.run()
        paused = await master.until("paused")
        await master.run(definition(id="y"))
        await master.until("succeeded", saga_id="y")
        await asyncio.sleep(0.13 * 86_400)
        known = await master.show()
        assert known.state is SagaState.PAUSED
        assert known.changed_at - paused.changed_at > 0.04 * 86_400_000
        assert await world.store.find("y") is None
        await master.resume()
        await master.until("succeeded")


@virtual
async def test_one_that_cannot_be_renewed_keeps_no_other_from_it():
    async with World(days=0.1) as world:
        master = await world.master()
        for saga_id in ("x", "y"):
            world.node.script["s0"] = ["interrupt"]
            await master.run(definition(id=saga_id))
            await master.until("paused", saga_id=saga_id)
        append = world.log.append

        async def refusing(saga, **fields):
            if saga.id == "x":
                raise TooLargeError("x")
            return await append(saga, **fields)

        world.log.append = refusing
        before = await master.show("y")
        await asyncio.sleep(0.1 * 86_400)
        assert (await master.show("y")).changed_at > before.changed_at


@virtual
async def test_one_id_is_one_saga():
    async with World() as world:
        master = await world.master()
        other = await world.master(leads=False)
        runs = [each.run() for each in (master, other) * 50]
        await asyncio.gather(*runs)
        await master.until("succeeded")
        assert world.node.effects == ["x.s0", "x.s1"]
        assert (await other.run()).state is SagaState.SUCCEEDED, "also afterwards"
        with pytest.raises(ConflictError, match="another saga"):
            await other.run(definition(3))
        assert (await other.run({**definition(), "id": "z"})).id == "z"


@virtual
async def test_whoever_may_run_only_some_actions_sees_only_their_sagas():
    async with World() as world:
        master = await world.master()
        await master.run()
        await master.until("succeeded")
        for ask in (master.show, master.abort, master.resume):
            with pytest.raises(NotFoundError, match="no saga"):
                await ask(allowed=["do"])
        with pytest.raises(NotFoundError):
            await master.run(allowed=["do"])
        assert (await master.show(allowed=["do", "undo"])).id == "x"
        assert (await master.list(allowed=["do"])).total == 0
        with pytest.raises(NotFoundError):
            await master.show("nobody")


@virtual
async def test_news_is_waited_for_and_not_by_all_at_once():
    async with World() as world:
        world.node.script["s0"] = ["ok 1"]
        master = await world.master()
        ended = await master.run(definition(1), wait_ms=2000)
        assert ended.state is SagaState.SUCCEEDED
        began = world.clock.monotonic()
        same = await master.show(after=ended.version, wait_ms=2000)
        assert same == ended
        assert 1.9 < world.clock.monotonic() - began < 2.5
        waiting = [master.show(after=99, wait_ms=2000) for _ in range(20)]
        took = []

        async def timed(question):
            began = world.clock.monotonic()
            await question
            took.append(world.clock.monotonic() - began)

        await asyncio.gather(*map(timed, waiting))
        assert sum(each > 1 for each in took) == 8, "the others are not to fill the master"


@virtual
async def test_a_record_of_somebody_else_ends_a_run():
    """A newer runner has stored one: whatever this one learns is not stored any more."""
    async with World() as world:
        world.node.script["s0"] = ["ok 10"]
        master = await world.master()
        await master.run()
        await asyncio.sleep(1)
        stored = await world.log.last("x")
        theirs = msgspec.structs.replace(
            stored.saga, runner="another", version=stored.saga.version + 1, reason="theirs"
        )
        master.runner._drives["x"].changed = lambda _: None  # it has not heard of it
        await world.log.append(theirs, after=stored.sequence)
        # It leads all the same: so it takes the saga over properly, and goes on from there.
        ended = await master.until("succeeded")
        assert (ended.runner, ended.reason) == (stored.saga.runner, "theirs")
        runners = [each.runner for each in world.log.appended]
        assert runners[2:4] == ["another", stored.saga.runner]
        assert world.node.effects == ["x.s0", "x.s1"]


@virtual
async def test_hundreds_are_run_a_few_at_a_time():
    async with World(parallel=3) as world:
        world.node.script["s0"] = ["ok 0.1"] * 40
        master = await world.master()
        for number in range(40):
            await master.run(definition(1, id=f"x{number}"))
        for number in range(40):
            await master.until("succeeded", saga_id=f"x{number}")
        assert len(world.node.effects) == 40
        assert world.node.most == 3


def test_a_saga_of_the_fakes_is_one():
    assert codec.decode(codec.encode(saga()), type(saga())) == saga()


@virtual
async def test_whom_a_gateway_speaks_for_is_the_caller():
    async with World() as world:
        world.node.script["s1"] = ["interrupt", "ok"]
        master = await world.master()
        begun = await master.run(caller="gateway", on_behalf="ann")
        assert begun.caller == "ann"
        await master.until("paused")
        assert {request.on_behalf for request in world.node.heard} == {"ann"}
        await master.resume(on_behalf="bob")
        assert (await master.until("succeeded")).reason == "resumed by bob"


def outcome(state: ActionState, attempt: int = 1, **fields) -> HistoryRecord:
    return HistoryRecord(
        id="x.s1",
        node="shop",
        action="do",
        state=state,
        caller="ann",
        at=1,
        attempt=attempt,
        **fields,
    )


@virtual
@pytest.mark.parametrize(
    ("record", "ends"),
    [
        (outcome(ActionState.SUCCEEDED, result={"of": "x.s1"}), "succeeded"),
        (outcome(ActionState.FAILED, error=codec.error_reply(ConflictError("no"))), "compensated"),
        (None, "paused"),
    ],
)
async def test_a_refusal_of_what_may_have_been_done_before_is_looked_up(record, ends):
    """The node did the step, died before it could say so, and came back without the action."""
    async with World() as world:
        world.node.script["s1"] = ["ok 2"]
        master = await world.master()
        await master.run()
        await asyncio.sleep(1)
        world.node.lost = 1
        world.node.refuses["x.s1"] = "bad_request"
        if record is not None:
            world.history["x.s1", "shop"] = record
        world.add("shop", incarnation=2)
        ended = await master.until("paused", "succeeded", "compensated")
        assert ended.state == ends
        assert world.node.effects.count("x.s1") == 1
        if ends == "paused":
            assert "whether it did it before that is not known" in ended.reason


@virtual
async def test_an_id_that_somebody_else_took_is_no_step_of_ours():
    async with World() as world:
        world.node.refuses["x.s1"] = "conflict"
        taken = outcome(ActionState.SUCCEEDED, result={"of": "another"})
        world.history["x.s1", "shop"] = msgspec.structs.replace(taken, action="other")
        leader = await world.master(leads=False)
        await leader.run()
        leader.lead()
        ended = await leader.until("compensated", "paused", "succeeded")
        assert ended.state is SagaState.COMPENSATED
        assert world.node.effects == ["x.s0", "x.s0.undo"]


@virtual
async def test_a_refusal_of_what_was_never_sent_before_needs_no_history():
    async with World() as world:
        world.node.refuses["x.s1"] = "invalid"
        world.historian_away = True
        master = await world.master()
        await master.run()
        assert (await master.until("compensated", "paused")).state is SagaState.COMPENSATED
        assert world.node.effects == ["x.s0", "x.s0.undo"]


@virtual
async def test_a_stop_that_its_node_refuses_leaves_nothing_stuck():
    async with World() as world:
        world.node.script["s1"] = ["ok 100"]
        master = await world.master()
        await master.run()
        await asyncio.sleep(1)
        world.node.refuses["x.s1"] = "bad_request"
        await master.abort()
        assert (await master.until("compensated", "paused")).state is SagaState.COMPENSATED
        assert "x.s1.undo" in world.node.effects, "it may have been done"


@virtual
async def test_what_is_old_is_not_asked_for_while_the_history_is_away():
    async with World(timeout_s=10**6) as world:
        world.node.lost = 1
        master = await world.master()
        await master.run()
        await asyncio.sleep(1)
        await world.node.close()
        world.add("shop", health=Health.UNREACHABLE)
        await asyncio.sleep(0.3 * 86_400)
        world.node.known.clear()
        world.historian_away = True
        world.history["x.s0", "shop"] = HistoryRecord(
            id="x.s0", node="shop", action="do", state=ActionState.SUCCEEDED, caller="ann", at=1
        )
        await world.node.open()
        world.add("shop", incarnation=2)
        await asyncio.sleep(600)
        assert len(asked(world, "s0")) == 1
        world.historian_away = False
        await master.until("succeeded")
        assert world.node.effects == ["x.s0", "x.s1"]


@virtual
async def test_what_takes_long_holds_up_neither_others_nor_the_way_back():
    async with World(parallel=2) as world:
        world.node.script["s0"] = ["ok 1000"] * 5 + ["ok", "fail"]
        world.node.script["s1"] = ["fail"]
        master = await world.master()
        for number in range(5):
            await master.run(definition(1, id=f"x{number}"))
        await asyncio.sleep(1)
        await master.run(definition(id="y"))
        await master.until("compensated", saga_id="y", within_s=20)
        await master.abort("x4")
        await master.until("compensated", saga_id="x4", within_s=20)
