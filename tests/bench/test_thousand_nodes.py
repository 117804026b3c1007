"""What a thousand nodes that beat once a second, and are pinged every five, cost a master."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from live_mesh import START_S, agent, clean_environment
from thousand_nodes import slug

from mesh import bootstrap
from mesh.adapters.sql.registry import SqlRegistry
from mesh.config import NatsConfig
from mesh.errors import MeshError
from mesh.wire import codec, subjects
from mesh.wire.messages import NodeRecord, NodesQuery, NodeStats

pytestmark = pytest.mark.bench

NODES = 1000
SETTLE_S = 2.0
MEASURE_S = 20.0
MOST_CPU = 0.15
"""Of one core."""
MOST_RSS_MB = 200.0


async def register_all(database: str) -> None:
    registry = await SqlRegistry.open(database)
    try:
        for number in range(NODES):
            name = slug(number)
            record = NodeRecord(id=f"id-{number}", slug=name, name=name)
            await registry.register(record, api_key_hash=f"{number:064x}")
    finally:
        await registry.close()


async def stats(bus) -> NodeStats:
    reply = await bus.request(
        subjects.master("stats", "ops"),
        codec.encode(NodesQuery()),
        responder="master",
        timeout_s=5.0,
    )
    return codec.result_of(reply, NodeStats)


def start(argv: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(argv, env=clean_environment(), stdout=out, stderr=out)


async def until_all_healthy(bus, master: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(START_S):
        while True:
            assert master.poll() is None, "the master has ended; see its log"
            with contextlib.suppress(MeshError):
                if (await stats(bus)).healthy == NODES:
                    return
            await asyncio.sleep(0.1)


async def measured(bus, master: psutil.Process, crowd: psutil.Process) -> tuple[float, float]:
    """Shares of a core."""
    await asyncio.sleep(SETTLE_S)
    before, began = (cpu_s(master), cpu_s(crowd)), time.monotonic()
    await asyncio.sleep(MEASURE_S)
    took = time.monotonic() - began
    assert (await stats(bus)).healthy == NODES
    return (cpu_s(master) - before[0]) / took, (cpu_s(crowd) - before[1]) / took


async def test_a_master_of_a_thousand_nodes_is_idle_nearly_all_of_the_time(broker, tmp_path):
    database = f"sqlite+aiosqlite:///{tmp_path}/registry.db"
    await register_all(database)
    credentials = broker.credentials("master")
    script = Path(__file__).with_name("thousand_nodes.py")
    master_argv = agent("master", "--state-dir", tmp_path / "state", "--url", broker.url)
    processes = []
    try:
        crowd_argv = [sys.executable, str(script), broker.url, str(credentials), str(NODES)]
        processes.append(start(crowd_argv, tmp_path / "crowd.log"))
        master_argv += ["--creds", str(credentials), "--database", database]
        processes.append(start(master_argv, tmp_path / "master.log"))
        crowd, master = (psutil.Process(process.pid) for process in processes)
        bus = await bootstrap.connect_bus(
            "ops", NatsConfig(servers=[broker.url]), login=broker.login()
        )
        try:
            await until_all_healthy(bus, processes[1])
            assert master.children() == [], "all that the master uses is in its own figures"
            share, crowd_share = await measured(bus, master, crowd)
            rss_mb = master.memory_info().rss / 2**20
        finally:
            await bus.close()
    finally:
        for process in processes:
            process.terminate()
            process.wait(timeout=30)
    sys.stdout.write(
        f"\n{NODES} nodes, one beat a second each: master {share:.1%} of a core, {rss_mb:.0f} MB "
        f"(the generator {crowd_share:.1%})\n"
    )
    assert share < MOST_CPU
    assert rss_mb < MOST_RSS_MB


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
