"""What every `ActionQueue` must do: keep what it took, in order, once, until it is removed."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from queue_fakes import MemoryQueue

from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.queue import JetStreamQueue
from mesh.config import NatsConfig
from mesh.errors import InvalidError, UnavailableError
from mesh.ports import ActionQueue
from mesh.wire.messages import DeadLetter, ErrorReply, QueueItem

ROOM = 1024 * 1024


def item(action_id: str = "1", **fields: Any) -> QueueItem:
    return QueueItem(
        **{"id": action_id, "action": "pay", "params": {"n": 1}, "digest": "d"} | fields
    )


def letter(action_id: str, node: str = "crm") -> DeadLetter:
    error = ErrorReply(code=400, kind="bad_request", message="no")
    return DeadLetter(
        id=action_id, node=node, action="pay", caller="ops", at=1, params={"n": 1}, error=error
    )


@pytest_asyncio.fixture(params=["memory", "jetstream"])
async def queue(request):
    if request.param == "memory":
        made: ActionQueue = MemoryQueue(room=ROOM)
        await made.prepare()
        yield made
        return
    broker = request.getfixturevalue("broker")
    bus = await NatsBus.connect("master", NatsConfig(servers=[broker.url]), login=broker.login())
    made = JetStreamQueue(bus, max_bytes=ROOM)
    await made.prepare()
    await made.prepare()
    yield made
    await bus.close()


async def put(queue: ActionQueue, action_id: str, node: str = "crm", **fields: Any) -> int:
    return await queue.put(node, "ops", item(action_id, **fields), timeout_s=5)


async def ids(queue: ActionQueue, node: str = "") -> list[str]:
    found, after = [], 0
    while waiting := await (queue.next(node, after) if node else queue.next_of_all(after)):
        assert waiting.item is not None
        found.append(waiting.item.id)
        after = waiting.sequence
    return found


async def test_what_was_put_comes_back_as_it_was(queue):
    began = round(time.time() * 1000)
    sequence = await put(queue, "1", on_behalf="alice", params={"é": [None, 1.5]}, expires=7)
    found = await queue.next("crm", 0)
    assert found == await queue.read(sequence)
    assert (found.sequence, found.node, found.action, found.caller) == (
        sequence,
        "crm",
        "pay",
        "ops",
    )
    assert found.item == item("1", on_behalf="alice", params={"é": [None, 1.5]}, expires=7)
    assert found.who == "ops", "an operator speaks for himself alone"
    assert found._replace(caller="gateway").who == "alice"
    assert began - 1000 <= found.at <= time.time() * 1000 + 1000
    assert await queue.next("crm", sequence) is None
    assert await queue.read(sequence + 1) is None


async def test_each_node_has_its_own_order(queue):
    for number in range(6):
        await put(queue, f"{number}", node="crm" if number % 2 else "shop")
    assert await ids(queue) == ["0", "1", "2", "3", "4", "5"]
    assert await ids(queue, "crm") == ["1", "3", "5"]
    assert await ids(queue, "nobody") == []
    assert await queue.waiting() == {"crm": 3, "shop": 3}


async def test_what_was_acknowledged_is_there(queue):
    """Also the same again, whether the first one waits or was taken out."""
    sequences = await asyncio.gather(*(put(queue, "1") for _ in range(20)))
    assert len(set(sequences)) == 20
    assert await ids(queue, "crm") == ["1"] * 20
    for sequence in sequences:
        await queue.remove(sequence)
    again = await put(queue, "1")
    assert (await queue.read(again)).item == item("1")


async def test_only_masters_say_that_something_is_tried_again(queue):
    for caller in ("ops", "gateway", "master"):
        one = item("1", retry=3, requeued=5)
        await queue.put("crm", caller, one, timeout_s=5)
    found, after = [], 0
    while waiting := await queue.next("crm", after):
        found.append((waiting.caller, waiting.item.retry, waiting.item.requeued))
        after = waiting.sequence
    assert found == [("ops", 0, 0), ("gateway", 0, 0), ("master", 3, 5)]


async def test_nobody_is_not_everybody(queue):
    await put(queue, "1")
    for node in ("", "*", ">", "a.b", "a~b"):
        with pytest.raises(InvalidError):
            await queue.next(node, 0)


async def test_a_letter_is_found_by_its_id(queue):
    for number in range(30):
        await queue.bury(letter(f"{number}", "crm" if number % 3 else "shop"), key=f"{number}")
    await queue.bury(msgspec.structs.replace(letter("7"), at=2), key="7 again")
    assert (await queue.letter("7", "crm")).letter.at == 2, "the newest"
    assert (await queue.letter("7", "")).letter.at == 2
    assert await queue.letter("7", "shop") is None
    assert await queue.letter("30", "") is None
    found = await queue.letter("3", "shop")
    await queue.exhume(found.sequence)
    assert await queue.letter("3", "shop") is None


async def test_what_is_removed_is_gone(queue):
    one, two = await put(queue, "1"), await put(queue, "2")
    assert await queue.remove(one)
    assert not await queue.remove(one)
    assert not await queue.remove(10_000)
    assert await ids(queue) == ["2"]
    assert await queue.read(one) is None
    assert await queue.remove(two)
    assert await queue.waiting() == {}
    assert await queue.next_of_all(0) is None


async def test_a_full_queue_refuses_until_there_is_room(queue):
    sequences: list[int] = []

    async def fill() -> None:
        for number in range(100):
            sequences.append(  # noqa: PERF401 (those before the refusal count)
                await put(queue, f"{number}", params={"x": "y" * 100_000})
            )

    with pytest.raises(UnavailableError, match="full") as refused:
        await fill()
    assert refused.value.retry_after_ms == 1000
    assert await ids(queue) == [f"{number}" for number in range(len(sequences))], "nothing went"
    await queue.remove(sequences[0])
    await put(queue, "late", params={"x": "y" * 100_000})


async def test_a_name_that_is_none_is_refused(queue):
    for node in ("", "*", ">", "a.b"):
        with pytest.raises(InvalidError):
            await put(queue, "1", node=node)
    assert await queue.waiting() == {}


async def test_dead_letters_are_read_newest_first(queue):
    for number in range(150):
        await queue.bury(letter(f"{number}", "crm" if number % 3 else "shop"), key=f"{number}")
        await queue.bury(letter(f"{number}", "crm" if number % 3 else "shop"), key=f"{number}")
    found, total = await queue.dead("", 3, 1)
    assert ([each.letter.id for each in found], total) == (["148", "147", "146"], 150)
    found, total = await queue.dead("shop", 100, 48)
    assert ([each.letter.id for each in found], total) == (["3", "0"], 50)
    assert found[1].letter == letter("0", "shop")
    await queue.exhume(found[1].sequence)
    await queue.exhume(found[1].sequence)
    found, total = await queue.dead("shop", 100, 48)
    assert ([each.letter.id for each in found], total) == (["3"], 49)
    assert await queue.dead("nobody", 10, 0) == ([], 0)
    assert (await queue.dead("", 10, 149)) == ([], 149)


async def test_a_letter_that_is_too_long_is_kept_without_its_parameters(queue):
    if isinstance(queue, MemoryQueue):
        return  # has no limit
    long = msgspec.structs.replace(letter("1"), params={"x": "y" * 3_000_000})
    await queue.bury(long, key="1")
    [[found], _] = await queue.dead("", 10, 0)
    assert (found.letter.id, found.letter.params) == ("1", None)
