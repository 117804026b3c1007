"""The rate limit on the bus: off unless asked for, by caller, and never in a ping's way."""

from __future__ import annotations

import asyncio

import pytest
from audit_fakes import SteppedClock

from mesh.config import RateLimitConfig
from mesh.errors import OverloadedError
from mesh.ports import Message
from mesh.runtime.serving import Responder
from mesh.wire import codec

THREE_A_MINUTE = RateLimitConfig(bus=True, bus_max_attempts=3, period_s=60)


class World:
    """A responder, and who was answered what."""

    def __init__(self, rate_limit):
        self.clock = SteppedClock()
        self.sent = []
        self.responder = Responder(
            self, self.clock, name="crm", max_parallel=50, max_queued=50, rate_limit=rate_limit
        )

    def publish(self, subject, payload):
        self.sent.append((subject, payload))

    async def ask(self, caller, times, *, bypass=False):
        """How many were let in, and the refusals."""
        self.sent.clear()

        async def answer(_caller):
            return codec.ok("done")

        for _ in range(times):
            message = Message(f"mesh.v1.rpc.crm.x.{caller}", f"mesh.v1.re.crm.{caller}.c.1", b"{}")
            self.responder.serve(message, answer, bypass=bypass)
        await self.responder.drain(5)
        refusals = []
        for _, payload in self.sent:
            try:
                codec.result_of(payload, str)
            except OverloadedError as error:
                refusals.append(error)
        return times - len(refusals), refusals


async def test_a_caller_that_asks_too_often_is_told_when_to_come_back():
    world = World(THREE_A_MINUTE)
    let_in, refusals = await world.ask("ops", 5)
    assert let_in == 3
    assert [error.retry_after_ms for error in refusals] == [20_000, 20_000]
    await world.clock.step(19.9)
    assert (await world.ask("ops", 1))[0] == 0
    await world.clock.step(0.1)
    assert (await world.ask("ops", 2))[0] == 1


async def test_others_are_not_held_up_and_the_node_is_not_a_busy_one():
    world = World(THREE_A_MINUTE)
    await world.ask("ops", 10)
    assert (await world.ask("shop", 3))[0] == 3
    assert not world.responder.refused_within(60)


@pytest.mark.parametrize(
    ("caller", "bypass"), [("gateway", False), ("ops", True)], ids=["gateway", "ping"]
)
async def test_the_gateway_and_pings_are_exempt(caller, bypass):
    world = World(THREE_A_MINUTE)
    assert (await world.ask(caller, 50, bypass=bypass))[0] == 50


@pytest.mark.parametrize("rate_limit", [None, RateLimitConfig()], ids=["none", "the default"])
async def test_it_is_off_unless_asked_for(rate_limit):
    world = World(rate_limit)
    assert (await world.ask("ops", 100))[0] == 100


async def test_memory_is_bounded_however_many_call():
    world = World(THREE_A_MINUTE)
    for number in range(10_500):
        world.responder._too_often(f"caller-{number}")
    assert len(world.responder._limiter) <= 10_000
    await asyncio.sleep(0)
