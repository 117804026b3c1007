"""What client and bus add to a node's own search time, at p50."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time

import pytest
import uvloop
from live_mesh import LiveMesh, health_of

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

DOCUMENTS = 1000
SEARCHES = 300
AT_MOST_MS = 2.0
WORDS = [
    "late",
    "invoice",
    "refund",
    "order",
    "customer",
    "money",
    "parcel",
    "address",
    "support",
    "question",
]


async def measure(live):
    async with live.connect() as client:
        async with asyncio.timeout(90):
            while await health_of(client, "solo") != "healthy" or not any(
                info.rows == DOCUMENTS
                for route in client.routes.nodes.values()
                for info in route.collections
            ):
                await asyncio.sleep(0.1)
        total_ms, node_ms = [], []
        for number in range(SEARCHES + 20):
            query = f"{WORDS[number % 10]} {WORDS[number * 7 % 10]}"
            began = time.perf_counter()
            answer = await client.search(query, timeout_ms=5000, cache=False)
            took = (time.perf_counter() - began) * 1000
            assert answer.results
            if number >= 20:
                total_ms.append(took)
                node_ms.append(answer.shards.details[0].took_ms)
        return total_ms, node_ms


def test_search_through_client_and_bus(tmp_path):
    lines = [
        {"id": str(number), "content": f"{WORDS[number % 10]} {WORDS[number // 10 % 10]} {number}"}
        for number in range(DOCUMENTS)
    ]
    (tmp_path / "notes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    live = LiveMesh(tmp_path)
    try:
        live.start()
        live.add("solo", "--collection", f"notes={tmp_path / 'notes.jsonl'}")
        total_ms, node_ms = uvloop.run(measure(live))
    finally:
        live.stop()
    added = statistics.median(total - node for total, node in zip(total_ms, node_ms, strict=True))
    sys.stdout.write(
        f"\nsearch of {DOCUMENTS} documents on one node: client p50 "
        f"{statistics.median(total_ms):.2f} ms, node p50 {statistics.median(node_ms):.2f} ms, "
        f"client and bus add {added:.2f} ms\n"
    )
    assert added <= AT_MOST_MS
