"""The audit trail: nothing noted is lost, nothing is published twice, nothing in it is secret."""

from __future__ import annotations

import asyncio
import time

import hypothesis.strategies as st
import pytest
import structlog
from audit_fakes import MemoryAuditStore, MemoryAuditStream, SteppedClock, settled
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.runtime import audit
from mesh.runtime.audit import AuditTrail
from mesh.wire.messages import AuditQuery

KEY = "nmk_" + "a1-_" * 10 + "xyz"


class World:
    """One master's trail, and what it writes to."""

    def __init__(self, store=None, stream=None, clock=None):
        self.store = store or MemoryAuditStore()
        self.stream = stream or MemoryAuditStream()
        self.clock = clock or SteppedClock()
        self.trail = self.another()

    def another(self, *, days=400.0) -> AuditTrail:
        return AuditTrail(self.store, self.stream, self.clock, audit_days=days)

    def kinds(self) -> list[str]:
        return [record.kind for record in self.stream.stored]

    async def ask(self, **query):
        _, verb = self.trail.verbs["audit"]
        return await verb(AuditQuery(**query), "ops")


@pytest.fixture
async def world():
    made = World()
    await made.trail.start()
    await settled()
    yield made
    made.store.available = True
    await made.trail.stop()


async def test_what_is_noted_is_in_sql_and_in_the_stream_within_a_second(world):
    world.trail.note(
        "node-joined", actor="ops", subject="crm", origin="192.0.2.7", uses=2, scopes=["search"]
    )
    await world.clock.step(0.5)
    [record] = world.store.records.values()
    assert (record.kind, record.actor, record.subject, record.origin, record.details) == (
        "node-joined",
        "ops",
        "crm",
        "192.0.2.7",
        {"uses": 2, "scopes": ["search"]},
    )
    assert record.at == world.clock.unix_ms() - 500
    assert world.stream.stored == [record]
    assert world.store.in_stream == {record.id}


async def test_whoever_acted_sees_it_at_once(world):
    for number in range(3):
        world.trail.note("key-rotated", actor="ops", subject=f"n{number}")
    page = await world.ask()
    assert [entry.subject for entry in page.entries] == ["n2", "n1", "n0"]
    assert page.total == 3


async def test_many_are_read_page_by_page_and_followed(world):
    for number in range(600):
        world.trail.note("key-rotated", actor="ops", subject=f"n{number}")
    assert (await world.ask(limit=2)).total == 600
    seen = (await world.ask(limit=1, offset=599)).entries[0]
    following = await world.ask(after=seen.id, limit=1000)
    assert [entry.subject for entry in following.entries] == [f"n{n}" for n in range(1, 600)]


async def test_ten_thousand_refusals_are_a_handful_of_entries(world):
    for _ in range(10_000):
        world.trail.tally("login-refused", actor="crm", subject="broker", origin="192.0.2.9")
    assert [entry.details for entry in (await world.ask()).entries] == [{}]
    await world.clock.step(61)
    newest, first = (await world.ask()).entries
    assert newest.details == {"count": 9999}
    assert (newest.actor, newest.subject, newest.origin) == ("crm", "broker", "192.0.2.9")
    await world.clock.step(600)
    assert (await world.ask()).total == 2
    assert first.at < newest.at


async def test_as_many_names_are_counted_together_in_bounded_memory(world):
    for number in range(10_000):
        world.trail.tally(
            "login-refused", actor=f"{number}" * 500, subject="x" * 10_000, origin="y" * 10_000
        )
    page = await world.ask(limit=1)
    assert page.total <= 4097
    [tally] = world.trail._tallies.values()
    assert len(tally) <= 4097
    assert max(len(key.actor) + len(key.origin) for key in tally._windows) <= 128
    await world.clock.step(61)
    entries = [
        entry
        for offset in range(0, 6000, 1000)
        for entry in (await world.ask(limit=1000, offset=offset)).entries
    ]
    assert sum(entry.details.get("count", 1) for entry in entries) == 10_000


async def test_however_many_come_back_a_refused_try_is_seen(world):
    for number in range(300):
        world.trail.tally("login-granted", actor=f"n{number}", subject="", origin="192.0.2.7")
        world.trail.tally("login-refused", actor="(unknown)", subject="", origin=f"10.0.0.{number}")
    world.trail.tally("login-refused", actor="operator", subject="operator", origin="192.0.2.9")
    [entry] = (await world.ask(kind="login-refused", actor="operator")).entries
    assert entry.origin == "192.0.2.9"
    assert (await world.ask(kind="login-granted")).total == 300


async def test_where_somebody_last_logged_in_from_can_be_asked(world):
    assert await world.trail.last_origin("ops") == ""
    for origin in ("192.0.2.7", "192.0.2.8"):
        world.trail.tally("login-granted", actor="ops", subject="ops", origin=origin)
        world.trail.tally("login-refused", actor="ops", subject="ops", origin="192.0.2.66")
        await world.clock.step(1)
    assert await world.trail.last_origin("ops") == "192.0.2.8"


