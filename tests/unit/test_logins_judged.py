"""Who is let in at the broker, as what, until when; and how little one learns who is not."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections import Counter
from collections.abc import Collection

import pytest
from fakes import MemoryDoor, MemoryLoginStore, MemoryTokenStore, MemoryTrail

from mesh.config import SecurityConfig
from mesh.core import permissions
from mesh.errors import UnauthorizedError, UnavailableError
from mesh.ports import JoinTokenRecord, LoginAttempt, Seedling
from mesh.runtime.access_api import digest_of
from mesh.runtime.background import Background
from mesh.runtime.kicks import Kicks
from mesh.runtime.logins import Logins
from mesh.runtime.whereabouts import Whereabouts
from mesh.types import Status
from mesh.wire.messages import NodeRecord, User

NOW_S = 1_800_000_000
SCOPES = ("search", "actions:refund")
KEY = f"nmk_{'k' * 43}"
OTHER = f"nmk_{'o' * 43}"
JOINER = f"join-{'0a' * 16}"


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW_S)

    def monotonic(self) -> float:
        return self.now

    def unix_ms(self) -> int:
        return round(self.now * 1000)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


class Door:
    """A judge, and what he knows."""

    def __init__(self, **settings: object) -> None:
        self.clock = Clock()
        self.store = MemoryLoginStore()
        self.tokens = MemoryTokenStore(self.store)
        self.trail = MemoryTrail()
        self.whereabouts = Whereabouts(self.trail.last_origin, self.clock)
        self.logins = Logins(
            self.store,
            self.tokens,
            audit=self.trail,
            whereabouts=self.whereabouts,
            clock=self.clock,
            config=SecurityConfig(**settings),
        )
        self.store.register(NodeRecord(id="1", slug="crm", name="crm"), digest_of(KEY), SCOPES)

    async def let_in(self, name: str, secret: str):
        return await self.logins.judge(LoginAttempt(name, secret, "10.0.0.7"))

    async def refused(self, name: str, secret: str) -> None:
        with pytest.raises(UnauthorizedError, match=r"^wrong name or key$"):
            await self.let_in(name, secret)


@pytest.fixture
def door() -> Door:
    return Door()


async def test_a_node_gets_what_the_table_says_for_nodes(door):
    grant = await door.let_in("crm", KEY)
    assert grant == ("crm", permissions.of_node("crm"), None)
    assert door.trail.tallied == {("login-granted", "crm", "10.0.0.7"): "crm"}


async def test_where_somebody_came_from_is_remembered_and_looked_up_where_it_is_old(door):
    assert await door.whereabouts.of("crm") == ""
    await door.let_in("crm", KEY)
    assert await door.whereabouts.of("crm") == "10.0.0.7"
    door.trail.tally("login-granted", actor="crm", subject="crm", origin="10.0.0.8")
    assert await door.whereabouts.of("crm") == "10.0.0.7"
    door.clock.now += 61
    assert await door.whereabouts.of("crm") == "10.0.0.8", "another master let it in since"
    for number in range(10_000):
        door.whereabouts.saw(f"n{number}", "x")
    assert len(door.whereabouts._seen) <= 4096


async def test_a_user_gets_what_the_scopes_say(door):
    await door.store.create_user(User(name="app", scopes=list(SCOPES)), digest_of(OTHER))
    grant = await door.let_in("app", OTHER)
    assert grant == ("app", permissions.of_user("app", SCOPES), None)
    assert permissions.may_publish(grant.permissions, "mesh.v1.act.crm.refund.app")
    assert not permissions.may_publish(grant.permissions, "mesh.v1.act.crm.index.app")


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("crm", OTHER),
        ("crm", ""),
        ("crm", digest_of(KEY)),
        ("crm", KEY + "x" * 1000),
        ("crm", "\ud800"),
        ("nobody", KEY),
        ("CRM", KEY),
        ("", KEY),
        ("master", KEY),
        ("gateway", KEY),
        ("Bridge", KEY),
        ("crm*", KEY),
        ("*", KEY),
        (">", KEY),
        ("crm.x", KEY),
        ("crm\n", KEY),
        ("x" * 65, KEY),
        (JOINER, KEY),
        (f"JOIN-{'0A' * 16}", KEY),
    ],
)
async def test_everybody_else_is_refused_in_the_same_words(door, name, secret):
    await door.refused(name, secret)
    [(kind, actor, origin)] = door.trail.tallied
    assert (kind, origin) == ("login-refused", "10.0.0.7")
    assert actor == ("crm" if name == "crm" and len(secret) < 100 else "(unknown)")
    assert KEY not in str(door.trail.tallied)


@pytest.mark.parametrize(
    ("status", "gets_in"),
    [
        (Status.ACTIVE, True),
        (Status.MAINTENANCE, True),
        (Status.ERROR, True),
        (Status.INACTIVE, False),
        (Status.PENDING, False),
    ],
)
async def test_an_inactive_node_stays_outside(door, status, gets_in):
    door.store.holders["crm"] = door.store.holders["crm"]._replace(status=status)
    if gets_in:
        assert await door.let_in("crm", KEY)
    else:
        await door.refused("crm", KEY)


async def test_a_key_within_its_overlap_gets_a_login_that_ends_with_it(door):
    until = NOW_S * 1000 + 90_500
    await door.store.rotate("crm", digest_of(OTHER), node=True, previous_until=until)
    assert (await door.let_in("crm", OTHER)).until is None
    assert (await door.let_in("crm", KEY)).until == NOW_S + 91
    door.clock.now += 90.5
    await door.refused("crm", KEY)
    assert await door.let_in("crm", OTHER)


async def test_without_the_database_nobody_can_tell(door):
    door.store.available = False
    with pytest.raises(UnavailableError):
        await door.let_in("crm", KEY)
    assert door.trail.tallied == {}


async def test_a_joiner_may_ask_for_a_minute_and_uses_nothing_up(door):
    ticket = JoinTokenRecord("j", digest_of("nmj_x"), "", SCOPES, 0, (NOW_S + 600) * 1000, 1)
    await door.tokens.add_join(ticket)
    for _ in range(3):
        grant = await door.let_in(JOINER, "nmj_x")
        assert grant == (JOINER, permissions.of_joiner(JOINER), NOW_S + 60)
    assert ("login-granted", "join:j", "10.0.0.7") in door.trail.tallied
    await door.refused(JOINER, "nmj_y")
    await door.refused("crm", "nmj_x")
    assert await door.tokens.use_join(digest_of("nmj_x"), at=door.clock.unix_ms())
    await door.refused(JOINER, "nmj_x")


# -- strangers -------------------------------------------------------------------------------------


async def test_a_stranger_waits_only_where_that_is_set(door):
    await door.refused("new", OTHER)
    assert await door.store.pending() == []
    queue = Door(approval_queue=True)
    await queue.refused("new", OTHER)
    [one] = await queue.store.pending()
    assert (one.name, one.fingerprint) == ("new", digest_of(OTHER)[:16])
    assert (one.address, one.first_seen) == ("10.0.0.7", NOW_S * 1000)
    assert queue.trail.kinds() == ["node-pending"]
    await queue.refused("new", OTHER)
    assert queue.trail.kinds() == ["node-pending"], "once"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("crm", OTHER),
        ("new", "password"),
        ("new", OTHER + "x"),
        ("New", OTHER),
        ("-new-", OTHER),
        ("master", OTHER),
        (JOINER, OTHER),
    ],
)
async def test_who_could_not_be_a_new_node_does_not_wait(name, secret):
    queue = Door(approval_queue=True)
    await queue.refused(name, secret)
    assert await queue.store.pending() == []


async def test_ten_thousand_bad_logins_leave_next_to_nothing():
    queue = Door(approval_queue=True, max_pending=20)
    await queue.refused("crm", "warm")
    gc.collect()
    tracemalloc.start(1)
    before, _ = tracemalloc.get_traced_memory()
    for number in range(10_000):
        name = ("crm", "crm.x", f"n{number}", f"join-{number:032x}")[number % 4]
        await queue.refused(name, f"nmk_{number:043d}" if number % 3 else f"guess {number}")
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 200_000
    assert len(queue.trail.tallied) == 2, "one that exists, and all the others"
    assert sum(queue.trail.counts.values()) == 10_001
    assert queue.trail.kinds() == ["node-pending"] * 20
    assert await queue.let_in("crm", KEY)


# -- the first ones --------------------------------------------------------------------------------


class Exclusions:
    def __init__(self) -> None:
        self.out: list[str] = []
        self.failing = False

    async def shut_out(self, name: str, *, by: str) -> None:
        if self.failing:
            raise UnavailableError("the database is busy")
        self.out.append(name)


async def test_seedlings_are_entered_and_written_down_once(door):
    ops = Seedling(name="operator", digest=digest_of(OTHER), scopes=["admin"])
    shop = Seedling(name="shop", digest="s", scopes=["search"], node=True)
    taken = Seedling(name="crm", digest="t", scopes=["admin"])
    out = Exclusions()
    for _ in range(2):
        await door.logins.sow([ops, shop, taken], out)
    assert door.trail.kinds() == ["user-created", "node-registered"]
    assert (await door.let_in("operator", OTHER)).name == "operator"
    assert out.out == []
    remade = Seedling(name="operator", digest=digest_of(KEY), scopes=["admin"])
    out.failing = True
    with pytest.raises(UnavailableError):
        await door.logins.sow([remade], out)
    out.failing = False
    for _ in range(2):
        await door.logins.sow([remade], out)  # a master that died in between, and one more start
    await door.refused("operator", OTHER)
    assert await door.let_in("operator", KEY)
    assert out.out == ["operator"]
    assert door.trail.last("key-rotated").subject == "operator"


# -- throwing out ----------------------------------------------------------------------------------


class Rounds(MemoryDoor):
    """Remembers when."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.at: list[float] = []

    async def kick(self, names: Collection[str]) -> Counter[str]:
        self.at.append(round(self.clock.now - NOW_S, 2))
        return await super().kick(names)


