"""An echo through our multiplexer against plain nats-py's request(), in turns."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from pathlib import Path

import nats
import pytest
import uvloop

from mesh.adapters.nats.bus import NatsBus
from mesh.config import NatsConfig

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

IN_FLIGHT = 64
CALLS = 20_000
ROUNDS = 5
PAYLOAD = b"x" * 150
AT_LEAST = 1.5


async def calls_per_s(call):
    """`CALLS` calls, `IN_FLIGHT` at a time."""

    async def worker():
        for _ in range(CALLS // IN_FLIGHT):
            await call()

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return CALLS / (time.perf_counter() - began)


async def measure(broker):
    login = broker.login()
    bus = await NatsBus.connect("ops", NatsConfig(servers=[broker.url]), login=login)
    plain = await nats.connect(broker.url, login=login)

    async def ours():
        await bus.request("mesh.v1.rpc.echo.ping.ops", PAYLOAD, responder="echo", timeout_s=5)

    async def theirs():
        await plain.request("plain.echo", PAYLOAD, timeout=5)

    pairs = [(await calls_per_s(ours), await calls_per_s(theirs)) for _ in range(ROUNDS)]
    await bus.close()
    await plain.close()
    return pairs


def test_echo_through_the_multiplexer(broker):
    argv = [sys.executable, str(Path(__file__).with_name("echo_server.py"))]
    argv += [broker.url, str(broker.credentials("master"))]
    server = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout.readline() == "ready\n"
        pairs = uvloop.run(measure(broker))
    finally:
        server.terminate()
        server.wait(timeout=10)
        server.stdout.close()
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    sys.stdout.write(
        f"\necho, {IN_FLIGHT} in flight: ours {ours:,.0f}/s, nats-py {theirs:,.0f}/s: "
        f"{ratio:.2f} times\n"
    )
    assert ratio >= AT_LEAST
