"""The audit trail in a real stream and a real database."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest

from mesh.adapters.clock import SystemClock
from mesh.adapters.nats.audit import JetStreamAudit
from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.sql.registry import SqlRegistry
from mesh.config import NatsConfig
from mesh.errors import MeshError
from mesh.runtime import audit
from mesh.runtime.audit import AuditTrail
from mesh.wire import codec
from mesh.wire.messages import AuditQuery, AuditRecord

STREAM = "MESH_AUDIT"


class World:
    """A broker, a database, and masters' trails over them."""

    def __init__(self, broker, database):
        self._broker = broker
        self._database = database
        self.bus = None
        self._opened = contextlib.AsyncExitStack()

    async def open(self):
        config = NatsConfig(servers=[self._broker.url])
        self.bus = await NatsBus.connect("auth", config, login=self._broker.keys.auth_login())
        self._opened.push_async_callback(self.bus.close)

    async def close(self):
        await self._opened.aclose()

    async def trail(self, *, days=400.0) -> AuditTrail:
        """With a connection to the database of its own, as another process has."""
        registry = await SqlRegistry.open(self._database)
        self._opened.push_async_callback(registry.close)
        stream = JetStreamAudit(self.bus, days=days)
        return AuditTrail(registry.audit, stream, SystemClock(), audit_days=days)

    async def api(self, verb, payload=b""):
        reply = await self.bus.request_broker(f"$JS.API.{verb}", payload, timeout_s=5)
        return msgspec.json.decode(reply.data)

    async def stored(self) -> list[AuditRecord]:
        info = await self.api(f"STREAM.INFO.{STREAM}")
        if "error" in info:
            return []
        records = []
        for sequence in range(1, info["state"]["last_seq"] + 1):
            reply = await self.bus.request_broker(
                f"$JS.API.DIRECT.GET.{STREAM}", b'{"seq":%d}' % sequence, timeout_s=5
            )
            records.append(codec.decode(reply.data, AuditRecord))
        return records

    async def until_stored(self, count, within_s=15.0) -> list[AuditRecord]:
        async with asyncio.timeout(within_s):
            while True:
                with contextlib.suppress(MeshError):
                    if len(records := await self.stored()) >= count:
                        return records
                await asyncio.sleep(0.05)


@pytest.fixture
async def world(broker, tmp_path):
    made = World(broker, f"sqlite+aiosqlite:///{tmp_path}/mesh.db")
    await made.open()
    yield made
    await made.close()


async def test_an_entry_is_in_the_stream_within_a_second_and_nobody_can_take_it_out(world):
    trail = await world.trail()
    await trail.start()
    trail.note("node-joined", actor="ops", subject="crm", origin="192.0.2.7", uses=1)
    [record] = await world.until_stored(1, within_s=1.0)
    assert (record.kind, record.details) == ("node-joined", {"uses": 1})
    settings = (await world.api(f"STREAM.INFO.{STREAM}"))["config"]
    assert settings["subjects"] == ["mesh.v1.audit.>"]
    assert (settings["deny_delete"], settings["deny_purge"]) == (True, True)
    assert (settings["storage"], settings["max_age"]) == ("file", 400 * 86_400 * 10**9)
    assert settings.get("allow_rollup_hdrs", False) is False
    assert "error" in await world.api(f"STREAM.PURGE.{STREAM}")
    assert "error" in await world.api(f"STREAM.MSG.DELETE.{STREAM}", b'{"seq":1}')
    assert await world.stored() == [record]
    await trail.stop()


async def test_three_masters_at_once_leave_each_entry_once(world, monkeypatch):
    """All publish all that is unpublished."""
    monkeypatch.setattr(audit, "_LOOK_EVERY_S", 0.01)
    trails = [await world.trail() for _ in range(3)]
    for trail in trails:
        await trail.start()
    for number in range(90):
        trails[number % 3].note("key-rotated", actor="ops", subject=f"n{number}")
        await asyncio.sleep(0.002)
    records = await world.until_stored(90)
    for trail in trails:
        await trail.stop()
    assert sorted(record.subject for record in await world.stored()) == sorted(
        f"n{number}" for number in range(90)
    )
    assert len({record.id for record in records}) == 90


async def test_a_broker_that_was_away_gets_what_it_missed(world, broker):
    trail = await world.trail()
    await trail.start()
    trail.note("a", actor="ops", subject="before")
    await world.until_stored(1)
    broker.kill()
    for number in range(20):
        trail.note("a", actor="ops", subject=f"n{number}")
    _, verb = trail.verbs["audit"]
    assert (await verb(AuditQuery(), "ops")).total == 21, "the database has them meanwhile"
    broker.start()
    records = await world.until_stored(21)
    assert [record.subject for record in records] == ["before", *(f"n{n}" for n in range(20))]
    await trail.stop()


async def test_what_a_master_could_not_publish_the_next_one_does(world, broker):
    broker.kill()
    first = await world.trail()
    await first.start()
    first.note("a", actor="ops", subject="crm")
    await first.stop()
    broker.start()
    second = await world.trail()
    await second.start()
    [record] = await world.until_stored(1)
    assert record.subject == "crm"
    await second.stop()


async def test_a_changed_age_is_taken_over_and_a_short_one_is_possible(world):
    for days in (400.0, 30.0, 0.001):
        stream = JetStreamAudit(world.bus, days=days)
        await stream.prepare()
        settings = (await world.api(f"STREAM.INFO.{STREAM}"))["config"]
        assert settings["max_age"] == round(days * 86_400 * 10**9)


async def test_ten_thousand_refused_logins_are_a_handful_of_rows(world):
    trail = await world.trail()
    await trail.start()
    for number in range(10_000):
        trail.tally("login-refused", actor=f"n{number % 3}", subject="x", origin="192.0.2.9")
    await trail.stop()
    _, verb = trail.verbs["audit"]
    page = await verb(AuditQuery(), "ops")
    assert page.total == 6
    assert sum(entry.details.get("count", 1) for entry in page.entries) == 10_000
