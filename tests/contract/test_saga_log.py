"""What every `SagaLog` must do: replace the newest record of a saga for whoever knows it."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
import pytest_asyncio
from saga_fakes import MemorySagaLog, saga

from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.saga_log import JetStreamSagaLog
from mesh.config import NatsConfig
from mesh.errors import OverloadedError, UnavailableError
from mesh.ports import OutdatedError


@pytest_asyncio.fixture
async def bus(broker):
    made = await NatsBus.connect("master", NatsConfig(servers=[broker.url]), login=broker.login())
    yield made
    await made.close()


@pytest_asyncio.fixture(params=["memory", "jetstream"])
async def log(request):
    if request.param == "memory":
        yield MemorySagaLog()
        return
    broker = request.getfixturevalue("broker")
    bus = await NatsBus.connect("master", NatsConfig(servers=[broker.url]), login=broker.login())
    made = JetStreamSagaLog(bus, days=1)
    await made.prepare()
    await made.prepare()
    yield made
    await bus.close()


async def test_what_was_stored_last_is_the_saga(log):
    assert await log.last("x") is None
    assert await log.last_sequence() == 0
    assert await log.read(0, 10) == ([], 0)
    first = await log.append(saga(), after=0)
    second = await log.append(saga(version=2, reason="why"), after=first)
    stored = await log.last("x")
    assert (stored.sequence, stored.saga) == (second, saga(version=2, reason="why"))
    assert await log.last_sequence() == second


async def test_only_who_knows_the_newest_record_may_replace_it(log):
    first = await log.append(saga(), after=0)
    await log.append(saga(version=2), after=first)
    for stale in (0, first):
        with pytest.raises(OutdatedError):
            await log.append(saga(version=9), after=stale)
    assert (await log.last("x")).saga.version == 2


async def test_of_many_who_try_at_once_one_succeeds(log):
    first = await log.append(saga(), after=0)
    tries = [log.append(saga(version=2, runner=f"{n}"), after=first) for n in range(20)]
    ended = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(each, int) for each in ended) == 1
    assert sum(isinstance(each, OutdatedError) for each in ended) == 19


async def test_reading_passes_over_what_was_replaced(log):
    last = {}
    for turn in range(3):
        for number in range(100):
            name = f"s{number}"
            last[name] = await log.append(saga(name, version=turn + 1), after=last.get(name, 0))
    found, upto = await log.read(0, 1000)
    assert [stored.saga.version for stored in found] == [3] * 100
    assert [stored.sequence for stored in found] == sorted(last.values())
    assert upto == 300
    some, upto = await log.read(250, 10)
    assert ([stored.saga.id for stored in some], upto) == ([f"s{n}" for n in range(50, 60)], 260)
    assert await log.read(300, 10) == ([], 300)


async def test_a_record_may_be_large(log):
    big = saga(reason="x" * 900_000)
    await log.append(big, after=0)
    assert (await log.last("x")).saga == big


# -- JetStream alone -------------------------------------------------------------------------------


async def test_a_full_stream_takes_no_more_sagas_and_lets_those_that_run_go_on(bus):
    log = JetStreamSagaLog(bus, days=1, max_bytes=1024 * 1024)
    await log.prepare()
    sequence = await log.append(saga("runs"), after=0)
    for number in range(9):
        await log.append(saga(f"s{number}", reason="x" * 100_000), after=0)
    log._looked_at = -100.0  # it looks every few seconds
    with pytest.raises(OverloadedError, match="no room"):
        await log.append(saga("new"), after=0)
    assert await log.append(saga("runs", version=2, reason="x" * 1000), after=sequence) > sequence
    assert await log.last("new") is None


async def test_a_stream_that_was_not_made_yet_is_away(bus):
    log = JetStreamSagaLog(bus, days=1)
    with pytest.raises(UnavailableError):
        await log.append(saga(), after=0)
    with pytest.raises(UnavailableError):
        await log.last("x")
    await log.prepare()
    await log.append(saga(), after=0)
    again = JetStreamSagaLog(bus, days=2)
    await again.prepare()
    assert (await again.last("x")).saga == saga(), "a longer age loses nothing"


async def test_records_survive_the_broker(broker, bus):
    log = JetStreamSagaLog(bus, days=1)
    await log.prepare()
    sequence = await log.append(saga(), after=0)
    broker.kill()
    broker.start()
    for _ in range(100):
        try:
            stored = await log.last("x", timeout_s=1)
        except UnavailableError:
            await asyncio.sleep(0.1)
        else:
            break
    assert (stored.sequence, stored.saga) == (sequence, saga())
    with pytest.raises(OutdatedError):
        await log.append(msgspec.structs.replace(saga(), version=7), after=0)
