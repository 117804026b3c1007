"""The rules of sagas against a world that loses answers, crashes runners, lets stale ones go on,
and has people abort and resume at any moment.
"""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mesh.core.saga import Ask, Begin, Rest, after, due_at, next_move
from mesh.core.saga_events import (
    Aborted,
    CutShort,
    Failed,
    GivenUp,
    Interrupted,
    NeverSent,
    Resumed,
    Succeeded,
    TakenOver,
    TimedOut,
)
from mesh.core.saga_record import ENDED
from mesh.errors import ConflictError
from mesh.types import SagaState, StepState
from mesh.wire import codec
from mesh.wire.messages import ErrorReply, Saga, SagaCall, SagaStep

MOST = 3
BAD = ErrorReply(code=400, kind="action_failed", message="no")
HOW = ("succeeds", "fails", "cut short, done", "cut short, not done", "interrupted, done",
       "interrupted, not done")  # fmt: skip


def saga_of(*finals: bool, undo_params=None) -> Saga:
    steps = [
        SagaStep(
            name=f"s{at}",
            call=SagaCall(action="do", node="n", params={"at": at}),
            undo=None if final else SagaCall(action="undo", node="n", params=undo_params or {}),
            final=final,
        )
        for at, final in enumerate(finals)
    ]
    return Saga(
        id="x",
        caller="me",
        state=SagaState.RUNNING,
        version=1,
        started_at=0,
        changed_at=0,
        deadline=1000,
        steps=steps,
    )


def go(saga: Saga, *events, now: int = 5) -> Saga:
    for event in events:
        saga = after(saga, event, now=now, most_attempts=MOST)
    return saga


class Node:
    """Runs each id once; a retry only if its last attempt ended badly and is the one named."""

    def __init__(self, script):
        self.script = script
        self.known = {}
        self.done = Counter()
        self.may_be_done = set()

    def ask(self, ask: Ask):
        last = self.known.get(ask.id)
        if last is not None:
            again = ask.retry == last.attempt and not isinstance(last, Succeeded)
            if not (ask.retry and again):
                return last
        attempt = 1 if last is None else last.attempt + 1
        how = self.script(ask.id, attempt)
        if how.startswith("succeeds") or how.endswith(", done"):
            self.done[ask.id] += 1
        if not how.startswith(("succeeds", "fails")):
            self.may_be_done.add(ask.id)
        self.known[ask.id] = {
            "s": Succeeded({"id": ask.id}, attempt),
            "f": Failed(BAD, attempt),
            "c": CutShort(BAD, attempt),
            "i": Interrupted(BAD, attempt),
        }[how[0]]
        return self.known[ask.id]


class Runner:
    """What `mesh.runtime.saga_drive.Drive` does, one step at a time."""

    def __init__(self, name):
        self.name = name
        self.saga = None
        self.sent = True
        self.answer = None

    def drop(self):
        self.saga = self.answer = None


