"""What every `Bus` must do: the fake that unit tests trust, and the real one over a broker."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest
import pytest_asyncio
from fakes import MemoryBroker

from mesh.adapters.nats.bus import NatsBus
from mesh.config import NatsConfig
from mesh.errors import (
    DeadlineExceededError,
    DisconnectedError,
    NodeGoneError,
    NoRespondersError,
    TooLargeError,
)

SOON_S = 2.0
"""Longer than what is at once takes on a busy machine, shorter than `LATE_S`."""
LATE_S = 20.0
LIMIT = 2 * 1024 * 1024
SEARCH = "mesh.v1.rpc.crm.search.ops"


async def until(condition, within_s=10.0):
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)


class MemoryWorld:
    def __init__(self):
        self._broker = MemoryBroker(max_payload=LIMIT)

    async def bus(self, identity):
        return self._broker.bus(identity)

    async def stop(self):
        self._broker.stop()

    async def start(self):
        self._broker.start()

    async def close(self):
        for bus in self._broker.buses:
            await bus.close()


class NatsWorld:
    def __init__(self, broker):
        self._broker = broker
        self._buses = []

    async def bus(self, identity):
        config = NatsConfig(servers=[self._broker.url])
        bus = await NatsBus.connect(identity, config, login=self._broker.login())
        self._buses.append(bus)
        return bus

    async def stop(self):
        self._broker.kill()
        await until(lambda: not any(bus.connected for bus in self._buses))

    async def start(self):
        await asyncio.to_thread(self._broker.start)
        await until(lambda: all(bus.connected for bus in self._buses))
        for bus in self._buses:
            await bus.flush()  # what they were subscribed to is known again

    async def close(self):
        for bus in self._buses:
            await bus.close()


@pytest_asyncio.fixture(params=["memory", "nats"])
async def world(request):
    """A broker that keeps running."""
    real = request.param == "nats"
    made = NatsWorld(request.getfixturevalue("shared_broker")) if real else MemoryWorld()
    yield made
    await made.close()


@pytest_asyncio.fixture(params=["memory", "nats"])
async def frail(request):
    """A broker of the test's own, to `stop` and `start`."""
    real = request.param == "nats"
    made = NatsWorld(request.getfixturevalue("broker")) if real else MemoryWorld()
    yield made
    await made.close()


async def collect(bus, subject, **options):
    heard = []
    await bus.subscribe(subject, lambda message: heard.append(message.data), **options)
    return heard


async def answer(bus, subject="mesh.v1.rpc.crm.*.*", with_=None):
    """Answer every request with `with_`, or its own payload; returns what was asked."""
    asked = []

    def reply(message):
        asked.append(message.data)
        bus.publish(message.reply, message.data if with_ is None else with_)

    await bus.subscribe(subject, reply)
    return asked


async def ask(bus, payload=b"hello", *, timeout_s=LATE_S):
    return await bus.request(SEARCH, payload, responder="crm", timeout_s=timeout_s)


# -- requests --------------------------------------------------------------------------------------


async def test_request_gets_the_reply(world):
    crm, ops = await world.bus("crm"), await world.bus("ops")
    await answer(crm)
    assert (ops.identity, ops.connected) == ("ops", True)
    assert await ask(ops) == b"hello"
    assert await ask(ops, b"") == b""


async def test_every_request_gets_its_own_reply_whatever_their_order(world):
    crm, ops = await world.bus("crm"), await world.bus("ops")
    waiting = []

    def last_first(message):
        waiting.append(message)
        if len(waiting) == 20:
            for held in reversed(waiting):
                crm.publish(held.reply, held.data)

    await crm.subscribe("mesh.v1.rpc.crm.*.*", last_first)
    questions = [b"%d" % number for number in range(20)]
    assert await asyncio.gather(*(ask(ops, question) for question in questions)) == questions


async def test_a_request_names_its_subject_and_a_reply_subject_of_asker_and_asked(world):
    crm, ops = await world.bus("crm"), await world.bus("ops")
    heard = []

    def reply(message):
        heard.append(message)
        crm.publish(message.reply, b"")

    await crm.subscribe("mesh.v1.rpc.crm.*.*", reply)
    await ask(ops)
    assert heard[0].subject == SEARCH
    assert heard[0].reply.startswith("mesh.v1.re.crm.ops.")
    assert len(heard[0].reply.split(".")) == 7


async def test_two_connections_of_one_identity_hear_their_own_replies_alone(world):
    crm, one, two = await world.bus("crm"), await world.bus("ops"), await world.bus("ops")
    await answer(crm)
    questions = [b"%d" % number for number in range(20)]
    both = [ask(bus, question) for question in questions for bus in (one, two)]
    assert await asyncio.gather(*both) == [question for question in questions for _ in "12"]


