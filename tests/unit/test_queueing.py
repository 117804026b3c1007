"""What is worth queueing, by what work has taken so far; and a node that heeds it."""

from __future__ import annotations

import asyncio

import pytest
from fakes import MemoryBroker
from virtual_time import LoopClock, virtual

from mesh.core.queueing import Queueing
from mesh.errors import DeadlineExceededError, MeshError, OverloadedError
from mesh.runtime.serving import Responder
from mesh.wire import codec

SERVICE_S, PLACES, QUEUED = 0.05, 10, 128
PATIENCE_S = 0.4
CAPACITY_PER_S = PLACES / SERVICE_S


def known(places, *took_ms, kind=""):
    queueing = Queueing(places)
    for each in took_ms:
        queueing.ended(each, kind=kind)
    return queueing


def test_the_wait_is_the_mean_time_of_those_before_over_the_places():
    assert known(10, 50.0).wait_ms(0) == 5.0
    assert known(10, 50.0).wait_ms(19) == 100.0
    assert known(1, *[20.0] * 50).wait_ms(1) == pytest.approx(40.0)


def test_while_nothing_is_known_everything_is_worth_queueing():
    assert Queueing(1).wait_ms(100) == 0.0
    assert Queueing(1).in_time(100, 1.0, kind="search")


def test_work_of_no_kind_must_begin_in_time_and_other_work_must_end():
    queueing = known(10, 50.0, kind="search")
    assert queueing.in_time(19, 100.0)
    assert not queueing.in_time(20, 100.0)
    assert not queueing.in_time(19, 100.0, kind="search")
    assert queueing.in_time(19, 200.0, kind="search")
    assert queueing.in_time(19, 100.0, kind="fetch"), "none has ended yet"


def test_kinds_share_the_queue_and_not_their_times():
    queueing = known(2, 10.0, kind="fetch")
    for _ in range(60):
        queueing.ended(1000.0, kind="import")
    assert queueing.wait_ms(0) > 400
    assert queueing.in_time(0, 600.0, kind="fetch")
    assert not queueing.in_time(0, 600.0, kind="import")


def test_what_was_stopped_early_does_not_make_a_node_quick():
    queueing = known(1, 100.0, kind="search")
    for _ in range(50):
        queueing.ended(1.0, kind="search", cut_short=True)
    assert queueing.wait_ms(0) == 100.0
    queueing.ended(200.0, kind="search", cut_short=True)
    assert queueing.wait_ms(0) > 100.0


# -- a node ----------------------------------------------------------------------------------------


class Overload:
    """A node in virtual time that is offered `rate` searches a second."""

    def __init__(self, *, queued=QUEUED):
        broker = MemoryBroker()
        self.clock = LoopClock()
        self.node, self.ops = broker.bus("crm"), broker.bus("ops")
        self.responder = Responder(
            self.node, self.clock, name="crm", max_parallel=PLACES, max_queued=queued
        )
        self.answered = self.begun = 0
        self.errors: list[MeshError] = []

    async def work(self, _caller, deadline):
        self.begun += 1
        left_s = (deadline - self.clock.unix_ms()) / 1000
        if left_s < SERVICE_S:
            await asyncio.sleep(max(0.0, left_s))
            raise DeadlineExceededError("nobody waits")
        await asyncio.sleep(SERVICE_S)
        return codec.ok("done")

    async def start(self):
        def heard(message):
            deadline = codec.decode(message.data, dict)["deadline"]
            self.responder.serve(
                message,
                lambda caller: self.work(caller, deadline),
                deadline=deadline,
                kind="search",
            )

        await self.node.subscribe("mesh.v1.rpc.crm.*.*", heard)

    async def ask(self, patience_s=PATIENCE_S):
        deadline = self.clock.unix_ms() + round(patience_s * 1000)
        try:
            reply = await self.ops.request(
                "mesh.v1.rpc.crm.search.ops",
                codec.encode({"deadline": deadline}),
                responder="crm",
                timeout_s=patience_s,
            )
            self.answered += codec.result_of(reply, str) == "done"
        except MeshError as error:
            self.errors.append(error)

    async def offer(self, rate, seconds):
        asked = []
        for _ in range(round(rate * seconds)):
            asked.append(asyncio.create_task(self.ask()))
            await asyncio.sleep(1 / rate)
        await asyncio.gather(*asked)


@virtual
async def test_half_as_much_again_as_a_node_can_do_is_refused_at_once_and_the_rest_is_done():
    world = Overload()
    await world.start()
    await world.offer(1.5 * CAPACITY_PER_S, 5)
    assert world.answered >= 0.9 * CAPACITY_PER_S * 5
    kinds = {type(error) for error in world.errors}
    assert OverloadedError in kinds
    late = [error for error in world.errors if type(error) is DeadlineExceededError]
    assert len(late) <= 0.05 * world.answered
    waits = [error.retry_after_ms for error in world.errors if isinstance(error, OverloadedError)]
    assert 200 <= max(waits) <= PATIENCE_S * 1000
    assert world.responder.refused_within(1)


@virtual
async def test_who_has_no_time_at_all_is_refused_and_does_not_make_it_a_busy_node():
    world = Overload()
    await world.start()
    await asyncio.gather(*(world.ask() for _ in range(PLACES)))
    running = [asyncio.create_task(world.ask()) for _ in range(PLACES)]
    await asyncio.sleep(0.01)
    await world.ask(patience_s=0.02)
    assert [type(error) for error in world.errors] == [OverloadedError]
    assert not world.responder.refused_within(60)
    await asyncio.gather(*running)
    assert world.answered == 2 * PLACES


@virtual
async def test_what_has_expired_in_the_queue_takes_no_place():
    """Nothing is known of the work yet, so it was let in."""
    world = Overload()
    await world.start()
    first = [asyncio.create_task(world.ask()) for _ in range(PLACES)]
    await asyncio.sleep(0.01)
    await asyncio.gather(*(world.ask(patience_s=0.02) for _ in range(5)))
    await asyncio.gather(*first)
    assert (world.begun, world.answered, world.responder.expired) == (PLACES, PLACES, 5)
    assert (world.responder.in_flight, world.responder.queued) == (0, 0)
