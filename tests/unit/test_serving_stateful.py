"""The bulkhead under arrivals, ends and cancels in any order: no slot is lost or used twice,
nothing is refused while there is room, and a cancel stops what its own caller asked, nothing else.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.adapters.clock import SystemClock
from mesh.ports import Message
from mesh.runtime.serving import Responder
from mesh.wire import codec

PARALLEL, QUEUED = 2, 3
CALLERS = st.sampled_from(["ops", "web"])
IDS = st.sampled_from(["x", "y", ""])


@dataclass(eq=False)
class Job:
    """A request that was let in."""

    caller: str
    id: str
    bypass: bool
    finishes: bool
    begun: bool = False
    ended: bool = False
    cancelled: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event)


class Replies:
    def __init__(self):
        self.sent = []

    def publish(self, _subject, payload):
        self.sent.append(payload)


class BulkheadMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.bus = Replies()
        self.responder = Responder(
            self.bus, SystemClock(), name="crm", max_parallel=PARALLEL, max_queued=QUEUED
        )
        self.jobs = []
        self.replies = 0

    def teardown(self):
        async def finish():
            for job in self.jobs:
                job.gate.set()
            await self.responder.drain(5)
            await asyncio.sleep(0)

        self.loop.run_until_complete(finish())
        assert (self.responder.in_flight, self.responder.queued) == (0, 0)
        assert not self.responder._works
        assert all(job.ended for job in self.jobs if not job.cancelled)
        self.loop.close()

    def settle(self):
        async def turns():
            for _ in range(10):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    def at_once(self, act):
        """What `act` gives, in one turn of the loop: no task gets its own in between."""

        async def turn():
            return act()

        return self.loop.run_until_complete(turn())

    def alive(self, *, bypass=False):
        return [
            job for job in self.jobs if not (job.ended or job.cancelled) and job.bypass is bypass
        ]

    def _arrive(self, caller, request, bypass, finishes, leaves=False):
        job = Job(caller, request, bypass, finishes)
        full = len(self.alive()) >= PARALLEL + QUEUED

        async def handle(who):
            assert who == caller
            job.begun = True
            if leaves:
                self.responder.give_up_place()
                self.responder.give_up_place()  # it has one at most
                job.bypass = True
            await job.gate.wait()
            job.ended = True
            return codec.ok("done")

        message = Message(
            f"mesh.v1.rpc.crm.search.{caller}",
            f"mesh.v1.re.crm.{caller}.c.1",
            codec.encode({"id": request}),
        )
        before = len(self.bus.sent)
        self.responder.serve(message, handle, bypass=bypass, finishes=finishes)
        refused = len(self.bus.sent) > before
        assert refused == (full and not bypass)
        self.replies += refused
        if not refused:
            self.jobs.append(job)

    @rule(
        caller=CALLERS,
        request=IDS,
        bypass=st.booleans(),
        finishes=st.booleans(),
        leaves=st.booleans(),
    )
    def arrive(self, caller, request, bypass, finishes, leaves):
        self.at_once(lambda: self._arrive(caller, request, bypass, finishes, leaves))

    @rule(caller=CALLERS, request=IDS, count=st.integers(2, 7))
    def burst(self, caller, request, count):
        """All before the first of them has had a turn of the loop."""

        def arrive():
            for _ in range(count):
                self._arrive(caller, request, bypass=False, finishes=False)

        self.at_once(arrive)

    @rule()
    def turn(self):
        self.settle()

    @rule(data=st.data())
    def end(self, data):
        if running := [job for job in self.jobs if job.begun and not job.ended]:
            data.draw(st.sampled_from(running)).gate.set()
            self.settle()

    @rule(caller=CALLERS, request=IDS)
    def cancel(self, caller, request):
        self.settle()
        hit = [
            job
            for job in self.alive() + self.alive(bypass=True)
            if request
            and (job.caller, job.id) == (caller, request)
            and not (job.begun and job.finishes)
        ]

        assert self.at_once(lambda: self.responder.cancel(caller, request)) == bool(hit)
        for job in hit:
            job.cancelled = True
        self.settle()

    @rule(caller=CALLERS)
    def cancel_what_has_just_come(self, caller):
        """Before its task has begun."""
        self.settle()
        had = len(self.jobs)

        def come_and_go():
            self._arrive(caller, "new", bypass=False, finishes=True)
            return self.responder.cancel(caller, "new")

        assert self.at_once(come_and_go) == (len(self.jobs) > had)
        for job in self.jobs[had:]:
            job.cancelled = True
        self.settle()

    @invariant()
    def books_are_right(self):
        alive = self.alive()
        assert self.responder.in_flight <= PARALLEL
        assert self.responder.in_flight + self.responder.queued == len(alive)
        self.settle()
        assert self.responder.in_flight == min(PARALLEL, len(alive))
        assert sum(job.begun for job in alive) == self.responder.in_flight
        assert all(job.begun for job in self.alive(bypass=True))
        assert len(self.bus.sent) == self.replies + sum(job.ended for job in self.jobs)


TestBulkhead = BulkheadMachine.TestCase
TestBulkhead.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