class SagaWorld(RuleBasedStateMachine):
    @initialize(
        finals=st.integers(0, 2), others=st.integers(0, 3), ways=st.lists(st.sampled_from(HOW))
    )
    def begin(self, finals, others, ways):
        flags = [False] * others + [True] * finals or [False]
        self.stored = saga_of(*flags)
        self.ways = dict(enumerate(ways))
        self.node = Node(self.how)
        self.runners = [Runner("a"), Runner("b")]
        self.terms = 0
        self.now = 1
        self.resumed = set()

    def how(self, action_id, attempt):
        return self.ways.get((hash_of(action_id) + attempt * 7) % 13, "succeeds")

    def put(self, runner, event):
        """Compare-and-set, as the stream does it; who fails lets go."""
        made = after(runner.saga, event, now=self.now, most_attempts=MOST)
        if self.stored.version != runner.saga.version:
            if self.stored.runner == runner.name:
                runner.saga, runner.answer = self.stored, None
            else:
                runner.drop()
            return
        if asked(made) != asked(runner.saga):
            runner.sent = False
        runner.saga = self.stored = codec.decode(codec.encode(made), Saga)
        runner.answer = None

    @rule(number=st.integers(0, 1))
    def take(self, number):
        runner = self.runners[number]
        if isinstance(next_move(self.stored), Rest):
            return
        self.terms += 1
        runner.name = f"term {self.terms}"
        runner.saga, runner.answer = self.stored, None
        was_asked = isinstance(next_move(self.stored), Ask)
        self.put(runner, TakenOver(runner.name))
        runner.sent = was_asked

    @rule(number=st.integers(0, 1), lost=st.booleans())
    def send(self, number, lost):
        runner = self.runners[number]
        if runner.saga is None or not isinstance(move := next_move(runner.saga), Ask):
            return
        if move.stop and not runner.sent:
            runner.answer = NeverSent()
            return
        runner.sent = True
        answer = self.node.ask(move)
        runner.answer = None if lost else answer

    @rule(number=st.integers(0, 1))
    def record(self, number):
        runner = self.runners[number]
        if runner.saga is not None and runner.answer is not None:
            self.put(runner, runner.answer)

    @rule(number=st.integers(0, 1))
    def look(self, number):
        """It hears that somebody else has stored a record."""
        runner = self.runners[number]
        if runner.saga is not None and self.stored.version > runner.saga.version:
            runner.answer = None
            if self.stored.runner == runner.name:
                runner.saga = self.stored
            else:
                runner.drop()

    @rule(number=st.integers(0, 1))
    def crash(self, number):
        self.runners[number].drop()

    @rule(number=st.integers(0, 1))
    def too_late(self, number):
        runner = self.runners[number]
        if runner.saga is not None and due_at(runner.saga) is not None:
            self.put(runner, TimedOut("late"))

    @rule()
    def time_passes(self):
        self.now += 1

    @rule()
    def abort(self):
        self.person(Aborted("me"))

    @rule(at=st.integers(0, 3))
    def give_up(self, at):
        self.person(GivenUp("me", f"s{at}"))

    @rule()
    def resume(self):
        self.person(Resumed("me"))

    def person(self, event):
        before = self.stored
        try:
            self.stored = after(before, event, now=self.now, most_attempts=MOST)
        except ConflictError:
            return
        if isinstance(event, Resumed) and isinstance(move := next_move(self.stored), Ask):
            self.resumed.add(move.id)

    @invariant()
    def never_done_twice(self):
        for action_id, times in self.node.done.items():
            # Somebody who resumes, and a compensation cut short, may repeat what was done.
            if action_id not in self.node.may_be_done:
                assert times <= 1, action_id

    @invariant()
    def one_step_at_a_time(self):
        active = [s for s in self.stored.steps if s.state in {StepState.RUNNING, StepState.UNDOING}]
        assert len(active) <= 1

    @precondition(lambda self: self.stored.state in ENDED)
    @rule()
    def ended(self):
        self.check_end()

    def check_end(self):
        saga, done = self.stored, self.node.done
        undone = {s.name: done[f"x.{s.name}.undo"] for s in saga.steps}
        if saga.state is SagaState.SUCCEEDED:
            assert all(done[f"x.{s.name}"] for s in saga.steps)
            assert not any(undone.values())
        if saga.state is SagaState.COMPENSATED:
            for step in saga.steps:
                was_done, is_sure = (
                    done[f"x.{step.name}"],
                    f"x.{step.name}" not in (self.node.may_be_done),
                )
                if step.final:
                    assert not was_done or not is_sure
                elif is_sure:
                    assert bool(was_done) == bool(undone[step.name]), (step.name, done)
                elif was_done:
                    assert undone[step.name]
        if saga.state is SagaState.FAILED:
            assert saga.reason

    def teardown(self):
        """Never stuck: a runner that is left alone, and a person, bring it to its end."""
        if not hasattr(self, "stored"):
            return
        for _ in range(200):
            if self.stored.state in ENDED:
                break
            if self.stored.state is SagaState.PAUSED:
                self.person(Aborted("me"))
                continue
            self.take(0)
            self.send(0, lost=False)
            self.record(0)
        assert self.stored.state in ENDED, self.stored
        self.check_end()


def asked(saga):
    move = next_move(saga)
    return (move.id, move.retry) if isinstance(move, Ask) else None


def hash_of(text):
    return sum(text.encode())


TestSagaWorld = SagaWorld.TestCase
TestSagaWorld.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)


# -- one by one ------------------------------------------------------------------------------------


