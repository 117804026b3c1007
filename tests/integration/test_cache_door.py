"""Several gateways on a real broker tell of their caches, and empty them together."""

from __future__ import annotations

import contextlib

import pytest_asyncio

from mesh.adapters.clock import SystemClock
from mesh.adapters.nats.bus import NatsBus
from mesh.config import MeshConfig, NatsConfig
from mesh.runtime.client import MeshClient


@pytest_asyncio.fixture
async def join(shared_broker):
    async with contextlib.AsyncExitStack() as stack:

        async def made(identity):
            config = NatsConfig(servers=[shared_broker.url])
            bus = await NatsBus.connect(identity, config, login=shared_broker.login())
            client = MeshClient(bus, MeshConfig(), SystemClock())
            stack.push_async_callback(client.close)
            return client

        yield made


async def test_each_gateway_answers_for_itself(join):
    doors = []
    for name in ("web-2", "web-1"):
        door = (await join("gateway")).cache_door(name)
        await door.start()
        doors.append(door)
    operator = await join("ops")
    told = await operator.caches()
    assert [report.gateway for report in told.gateways] == ["web-1", "web-2"]
    assert {report.cleared for report in told.gateways} == {None}
    assert {report.stats.max_bytes for report in told.gateways} == {64 * 1024 * 1024}
    cleared = await operator.caches(clear=True)
    assert [report.cleared for report in cleared.gateways] == [0, 0]
    await doors[0].stop()
    assert [report.gateway for report in (await operator.caches()).gateways] == ["web-1"]


async def test_without_a_gateway_nobody_answers(join):
    assert (await (await join("ops")).caches()).gateways == []
