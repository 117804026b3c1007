"""Logins through the real broker, with a judge in the test instead of a whole master."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import nats
import psutil
import pytest
import pytest_asyncio
import structlog
from raw_login import flood, try_login

from mesh.adapters.clock import SystemClock
from mesh.adapters.nats import callout
from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.callout import NatsDoorman
from mesh.adapters.nats.keys import make_login
from mesh.config import NatsConfig
from mesh.core import permissions
from mesh.core.permissions import Permissions
from mesh.errors import DisconnectedError, ForbiddenError, NoMasterError, UnauthorizedError
from mesh.ports import Login, LoginAttempt, LoginGrant

CRM = make_login("crm")
SHOP = make_login("shop")


class Judge:
    """Knows two nodes; `behave` may do something else first."""

    def __init__(self) -> None:
        self.seen: list[LoginAttempt] = []
        self.keys = {login.user: login.password for login in (CRM, SHOP)}
        self.behave = None
        self.until = None

    async def __call__(self, attempt: LoginAttempt) -> LoginGrant:
        self.seen.append(attempt)
        if self.behave is not None:
            changed = await self.behave(attempt)
            if changed is not None:
                return changed
        if self.keys.get(attempt.user) != attempt.secret:
            raise UnauthorizedError("no such name, or not its key")
        return LoginGrant(attempt.user, permissions.of_node(attempt.user), self.until)


class Door:
    """The masters' side, opened and closed by the test."""

    def __init__(self, broker) -> None:
        self.broker = broker
        self.judge = Judge()
        self.doorman: NatsDoorman | None = None
        self.bus: NatsBus | None = None
        self.opened: list[NatsBus] = []

    async def open(self) -> None:
        config = NatsConfig(servers=[self.broker.url])
        keys = self.broker.keys
        self.bus = await NatsBus.connect("auth", config, login=keys.auth_login())
        self.doorman = NatsDoorman(self.bus, keys, SystemClock())
        await self.doorman.start(self.judge)

    async def close(self) -> None:
        if self.doorman is not None:
            await self.doorman.stop()
            await self.bus.close()
            self.doorman = None

    async def connect(self, login: Login | None, *, patience_s=0.0) -> NatsBus:
        config = NatsConfig(servers=[self.broker.url])
        identity = login.user if login else "anybody"
        bus = await NatsBus.connect(identity, config, login=login, patience_s=patience_s)
        self.opened.append(bus)
        return bus


@pytest_asyncio.fixture
async def door(broker):
    made = Door(broker)
    await made.open()
    yield made
    for bus in made.opened:
        await bus.close()
    await made.close()


async def until(condition, within_s=10.0):
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


def raw_login(broker, **shown: object) -> bytes:
    """What the server answers to a CONNECT with exactly these fields."""
    with socket.create_connection(("127.0.0.1", broker.port), timeout=10) as connection:
        words = connection.makefile("rb")
        words.readline()  # INFO
        hello = {"verbose": False, "pedantic": False, "lang": "test", "version": "1", **shown}
        connection.sendall(b"CONNECT " + json.dumps(hello).encode() + b"\r\nPING\r\n")
        return words.readline().strip()


REFUSED = b"-ERR 'Authorization Violation'"


async def test_the_right_key_opens_what_is_granted_and_nothing_else(door):
    crm = await door.connect(CRM)
    await crm.subscribe("mesh.v1.rpc.crm.>", lambda _message: None)
    with pytest.raises(ForbiddenError):
        await crm.subscribe("mesh.v1.rpc.shop.>", lambda _message: None)
    with pytest.raises(ForbiddenError):
        await crm.request("mesh.v1.rpc.shop.search.crm", b"", responder="shop", timeout_s=30)
    assert crm.connected
    (attempt,) = door.judge.seen
    assert (attempt.user, attempt.secret, attempt.address) == ("crm", CRM.password, "127.0.0.1")
    assert door.doorman.dropped == 0