async def test_what_is_counted_is_entered_when_the_master_stops(world):
    for _ in range(5):
        world.trail.tally("login-refused", actor="crm", subject="broker")
    await world.trail.stop()
    counts = [record.details.get("count") for record in world.store.records.values()]
    assert counts == [None, 4]


async def test_while_the_database_is_away_entries_wait(world):
    world.store.available = False
    for number in range(500):
        world.trail.note("key-rotated", actor="ops", subject=f"n{number}")
        await world.clock.step(0.05)
    assert world.stream.stored == []
    world.store.available = True
    await world.clock.step(6)
    assert [record.subject for record in world.stream.stored] == [f"n{n}" for n in range(500)]


async def test_while_the_broker_is_away_entries_wait_in_sql(world):
    world.stream.available = False
    world.trail.note("key-rotated", actor="ops", subject="crm")
    await world.clock.step(30)
    assert (await world.ask()).total == 1
    world.stream.available = True
    await world.clock.step(6)
    assert world.kinds() == ["key-rotated"]


async def test_a_lost_acknowledgement_leaves_one_entry(world):
    world.stream.loses_acks = True
    world.trail.note("key-rotated", actor="ops", subject="crm")
    await world.clock.step(30)
    assert world.stream.asked > 2
    world.stream.loses_acks = False
    await world.clock.step(6)
    assert world.kinds() == ["key-rotated"]
    assert len(world.store.in_stream) == 1


async def test_the_stream_is_made_anew_if_the_broker_lost_it(world):
    world.trail.note("a", actor="ops", subject="x")
    await world.clock.step(1)
    world.stream.available = world.stream.prepared = False
    world.trail.note("b", actor="ops", subject="x")
    await world.clock.step(1)
    world.stream.available = True
    await world.clock.step(6)
    assert world.kinds() == ["a", "b"]


async def test_what_a_dead_master_wrote_is_published_by_another(world, monkeypatch):
    monkeypatch.setattr(audit, "_LOOK_EVERY_S", 0.0)
    dead = world.another()  # wrote, and never came to publish
    dead.note("key-rotated", actor="ops", subject="crm")
    await dead.stop()
    world.trail.note("other", actor="ops", subject="x")
    await world.clock.step(1)
    assert sorted(world.kinds()) == ["key-rotated", "other"]


async def test_two_masters_leave_each_entry_once(world):
    other = world.another()
    await other.start()
    for number in range(20):
        (world.trail if number % 2 else other).note("a", actor="ops", subject=f"n{number}")
    await world.clock.step(2)
    assert sorted(record.subject for record in world.stream.stored) == sorted(
        f"n{number}" for number in range(20)
    )
    await other.stop()


async def test_an_overflow_is_counted_and_entered(world, monkeypatch):
    monkeypatch.setattr(audit, "_MOST_QUEUED", 10)
    world.store.available = False
    for number in range(25):
        world.trail.note("key-rotated", actor="ops", subject=f"n{number}")
    assert world.trail.overflowed == 15
    assert len(world.trail._queue) == 10
    world.store.available = True
    await world.clock.step(6)
    newest, *others = (await world.ask()).entries
    assert (newest.kind, newest.details) == ("audit-overflowed", {"count": 15})
    assert len(others) == 10


async def test_one_entry_that_cannot_be_stored_keeps_out_no_other(world):
    world.store.refuses = "odd"
    with structlog.testing.capture_logs() as logged:
        for kind in ("a", "odd", "b"):
            world.trail.note(kind, actor="ops", subject="x")
        page = await world.ask()
    assert [entry.kind for entry in page.entries] == ["b", "a"]
    assert "mesh.audit.entry_unstorable" in [line["event"] for line in logged]


async def test_what_cannot_be_written_at_the_end_is_in_the_log(world):
    world.store.available = False
    world.trail.note("key-rotated", actor="ops", subject="crm", api_key=KEY)
    with structlog.testing.capture_logs() as logged:
        await world.trail.stop()
    [line] = [line for line in logged if line["event"] == "mesh.audit.entry_unwritten"]
    assert line["entry"].subject == "crm"
    assert KEY not in str(line)


async def test_who_reads_waits_for_what_is_being_written(world):
    world.trail.note("a", actor="ops", subject="x")
    await world.clock.step(1)
    async with world.trail._writing:  # as while a database takes its time
        world.trail.note("b", actor="ops", subject="x")
        reading = asyncio.ensure_future(world.ask())
        await settled()
        assert not reading.done()
    assert (await reading).total == 2


async def test_old_entries_are_forgotten(world):
    await world.trail.stop()
    world.trail = world.another(days=0.02)
    await world.trail.start()
    world.trail.note("a", actor="ops", subject="x")
    await world.clock.step(2000)
    world.trail.note("b", actor="ops", subject="x")
    await world.clock.step(1700)
    assert [entry.kind for entry in (await world.ask()).entries] == ["b"]


