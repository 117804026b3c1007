"""Probes that overtake each other: one runs, one more follows, and a lost one is not waited for."""

from __future__ import annotations

import asyncio

import pytest

from mesh.adapters.clock import SystemClock
from mesh.errors import NoRespondersError
from mesh.runtime.background import Background
from mesh.runtime.prober import Answered, Failed, Prober
from mesh.wire import codec
from mesh.wire.messages import PingResult

PONG = codec.ok(PingResult(node="crm", incarnation=7))
TIMEOUT_S = 0.3


class SlowBus:
    """Requests wait until they are answered by hand, or time out."""

    identity = "master"

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[bytes]] = []
        self.open = self.most_open = 0

    async def request(self, subject, payload, *, responder, timeout_s):
        self.asked.append(asyncio.get_running_loop().create_future())
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            return await self.asked[-1]
        finally:
            self.open -= 1


class Asking:
    def __init__(self) -> None:
        self.bus = SlowBus()
        self.results: list[Answered | Failed] = []
        self.background = Background(SystemClock())
        self.prober = Prober(
            self.bus,
            SystemClock(),
            self.background,
            timeout_s=TIMEOUT_S,
            report=self.results.append,
        )

    async def until_asked(self, times: int) -> None:
        async with asyncio.timeout(2):
            while len(self.bus.asked) < times:
                await asyncio.sleep(0.001)

    async def until_told(self, times: int) -> None:
        async with asyncio.timeout(2):
            while len(self.results) < times:
                await asyncio.sleep(0.001)


@pytest.fixture
async def asking():
    asking = Asking()
    yield asking
    await asking.background.stop()
    assert asking.background.failures == 0


async def test_many_who_ask_at_once_make_one_ping_and_one_more(asking):
    for _ in range(50):
        asking.prober.request("crm")
    await asking.until_asked(1)
    for _ in range(50):
        asking.prober.request("crm")
    asking.bus.asked[0].set_result(PONG)
    await asking.until_asked(2)
    asking.bus.asked[1].set_result(PONG)
    await asking.until_told(2)
    await asyncio.sleep(0.02)
    assert len(asking.bus.asked) == 2
    assert asking.bus.most_open == 1


async def test_a_ping_that_may_be_lost_is_asked_again_at_once(asking):
    """It went to a process that has died since, and nobody will ever answer it."""
    asking.prober.request("crm", again=False)
    await asking.until_asked(1)
    asking.prober.request("crm", again=False)
    await asking.until_asked(2)
    asking.bus.asked[1].set_exception(NoRespondersError())
    await asking.until_told(1)
    assert asking.results == [Failed("crm", no_responders=True)]
    assert asking.bus.asked[0].cancelled()


async def test_the_same_question_again_does_not_cut_off_the_first(asking):
    asking.prober.request("crm", again=False)
    await asking.until_asked(1)
    asking.prober.request("crm", again=True)
    await asyncio.sleep(0.05)
    assert len(asking.bus.asked) == 1


async def test_an_answer_that_is_on_its_way_still_counts(asking):
    asking.prober.request("crm", again=False)
    await asking.until_asked(1)
    asking.prober.request("crm", again=False)
    asking.bus.asked[0].set_result(PONG)
    await asking.until_told(1)
    assert isinstance(asking.results[0], Answered)


async def test_doubts_without_end_do_not_keep_a_slow_node_from_answering(asking):
    """Each time it is asked again there is twice as long to answer."""
    asking.prober.request("crm", again=False)
    for _ in range(200):
        asking.prober.request("crm", again=False)
        await asyncio.sleep(0.001)
    assert len(asking.bus.asked) < 8
    asking.bus.asked[-1].set_result(PONG)
    await asking.until_told(1)


async def test_a_probe_that_is_awaited_has_been_reported(asking):
    probing = asyncio.create_task(asking.prober.probe("crm"))
    await asking.until_asked(1)
    asking.prober.request("crm", again=False)
    await asking.until_asked(2)
    asking.bus.asked[1].set_result(PONG)
    await probing
    assert [one.node for one in asking.results] == ["crm"]