async def test_two_nodes_are_kept_apart(door):
    crm, shop = await door.connect(CRM), await door.connect(SHOP)
    await crm.subscribe("mesh.v1.rpc.crm.>", lambda m: crm.publish(m.reply, b"hi"))
    reply = await shop.request("mesh.v1.rpc.crm.export.shop", b"", responder="crm", timeout_s=5)
    assert reply == b"hi"
    with pytest.raises(ForbiddenError):
        await shop.request("mesh.v1.rpc.crm.export.crm", b"", responder="crm", timeout_s=30)


@pytest.mark.parametrize(
    "login",
    [
        Login(user="crm", password=SHOP.password),
        Login(user="crm", password=CRM.password[:-1]),
        Login(user="stranger", password=CRM.password),
    ],
    ids=["key of another", "truncated", "unknown"],
)
async def test_the_wrong_key_is_refused_at_once(door, login):
    began = asyncio.get_running_loop().time()
    with pytest.raises(UnauthorizedError, match=f"refused the login of '{login.user}'"):
        await door.connect(login)
    assert asyncio.get_running_loop().time() - began < 1.5


ODD = ["*", ">", "crm.*", "crm.>", "", " ", "crm crm", "x" * 65, "x" * 3000, "\u0000", "krm\u0456"]


async def all_refused(door: Door, names: list[str]) -> None:
    tries = (asyncio.to_thread(raw_login, door.broker, user=n, **{"pass": "x"}) for n in names)
    answers = await asyncio.gather(*tries)
    assert dict(zip(names, answers, strict=True)) == dict.fromkeys(names, REFUSED)


async def test_a_name_that_could_be_a_wildcard_gets_nothing_whatever_the_judge_says(door):
    """Also where the judge has a bug and lets it in, with permissions of its making."""

    async def fooled(attempt):
        return LoginGrant(attempt.user, Permissions(("mesh.v1.hb.x",), ("mesh.v1.routes",)))

    door.judge.behave = fooled
    assert await asyncio.to_thread(raw_login, door.broker, user="ok", **{"pass": "x"}) == b"PONG"
    await all_refused(door, ODD)
    assert {attempt.user for attempt in door.judge.seen} >= {"*", ">", "crm.>", "x" * 3000}


CARELESS = {
    "none": Permissions((), ()),
    "no publish": Permissions((), ("mesh.v1.routes",)),
    "no subscribe": Permissions(("mesh.v1.hb.crm",), ()),
    "all": Permissions((">",), ("mesh.v1.routes",)),
    "star first": Permissions(("*.v1.x",), ("mesh.v1.routes",)),
    "blank": Permissions(("mesh.v1.hb crm",), ("mesh.v1.routes",)),
    "inner": Permissions(("mesh.v1.>.crm",), ("mesh.v1.routes",)),
    "no token": Permissions(("mesh..crm",), ("mesh.v1.routes",)),
    "empty": Permissions(("mesh.v1.hb.crm",), ("",)),
}


async def test_permissions_that_would_mean_more_are_not_signed(door):
    """To nats-server an empty list means every subject."""

    async def careless(attempt):
        return LoginGrant("crm", CARELESS[attempt.user])

    door.judge.behave = careless
    await all_refused(door, list(CARELESS))


async def test_no_credentials_and_a_token_instead_of_a_name_are_refused(door):
    for shown in ({}, {"auth_token": CRM.password}, {"user": "crm"}, {"pass": CRM.password}):
        assert await asyncio.to_thread(raw_login, door.broker, **shown) == REFUSED
    with pytest.raises(UnauthorizedError):
        await door.connect(None)


async def test_no_key_of_a_static_user_lets_anybody_in_by_its_name(door):
    """Nor does the judge of names ever let somebody in as one of them."""
    for user in ("master", "gateway", "sys", "auth", door.broker.keys.nkey):
        answer = await asyncio.to_thread(raw_login, door.broker, user=user, **{"pass": "x"})
        assert answer == REFUSED


async def test_a_public_nkey_without_its_signature_is_refused(door):
    keys = json.loads(door.broker.credentials("broker").read_bytes())
    for user in ("master", "gateway", "auth", "sys"):
        for more in ({}, {"sig": "AAAA"}, {"sig": ""}):
            answer = await asyncio.to_thread(raw_login, door.broker, nkey=keys[user], **more)
            assert answer == REFUSED