async def test_nobody_there_is_known_at_once(world):
    ops = await world.bus("ops")
    began = time.monotonic()
    with pytest.raises(NoRespondersError):
        await ask(ops)
    assert time.monotonic() - began < SOON_S


async def test_silence_ends_at_the_timeout(world):
    crm, ops = await world.bus("crm"), await world.bus("ops")
    asked = await collect(crm, "mesh.v1.rpc.crm.*.*")
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        await ask(ops, timeout_s=0.1)
    assert 0.09 <= time.monotonic() - began < SOON_S
    assert asked == [b"hello"]


async def test_a_reply_that_comes_too_late_is_nobodys(world):
    crm, ops = await world.bus("crm"), await world.bus("ops")
    held = []

    def late(message):
        held.append(message)
        if len(held) == 2:
            for each in held:
                crm.publish(each.reply, each.data)

    await crm.subscribe("mesh.v1.rpc.crm.*.*", late)
    with pytest.raises(DeadlineExceededError):
        await ask(ops, b"first", timeout_s=0.1)
    assert await ask(ops, b"second") == b"second"


async def test_a_reply_of_a_node_that_was_not_asked_is_ignored(world):
    crm, ops = await world.bus("crm"), await world.bus("ops")

    def forge(message):
        crm.publish(message.reply.replace(".re.crm.", ".re.evil."), b"forged")
        if message.data == b"both":
            crm.publish(message.reply, b"true")

    await crm.subscribe("mesh.v1.rpc.crm.*.*", forge)
    with pytest.raises(DeadlineExceededError):
        await ask(ops, b"forged alone", timeout_s=0.2)
    assert await ask(ops, b"both") == b"true"


# -- publish and subscribe -------------------------------------------------------------------------


async def test_publish_reaches_everyone_whose_wildcard_matches_in_order(world):
    crm, ops = await world.bus("crm"), await world.bus("ops")
    matching = [
        await collect(bus, f"mesh.v1.{pattern}")
        for bus in (crm, ops)
        for pattern in ("evt.crm.changed", "evt.*.changed", "evt.crm.*", "evt.>", "*.crm.*", ">")
    ]
    others = [
        await collect(ops, f"mesh.v1.{pattern}")
        for pattern in ("evt.*", "evt.crm.changed.>", "evt.crm.changed.*", "evt.erp.>", "hb.>")
    ]
    sent = [b"%d" % number for number in range(10)]
    for payload in sent:
        crm.publish("mesh.v1.evt.crm.changed", payload)
    await until(lambda: all(len(heard) >= len(sent) for heard in matching))
    assert matching == [sent] * len(matching)
    assert others == [[]] * len(others)


async def test_publish_carries_no_reply_subject_and_nobody_need_listen(world):
    crm, ops = await world.bus("crm"), await world.bus("ops")
    heard = []
    await ops.subscribe("mesh.v1.evt.>", heard.append)
    crm.publish("mesh.v1.unheard.crm", b"x")
    crm.publish("mesh.v1.evt.crm.changed", b"y")
    await until(lambda: heard)
    assert [tuple(message) for message in heard] == [("mesh.v1.evt.crm.changed", "", b"y")]


async def test_one_of_a_queue_group_hears(world):
    crm = await world.bus("crm")
    subject = "mesh.v1.master.nodes.*"
    members = [await collect(await world.bus("master"), subject, queue="masters") for _ in range(3)]
    other_group = await collect(await world.bus("audit"), subject, queue="audit")
    everyone = await collect(await world.bus("tap"), subject)
    sent = sorted(b"%d" % number for number in range(60))
    for payload in sent:
        crm.publish("mesh.v1.master.nodes.ops", payload)
    await until(lambda: len(other_group) >= 60 and len(everyone) >= 60)
    await until(lambda: sum(map(len, members)) >= 60)
    assert sorted(itertools.chain(*members)) == sorted(other_group) == sorted(everyone) == sent
    assert all(members), "one member had no part of the work"


async def test_a_queue_group_is_one_however_its_members_put_the_subject(world):
    crm, one, two = await world.bus("crm"), await world.bus("master"), await world.bus("master")
    narrow = await collect(one, "mesh.v1.master.nodes.*", queue="masters")
    wide = await collect(two, "mesh.v1.master.*.ops", queue="masters")
    end = await collect(two, "mesh.v1.end")
    for _ in range(20):
        crm.publish("mesh.v1.master.nodes.ops", b"x")
    await crm.flush()
    crm.publish("mesh.v1.end", b"")
    await until(lambda: end and len(narrow + wide) >= 20)
    assert len(narrow + wide) == 20


