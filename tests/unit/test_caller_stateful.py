"""Whatever nodes, broker and table do: each call ends once and in time, nothing stays behind, and
the budget holds.
"""

from __future__ import annotations

import asyncio

from caller_world import HUNG, PONG, CallerWorld, route
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from virtual_time import VirtualLoop

from mesh.core.retry_budget import RetryBudget
from mesh.errors import (
    BadRequestError,
    DrainingError,
    InternalError,
    MeshError,
    OverloadedError,
)
from mesh.types import Health
from mesh.wire.messages import ActionRequest, PingResult

SLUGS = "abc"
slugs = st.sampled_from(SLUGS)
TIMEOUT_S = 1.0
ANSWERS = st.sampled_from(
    [
        PONG,
        PONG,
        PONG,
        HUNG,
        InternalError("bug"),
        BadRequestError("wrong"),
        DrainingError("bye"),
        OverloadedError("full", retry_after_ms=100),
    ]
)


class CallerMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.loop = VirtualLoop()
        self.run(self._begin())

    def run(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    async def _begin(self):
        self.world = CallerWorld(
            *SLUGS, breaker={"failure_threshold": 12, "retry_timeout_s": 1}, max_in_flight=16
        )
        caller = self.world.caller
        caller._budget = caller._routed._budget = RetryBudget(0.2, reserve=1)
        for slug in SLUGS:
            self.world.behave(slug)
        self.calls = 0
        self.lost = 0
        """Calls under way when the broker went: actions among them are asked again in any case."""
        self.ended = []
        self.running = {}
        self.routes = {slug: route(slug) for slug in SLUGS}

    @rule(kind=st.sampled_from(["ping", "search", "action"]), slug=slugs, many=st.integers(1, 5))
    def call(self, kind, slug, many):
        for _ in range(many):
            self.calls += 1
            task = self.loop.create_task(self._call(kind, slug, self.calls))
            self.running[self.calls] = task
        self.run(asyncio.sleep(0))

    async def _call(self, kind, slug, number):
        began = self.loop.time()
        try:
            if kind == "ping":
                await self.world.ping(TIMEOUT_S)
            elif kind == "search":
                await self.world.search(f"r{number}", TIMEOUT_S)
            else:
                await self._act(slug, number)
        except MeshError:
            pass
        finally:
            self.ended.append(number)
            del self.running[number]
            assert self.loop.time() - began <= TIMEOUT_S + 0.001

    async def _act(self, slug, number):
        request = ActionRequest(id=f"k{number}", action="work", params={})
        await self.world.caller.action(slug, "work", request, PingResult, TIMEOUT_S)

    @rule(many=st.integers(5, 12))
    def fail_everywhere(self, many):
        for slug in SLUGS:
            self.world.behave(slug, InternalError("bug"))
        self.call("ping", "a", many)
        self.run(asyncio.sleep(0.2))

    @rule(which=st.integers(0, 100))
    def cancel(self, which):
        if self.running:
            self.running[sorted(self.running)[which % len(self.running)]].cancel()
            self.run(asyncio.sleep(0))

    @rule(slug=slugs, answer=ANSWERS, after_s=st.sampled_from([0.0, 0.01, 0.3]))
    def behave(self, slug, answer, after_s):
        self.world.behave(slug, answer, after_s=after_s)

    @rule(slug=slugs)
    def leave(self, slug):
        if slug in self.world._listening:
            self.world.leave(slug)

    @rule(
        slug=slugs,
        health=st.sampled_from([Health.HEALTHY, Health.UNREACHABLE, Health.SUSPECT]),
        reborn=st.booleans(),
    )
    def hear_routes(self, slug, health, reborn):
        known = self.routes[slug]
        incarnation = known.incarnation + reborn
        self.routes[slug] = route(slug, health=health, incarnation=incarnation)

        async def know():
            self.world.know(*self.routes.values())

        self.run(know())

    @rule()
    def lose_the_broker(self):
        self.lost += len(self.running)

        async def gone():
            self.world.broker.stop()
            await asyncio.sleep(0.2)
            self.world.broker.start()

        self.run(gone())

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.5, 2.0]))
    def wait(self, seconds):
        self.run(asyncio.sleep(seconds))

    @invariant()
    def repetitions_stay_within_the_budget(self):
        sent = len(self.world.asked)
        assert sent <= 1.25 * self.calls + 1 + self.lost

    @invariant()
    def each_call_ends_once(self):
        assert len(self.ended) == len(set(self.ended))
        assert len(self.ended) + len(self.running) <= self.calls

    def teardown(self):
        try:
            self.run(asyncio.sleep(TIMEOUT_S + 0.1))
            assert not self.running
            assert self.world.in_flight() == 0
            assert not self.world.bus._waiting
            assert self.world.broker.handler_failures == 0
        finally:
            self.loop.close()


TestCaller = CallerMachine.TestCase
TestCaller.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