async def test_a_judge_that_cannot_tell_lets_nobody_in_and_is_asked_again(door):
    async def broken(_attempt):
        raise ZeroDivisionError

    door.judge.behave = broken
    with pytest.raises(NoMasterError):
        await door.connect(CRM)
    door.judge.behave = None
    assert (await door.connect(CRM)).connected


async def test_hanging_judges_do_not_shut_the_door_for_good(door, monkeypatch):
    async def hang(_attempt):
        await asyncio.Event().wait()

    door.judge.behave = hang
    waiting = [asyncio.create_task(door.connect(CRM)) for _ in range(80)]
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, DisconnectedError) for result in results), results
    door.judge.behave = None
    assert (await door.connect(CRM)).connected


async def test_until_ends_the_connection_and_the_next_login_decides(door):
    """A login during the overlap of two keys ends with it; the client is not closed for good."""
    clock = SystemClock()
    door.judge.until = clock.unix_ms() // 1000 + 2
    crm = await door.connect(CRM)
    states = []
    crm.on_connection(states.append)
    door.judge.until = None
    await until(lambda: states == [False, True])
    assert len(door.judge.seen) == 2


@pytest.mark.alone
async def test_three_hundred_at_once(door):
    async with asyncio.timeout(60):  # correctness; the figure is measured in tests/bench
        buses = await asyncio.gather(*(door.connect(CRM) for _ in range(300)))
    assert all(bus.connected for bus in buses)
    assert door.doorman.dropped == 0


