"""Actions under crashes at every step, an absent history and lost acknowledgements.

What must hold: an effect happens only after `accepted` is in the stream; an effect that may not be
repeated happens at most once for every time somebody asked for it; the same id answers the same
until another attempt is asked for; whoever got an answer finds its outcome in the stream; what was
cancelled before it began has no effect; never more at once than its author allows; once all is well
again nothing accepted is without an outcome.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import hypothesis.strategies as st
import pytest
import structlog
from action_world import Crashed, Disk, MemoryHistory, MemoryJournal, Process, Stream
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.errors import (
    ConflictError,
    DeadlineExceededError,
    MeshError,
    NotFoundError,
    UnavailableError,
)
from mesh.runtime.executor import Executor
from mesh.runtime.sdk import ActionSpec
from mesh.types import ActionState
from mesh.wire import codec
from mesh.wire.messages import ActionRequest, ActionResult

IDS = st.sampled_from("abc")
NAMES = st.sampled_from(["once", "again", "quits", "fails", "tries", "alone"])
MAY_REPEAT = {"again", "tries"}


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """A traceback in colours, thousands of times, takes minutes."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    yield
    structlog.reset_defaults()


class FakeClock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        self.now += 0.001
        return self.now

    def unix_ms(self):
        return int(self.monotonic() * 1000)

    async def sleep(self, _seconds):
        await asyncio.sleep(0)


class ExecutorMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.disk, self.stream, self.clock = Disk(), Stream(), FakeClock()
        self.effects = Counter()
        self.unannounced = []
        self.refused = set()
        self.answers = {}
        self.asked_again = Counter()
        self.forestalled = set()
        self.inside = self.most_inside = 0
        self.process = Process()
        self.executor = None
        self.up()

    def teardown(self):
        self.loop.run_until_complete(self.executor.stop())
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    def up(self, crash_at=None):
        self.process = Process(crash_at)

        def acting(name):
            async def effect(params, context):
                self.process.step()
                if not self.stream.accepted(context.id) or context.id in self.refused:
                    self.unannounced.append(context.id)
                self.effects[context.id, name] += 1
                self.process.step()
                if name == "quits":
                    raise asyncio.CancelledError  # as when its author awaits a cancelled task
                if name == "fails" or (name == "tries" and context.attempt % 3):
                    raise ValueError("as its author wants it")
                if name == "alone":
                    self.inside += 1
                    self.most_inside = max(self.inside, self.most_inside)
                    try:
                        for _ in range(5):
                            await asyncio.sleep(0)
                    finally:
                        self.inside -= 1
                return {"value": params["value"]}

            return ActionSpec(
                name,
                effect,
                idempotent=name in MAY_REPEAT,
                retries=2 if name == "tries" else 0,
                concurrency=1 if name == "alone" else 0,
            )

        names = ("once", "again", "quits", "fails", "tries", "alone")
        actions = {name: acting(name) for name in names}
        self.executor = Executor(
            "crm",
            actions,
            journal=MemoryJournal(self.disk, self.process),
            history=MemoryHistory(self.stream, self.process),
            clock=self.clock,
            default_timeout_s=5,
            chance=lambda: 0.5,
        )
        self.inside = 0
        try:
            self.loop.run_until_complete(self.executor.start())
        except Crashed:
            self.restart()

    def restart(self, crash_at=None):
        old, self.process.alive = self.executor, False

        async def bury():
            tasks = [run.task for run in old._running.values()] + [*old._background._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        with contextlib.suppress(Crashed):
            self.loop.run_until_complete(bury())
        self.up(crash_at)

    async def submit_one(self, action_id, name, value, **more):
        request = ActionRequest(id=action_id, action=name, params={"value": value}, **more)
        return await self.patiently(request)

    async def patiently(self, request):
        # A caller has patience for so many turns of the loop, then hangs up.
        task = asyncio.ensure_future(self.executor.execute(request, "ops"))
        for _ in range(40):
            await asyncio.sleep(0)
            if task.done():
                break
        else:
            task.cancel()
        return await task

    @rule(action_id=IDS, name=NAMES, value=st.integers(0, 1))
    def submit(self, action_id, name, value):
        self.refused.discard(action_id)
        known = self.answers.get(action_id)
        before = Counter(self.effects)
        try:
            reply = self.loop.run_until_complete(self.submit_one(action_id, name, value))
        except (Crashed, asyncio.CancelledError):
            if not self.process.alive:
                self.restart()
            return
        except ConflictError:
            assert known is None or known[0] != (name, value)
            return
        except UnavailableError as error:
            self.turned_away(action_id, error)
            return
        outcome = self.outcome_of(reply)
        if action_id in self.forestalled:
            assert outcome == ("error", "cancelled")
            assert self.effects == before
            return
        if outcome[0] == "ok":
            assert self.stream.outcomes(action_id)[-1].state is ActionState.SUCCEEDED
            assert self.effects[action_id, name] >= 1
            assert name != "fails"
        if known is not None:
            assert known[0] == (name, value), "the same id took other parameters"
            assert known[1] == outcome, "the same id answered differently"
        self.answers[action_id] = ((name, value), outcome)
        assert self.stream.outcomes(action_id), "answered without an outcome in history"

    def turned_away(self, action_id, error):
        if "nothing was run" in str(error):
            self.refused.add(action_id)
        else:
            assert "disk is full" in str(error)

    @rule(action_id=IDS, name=NAMES, value=st.integers(0, 1), stop_at=st.integers(0, 14))
    def submit_and_cancel(self, action_id, name, value, stop_at):
        """Whoever runs it hears the outcome that is in the stream; so does who cancels."""
        if action_id in self.answers or not self.well():
            return
        before = Counter(self.effects)

        async def both():
            submitting = asyncio.ensure_future(self.submit_one(action_id, name, value))
            for _ in range(stop_at):
                await asyncio.sleep(0)
            stop = ActionRequest(id=action_id, action=name, cancel=True)
            cancelling = asyncio.ensure_future(self.patiently(stop))
            return await asyncio.gather(submitting, cancelling, return_exceptions=True)

        submitted, cancelled = self.loop.run_until_complete(both())
        if not self.process.alive:
            self.restart()
            return
        if isinstance(submitted, UnavailableError):  # the history is there, and not yet believed
            self.turned_away(action_id, submitted)
            return
        if isinstance(submitted, BaseException):
            assert isinstance(submitted, (ConflictError, asyncio.CancelledError)), submitted
            return
        if isinstance(cancelled, bytes):
            assert cancelled == submitted, "two told different ends"
        else:
            assert isinstance(cancelled, (ConflictError, NotFoundError)), cancelled
        last = self.stream.outcomes(action_id)[-1]
        ended = self.outcome_of(submitted)
        assert (ended[0] == "ok") == (last.state is ActionState.SUCCEEDED)
        if "nothing ran" in (last.error.message if last.error else ""):
            assert self.effects == before, "it says that nothing ran"
        self.answers[action_id] = ((name, value), ended)

    @rule(action_id=IDS, name=NAMES)
    def cancel(self, action_id, name):
        """With nothing running there is nothing to stop, and it says so."""
        if not self.well() or self.executor._running:
            return
        stop = ActionRequest(id=action_id, action=name, cancel=True)
        effects = Counter(self.effects)
        try:
            self.loop.run_until_complete(self.patiently(stop))
        except (ConflictError, NotFoundError):
            assert self.effects == effects
        except (Crashed, asyncio.CancelledError):
            if not self.process.alive:
                self.restart()
        else:
            raise AssertionError("nothing ran, and it was stopped?")

    @rule(action_id=IDS, name=NAMES)
    def forestall(self, action_id, name):
        """A master stops what has not come: it never runs, whatever crashes."""
        if not self.well() or self.executor._running or action_id in self.answers:
            return
        stop = ActionRequest(id=action_id, action=name, cancel=True)
        effects = Counter(self.effects)
        task = self.executor.execute(stop, "master")
        try:
            reply = self.loop.run_until_complete(task)
        except (ConflictError, NotFoundError):
            return
        except (Crashed, asyncio.CancelledError):
            self.restart()
            return
        assert self.outcome_of(reply) == ("error", "cancelled")
        assert self.effects == effects
        self.forestalled.add(action_id)

    @rule(action_id=IDS, behind=st.integers(0, 1))
    def retry(self, action_id, behind):
        """One more attempt after the one that is known, if that ended badly; the one who is behind
        hears what has become of it since.
        """
        outcomes = self.stream.outcomes(action_id)
        if action_id not in self.answers or not outcomes or not self.well():
            return
        (name, value), known = self.answers[action_id]
        last = outcomes[-1]
        number = last.attempt - behind
        if number < 1:
            return
        before = self.effects[action_id, name]
        self.asked_again[action_id, name] += 1
        try:
            reply = self.loop.run_until_complete(
                self.submit_one(action_id, name, value, retry=number)
            )
        except (Crashed, asyncio.CancelledError):
            del self.answers[action_id]
            if not self.process.alive:
                self.restart()
            return
        ended = self.outcome_of(reply)
        now = self.stream.outcomes(action_id)[-1]
        if behind or last.state is ActionState.SUCCEEDED:
            assert self.effects[action_id, name] == before
            assert ended == known
            self.asked_again[action_id, name] -= 1
        else:
            assert now.attempt > last.attempt
            self.answers[action_id] = ((name, value), ended)

    def well(self):
        return not (self.stream.away or self.stream.deaf or self.disk.full)

    def outcome_of(self, reply):
        try:
            return ("ok", codec.result_of(reply, ActionResult).result)
        except MeshError as error:
            return ("error", error.kind)

    @rule(crash_at=st.integers(1, 12))
    def crash_later(self, crash_at):
        self.process.crash_at = self.process.steps + crash_at

    @rule()
    def crash_now(self):
        self.restart()

    @rule(crash_at=st.integers(1, 8))
    def crash_while_starting(self, crash_at):
        self.restart(crash_at)

    @rule(away=st.booleans(), deaf=st.booleans())
    def history_changes(self, away, deaf):
        self.stream.away, self.stream.deaf = away, deaf

    @rule(full=st.booleans())
    def disk_changes(self, full):
        self.disk.full = full

    @precondition(lambda self: self.stream.records)
    @rule()
    def all_is_well_again(self):
        self.stream.away = self.stream.deaf = self.disk.full = False
        self.restart()

        async def settle():
            for _ in range(2000):
                await asyncio.sleep(0)
                if not self.executor._running and not await self.executor._journal.unrecorded():
                    return

        self.loop.run_until_complete(settle())
        for record in self.stream.records:
            final = [one for one in self.stream.outcomes(record.id) if one.final]
            assert final, f"{record.id} was accepted and never ended"

    @invariant()
    def nothing_runs_unannounced(self):
        assert not self.unannounced

    @invariant()
    def what_may_not_be_repeated_is_not(self):
        for (action_id, name), count in self.effects.items():
            if name not in MAY_REPEAT:
                allowed = 1 + self.asked_again[action_id, name]
                assert count <= allowed, f"{action_id} took effect {count} times"

    @invariant()
    def no_more_at_once_than_its_author_allows(self):
        assert self.most_inside <= 1

    @invariant()
    def an_attempt_that_is_followed_by_another_says_so(self):
        for record in self.stream.records:
            if not record.final:
                assert record.action == "tries"
                assert record.state is ActionState.FAILED


@pytest.mark.parametrize("name", ["once", "again", "quits"])
@pytest.mark.parametrize("crash_again_at", [None, 2, 4, 6, 8])
def test_a_crash_at_every_step_and_another_while_starting(name, crash_again_at):
    """What the machine above finds by chance is tried here without exception."""
    ends = set()
    for crash_at in range(1, 14):
        mesh = ExecutorMachine()
        mesh.crash_later(crash_at)
        mesh.submit("a", name, 0)
        if crash_again_at is None:
            mesh.crash_now()
        else:
            mesh.crash_while_starting(crash_again_at)
        if mesh.stream.records:
            mesh.all_is_well_again()
        mesh.nothing_runs_unannounced()
        mesh.what_may_not_be_repeated_is_not()
        ends |= {str(record.state) for record in mesh.stream.outcomes("a")}
        mesh.restart()
        mesh.submit("a", name, 0)
        mesh.what_may_not_be_repeated_is_not()
        assert mesh.stream.outcomes("a")
        mesh.teardown()
    expected = {"once": {"succeeded", "interrupted"}, "again": {"succeeded"}}
    assert ends == expected.get(name, {"failed", "interrupted"})


@pytest.mark.parametrize("name", ["once", "quits"])
def test_an_outcome_that_cannot_be_written_is_kept_until_it_can(name):
    """A full disk after the effect: asking again must not run it again."""
    mesh = ExecutorMachine()

    async def full(_outcome):
        raise UnavailableError("the disk is full")

    settle, mesh.executor._journal.settle = mesh.executor._journal.settle, full
    mesh.submit("a", name, 0)
    mesh.submit("a", name, 0)
    assert mesh.effects["a", name] == 1
    assert not mesh.stream.outcomes("a")
    mesh.executor._journal.settle = settle
    mesh.submit("a", name, 0)
    assert mesh.effects["a", name] == 1
    assert mesh.stream.outcomes("a")
    mesh.teardown()


def test_what_is_too_late_when_it_could_begin_runs_nothing_is_counted_and_names_the_field():
    mesh = ExecutorMachine()
    late = ActionRequest(id="a", action="once", params={"value": 0}, deadline=1)
    with pytest.raises(DeadlineExceededError) as caught:
        mesh.loop.run_until_complete(mesh.executor.execute(late, "ops"))
    assert "deadline" in caught.value.fields
    assert mesh.executor.expired == 1
    assert not mesh.effects
    assert not mesh.stream.records
    mesh.teardown()


TestExecutor = ExecutorMachine.TestCase
TestExecutor.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