@pytest.fixture
async def kicks():
    clock = Clock()
    bouncer, trail, background = Rounds(clock), MemoryTrail(), Background(clock)
    yield Kicks(bouncer, trail, clock, background), bouncer, trail
    await background.stop()
    assert background.failures == 0


async def settled(kicks: Kicks) -> None:
    for _ in range(500):
        await asyncio.sleep(0)
    assert kicks._plans == {}


def close_to(times: list[float], expected: list[float]) -> bool:
    return len(times) == len(expected) and all(
        at <= time <= at + 0.11 for time, at in zip(times, expected, strict=True)
    )


async def test_who_is_kicked_is_kicked_until_no_login_can_be_on_its_way(kicks):
    kicks, bouncer, trail = kicks
    bouncer.connections["crm"] = 2
    kicks.kick("crm", by="ops")
    await settled(kicks)
    assert close_to(bouncer.at, [0, 0.25, 0.75, 2.5])
    assert [(one.kind, one.actor, one.subject) for one in trail.entries] == [
        ("connections-kicked", "ops", "crm")
    ]
    assert trail.entries[0].details == {"connections": 2}


async def test_a_hundred_kicks_of_one_name_are_as_many_as_one(kicks):
    kicks, bouncer, _ = kicks
    for _ in range(100):
        kicks.kick("crm", by="ops")
    kicks.kick("docs", by="ops")
    await settled(kicks)
    assert bouncer.kicks.count("crm") == bouncer.kicks.count("docs") == 4


