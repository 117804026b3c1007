"""The queue over a real broker, of real masters and a real node: what strangers put there, what is
cancelled and what is tried again.
"""

from __future__ import annotations

import asyncio
import signal

import pytest
import pytest_asyncio
from queue_mesh import NODE, QueueMesh, until

from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.queue import JetStreamQueue
from mesh.adapters.nats.work_stream import WorkStream
from mesh.config import NatsConfig
from mesh.errors import ConflictError, MeshError
from mesh.types import ActionState, Health
from mesh.wire import codec, subjects
from mesh.wire.messages import QueueItem

pytestmark = pytest.mark.timeout(120)

ROOM = 1024 * 1024


@pytest_asyncio.fixture
async def bus(broker):
    config = NatsConfig(servers=[broker.url])
    connected = await NatsBus.connect("master", config, login=broker.login())
    yield connected
    await connected.close()


async def test_what_cannot_wait_is_not_taken_or_thrown_away(bus):
    """Where a publish is acknowledged whoever published says: it must not become an item."""
    queue = JetStreamQueue(bus, max_bytes=ROOM)
    await queue.prepare()
    good = QueueItem(id="1", action="pay")
    bus._send("mesh.v1.queue.crm.pay.ops", b"mesh.v1.queue.foo", codec.encode(good), b"")
    bus._send("mesh.v1.queue.a~b.pay.evil", b"", codec.encode(good), b"")
    bus._send("mesh.v1.queue.crm.bad~x.evil", b"", codec.encode(good), b"")
    last = await queue.put("crm", "ops", QueueItem(id="2", action="pay"), timeout_s=5)
    await asyncio.sleep(0.2)
    assert await queue.waiting() == {"crm": 2}, "also before they are thrown away"
    found, after = [], 0
    while waiting := await queue.next_of_all(after):
        found.append(waiting.item.id)
        after = waiting.sequence
    assert (sorted(found), queue.strays) == (["1", "2"], 2)
    assert after == last
    assert await queue._queue.size(timeout_s=5) == 2


async def test_a_stream_that_took_more_is_narrowed(bus):
    wide = WorkStream(
        bus,
        subjects.QUEUE_STREAM,
        "mesh.v1.queue.>",
        about="the queue",
        max_bytes=ROOM,
        full="new",
    )
    await wide.prepare()
    await JetStreamQueue(bus, max_bytes=ROOM).prepare()
    with pytest.raises(MeshError):
        await wide.append("mesh.v1.queue.foo", b"{}", message_id="1", timeout_s=1)


@pytest_asyncio.fixture
async def queued(broker):
    running = QueueMesh(broker, masters=1)
    try:
        await running.start()
        yield running
    finally:
        running.stop()


async def ended(client, action_id):
    """How it ended, once nothing of it waits."""
    async with asyncio.timeout(30):
        while (await client.queue()).total:
            await asyncio.sleep(0.05)
    return (await client.action(action_id)).stories[0].action


async def test_cancelled_and_tried_again_on_a_real_node(queued):
    """Its node is there and busy, then away, then knows the id: never does it run unasked."""
    client = await queued.connect()
    gate = queued.folder / "gate"
    busy = {"until": str(gate)}
    await client.queue_action("fill", busy, node=NODE, id="head")
    await client.queue_action("note", {"key": "a"}, node=NODE, id="a")
    record = await client.cancel_action("a")
    assert (record.state, record.attempt) == (ActionState.CANCELLED, 1), "its node remembers"
    with pytest.raises(ConflictError, match="cancelled"):
        await client.cancel_action("a")
    gate.touch()
    await until(lambda: "filled" in queued.runs, 20, lambda: repr(queued.runs))
    assert (await client.retry_action("a")).state is ActionState.QUEUED
    await ended(client, "a")

    queued.node.end(signal.SIGKILL)
    await queued.healthy(client, Health.UNREACHABLE)
    await client.queue_action("note", {"key": "b"}, node=NODE, id="b")
    record = await client.cancel_action("b")
    assert (record.state, record.attempt) == (ActionState.CANCELLED, 0)
    assert "nothing ran" in record.error.message
    assert (await client.queue()).total == 0
    await client.queue_action("note", {"key": "c"}, node=NODE, id="c")
    queued.node.start()
    await until(lambda: "c" in queued.runs, 40, lambda: repr(queued.runs))
    assert queued.runs.count("b") == 0
    await client.retry_action("b")
    assert (await ended(client, "b")).state is ActionState.SUCCEEDED
    assert sorted(queued.runs) == ["a", "b", "c", "filled"]
    await client.close()


async def test_what_is_tried_again_and_again_is_cancelled_and_tried_again(queued):
    """Attempts that its node never heard of count too."""
    client = await queued.connect()
    await client.queue_action("note", {}, node=NODE, id="odd")  # it needs a key
    async with asyncio.timeout(20):
        while not (await client.dead_letters()).total:
            await asyncio.sleep(0.05)
    queued.node.end(signal.SIGKILL)
    await queued.healthy(client, Health.UNREACHABLE)
    for attempt in (2, 3):
        await client.retry_action("odd")
        record = await client.cancel_action("odd")
        assert (record.state, record.attempt) == (ActionState.CANCELLED, attempt)
    queued.node.start()
    await queued.healthy(client)
    await client.retry_action("odd")
    row = await ended(client, "odd")
    assert (row.state, row.attempt, row.error.kind) == (ActionState.FAILED, 4, "action_failed")
    await client.close()
