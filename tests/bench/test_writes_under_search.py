"""Searches while thousands of documents come in one by one, on one node of a real mesh."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time

import pytest
from live_mesh import START_S, LiveMesh, health_of
from made_up_texts import made_up_texts

pytestmark = [pytest.mark.bench, pytest.mark.alone, pytest.mark.timeout(900)]

DOCUMENTS = 1105
UPSERTS = 2000
WRITERS = 4
SEARCHES = 600
PAUSE_S = 0.01
"""Between two searches: a load, not a race."""
AT_MOST_TIMES = 1.5


async def searched(client, queries, stop: asyncio.Event, at_least: int) -> list[float]:
    """Milliseconds of each search, one after the other until told to stop."""
    took: list[float] = []
    while not stop.is_set() or len(took) < at_least:
        began = time.perf_counter()
        query = queries[len(took) % len(queries)]
        answer = await client.search(query, timeout_ms=10_000, cache=False)
        took.append((time.perf_counter() - began) * 1000)
        assert not answer.partial
        assert answer.results
        await asyncio.sleep(PAUSE_S)
    return took


async def measure(live):
    queries = made_up_texts(50, words=6, seed=2)
    texts = made_up_texts(UPSERTS, seed=3)
    async with live.connect() as client, live.connect() as writer:
        async with asyncio.timeout(START_S):
            while await health_of(client, "solo") != "healthy" or not any(
                info.rows == DOCUMENTS
                for route in client.routes.nodes.values()
                for info in route.collections
            ):
                await asyncio.sleep(0.1)
        stop = asyncio.Event()
        stop.set()
        await searched(client, queries, stop, 50)
        before = await searched(client, queries, stop, SEARCHES)

        stop.clear()
        waiting = iter(enumerate(texts))

        async def write() -> None:
            for number, text in waiting:
                document = {"id": f"new-{number}", "content": text}
                await writer.run_action(
                    "index", {"collection": "notes", "documents": [document]}, node="solo"
                )

        searching = asyncio.create_task(searched(client, queries, stop, 0))
        began = time.perf_counter()
        await asyncio.gather(*(write() for _ in range(WRITERS)))
        wrote_s = time.perf_counter() - began
        stop.set()
        during = await searching
        found = await client.search(texts[-1], limit=5, timeout_ms=10_000)
        assert found.results[0].id == f"new-{UPSERTS - 1}"
    return before, during, wrote_s


@pytest.mark.parametrize("hot_mb", [64, 0], ids=["memory", "lancedb"])
async def test_two_thousand_single_upserts_under_search(tmp_path, hot_mb):
    lines = [
        json.dumps({"id": f"d{number}", "content": text})
        for number, text in enumerate(made_up_texts(DOCUMENTS))
    ]
    (tmp_path / "notes.jsonl").write_text("\n".join(lines))
    live = LiveMesh(tmp_path)
    try:
        live.start()
        live.add(
            "solo",
            "--collection",
            f"notes={tmp_path / 'notes.jsonl'}",
            MESH_SEARCH__EMBEDDER="wordllama",
            MESH_SEARCH__HOT_MB=str(hot_mb),
        )
        before, during, wrote_s = await measure(live)
    finally:
        live.stop()
    p50_before, p50_during = statistics.median(before), statistics.median(during)
    sys.stdout.write(
        f"\n{UPSERTS} single upserts in {wrote_s:.1f} s ({UPSERTS / wrote_s:.0f}/s): searches p50"
        f" {p50_before:.2f} ms before, {p50_during:.2f} ms during ({len(during)} of them),"
        f" worst {max(during):.0f} ms\n"
    )
    if hot_mb:
        assert p50_during <= AT_MOST_TIMES * p50_before