def test_steps_follow_each_other_and_the_record_of_one_tells_that_the_last_is_done():
    saga = go(saga_of(False, False), TakenOver("r"))
    assert next_move(saga).id == "x.s0"
    saga = go(saga, Succeeded("one", 1))
    assert (saga.steps[0].result, next_move(saga).id) == ("one", "x.s1")
    saga = go(saga, Succeeded("two", 1))
    assert (saga.state, saga.ended_at, saga.version) == (SagaState.SUCCEEDED, 5, 4)


def test_what_was_done_is_undone_last_first():
    saga = go(saga_of(False, False, False), TakenOver("r"), Succeeded(), Succeeded(), Failed(BAD))
    assert next_move(saga).id == "x.s1.undo"
    saga = go(saga, Succeeded())
    assert next_move(saga).id == "x.s0.undo"
    saga = go(saga, Succeeded())
    assert saga.state is SagaState.COMPENSATED
    assert [s.state for s in saga.steps] == ["undone", "undone", "failed"]
    assert saga.reason == "step 's2' failed: no"


def test_a_compensation_is_tried_again_and_then_named():
    saga = go(saga_of(False, False, False), TakenOver("r"), Succeeded(), Succeeded(), Failed(BAD))
    saga = go(saga, Failed(BAD, 1), CutShort(BAD, 2))
    assert (next_move(saga).retry, next_move(saga).failures) == (2, 2)
    saga = go(saga, Failed(BAD, 3))
    assert next_move(saga).id == "x.s0.undo", "the others are undone all the same"
    assert next_move(saga).retry == 0
    saga = go(saga, Succeeded())
    assert saga.state is SagaState.FAILED
    assert saga.reason.endswith("not undone: s1")


def test_an_interrupted_step_waits_for_a_person():
    saga = go(saga_of(False, False), TakenOver("r"), Succeeded(), Interrupted(BAD, 1))
    assert saga.state is SagaState.PAUSED
    assert next_move(saga) == Rest()
    resumed = go(saga, Resumed("me"), now=25)
    assert (next_move(resumed).id, next_move(resumed).retry) == ("x.s1", 1)
    assert resumed.deadline == saga.deadline + 20, "the time it waited does not count"
    aborted = go(saga, Aborted("me"))
    assert next_move(aborted).id == "x.s1.undo", "it may have been done"


def test_an_interrupted_compensation_waits_for_a_person():
    saga = go(saga_of(False, False), TakenOver("r"), Succeeded(), Failed(BAD), Interrupted(BAD, 1))
    assert saga.state is SagaState.PAUSED
    assert next_move(go(saga, Resumed("me"))).retry == 1
    given_up = go(saga, Aborted("me"))
    assert (given_up.state, given_up.steps[0].state) == (SagaState.FAILED, StepState.NOT_UNDONE)


def test_a_compensation_that_is_given_up_leaves_its_step_and_the_others_are_undone():
    saga = go(saga_of(False, False, False), TakenOver("r"), Succeeded(), Succeeded(), Failed(BAD))
    with pytest.raises(ConflictError, match="'s1' can be given up"):
        go(saga, Aborted("me"))
    for step in ("s0", "s2", "nobody"):
        with pytest.raises(ConflictError, match="no compensation"):
            go(saga, GivenUp("me", step))
    saga = go(saga, GivenUp("me", "s1"))
    assert saga.steps[1].undo_error.message == "given up by me"
    assert next_move(saga).id == "x.s0.undo"
    saga = go(saga, Succeeded())
    assert saga.state is SagaState.FAILED
    assert [step.state for step in saga.steps] == ["undone", "not_undone", "failed"]
    assert saga.reason.endswith("not undone: s1")


def test_a_saga_that_is_aborted_already_says_what_it_waits_for():
    saga = go(saga_of(False, False), TakenOver("r"), Aborted("me"))
    with pytest.raises(ConflictError, match="waits for the node"):
        go(saga, Aborted("me"))


def test_there_is_no_way_back_from_a_final_step():
    saga = go(saga_of(False, True, True), TakenOver("r"), Succeeded())
    with pytest.raises(ConflictError, match="final"):
        go(saga, Aborted("me"))
    assert due_at(saga) is None
    assert next_move(go(saga, Failed(BAD))).id == "x.s0.undo", "the first one changed nothing"
    later = go(saga, Succeeded(), Failed(BAD))
    assert (later.state, later.reason) == (SagaState.FAILED, "step 's2' failed: no")
    unsure = go(saga, CutShort(BAD, 1))
    assert unsure.state is SagaState.PAUSED
    assert next_move(go(unsure, Aborted("me"))).id == "x.s0.undo"


