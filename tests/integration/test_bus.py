"""The hardened client against a real broker: every way plain nats-py was seen to die or lie."""

from __future__ import annotations

import asyncio
import time

import pytest
import pytest_asyncio
import structlog

import mesh.adapters.nats.bus as bus_module
from mesh.adapters.clock import SystemClock
from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.keys import make_login
from mesh.adapters.nats.nkey import USER, make_seed
from mesh.config import NatsConfig
from mesh.errors import (
    DeadlineExceededError,
    DisconnectedError,
    ForbiddenError,
    InvalidError,
    NoMasterError,
    NoRespondersError,
    OverloadedError,
    TooLargeError,
    UnauthorizedError,
)
from mesh.ports import Login
from mesh.runtime.serving import Responder


@pytest_asyncio.fixture
async def connect(broker):
    opened = []

    async def make(identity="crm", **settings):
        config = NatsConfig(servers=[broker.url], **settings)
        made = await NatsBus.connect(identity, config, login=broker.login())
        opened.append(made)
        return made

    yield make
    for bus in opened:
        await bus.close()


async def echo_on(bus, node="crm"):
    """Answer every request to `node` with its own payload; returns what was received."""
    received = []

    def answer(message):
        received.append(message.data)
        bus.publish(message.reply, message.data)

    await bus.subscribe(f"mesh.v1.rpc.{node}.*.*", answer)
    return received


async def ask(bus, payload=b"hello", node="crm", timeout_s=2.0):
    subject = f"mesh.v1.rpc.{node}.echo.{bus.identity}"
    return await bus.request(subject, payload, responder=node, timeout_s=timeout_s)


async def until(condition, within_s=10.0):
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_request_gets_its_reply(connect):
    await echo_on(await connect())
    assert await ask(await connect("ops")) == b"hello"


async def test_nobody_there_is_known_at_once(connect):
    ops = await connect("ops")
    began = time.monotonic()
    with pytest.raises(NoRespondersError):
        await ask(ops, node="nobody", timeout_s=5)
    assert time.monotonic() - began < 1


async def test_silence_ends_at_the_timeout_and_leaves_nothing_behind(connect):
    crm, ops = await connect(), await connect("ops")
    await crm.subscribe("mesh.v1.rpc.crm.*.*", lambda _message: None)
    with pytest.raises(DeadlineExceededError, match="100 ms"):
        await ask(ops, timeout_s=0.1)
    assert len(ops._replies) == 0


async def test_cancelled_request_leaves_nothing_behind(connect):
    crm, ops = await connect(), await connect("ops")
    await crm.subscribe("mesh.v1.rpc.crm.*.*", lambda _message: None)
    task = asyncio.create_task(ask(ops))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(ops._replies) == 0


async def test_reply_of_a_node_that_was_not_asked_is_dropped(connect):
    crm, ops = await connect(), await connect("ops")

    def as_another(message):
        crm.publish(message.reply.replace(".re.crm.", ".re.evil."), b"forged")

    await crm.subscribe("mesh.v1.rpc.crm.*.*", as_another)
    with pytest.raises(DeadlineExceededError):
        await ask(ops, timeout_s=0.2)
    assert ops._replies.dropped == 1


async def test_two_connections_of_one_identity_do_not_hear_each_other(connect):
    crm, one, two = await connect(), await connect("ops"), await connect("ops")
    await echo_on(crm)
    await asyncio.gather(*(ask(bus, b"%d" % n) for n in range(20) for bus in (one, two)))
    assert (one._replies.dropped, two._replies.dropped) == (0, 0)


async def test_late_pong_does_not_kill_the_read_loop(broker, connect):
    """nats-py 2.16: a PONG after its flush timed out ends the read loop, silently."""
    await echo_on(await connect())
    ops = await connect("ops")
    broker.pause()
    with pytest.raises(DeadlineExceededError):
        await ops.flush(timeout_s=0.2)
    broker.resume()
    assert await ask(ops) == b"hello"


async def test_raising_handler_is_counted_and_harms_nobody(connect):
    crm, ops = await connect(), await connect("ops")

    def bad(_message):
        raise ZeroDivisionError

    await crm.subscribe("mesh.v1.evt.bad.*", bad)
    await echo_on(crm)
    ops.publish("mesh.v1.evt.bad.x", b"")
    assert await ask(ops) == b"hello"
    assert crm._client.handler_failures == 1


