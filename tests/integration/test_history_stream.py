"""The history's stream, and nodes that lie in it."""

from __future__ import annotations

import asyncio
import hashlib

import msgspec
import nats
import pytest
import structlog
from open_door import OpenDoor

from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.history import JetStreamHistory
from mesh.config import NatsConfig
from mesh.errors import UnavailableError
from mesh.types import ActionState
from mesh.wire import codec, subjects
from mesh.wire.messages import HistoryRecord


def record(node: str, number: int, action: str = "refund") -> HistoryRecord:
    return HistoryRecord(
        id=f"{number}",
        node=node,
        action=action,
        state=ActionState.SUCCEEDED,
        caller="ops",
        at=number,
        accepted_at=number,
    )


@pytest.mark.parametrize("forged", ["Nats-Subject", "nats-subject", "Nats-Sequence"])
async def test_a_node_is_believed_about_itself_alone(broker, forged):
    config = NatsConfig(servers=[broker.url])
    masters = await NatsBus.connect("master", config, login=broker.login())
    history = JetStreamHistory(masters)
    await history.prepare()
    async with OpenDoor(broker, nodes=["crm", "billing"], users=[]) as door:
        login = door.login("crm")
        crm = await NatsBus.connect("crm", config, login=login)
        liar = await nats.connect(broker.url, user="crm", password=login.password)
        try:
            honest = JetStreamHistory(crm)
            await honest.append(record("crm", 1), timeout_s=5)
            own = subjects.history("crm", "refund", ActionState.SUCCEEDED)
            others = subjects.history("billing", "refund", ActionState.SUCCEEDED)
            lies = [record("billing", 2), record("crm", 3, action="pay"), record("b.x", 4)]
            for lie in lies:
                for headers in (None, {forged: others}, {"a": f"b\r\n{forged}: {others}"}):
                    await liar.publish(own, codec.encode(lie), headers=headers)
            await liar.flush()
            await honest.append(record("crm", 5), timeout_s=5)
            with structlog.testing.capture_logs() as logged:
                found, upto = await history.read(0, 100)
        finally:
            await liar.close()
            await crm.close()
    assert [each.id for _, each in found] == ["1", "5"]
    assert (upto >> 6, history.dropped) == (2 + 3 * len(lies), 3 * len(lies))
    dropped = [entry for entry in logged if entry["event"] == "mesh.history.record_dropped"]
    assert len(dropped) == 1, "a line a second"
    await masters.close()
    await asyncio.sleep(0)


async def test_what_is_recorded_in_one_turn_is_one_message_and_every_record_has_its_number(broker):
    bus = await NatsBus.connect("master", NatsConfig(servers=[broker.url]), login=broker.login())
    history = JetStreamHistory(bus)
    await history.prepare()
    await history.append(record("one", 0), timeout_s=5)
    numbers = await asyncio.gather(
        *(history.append(record("many", number), timeout_s=5) for number in range(150)),
        *(history.append(record("others", number), timeout_s=5) for number in range(3)),
    )
    found, upto = await history.read(0, 100)
    assert len(found) == 154, "a page ends with a message"
    assert [number for number, _ in found] == sorted({number for number, _ in found})
    assert {number: one.id for number, one in found[1:]} == dict(
        zip(numbers, [f"{n}" for n in [*range(150), *range(3)]], strict=True)
    )
    assert upto == await history.last_sequence()
    assert upto >> 6 == 1 + 3 + 1, "150 records of one kind go into three messages"
    for after in (numbers[10], numbers[63], numbers[-1], upto):
        rest, _ = await history.read(after, 100)
        assert [number for number, _ in rest] == [n for n, _ in found if n > after]
    few, some = await history.read(0, 1)
    assert [one.node for _, one in few] == ["one"]
    assert [one.id for _, one in (await history.read(some, 1))[0]] == [f"{n}" for n in range(64)]
    await bus.close()


async def test_records_too_long_for_one_message_go_into_several(broker):
    bus = await NatsBus.connect("master", NatsConfig(servers=[broker.url]), login=broker.login())
    history = JetStreamHistory(bus)
    await history.prepare()
    long = [
        msgspec.structs.replace(record("crm", number), result="x" * 1_000_000)
        for number in range(4)
    ]
    await asyncio.gather(*(history.append(one, timeout_s=5) for one in long))
    found, _ = await history.read(0, 100)
    assert [one for _, one in found] == long
    await bus.close()


async def test_all_of_a_group_hear_that_it_is_not_known_to_be_stored(broker):
    """A broker that says nothing: the port promises one kind of error."""
    bus = await NatsBus.connect("master", NatsConfig(servers=[broker.url]), login=broker.login())
    history = JetStreamHistory(bus)
    await history.prepare()
    broker.pause()
    try:
        failed = await asyncio.gather(
            *(history.append(record("crm", number), timeout_s=0.3) for number in range(3)),
            return_exceptions=True,
        )
    finally:
        broker.resume()
    assert [type(each) for each in failed] == [UnavailableError] * 3
    await bus.close()


async def test_nobody_can_have_anothers_record_taken_for_a_repetition(broker):
    """The broker keeps what came first under an id, whoever published it."""
    config = NatsConfig(servers=[broker.url])
    masters = await NatsBus.connect("master", config, login=broker.login())
    history = JetStreamHistory(masters)
    await history.prepare()
    async with OpenDoor(broker, nodes=["crm", "evil"], users=[]) as door:
        crm = await NatsBus.connect("crm", config, login=door.login("crm"))
        login = door.login("evil")
        liar = await nats.connect(broker.url, user="evil", password=login.password)
        try:
            guess = hashlib.blake2b(b"crm/1/1/succeeded", digest_size=16).hexdigest()
            own = subjects.history("evil", "refund", ActionState.SUCCEEDED)
            await liar.publish(own, codec.encode(record("evil", 1)), headers={"Nats-Msg-Id": guess})
            await liar.flush()
            async with asyncio.timeout(5):  # until it is stored: that is later than flushed
                while not await history.last_sequence():
                    await asyncio.sleep(0.01)
            honest = JetStreamHistory(crm)
            first = await honest.append(record("crm", 1), timeout_s=5)
            assert await honest.append(record("crm", 1), timeout_s=5) == first, "once in a life"
            found, _ = await history.read(0, 100)
        finally:
            await liar.close()
            await crm.close()
    assert [(one.node, one.id) for _, one in found] == [("evil", "1"), ("crm", "1")]
    await masters.close()
