"""One replica of ten that is ten times as slow: what callers notice of it, by strategy."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest
import uvloop
from live_mesh import START_S, LiveMesh, clean_environment
from replicated_mesh import Load

from mesh.config import MeshConfig, RoutingConfig

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

PER_S = 150
ROUND_S = 8.0
ROUNDS = 3
AT_MOST = 1.5
POLICIES = {
    "p2c, hedged": RoutingConfig(),
    "p2c alone": RoutingConfig(hedge_budget=0.0),
    "random": RoutingConfig(strategy="random", hedge_budget=0.0),
    "round_robin": RoutingConfig(strategy="round_robin", hedge_budget=0.0),
}


@pytest.fixture
def ten(tmp_path):
    live = LiveMesh(tmp_path)
    slow = tmp_path / "slow"
    slow.write_text("")
    live.start()
    script = Path(__file__).with_name("ten_replicas.py")
    argv = [sys.executable, str(script), live.file()["nats_url"], str(live.state), str(slow)]
    nodes = subprocess.Popen(argv, cwd=tmp_path, env=clean_environment())
    try:
        yield live, slow
    finally:
        nodes.terminate()
        nodes.wait(timeout=10)
        live.stop()


async def p99_ms(live, routing):
    async with live.connect(config=MeshConfig(routing=routing)) as client:
        async with asyncio.timeout(START_S):
            while sum(node.health == "healthy" for node in client.routes.nodes.values()) < 10:
                await asyncio.sleep(0.1)
        async with Load(client, searches_per_s=PER_S, pings_per_s=0, collection="notes") as load:
            await asyncio.sleep(ROUND_S)
            ended = time.monotonic()
    assert not load.failed, load.errors()
    return load.quantile_ms(0.99, since=ended - ROUND_S + 2)  # it learns who is slow first


async def measure(live, slow):
    """Per policy (healthy, one slow) p99 in ms, rounds in turns."""
    seen = {name: [] for name in POLICIES}
    for _ in range(ROUNDS):
        for name, routing in POLICIES.items():
            pair = []
            for whom in ("", "replica-3"):
                slow.write_text(whom)
                pair.append(await p99_ms(live, routing))
            seen[name].append(pair)
    return seen


def test_one_slow_replica_of_ten(ten):
    ratios = {}
    for name, pairs in uvloop.run(measure(*ten)).items():
        healthy, slow = (sorted(side)[len(side) // 2] for side in zip(*pairs, strict=True))
        ratios[name] = slow / healthy
        sys.stdout.write(
            f"\n{name}: p99 {healthy:.1f} ms, with one slow of ten {slow:.1f} ms: "
            f"{ratios[name]:.2f} times"
        )
    sys.stdout.write("\n")
    assert ratios["p2c, hedged"] <= AT_MOST
    assert ratios["random"] > ratios["p2c, hedged"]