async def test_unsubscribed_is_unheard(world):
    crm, ops = await world.bus("crm"), await world.bus("ops")
    asked = []

    def reply(message):
        asked.append(message.data)
        crm.publish(message.reply, b"gone soon")

    subscription = await crm.subscribe("mesh.v1.rpc.crm.*.*", reply)
    stays = await collect(crm, "mesh.v1.evt.>")
    assert await ask(ops) == b"gone soon"
    await subscription.unsubscribe()
    with pytest.raises(NoRespondersError):
        await ask(ops, b"too late")
    assert asked == [b"hello"]
    ops.publish("mesh.v1.evt.ops.x", b"x")
    await until(lambda: stays)


async def test_a_raising_handler_harms_nobody(world):
    crm, ops = await world.bus("crm"), await world.bus("ops")

    def bad(_message):
        raise ZeroDivisionError

    await crm.subscribe("mesh.v1.rpc.crm.*.*", bad)
    await answer(crm)
    assert [await ask(ops), await ask(ops)] == [b"hello", b"hello"]


# -- gather ----------------------------------------------------------------------------------------


async def test_gather_takes_what_several_answer_until_the_window_ends(world):
    ops = await world.bus("ops")
    for name in (b"a", b"b", b"c"):
        await answer(await world.bus(name.decode()), "$SRV.PING", with_=name)
    forger = await world.bus("evil")
    await forger.subscribe(
        "$SRV.PING",
        lambda message: forger.publish(message.reply.replace(".re.srv.", ".re.evil."), b"forged"),
    )
    began = time.monotonic()
    found = await ops.gather("$SRV.PING", b"", responder="srv", window_s=0.5)
    assert sorted(found) == [b"a", b"b", b"c"]
    assert 0.45 <= time.monotonic() - began < 0.5 + SOON_S


async def test_gather_ends_at_once_when_nobody_listens(world):
    ops = await world.bus("ops")
    began = time.monotonic()
    assert await ops.gather("$SRV.PING", b"", responder="srv", window_s=LATE_S) == []
    assert time.monotonic() - began < SOON_S


# -- limits ----------------------------------------------------------------------------------------


async def test_what_is_too_large_is_refused_and_the_connection_lives_on(world):
    crm, ops = await world.bus("crm"), await world.bus("ops")
    asked = await answer(crm)
    with pytest.raises(TooLargeError):
        ops.publish(SEARCH, b"x" * (LIMIT + 1))
    with pytest.raises(TooLargeError):
        await ask(ops, b"x" * (LIMIT + 1))
    with pytest.raises(TooLargeError):
        await ops.gather(SEARCH, b"x" * (LIMIT + 1), responder="crm", window_s=0.1)
    most = b"x" * LIMIT
    assert await ask(ops, most) == most
    assert asked == [most]


# -- outages ---------------------------------------------------------------------------------------


async def test_nothing_sent_in_an_outage_is_delivered_after_it(frail):
    crm, ops = await frail.bus("crm"), await frail.bus("ops")
    asked = await answer(crm)
    await frail.stop()
    assert not ops.connected
    with pytest.raises(DisconnectedError):
        ops.publish(SEARCH, b"stale")
    with pytest.raises(DisconnectedError):
        await ops.gather(SEARCH, b"stale", responder="crm", window_s=LATE_S)
    began = time.monotonic()
    with pytest.raises(DisconnectedError):
        await ask(ops, b"stale", timeout_s=0.2)
    assert time.monotonic() - began < 0.2 + SOON_S
    with pytest.raises((DisconnectedError, DeadlineExceededError)):
        await ops.flush(timeout_s=0.2)
    await frail.start()
    assert ops.connected
    assert await ask(ops, b"fresh") == b"fresh"
    assert asked == [b"fresh"]


async def test_a_request_in_flight_ends_when_the_broker_goes(frail):
    crm, ops = await frail.bus("crm"), await frail.bus("ops")
    asked = await collect(crm, "mesh.v1.rpc.crm.*.*")
    waiting = asyncio.create_task(ask(ops))
    await until(lambda: asked)
    await frail.stop()
    began = time.monotonic()
    with pytest.raises(DisconnectedError):
        await waiting
    assert time.monotonic() - began < SOON_S


async def test_gather_keeps_what_came_before_the_broker_went(frail):
    crm, ops = await frail.bus("crm"), await frail.bus("ops")
    asked = await answer(crm, "$SRV.PING", with_=b"crm")
    gathering = asyncio.create_task(ops.gather("$SRV.PING", b"", responder="srv", window_s=LATE_S))
    await until(lambda: asked)
    await asyncio.sleep(0.2)
    await frail.stop()
    began = time.monotonic()
    assert await gathering == [b"crm"]
    assert time.monotonic() - began < SOON_S


async def test_a_request_of_an_outage_is_sent_if_its_time_outlasts_it(frail):
    crm, ops = await frail.bus("crm"), await frail.bus("ops")
    await answer(crm)
    await frail.stop()
    waiting = asyncio.create_task(ask(ops))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await frail.start()
    try:
        assert await waiting == b"hello"
    except NoRespondersError:  # the asker was back before the node was
        assert await ask(ops) == b"hello"