async def test_raising_connection_listener_harms_nobody(broker, connect):
    crm, ops = await connect(), await connect("ops")
    await echo_on(crm)

    def bad(_connected):
        raise ZeroDivisionError

    crm.on_connection(bad)
    broker.kill()
    await until(lambda: not (crm.connected or ops.connected))
    broker.start()
    await until(lambda: crm.connected and ops.connected)
    assert await ask(ops) == b"hello"


async def test_error_from_the_broker_means_log_in_again_not_close(connect):
    """nats-py closes for good on any -ERR, for example a payload that is too large."""
    crm, ops = await connect(), await connect("ops")
    await echo_on(crm)
    states = []
    ops.on_connection(states.append)
    huge = 3 * 1024 * 1024
    ops._client.write(b"PUB mesh.v1.evt.x.y %d\r\n" % huge + b"x" * huge + b"\r\n")
    await until(lambda: states == [False, True])
    assert await ask(ops) == b"hello"


async def test_headers_count_towards_the_limit(connect):
    """nats-py checks the payload alone; the broker then hangs up."""
    ops = await connect("ops")
    limit = ops._client.max_payload
    assert limit == 2 * 1024 * 1024
    with pytest.raises(TooLargeError, match=str(limit)):
        await ops.request_broker(
            "mesh.v1.history.a.b.c", b"x" * limit, timeout_s=1, headers={"Nats-Msg-Id": "1"}
        )
    with pytest.raises(TooLargeError):
        ops.publish("mesh.v1.evt.crm.x", b"x" * (limit + 1))
    assert ops.connected


async def test_nothing_asked_in_an_outage_is_executed_after_it(broker, connect):
    """nats-py keeps requests for later and sends them minutes after their callers gave up."""
    crm, ops = await connect(), await connect("ops")
    received = await echo_on(crm)
    broker.kill()
    await until(lambda: not ops.connected)
    with pytest.raises(DisconnectedError):
        ops.publish("mesh.v1.rpc.crm.echo.ops", b"stale")
    with pytest.raises(DisconnectedError):
        await ask(ops, b"stale", timeout_s=0.2)
    broker.start()
    await until(lambda: crm.connected and ops.connected)
    assert await ask(ops, b"fresh") == b"fresh"
    assert received == [b"fresh"]


async def answers(ops):
    try:
        return await ask(ops) == b"hello"
    except NoRespondersError:
        return False


async def test_request_waits_for_a_broker_that_is_back_in_time(broker, connect):
    crm, ops = await connect(), await connect("ops")
    await echo_on(crm)
    broker.kill()
    await until(lambda: not ops.connected)
    waiting = asyncio.create_task(ask(ops, timeout_s=10))
    broker.start()
    try:
        assert await waiting == b"hello"
    except NoRespondersError:  # we were back before the node was: honest, and over at once
        async with asyncio.timeout(10):
            while not await answers(ops):
                await asyncio.sleep(0.02)


async def test_request_in_flight_fails_when_the_broker_goes_not_at_its_timeout(broker, connect):
    crm, ops = await connect(), await connect("ops")
    await crm.subscribe("mesh.v1.rpc.crm.*.*", lambda _message: None)
    waiting = asyncio.create_task(ask(ops, timeout_s=30))
    await asyncio.sleep(0.1)
    broker.kill()
    began = time.monotonic()
    with pytest.raises(DisconnectedError):
        await waiting
    assert time.monotonic() - began < 5


async def test_comes_back_after_more_failures_than_nats_py_allows(broker, connect, monkeypatch):
    """nats-py gives up after 60 attempts and is then closed for good."""
    monkeypatch.setattr(bus_module, "_LAST_RETRY_S", 0.002)
    monkeypatch.setattr(bus_module, "_FIRST_RETRY_S", 0.001)
    crm, ops = await connect(), await connect("ops")
    await echo_on(crm)
    tried = 0
    delay = ops._delay

    def counted(attempt, longest_s):
        nonlocal tried
        tried += 1
        return delay(attempt, longest_s)

    monkeypatch.setattr(ops, "_delay", counted)
    broker.kill()
    await until(lambda: tried > 100)
    broker.start()
    await until(lambda: crm.connected and ops.connected)
    await crm.flush()  # the broker knows of its subscription again
    assert await ask(ops) == b"hello"


