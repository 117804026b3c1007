"""One of eight nodes stands still: the answer is there 50 ms after the deadline at the latest."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time

import pytest
import uvloop
from live_mesh import LiveMesh, health_of
from processes import pause

pytestmark = [pytest.mark.bench, pytest.mark.alone, pytest.mark.timeout(600)]

NODES = [f"n{number}" for number in range(8)]
TIMEOUT_MS, LATEST_MS = 500, 550
SEARCHES = 5


async def measure(live):
    async with live.connect() as client:
        async with asyncio.timeout(300):
            for slug in NODES:
                while await health_of(client, slug) != "healthy":
                    await asyncio.sleep(0.2)
            while len(client.routes.holders("notes")) < len(NODES):
                await asyncio.sleep(0.2)
        for number in range(20):
            assert not (await client.search(f"warm {number}", timeout_ms=10_000)).partial
        took_ms, answers = [], []
        for number in range(SEARCHES):
            stopped = live.nodes[NODES[number]].pid
            pause(stopped)
            try:
                began = time.perf_counter()
                answers.append(await client.search(f"late {number}", timeout_ms=TIMEOUT_MS))
                took_ms.append((time.perf_counter() - began) * 1000)
            finally:
                os.kill(stopped, signal.SIGCONT)
            async with asyncio.timeout(120):
                while (await client.search(f"again {number}", timeout_ms=5000)).partial:
                    await asyncio.sleep(0.5)
        return took_ms, answers


def test_a_node_that_stands_still_costs_the_deadline_and_no_more(tmp_path):
    live = LiveMesh(tmp_path)
    try:
        live.start()
        for slug in NODES:
            lines = [{"id": f"{slug}-{n}", "content": f"late invoice {n}"} for n in range(20)]
            file = tmp_path / f"{slug}.jsonl"
            file.write_text("\n".join(map(json.dumps, lines)))
            live.add(slug, "--collection", f"notes={file}")
        took_ms, answers = uvloop.run(measure(live))
    finally:
        live.stop()
    sys.stdout.write(
        f"\none of {len(NODES)} nodes stopped, timeout {TIMEOUT_MS} ms: answered after "
        f"{', '.join(f'{one:.0f}' for one in took_ms)} ms\n"
    )
    for number, answer in enumerate(answers):
        (late,) = [report for report in answer.shards.details if report.status != "ok"]
        assert (late.node, late.status) == (NODES[number], "timed_out")
        assert (answer.shards.ok, answer.partial) == (7, True)
    assert max(took_ms) <= LATEST_MS
