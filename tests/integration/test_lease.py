"""The leading master's lease at a real broker."""

from __future__ import annotations

import asyncio
import time

import pytest
import pytest_asyncio

from mesh.adapters.clock import SystemClock
from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.departures import NatsDepartures
from mesh.adapters.nats.lease import JetStreamLease
from mesh.config import NatsConfig
from mesh.core.leadership import Holder, Seat, Standing
from mesh.errors import DisconnectedError
from mesh.ports import Departure, TakenError
from mesh.runtime.background import Background
from mesh.runtime.leadership import Leadership

TTL = 1.0


@pytest_asyncio.fixture
async def open_bus(broker):
    buses = []

    async def opened(login=None) -> NatsBus:
        config = NatsConfig(servers=[broker.url])
        login = login or broker.login()
        bus = await NatsBus.connect(login.user, config, login=login)
        buses.append(bus)
        return bus

    yield opened
    for bus in buses:
        await bus.close()


async def look(lease: JetStreamLease) -> Standing:
    return await lease.look(timeout_s=2)


async def write(lease: JetStreamLease, revision: int, ttl_s: float = TTL) -> int:
    return await lease.write(revision, ttl_s=ttl_s, timeout_s=2)


async def test_only_one_of_two_gets_it(open_bus):
    first, second = JetStreamLease(await open_bus()), JetStreamLease(await open_bus())
    assert await look(first) == Standing(0, None)
    assert await look(second) == Standing(0, None), "the bucket is there, or is made again"
    outcomes = await asyncio.gather(write(first, 0), write(second, 0), return_exceptions=True)
    [refused] = [one for one in outcomes if isinstance(one, TakenError)]
    [revision] = [one for one in outcomes if one is not refused]
    standing = await look(first)
    assert standing.revision == revision
    assert standing.holder is not None
    assert standing.holder.id in (first.identity, second.identity)


async def test_it_runs_out_where_it_is_not_renewed_and_not_where_it_is(open_bus):
    lease = JetStreamLease(await open_bus())
    await look(lease)
    revision = await write(lease, 0)
    began = time.monotonic()
    while time.monotonic() - began < 1.5 * TTL:
        await asyncio.sleep(TTL / 4)
        revision = await write(lease, revision)
    began = time.monotonic()
    while (standing := await look(lease)).holder is not None:
        assert time.monotonic() - began < 3 * TTL
        await asyncio.sleep(0.02)
    assert time.monotonic() - began >= 0.98 * TTL
    with pytest.raises(TakenError):
        await write(lease, revision)
    assert await write(lease, standing.revision) > revision


async def test_who_gives_it_back_does_not_have_to_be_waited_for(open_bus):
    first, second = JetStreamLease(await open_bus()), JetStreamLease(await open_bus())
    await look(first)
    revision = await write(first, 0)
    with pytest.raises(TakenError):
        await second.release(revision + 1, timeout_s=2)
    await first.release(revision, timeout_s=2)
    standing = await look(second)
    assert standing.holder is None
    await write(second, standing.revision)


async def test_it_says_over_which_connection_it_is_held(open_bus, broker):
    bus, system = await open_bus(), await open_bus(broker.keys.sys_login())
    lease = JetStreamLease(bus)
    await look(lease)
    await write(lease, 0)
    holder = (await look(lease)).holder
    assert holder == Holder(bus.connection_id, Seat(*bus.seat))
    gone: asyncio.Queue[Departure] = asyncio.Queue()
    departures = NatsDepartures(system)
    await departures.start(gone.put_nowait)
    await bus.close()
    async with asyncio.timeout(5):
        departure = await gone.get()
    assert Seat(departure.server, departure.client) == holder.seat
    await departures.stop()


async def test_a_broker_that_comes_back_has_forgotten_it(open_bus, broker):
    bus = await open_bus()
    lease, seat = JetStreamLease(bus), bus.seat
    await look(lease)
    await write(lease, 0, 60.0)
    await asyncio.to_thread(broker.kill)
    with pytest.raises(DisconnectedError):
        await lease.write(1, ttl_s=60.0, timeout_s=0.2)
    await asyncio.to_thread(broker.start)
    async with asyncio.timeout(10):
        while not bus.connected:
            await asyncio.sleep(0.02)
    async with asyncio.timeout(10):
        while True:  # JetStream needs a moment
            try:
                standing = await look(lease)
                break
            except Exception as error:  # noqa: BLE001
                assert "JetStream" in str(error)
                await asyncio.sleep(0.05)
    assert standing == Standing(0, None)
    assert bus.seat != seat
    await write(lease, 0)


class Candidacy:
    """One master's, over connections of its own; `told` of all of them in order."""

    told: list[tuple[str, int]]

    def __init__(self, name: str, bus: NatsBus, system: NatsBus, told: list) -> None:
        self.bus = bus
        self.told = told
        self.tasks = Background(SystemClock())
        self.departures = NatsDepartures(system)
        self.leadership = Leadership(
            JetStreamLease(bus),
            SystemClock(),
            self.tasks,
            ttl_s=TTL,
            next_epoch=self.next_epoch,
            on_begin=lambda epoch: told.append((name, epoch)),
            on_end=lambda: told.append((name, 0)),
        )
        bus.on_connection(self.leadership.connection_changed)

    async def next_epoch(self) -> int:
        return len(self.told) + 1

    async def start(self) -> None:
        await self.departures.start(
            lambda gone: self.leadership.departed(Seat(gone.server, gone.client))
        )
        self.leadership.start()

    async def until_led(self) -> float:
        began = time.monotonic()
        async with asyncio.timeout(10):
            while not self.leadership.leads:
                await asyncio.sleep(0.001)
        return time.monotonic() - began


@pytest_asyncio.fixture
async def candidates(open_bus, broker):
    started = []

    async def start(name: str, told: list) -> Candidacy:
        one = Candidacy(name, await open_bus(), await open_bus(broker.keys.sys_login()), told)
        started.append(one)
        await one.start()
        return one

    yield start
    for one in started:
        await one.tasks.stop()
        await one.leadership.stop()
        assert one.tasks.failures == 0


async def test_a_departed_leader_is_followed_at_once_and_a_hung_one_when_its_lease_ends(candidates):
    told = []
    first = await candidates("first", told)
    await first.until_led()
    second = await candidates("second", told)
    await asyncio.sleep(TTL)
    assert told == [("first", 1)]
    await first.tasks.stop()  # as a crash: nothing is given back
    await first.bus.close()
    assert await second.until_led() < TTL / 2
    third = await candidates("third", told)
    await asyncio.sleep(TTL / 2)
    await second.tasks.stop()  # as a hang: its connection stays
    assert await third.until_led() < 2.5 * TTL
    assert second.bus.connected
    assert not second.leadership.leads


async def test_after_a_restart_of_the_broker_one_of_them_leads(candidates, broker):
    told = []
    both = [await candidates(name, told) for name in ("first", "second")]
    await both[0].until_led()
    await asyncio.to_thread(broker.kill)
    async with asyncio.timeout(TTL / 2):  # sooner than its lease ends
        while both[0].leadership.leads:
            await asyncio.sleep(0.001)
    await asyncio.to_thread(broker.start)
    async with asyncio.timeout(20):
        while not any(one.leadership.leads for one in both):
            await asyncio.sleep(0.005)
    await asyncio.sleep(TTL)
    assert [one.leadership.leads for one in both].count(True) == 1
    assert [epoch for _, epoch in told][:2] == [1, 0]
    assert len(told) == 3, "they agree, and stay with it"