async def test_a_kick_that_comes_later_is_carried_out_in_full(kicks):
    kicks, bouncer, _ = kicks
    kicks.kick("crm", by="ops")
    while kicks._clock.now < NOW_S + 1:
        await asyncio.sleep(0)
    asked_at = round(kicks._clock.now - NOW_S, 2)
    kicks.kick("crm", by="ops")
    await settled(kicks)
    again = [at for at in bouncer.at if at >= asked_at]
    assert close_to(again, [asked_at + after for after in (0, 0.25, 0.75, 2.5)])


async def test_one_that_is_enough_is_one(kicks):
    kicks, bouncer, _ = kicks
    kicks.kick("crm", by="master", once=True)
    await settled(kicks)
    assert bouncer.at == [0]


async def test_a_bouncer_that_fails_is_asked_again(kicks):
    kicks, bouncer, trail = kicks
    bouncer.failing, bouncer.connections["crm"] = 6, 1
    kicks.kick("crm", by="ops")
    await settled(kicks)
    assert bouncer.connections == {}
    assert trail.kinds() == ["connections-kicked"]


async def test_all_who_are_due_are_looked_for_at_once(kicks):
    kicks, bouncer, _ = kicks
    for number in range(300):
        bouncer.connections[f"n{number}"] = 1
        kicks.kick(f"n{number}", by="ops")
    await settled(kicks)
    assert close_to(bouncer.at, [0, 0.25, 0.75, 2.5])
    assert bouncer.connections == {}


async def test_who_is_cut_is_out_when_it_returns(kicks):
    kicks, bouncer, trail = kicks
    bouncer.connections["crm"] = 1
    await kicks.cut(["crm"], by="ops")
    assert (bouncer.connections, bouncer.at) == ({}, [0])
    bouncer.failing, bouncer.connections["crm"] = 1, 1
    with pytest.raises(UnavailableError):
        await kicks.cut(["crm"], by="ops")
    assert bouncer.connections == {"crm": 1}
    assert trail.kinds() == ["connections-kicked"]
