"""The bulkhead: how much runs at once, what is refused, where answers may go."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter

import pytest
import pytest_asyncio
import structlog

from mesh.adapters.clock import SystemClock
from mesh.adapters.nats.bus import NatsBus
from mesh.config import NatsConfig
from mesh.errors import (
    DeadlineExceededError,
    InternalError,
    NoRespondersError,
    NotFoundError,
    OverloadedError,
    TooLargeError,
)
from mesh.runtime.serving import Responder
from mesh.wire import codec


@pytest_asyncio.fixture
async def pair(shared_broker):
    config = NatsConfig(servers=[shared_broker.url])
    crm = await NatsBus.connect("crm", config, login=shared_broker.login())
    ops = await NatsBus.connect("ops", config, login=shared_broker.login())
    yield crm, ops
    await crm.close()
    await ops.close()


async def serve(crm, handler, *, bypass=False, **limits):
    limits = {"max_parallel": 2, "max_queued": 3} | limits
    responder = Responder(crm, SystemClock(), name="crm", **limits)
    await crm.subscribe(
        "mesh.v1.rpc.crm.*.*", lambda message: responder.serve(message, handler, bypass=bypass)
    )
    return responder


async def ask(ops, timeout_s=5.0):
    reply = await ops.request("mesh.v1.rpc.crm.x.ops", b"{}", responder="crm", timeout_s=timeout_s)
    return codec.result_of(reply, str)


async def test_excess_is_refused_at_once_with_a_time_to_come_back(pair):
    crm, ops = pair
    gate, running, most = asyncio.Event(), 0, 0

    async def slow(_caller):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        return codec.ok("done")

    responder = await serve(crm, slow)
    taken = [asyncio.create_task(ask(ops)) for _ in range(5)]
    while (responder.in_flight, responder.queued) != (2, 3):
        await asyncio.sleep(0.01)
    with pytest.raises(OverloadedError) as caught:
        await ask(ops)
    assert caught.value.retryable
    assert caught.value.retry_after_ms >= 50
    assert responder.refused_within(5)
    gate.set()
    assert await asyncio.gather(*taken) == ["done"] * 5
    assert most == 2
    assert (responder.in_flight, responder.queued) == (0, 0)


async def test_what_was_asked_is_forgotten_with_its_answer(pair):
    """Not when the garbage collector comes: a request may be a megabyte."""
    crm, ops = pair
    heard, started = [], []

    class Handler:
        async def __call__(self, _caller):
            started.append(asyncio.create_task(asyncio.sleep(60)))  # has a copy of the context
            return codec.ok("done")

    responder = Responder(crm, SystemClock(), name="crm", max_parallel=2, max_queued=3)

    def serve_it(message):
        handler = Handler()
        heard.append(weakref.ref(handler))
        responder.serve(message, handler)

    await crm.subscribe("mesh.v1.rpc.crm.*.*", serve_it)
    gc.disable()
    try:
        for _ in range(3):
            assert await ask(ops) == "done"
        await asyncio.sleep(0.05)
        assert [each() for each in heard] == [None] * 3
    finally:
        gc.enable()
        for task in started:
            task.cancel()


async def test_ping_is_answered_by_a_node_that_is_full(pair):
    crm, ops = pair

    async def pong(_caller):
        return codec.ok("pong")

    await serve(crm, pong, bypass=True, max_parallel=1, max_queued=0)
    assert await asyncio.gather(*(ask(ops) for _ in range(20))) == ["pong"] * 20


async def test_a_bug_is_internal_with_a_reference_and_no_details(pair):
    crm, ops = pair

    async def buggy(_caller):
        raise RuntimeError("secret detail")

    await serve(crm, buggy)
    with pytest.raises(InternalError) as caught:
        await ask(ops)
    assert "secret" not in str(caught.value)
    assert len(caught.value.reference) == 16


async def test_our_errors_arrive_as_they_are(pair):
    crm, ops = pair

    async def missing(_caller):
        raise NotFoundError("no such thing")

    await serve(crm, missing)
    with pytest.raises(NotFoundError, match="no such thing"):
        await ask(ops)


async def test_answer_that_does_not_fit_says_so(pair):
    crm, ops = pair

    async def huge(_caller):
        return codec.ok("x" * 3_000_000)

    await serve(crm, huge)
    with pytest.raises(TooLargeError, match="ask for less"):
        await ask(ops)


@pytest.mark.parametrize(
    "reply", ["_INBOX.x", "mesh.v1.re.crm.other.c.1", "mesh.v1.hb.crm", "mesh.v1.rpc.crm.x.ops"]
)
async def test_answer_goes_nowhere_but_to_its_caller(pair, reply):
    """Else a request could make a node publish where the caller may not."""
    crm, ops = pair
    ran = []

    async def handler(caller):
        ran.append(caller)
        return codec.ok("x")

    responder = await serve(crm, handler)
    ops._send("mesh.v1.rpc.crm.x.ops", reply.encode(), b"{}", b"")
    while not responder.dropped:
        await asyncio.sleep(0.01)
    assert not ran


async def test_drops_beyond_number_are_a_line_a_second(pair):
    """Anybody with a login can cause them."""
    crm, ops = pair
    responder = await serve(crm, None)
    with structlog.testing.capture_logs() as lines:
        for _ in range(500):
            ops._send("mesh.v1.rpc.crm.x.ops", b"_INBOX.x", b"{}", b"")
        while responder.dropped < 500:
            await asyncio.sleep(0.01)
    told = [line for line in lines if line["event"] == "mesh.serving.message_dropped"]
    assert 1 <= len(told) <= 5


async def test_every_request_to_a_door_that_closes_is_answered_or_never_received(pair):
    """What was on its way when interest was withdrawn is heard: its caller would wait in vain."""
    crm, ops = pair

    async def pong(_caller):
        return codec.ok("pong")

    responder = Responder(crm, SystemClock(), name="crm", max_parallel=8, max_queued=10_000)
    door = await crm.subscribe(
        "mesh.v1.rpc.crm.*.*", lambda message: responder.serve(message, pong)
    )
    asked = []

    async def offer():
        for _ in range(60):
            asked.extend(asyncio.create_task(ask(ops, timeout_s=5)) for _ in range(20))
            await asyncio.sleep(0.001)

    offering = asyncio.create_task(offer())
    await asyncio.sleep(0.03)
    await door.unsubscribe()
    await responder.drain(5)
    await offering
    ends = Counter(
        end if isinstance(end, str) else type(end)
        for end in await asyncio.gather(*asked, return_exceptions=True)
    )
    assert set(ends) == {"pong", NoRespondersError}


async def test_drain_lets_work_finish_and_ends_what_does_not(pair):
    crm, ops = pair
    cancelled = []

    async def work(_caller):
        try:
            await asyncio.sleep(0.1 if not cancelled else 60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return codec.ok("done")

    responder = await serve(crm, work)
    finishing = asyncio.create_task(ask(ops))
    while not responder.in_flight:
        await asyncio.sleep(0.01)
    await responder.drain(5)
    assert await finishing == "done"
    cancelled.append(True)
    hanging = asyncio.create_task(ask(ops, timeout_s=0.5))
    while not responder.in_flight:
        await asyncio.sleep(0.01)
    await responder.drain(0.05)
    assert responder.in_flight == 0
    with pytest.raises(DeadlineExceededError):
        await hanging