async def test_half_open_connection_is_noticed(broker, connect):
    ops = await connect("ops", ping_interval_s=0.1)
    broker.pause()
    await until(lambda: not ops.connected, within_s=5)
    broker.resume()
    await until(lambda: ops.connected)


async def test_slow_handlers_do_not_hold_each_other_up(connect):
    """nats-py runs callbacks of a subscription one at a time."""
    crm, ops = await connect(), await connect("ops")
    responder = Responder(crm, SystemClock(), name="crm", max_parallel=10, max_queued=10)
    gate = asyncio.Barrier(10)

    async def all_together(_caller):
        await gate.wait()
        return b"done"

    await crm.subscribe(
        "mesh.v1.rpc.crm.*.*", lambda message: responder.serve(message, all_together)
    )
    assert await asyncio.gather(*(ask(ops, timeout_s=5) for _ in range(10))) == [b"done"] * 10


async def test_congestion_is_refused_not_buffered_without_bound(broker, connect):
    ops = await connect("ops", max_pending_bytes=65_536)
    broker.pause()
    payload = b"x" * 1_000_000

    async def flood():
        for _ in range(100):
            ops.publish("mesh.v1.evt.ops.x", payload)
            await asyncio.sleep(0)

    with pytest.raises(OverloadedError):
        await flood()
    broker.resume()
    await ops.flush()


async def test_subject_cannot_smuggle_a_command(connect):
    ops = await connect("ops")
    for subject in ("mesh.v1.x 5\r\nhello\r\nPUB y", "a b", "a\tb"):
        with pytest.raises(InvalidError):
            ops.publish(subject, b"")


@pytest.mark.parametrize("identity", ["*", ">", "a.b", "a b", "", "x" * 65])
async def test_identity_that_widens_a_subscription_is_refused(broker, identity):
    with pytest.raises(InvalidError):
        await NatsBus.connect(identity, NatsConfig(servers=[broker.url]), login=broker.login())


async def test_a_key_that_the_broker_does_not_know_says_so(broker):
    stranger = Login(user="master", nkey=make_seed(USER))
    with pytest.raises(NoMasterError, match=r"no master answered.*`mesh-agent master`"):
        await NatsBus.connect("ops", NatsConfig(servers=[broker.url]), login=stranger)


async def test_without_credentials_it_says_where_to_give_them(broker):
    with pytest.raises(UnauthorizedError, match=r"nobody in without credentials.*--creds"):
        await NatsBus.connect("ops", NatsConfig(servers=[broker.url]))


@pytest.mark.parametrize(
    "login", [make_login("shop"), Login(user="gateway", nkey=make_seed(USER))], ids=["key", "nkey"]
)
async def test_credentials_of_somebody_else_are_not_tried(login):
    with pytest.raises(UnauthorizedError, match=f"credentials of '{login.user}', not of 'crm'"):
        await NatsBus.connect("crm", NatsConfig(servers=["nats://127.0.0.1:1"]), login=login)


async def test_of_several_servers_one_is_enough(broker):
    config = NatsConfig(servers=["nats://127.0.0.1:1", broker.url, "nats://127.0.0.1:2"])
    for _ in range(5):  # nats-py shuffles them
        bus = await NatsBus.connect("ops", config, login=broker.login())
        await bus.close()


@pytest_asyncio.fixture
async def gateway(broker):
    config = NatsConfig(servers=[broker.url])
    bus = await NatsBus.connect("gateway", config, login=broker.login("gateway"))
    yield bus
    await bus.close()


async def test_a_request_that_is_not_allowed_fails_at_once(gateway):
    waiting = gateway.request("mesh.v1.rpc.Crm.export.gateway", b"", responder="x", timeout_s=60)
    with pytest.raises(ForbiddenError, match=r"mesh\.v1\.rpc\.Crm\.export\.gateway: .*scope"):
        await waiting
    with pytest.raises(ForbiddenError):
        await gateway.request_broker("$JS.API.STREAM.LIST", b"", timeout_s=60)
    with pytest.raises(ForbiddenError):
        await gateway.gather("$SYS.REQ.SERVER.PING", b"", responder="x", window_s=60)
    assert len(gateway._replies) == 0


async def test_a_refused_request_fails_no_other_one(broker, gateway, connect):
    await echo_on(await connect())
    refused = gateway.request("mesh.v1.rpc.crm.echo.gateway", b"", responder="crm", timeout_s=60)
    allowed = gateway.request("mesh.v1.rpc.crm.ping.gateway", b"hi", responder="crm", timeout_s=60)
    failed, answer = await asyncio.gather(refused, allowed, return_exceptions=True)
    assert isinstance(failed, ForbiddenError)
    assert answer == b"hi"