async def test_listeners_hear_the_broker_go_and_come_even_if_one_of_them_raises(frail):
    ops = await frail.bus("ops")
    states = []

    def bad(_connected):
        raise ZeroDivisionError

    ops.on_connection(bad)
    ops.on_connection(states.append)
    assert states == []
    await frail.stop()
    await until(lambda: states)
    assert states == [False]
    await frail.start()
    await until(lambda: len(states) > 1)
    assert states == [False, True]
    await answer(await frail.bus("crm"))
    assert await ask(ops) == b"hello"


async def test_a_closed_connection_says_so_and_is_unheard(world):
    crm, ops = await world.bus("crm"), await world.bus("ops")
    await answer(crm)
    await crm.close()
    assert not crm.connected
    with pytest.raises(DisconnectedError):
        crm.publish("mesh.v1.evt.crm.x", b"")
    with pytest.raises(DisconnectedError):
        await crm.request(SEARCH, b"", responder="crm", timeout_s=LATE_S)
    with pytest.raises(DisconnectedError):
        await crm.subscribe("mesh.v1.evt.>", lambda _message: None)
    with pytest.raises(NoRespondersError):
        await ask(ops)


async def test_closing_sends_what_is_pending(world):
    crm, ops = await world.bus("crm"), await world.bus("ops")
    heard = await collect(ops, "mesh.v1.evt.>")
    crm.publish("mesh.v1.evt.crm.stopped", b"bye")
    await crm.close()
    await until(lambda: heard)
    assert heard == [b"bye"]


# -- asking without waiting ------------------------------------------------------------------------


async def test_what_is_asked_is_sent_at_once_and_answered_in_the_future(world):
    crm, ops = await world.bus("crm"), await world.bus("ops")
    asked = await answer(crm)
    pending = ops.ask(SEARCH, b"hello", responder="crm", timeout_s=LATE_S)
    try:
        assert await pending.future == b"hello"
    finally:
        pending.forget()
    assert asked == [b"hello"]


async def test_what_nobody_hears_and_what_nobody_answers_ends_the_future(world):
    crm, ops = await world.bus("crm"), await world.bus("ops")
    nobody = ops.ask(SEARCH, b"", responder="crm", timeout_s=LATE_S)
    with pytest.raises(NoRespondersError):
        await nobody.future
    await collect(crm, "mesh.v1.rpc.crm.*.*")
    silent = ops.ask(SEARCH, b"", responder="crm", timeout_s=0.05)
    with pytest.raises(DeadlineExceededError):
        await silent.future
    for pending in (nobody, silent):
        pending.forget()


async def test_a_request_that_was_forgotten_ends_no_more(world):
    crm, ops = await world.bus("crm"), await world.bus("ops")
    await answer(crm)
    pending = ops.ask(SEARCH, b"", responder="crm", timeout_s=0.05)
    pending.forget()
    assert await ask(ops) == b"hello"
    await asyncio.sleep(0.1)
    assert not pending.future.done()
    assert ops.abandon("crm", NodeGoneError("gone")) == 0


async def test_what_was_asked_of_one_can_be_abandoned_and_of_nobody_else(world):
    crm, shop, ops = await world.bus("crm"), await world.bus("shop"), await world.bus("ops")
    await collect(crm, "mesh.v1.rpc.crm.*.*")
    held = []
    await shop.subscribe("mesh.v1.rpc.shop.*.*", held.append)
    lost = [asyncio.create_task(ask(ops)) for _ in range(3)]
    other = ops.ask("mesh.v1.rpc.shop.ping.ops", b"", responder="shop", timeout_s=LATE_S)
    await until(lambda: held)
    assert ops.abandon("crm", NodeGoneError("gone")) == 3
    for each in await asyncio.gather(*lost, return_exceptions=True):
        assert isinstance(each, NodeGoneError)
    shop.publish(held[0].reply, b"here")
    assert await other.future == b"here"
    other.forget()
    assert ops.abandon("crm", NodeGoneError("gone")) == 0


async def test_while_the_broker_is_away_nothing_is_asked_and_its_return_can_be_waited_for(frail):
    crm, ops = await frail.bus("crm"), await frail.bus("ops")
    assert await ops.until_connected(1.0) <= 1.0
    await answer(crm)
    await frail.stop()
    with pytest.raises(DisconnectedError):
        ops.ask(SEARCH, b"", responder="crm", timeout_s=LATE_S)
    with pytest.raises(DisconnectedError):
        await ops.until_connected(0.05)
    waiting = asyncio.create_task(ops.until_connected(LATE_S))
    await asyncio.sleep(0.05)
    await frail.start()
    assert 0 < await waiting < LATE_S