@pytest.mark.alone
async def test_a_flood_of_bad_logins_leaves_service_and_memory_as_they_were(door):
    crm, shop = await door.connect(CRM), await door.connect(SHOP)
    await crm.subscribe("mesh.v1.rpc.crm.>", lambda m: crm.publish(m.reply, b"hi"))

    async def bad(count: int) -> None:
        hello = b'CONNECT {"user":"crm","pass":"wrong"}\r\nPING\r\n'
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", door.broker.port)
            await reader.readline()
            writer.write(hello)
            await writer.drain()
            assert (await reader.readline()).startswith(b"-ERR")
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def flood(count: int) -> None:
        await asyncio.gather(*(bad(count // 20) for _ in range(20)))
        door.judge.seen.clear()

    await flood(200)
    before = psutil.Process().memory_info().rss
    flooding = asyncio.create_task(flood(2000))
    answers = 0
    while not flooding.done():
        assert await shop.request("mesh.v1.rpc.crm.export.shop", b"", responder="crm", timeout_s=5)
        answers += 1
        await asyncio.sleep(0.01)
    await flooding
    grown = psutil.Process().memory_info().rss - before
    assert answers > 10
    assert grown < 8 * 1024 * 1024, f"{grown} bytes more than before"
    assert (await door.connect(SHOP)).connected


@pytest.mark.alone
async def test_in_a_flood_beyond_what_can_be_judged_good_logins_get_in(door):
    """Twice as many come as can be judged. First come, first served would answer all too late."""

    async def slow(_attempt):
        await asyncio.sleep(0.4)  # most of it waits, whatever the machine

    door.judge.behave = slow
    capacity = callout.JUDGED_AT_ONCE / 0.4
    bad = [(f"n{number}", "wrong") for number in range(round(2 * capacity * 4))]
    flooding = asyncio.create_task(flood(door.broker.url, bad, per_s=2 * capacity))
    await asyncio.sleep(1.5)  # whoever asks for a turn in a queue has to wait too long by now
    tries = [try_login(door.broker.url, CRM.user, CRM.password) for _ in range(30)]
    at_once = []
    for each in tries:
        at_once.append(asyncio.create_task(each))
        await asyncio.sleep(0.05)
    let_in = await asyncio.gather(*at_once)
    assert sum(let_in) >= 5, "about half"
    assert await flooding == 0
    assert door.doorman.dropped > 0


async def test_what_is_no_request_of_a_server_is_dropped_and_counted(door):
    """Only the masters' own login can say anything there; that must not take a master down."""
    config = NatsConfig(servers=[door.broker.url])
    for data in (b"", b"{}", b"xkv1" + b"x" * 200, b"a.b.c", b"x" * 100_000):
        door.doorman._heard(b"$SYS.REQ.USER.AUTH", b"$SYS._INBOX.x", data, None)
        door.doorman._heard(b"$SYS.REQ.USER.AUTH", b"", data, b"NATS/1.0\r\nNats-Server-Xkey:\r\n")
    await until(lambda: door.doorman.dropped == 10)
    other = await NatsBus.connect("auth", config, login=door.broker.keys.auth_login())
    with pytest.raises(ForbiddenError):
        await other.request("$SYS.REQ.USER.AUTH", b"x", responder="x", timeout_s=5)
    await other.close()
    assert (await door.connect(CRM)).connected


async def test_more_than_can_wait_are_dropped(door):
    doorman = NatsDoorman(door.bus, door.broker.keys, SystemClock())  # nobody works off its queue
    for _ in range(callout.MOST_WAITING + 7):
        doorman._heard(b"", b"$SYS._INBOX.x", b"x" * 10, None)
    assert doorman.dropped == 7


async def test_any_of_several_masters_answers(door):
    other = Door(door.broker)
    await other.open()
    await asyncio.gather(*(door.connect(CRM) for _ in range(30)))
    assert len(door.judge.seen) + len(other.judge.seen) == 30
    assert door.judge.seen
    assert other.judge.seen
    await other.close()
    await asyncio.gather(*(door.connect(CRM) for _ in range(5)))


async def test_live_connections_do_not_need_a_master(door):
    crm = await door.connect(CRM)
    await door.close()
    await crm.flush()
    with pytest.raises(NoMasterError, match=r"no master answered the login of 'shop'"):
        await door.connect(SHOP)
    assert crm.connected


async def test_a_login_waits_for_a_master_and_says_so(door):
    await door.close()
    with structlog.testing.capture_logs() as logs:
        waiting = asyncio.create_task(door.connect(CRM, patience_s=30))
        await asyncio.sleep(2.5)
        await door.open()
        began = asyncio.get_running_loop().time()
        assert (await waiting).connected
    assert asyncio.get_running_loop().time() - began < 5
    (line,) = [line for line in logs if line["event"] == "mesh.bus.login_awaited"]
    assert "mesh-agent master" in line["error"]


async def test_who_is_refused_after_an_outage_comes_back_when_a_master_lets_him(door, broker):
    """nats-py closes for good on a refused login."""
    crm = await door.connect(CRM)
    states = []
    crm.on_connection(states.append)
    key = door.judge.keys.pop("crm")
    door.judge.seen.clear()
    with structlog.testing.capture_logs() as logs:
        await asyncio.to_thread(broker.kill)
        await asyncio.to_thread(broker.start)
        await until(lambda: len(door.judge.seen) >= 5, within_s=20)
    told = [line for line in logs if line["event"] == "mesh.bus.login_awaited"]
    assert len(told) == 1  # the masters' connection comes back no sooner than others
    assert "the login of 'crm'" in told[0]["error"]
    assert not crm.connected
    door.judge.keys["crm"] = key
    await until(lambda: states == [False, True], within_s=5)
    assert crm.connected
    await crm.flush()


async def test_who_lost_the_broker_is_in_within_five_seconds_of_a_masters_return(door, broker):
    crm = await door.connect(CRM)
    await door.close()
    await asyncio.to_thread(broker.kill)
    await asyncio.to_thread(broker.start)
    await asyncio.sleep(4)
    assert not crm.connected
    await door.open()
    await until(lambda: crm.connected, within_s=5)


async def test_stopping_answers_whom_it_had_begun_with(door):
    gate = asyncio.Event()

    async def slow(_attempt):
        await gate.wait()

    door.judge.behave = slow
    joining = asyncio.create_task(door.connect(CRM))
    await until(lambda: door.judge.seen)
    stopping = asyncio.create_task(door.doorman.stop())
    await asyncio.sleep(0.1)
    gate.set()
    assert (await joining).connected
    await stopping
    assert door.doorman._workers == set()


async def test_plain_nats_clients_log_in_by_name_and_key(door):
    client = await nats.connect(door.broker.url, user="crm", password=CRM.password)
    await client.publish("mesh.v1.hb.crm", b"{}")
    await client.flush()
    await client.close()
