"""A call with everything on (routing, breaker, deadline, outcome) beside Moleculer's with breaker
and retries, and what routing adds to a bare request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import time

import pytest
import uvloop
from gateway_world import PEERS, open_broker
from live_mesh import LiveMesh, health_of

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

IN_FLIGHT = 64
CALLS = 20_000
ROUNDS = 7
AT_LEAST = 1.0
"""Times Moleculer's throughput; the aim is 1.5."""


class Peer:
    """Moleculer's caller, its service and a broker for both, idle until `calls_per_s`."""

    def __init__(self, caller: subprocess.Popen[str]) -> None:
        self._caller = caller

    def calls_per_s(self, calls: int) -> float:
        self._caller.stdin.write(f"{calls} {IN_FLIGHT}\n")
        self._caller.stdin.flush()
        return float(self._caller.stdout.readline())


@contextlib.contextmanager
def moleculer(folder, nats_url, replicas):
    """As many echoes as there are replicas of ours, each a process."""
    shutil.copytree(PEERS, folder, dirs_exist_ok=True)
    quiet = ["--no-progress", "--loglevel=error"]
    subprocess.run(["npm", "ci", *quiet], cwd=folder, check=True, timeout=300)
    environment = os.environ | {"NATS_URL": nats_url}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    echoes = [
        subprocess.Popen(
            ["node", "moleculer_echo.js"],
            cwd=folder,
            env=environment | {"ECHO": f"echo{number}"},
        )
        for number in range(replicas)
    ]
    environment |= {"ECHOES": str(replicas)}
    caller = subprocess.Popen(["node", "moleculer_caller.js"], cwd=folder, env=environment, **pipes)
    try:
        assert caller.stdout.readline() == "ready\n"
        yield Peer(caller)
    finally:
        for process in (caller, *echoes):
            process.kill()
            process.wait(timeout=10)
        caller.stdin.close()
        caller.stdout.close()


@contextlib.contextmanager
def mesh_of(folder, replicas):
    """A live mesh whose shard `x` has that many replicas, each a process."""
    live = LiveMesh(folder)
    try:
        live.start()
        for number in range(replicas):
            live.add(f"x{number}", MESH_NODE__SHARD="x")
        yield live
    finally:
        live.stop()


async def ready(client, replicas):
    """All replicas hold a collection of the shard, and are healthy."""
    slugs = [f"x{number}" for number in range(replicas)]
    async with asyncio.timeout(90):
        for slug in slugs:
            while await health_of(client, slug) != "healthy":
                await asyncio.sleep(0.05)
            await client.run_action(
                "index", {"collection": "notes", "documents": [{"content": "hello"}]}, node=slug
            )
        while not all(client.routes.nodes[slug].collections for slug in slugs):
            await asyncio.sleep(0.05)


async def calls_per_s(call, calls):
    async def worker():
        for _ in range(calls // IN_FLIGHT):
            await call()

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return calls // IN_FLIGHT * IN_FLIGHT / (time.perf_counter() - began)


@pytest.mark.parametrize("replicas", [1, 3])
def test_full_call_path_beside_moleculer(tmp_path, replicas):
    """In turns, each on a broker of its own, the other side idle meanwhile."""

    async def rounds(live, peer):
        async with live.connect() as client:
            await ready(client, replicas)

            async def call():
                await client.ping_shard("x", timeout_s=5)

            await calls_per_s(call, CALLS)
            await asyncio.to_thread(peer.calls_per_s, CALLS)
            return [
                (
                    await calls_per_s(call, CALLS),
                    await asyncio.to_thread(peer.calls_per_s, CALLS),
                )
                for _ in range(ROUNDS)
            ]

    with (
        mesh_of(tmp_path, replicas) as live,
        open_broker() as nats_url,
        moleculer(tmp_path / "peers", nats_url, replicas) as peer,
    ):
        pairs = uvloop.run(rounds(live, peer))
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    sys.stdout.write(
        f"\nfull call path, {IN_FLIGHT} in flight, {replicas} replicas: ours {ours:,.0f}/s, "
        f"Moleculer with breaker and retries {theirs:,.0f}/s: {ratio:.2f} times "
        f"({min(a / b for a, b in pairs):.2f} to {max(a / b for a, b in pairs):.2f})\n"
    )
    assert ratio >= AT_LEAST