@pytest.mark.parametrize("queue", ["", "masters"])
async def test_a_subscription_that_is_not_allowed_is_an_error_and_is_forgotten(
    broker, gateway, connect, queue
):
    heard = []
    with pytest.raises(ForbiddenError, match=r"subscribe to mesh\.v1\.rpc\.>"):
        await gateway.subscribe("mesh.v1.rpc.>", heard.append, queue=queue)
    await gateway.subscribe("mesh.v1.evt.>", heard.append)
    known = set(gateway._client._subs)
    broker.kill()
    broker.start()
    await until(lambda: gateway.connected)
    assert set(gateway._client._subs) == known == set(gateway._client._fast)
    assert len(known) == 2  # its replies, and the one that is allowed


async def test_messages_that_are_not_allowed_are_logged_and_do_not_flood_the_log(gateway):
    with structlog.testing.capture_logs() as logs:
        for _ in range(500):
            gateway.publish("mesh.v1.hb.crm", b"{}")
        await gateway.flush()
    (line,) = [line for line in logs if line["event"] == "mesh.bus.subject_denied"]
    assert (line["act"], line["subject"], line["identity"]) == (
        "publish",
        "mesh.v1.hb.crm",
        "gateway",
    )
    assert gateway.connected


async def test_no_broker_says_what_to_do_and_shows_no_password():
    config = NatsConfig(servers=["nats://me:secret@127.0.0.1:1"])
    with pytest.raises(DisconnectedError, match="mesh-agent up") as caught:
        await NatsBus.connect("ops", config)
    assert "secret" not in str(caught.value)


async def test_gather_takes_every_answer_of_the_window(connect):
    asker = await connect("ops")
    for name in ("a", "b"):
        bus = await connect(name)
        await bus.subscribe(
            "$SRV.PING", lambda message, bus=bus: bus.publish(message.reply, bus.identity.encode())
        )
    answers = await asker.gather("$SRV.PING", b"", responder="srv", window_s=0.5)
    assert sorted(answers) == [b"a", b"b"]
    assert await asker.gather("$SRV.NOBODY", b"", responder="srv", window_s=5) == []


async def test_unsubscribed_is_unheard(connect):
    crm, ops = await connect(), await connect("ops")
    subscription = await crm.subscribe("mesh.v1.rpc.crm.*.*", lambda _message: None)
    await subscription.unsubscribe()
    await crm.flush()
    with pytest.raises(NoRespondersError):
        await ask(ops)


async def test_patience_ends_and_does_not_spin():
    """nats-py tries for ever without a pause, and may swallow being cancelled."""
    config = NatsConfig(servers=["nats://127.0.0.1:1"])
    began, worked = time.monotonic(), time.process_time()
    with pytest.raises(DisconnectedError):
        await NatsBus.connect("ops", config, patience_s=1.0)
    assert 1.0 <= time.monotonic() - began < 5
    assert time.process_time() - worked < 0.5


async def test_patience_is_rewarded(broker):
    broker.stop()
    config = NatsConfig(servers=[broker.url])
    waiting = asyncio.create_task(
        NatsBus.connect("ops", config, patience_s=20, login=broker.login())
    )
    await asyncio.sleep(0.3)
    await asyncio.to_thread(broker.start)
    bus = await waiting
    assert bus.connected
    await bus.close()


@pytest.mark.parametrize(
    ("cut_after_s", "error"), [(0.0, DisconnectedError), (1.6, NoMasterError)], ids=["soon", "late"]
)
async def test_a_login_that_is_cut_before_its_answer_is_no_connection(cut_after_s, error):
    """As when the broker closes and its refusal is lost on the way."""

    async def cut(reader, writer):
        writer.write(b'INFO {"max_payload":1024,"auth_required":true}\r\n')
        await reader.readuntil(b"PING\r\n")
        await asyncio.sleep(cut_after_s)
        writer.close()

    async with await asyncio.start_server(cut, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(DisconnectedError) as raised:
            await NatsBus.connect(
                "crm", NatsConfig(servers=[f"nats://127.0.0.1:{port}"]), login=make_login("crm")
            )
    assert type(raised.value) is error