def test_a_saga_that_takes_too_long_stops_its_step_and_turns_back():
    saga = go(saga_of(False, False), TakenOver("r"), Succeeded())
    assert due_at(saga) == (1000, "the saga took longer than it may")
    stopped = go(saga, TimedOut("late"))
    assert next_move(stopped).stop
    assert next_move(go(stopped, Succeeded())).id == "x.s1.undo", "it was done after all"
    assert next_move(go(stopped, CutShort(BAD, 1))).id == "x.s1.undo", "it may have been done"
    assert next_move(go(stopped, NeverSent())).id == "x.s0.undo"
    assert go(stopped, Failed(BAD)).reason.startswith("step 's1' failed")


def test_a_steps_own_time_counts_from_its_beginning():
    saga = saga_of(False, False)
    steps = [saga.steps[0], msgspec.structs.replace(saga.steps[1], timeout_s=0.1)]
    saga = go(msgspec.structs.replace(saga, steps=steps), TakenOver("r"))
    saga = go(saga, Succeeded(), now=50)
    assert due_at(saga) == (150, "step 's1' took longer than 0.1 s")


def test_an_aborted_saga_that_has_not_begun_has_nothing_to_undo():
    saga = saga_of(False)
    assert next_move(saga) == Begin()
    saga = go(saga, Aborted("me"))
    assert (saga.state, saga.reason) == (SagaState.COMPENSATED, "aborted by me")
    with pytest.raises(ConflictError, match="has ended"):
        go(saga, Aborted("me"))
    with pytest.raises(ConflictError, match="does not wait"):
        go(saga, Resumed("me"))


def test_results_reach_later_steps_and_the_way_back():
    saga = saga_of(False, False, undo_params={"order": "${s0.order}"})
    call = SagaCall(action="do", node="n", params={"pay": ["${s0.order}", "${s0.lines.1}"]})
    steps = [saga.steps[0], msgspec.structs.replace(saga.steps[1], call=call)]
    saga = go(msgspec.structs.replace(saga, steps=steps), TakenOver("r"))
    saga = go(saga, Succeeded({"order": "${s9.x}", "lines": [1, {"two": 2}]}))
    assert next_move(saga).call.params == {"pay": ["${s9.x}", {"two": 2}]}
    assert next_move(go(saga, Failed(BAD))).call.params == {"order": "${s9.x}"}


def test_a_result_without_what_later_steps_need_turns_the_saga_back():
    saga = saga_of(False, False)
    call = SagaCall(action="do", node="n", params={"order": "${s0.order}"})
    steps = [saga.steps[0], msgspec.structs.replace(saga.steps[1], call=call)]
    saga = go(msgspec.structs.replace(saga, steps=steps), TakenOver("r"), Succeeded({}))
    assert next_move(saga).id == "x.s0.undo"
    assert "no 'order'" in saga.reason


def test_a_long_result_is_not_kept_and_still_reaches_who_needs_it():
    saga = saga_of(False, False)
    call = SagaCall(action="do", node="n", params={"text": "${s0}"})
    steps = [saga.steps[0], msgspec.structs.replace(saga.steps[1], call=call)]
    begun = go(msgspec.structs.replace(saga, steps=steps), TakenOver("r"))
    saga = go(begun, Succeeded("x" * 20_000))
    assert saga.steps[0].result is None
    assert len(next_move(saga).call.params["text"]) == 20_000
    much = go(begun, Succeeded("x" * 1_200_000))
    assert next_move(much).id == "x.s0.undo"
    assert "too large" in much.reason
    assert len(codec.encode(much)) < 10_000, "or it could not be stored"


def test_a_compensation_that_cannot_be_made_is_named():
    saga = go(saga_of(False, undo_params={"o": "${s0.o}"}), TakenOver("r"), Interrupted(BAD, 1))
    saga = go(saga, Aborted("me"))
    assert (saga.state, saga.steps[0].state) == (SagaState.FAILED, StepState.NOT_UNDONE)
    assert saga.reason == "aborted by me; not undone: s0"
