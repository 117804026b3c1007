"""What every `WriteLog` and its archive must do; the one in memory is trusted because of this."""

from __future__ import annotations

import asyncio
import itertools

import pytest
import pytest_asyncio
from replica_world import Log

from mesh.adapters.clock import SystemClock
from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.write_log import JetStreamWriteArchive, JetStreamWriteLog
from mesh.config import NatsConfig
from mesh.errors import UnavailableError
from mesh.ports import MovedOnError
from mesh.wire import codec
from mesh.wire.messages import Change, Document, LoggedWrite, WriteEntry

_shards = itertools.count()


class InMemory:
    def __init__(self):
        self._logs: dict[str, Log] = {}

    def _of(self, shard):
        return self._logs.setdefault(shard, Log())

    async def append(self, shard, entry, *, after, timeout_s):
        return self._of(shard).append(entry, after)

    async def read(self, shard, after, limit, *, timeout_s):
        return self._of(shard).page(after, limit)


class OnJetStream:
    def __init__(self, bus):
        self.log = JetStreamWriteLog(bus)
        self.archive = JetStreamWriteArchive(bus, SystemClock(), days=1, max_bytes=2**30)
        self.append, self.read = self.log.append, self.archive.read


@pytest_asyncio.fixture(params=["memory", "jetstream"])
async def log(request, shared_broker):
    if request.param == "memory":
        yield InMemory()
        return
    config = NatsConfig(servers=[shared_broker.url])
    bus = await NatsBus.connect("master", config, login=shared_broker.login())
    found = OnJetStream(bus)
    await found.archive.prepare()
    yield found
    await bus.close()


@pytest.fixture
def shard():
    return f"shard-{next(_shards)}"


def entry(text="x", prev=0):
    return WriteEntry(
        id=text,
        action="index",
        prev=prev,
        change=Change(collection="notes", puts=[Document(id="1", content=text)]),
    )


async def add(log, shard, text, after):
    return await log.append(shard, entry(text, after), after=after, timeout_s=5)


async def all_of(log, shard, after=0, limit=200):
    found = []
    while (page := await log.read(shard, after, limit, timeout_s=5)).entries:
        found += page.entries
        after = page.entries[-1].sequence
    return found


async def test_entries_come_back_in_order_and_as_they_were(log, shard):
    last = 0
    for number in range(7):
        last = await add(log, shard, f"text {number}", last)
    found = await all_of(log, shard)
    assert [each.entry.id for each in found] == [f"text {number}" for number in range(7)]
    assert found[3].entry == entry("text 3", found[2].sequence)
    assert (await log.read(shard, last, 5, timeout_s=5)).last == last == found[-1].sequence
    assert await all_of(log, shard, after=found[4].sequence) == found[5:]


async def test_who_does_not_know_the_last_entry_adds_nothing(log, shard):
    first = await add(log, shard, "a", 0)
    for wrong in (0, first + 1):
        with pytest.raises(MovedOnError) as caught:
            await add(log, shard, "b", wrong)
        assert caught.value.last == first
    assert [each.entry.id for each in await all_of(log, shard)] == ["a"]


async def test_of_many_at_once_one_is_next(log, shard):
    first = await add(log, shard, "a", 0)
    tried = await asyncio.gather(
        *(add(log, shard, f"{number}", first) for number in range(8)), return_exceptions=True
    )
    assert sum(isinstance(each, int) for each in tried) == 1
    assert sum(isinstance(each, MovedOnError) for each in tried) == 7


async def test_shards_have_orders_of_their_own(log, shard):
    other = f"{shard}-b"
    mine = await add(log, shard, "a", 0)
    await add(log, other, "b", 0)
    await add(log, shard, "c", mine)
    assert [each.entry.id for each in await all_of(log, shard)] == ["a", "c"]
    assert [each.entry.id for each in await all_of(log, other)] == ["b"]


async def test_an_empty_shard_says_so(log, shard):
    page = await log.read(shard, 0, 10, timeout_s=5)
    assert (page.last, page.entries) == (0, [])
    assert page.log


async def test_a_page_fits_a_message_and_leaves_none_out(shared_broker, shard):
    """Long entries, and those of other shards between them: neither may make a gap."""
    config = NatsConfig(servers=[shared_broker.url])
    bus = await NatsBus.connect("master", config, login=shared_broker.login())
    log = OnJetStream(bus)
    await log.archive.prepare()
    last = other = 0
    for number in range(40):
        last = await add(log, shard, f"{number} " + "long " * 10_000, last)
        for _ in range(number % 4):
            other = await add(log, f"{shard}-b", "b", other)
    page = await log.read(shard, 0, 200, timeout_s=5)
    assert 1 < len(page.entries) < 40
    found = await all_of(log, shard)
    assert [each.entry.id.split()[0] for each in found] == [f"{number}" for number in range(40)]
    links = itertools.pairwise(found)
    assert all(after.entry.prev == before.sequence for before, after in links)
    await bus.close()


async def test_what_nobody_of_ours_wrote_joins_nothing_and_stops_nobody(shared_broker, shard):
    config = NatsConfig(servers=[shared_broker.url])
    bus = await NatsBus.connect("master", config, login=shared_broker.login())
    log = OnJetStream(bus)
    await log.archive.prepare()
    first = await add(log, shard, "a", 0)
    await bus.request_broker(f"mesh.v1.write.{shard}.evil", b"no json", timeout_s=5)
    page = await log.read(shard, first, 10, timeout_s=5)
    assert [each.entry for each in page.entries] == [WriteEntry(prev=first)]
    stray = page.entries[0].sequence
    # The acknowledgement of one subject, steered to another.
    await bus.request_broker(
        f"mesh.v1.write.{shard}.evil",
        b'{"stream":"MESH_WRITES","seq":3}',
        timeout_s=5,
    )
    # An entry that somebody wrote who does not know the order.
    behind = codec.encode(entry("b", first))
    await bus.request_broker(f"mesh.v1.write.{shard}.evil", behind, timeout_s=5)
    page = await log.read(shard, first, 10, timeout_s=5)
    found = [first, *(each.sequence for each in page.entries)]
    assert found[1] == stray
    assert [each.entry for each in page.entries] == [WriteEntry(prev=each) for each in found[:-1]]
    last = await add(log, shard, "c", found[-1])
    assert (await all_of(log, shard, after=found[-1])) == [
        LoggedWrite(sequence=last, entry=entry("c", found[-1]))
    ]
    await bus.close()


async def test_a_log_that_is_away_says_so(broker):
    config = NatsConfig(servers=[broker.url])
    bus = await NatsBus.connect("master", config, login=broker.login())
    log = OnJetStream(bus)
    with pytest.raises(UnavailableError):  # nobody has made it yet
        await log.read("crm", 0, 10, timeout_s=2)
    broker.kill()
    with pytest.raises(UnavailableError):
        await add(log, "crm", "a", 0)
    await bus.close()