@pytest.mark.parametrize(
    "said",
    [
        {"actor": KEY, "subject": "x"},
        {"actor": "x", "subject": f"{KEY} it said"},
        {"actor": "x", "subject": "x", "origin": KEY},
        {"actor": "x", "subject": "x", "why": f"Bearer {KEY}"},
        {"actor": "x", "subject": "x", "all": ["a", KEY]},
        {"actor": "x", "subject": "x", KEY: "a"},
        {"actor": "x", "subject": "x", "api_key": "a1-_ of another form"},
        {"actor": "x", "subject": "x", "odd": {"deep": KEY}},
    ],
    ids=["actor", "subject", "origin", "detail", "list", "name", "named", "odd"],
)
async def test_no_entry_holds_a_secret(world, said):
    world.trail.note("a", **said)
    [entry] = (await world.ask()).entries
    assert "a1-_" not in repr(entry)
    assert "…" in repr(entry)


async def test_whatever_is_noted_can_be_stored_read_and_sent(world):
    world.trail.note(
        "no token. at > all\udc80",
        actor="a\0b\udc80" * 1000,
        subject="",
        origin="o" * 1000,
        big=10**30,
        flag=True,
        none=None,
        real=1.5,
        items=[1, "b" * 1000, None] * 100,
        **{f"d{n}": n for n in range(100)},
    )
    [entry] = (await world.ask()).entries
    assert entry.kind == "no-token--at---all-"
    assert (len(entry.actor), len(entry.origin), len(entry.details)) == (256, 64, 16)
    assert (entry.details["flag"], entry.details["big"]) == ("true", str(10**30))
    assert len(entry.details["items"]) == 32
    assert len(repr(entry)) < 5000


@pytest.mark.alone
async def test_noting_costs_an_append(world):
    """Of a master's request path."""
    began = time.process_time()
    for _ in range(5000):
        world.trail.note("token-issued", actor="ops", subject="app", scopes=["search"], ttl_s=3600)
    assert (time.process_time() - began) / 5000 < 100e-6


class TrailMachine(RuleBasedStateMachine):
    """Two masters over one database and one stream, each of which goes and comes; masters stop and
    start. What was noted ends up in both, once, in the order in which each master noted it.
    """

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.noted = [[], []]
        self.counted = 0
        self.run(self._begin())

    def run(self, work):
        return self.loop.run_until_complete(work)

    async def _begin(self):
        self.world = World()
        self.trails = [self.world.trail, self.world.another()]
        for trail in self.trails:
            await trail.start()
        await settled()

    @rule(who=st.integers(0, 1), count=st.integers(1, 4))
    def note(self, who, count):
        for _ in range(count):
            subject = f"{who}-{len(self.noted[who])}"
            self.noted[who].append(subject)
            self.trails[who].note("noted", actor=str(who), subject=subject)

    @rule(who=st.integers(0, 1), actor=st.sampled_from("ab"), count=st.integers(1, 5))
    def tally(self, who, actor, count):
        for _ in range(count):
            self.counted += 1
            self.trails[who].tally("refused", actor=actor, subject="broker")

    @rule(seconds=st.sampled_from([0.05, 0.11, 1.0, 7.0, 61.0]))
    def wait(self, seconds):
        self.run(self.world.clock.step(seconds))

    @rule(up=st.booleans())
    def database(self, up):
        self.world.store.available = up

    @rule(up=st.booleans(), loses_acks=st.booleans(), room=st.sampled_from([None, 1, 2, 3]))
    def broker(self, up, loses_acks, room):
        self.world.stream.available = up
        self.world.stream.loses_acks = loses_acks
        self.world.stream.room = room

    @precondition(lambda self: self.world.store.available)
    @rule(who=st.integers(0, 1))
    def restart(self, who):
        async def again():
            await self.trails[who].stop()
            self.trails[who] = self.world.another()
            await self.trails[who].start()
            await settled()

        self.run(again())

    @precondition(lambda self: self.world.store.available)
    @rule(who=st.integers(0, 1))
    def ask(self, who):
        _, verb = self.trails[who].verbs["audit"]

        async def twice():
            query = AuditQuery(actor=str(who), limit=1000)
            return await asyncio.gather(verb(query, "ops"), verb(query, "ops"))

        for page in self.run(twice()):
            assert [entry.subject for entry in reversed(page.entries)] == self.noted[who]

    @invariant()
    def the_stream_has_each_once(self):
        ids = [record.id for record in self.world.stream.stored]
        assert len(ids) == len(set(ids))
        assert self.world.store.in_stream <= set(ids), "said to be there and is not"

    def teardown(self):
        self.world.store.available = True
        self.broker(up=True, loses_acks=False, room=None)
        self.wait(7.0)
        assert not any(trail._queue for trail in self.trails)
        self.run(self.trails[0].stop())
        self.run(self.trails[1].stop())
        # What was written at the very end, the next master publishes.
        self.trails = [self.world.another()] * 2
        self.run(self.trails[0].start())
        self.wait(1.0)
        self.run(self.trails[0].stop())
        stored = self.world.stream.stored
        assert {record.id for record in stored} == set(self.world.store.records)
        for who in (0, 1):
            assert [r.subject for r in stored if r.actor == str(who)] == self.noted[who]
        refused = [r.details.get("count", 1) for r in stored if r.kind == "refused"]
        assert sum(refused) == self.counted
        self.loop.close()


TestTrail = TrailMachine.TestCase
TestTrail.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
