"""What a node does for one search, from the request's bytes to the reply's: in memory, and the same
with LanceDB.
"""

from __future__ import annotations

import statistics
import sys
import time

import pytest
from made_up_texts import made_up_texts

from mesh.adapters.clock import SystemClock
from mesh.adapters.embedders import load_embedder
from mesh.adapters.lance import LanceDocuments
from mesh.config import MeshConfig
from mesh.runtime.node_search import NodeSearch
from mesh.wire import codec
from mesh.wire.messages import Document, SearchRequest

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

DOCUMENTS = 1105
ROUNDS = 10
SEARCHES = 20
FASTER_AT_LEAST = 5.0


async def test_a_search_in_memory_and_with_lancedb(tmp_path):
    embedder, clock = load_embedder("wordllama"), SystemClock()
    documents = [
        Document(id=f"d{n}", content=text, metadata={"section": f"s{n % 9}", "n": n})
        for n, text in enumerate(made_up_texts(DOCUMENTS))
    ]
    requests = [
        codec.encode(SearchRequest(query=text, limit=10, candidates=True))
        for text in made_up_texts(SEARCHES, words=6, seed=2)
    ]
    stores, searches = {}, {}
    for name, hot_mb in (("memory", 64), ("lancedb", 0)):
        stores[name] = await LanceDocuments.open(
            tmp_path / name, embedder=embedder, shard="s", clock=clock, hot_mb=hot_mb
        )
        for start in range(0, DOCUMENTS, 1000):
            await stores[name].index("notes", documents[start : start + 1000])
        await stores[name]._collections["notes"]._table.optimize()
        searches[name] = NodeSearch(
            "solo",
            MeshConfig(),
            documents=stores[name],
            embedder=embedder,
            searches={},
            clock=clock,
        )

    async def answer(name, request):
        return codec.ok(await searches[name].answer(codec.decode(request, SearchRequest)))

    wall_ms: dict[str, list[float]] = {name: [] for name in stores}
    cpu_ms = dict.fromkeys(stores, 0.0)
    sizes = []
    for turn in range(ROUNDS + 1):
        for name in stores:
            for request in requests:
                cpu, began = time.process_time(), time.perf_counter()
                reply = await answer(name, request)
                took, used = time.perf_counter() - began, time.process_time() - cpu
                if turn:  # the first round is for warming up
                    wall_ms[name].append(took * 1000)
                    cpu_ms[name] += used * 1000 / (ROUNDS * SEARCHES)
                    sizes.append(len(reply))
    for store in stores.values():
        await store.close()

    p50 = {name: statistics.median(took) for name, took in wall_ms.items()}
    sys.stdout.write(
        f"\nsearch of {DOCUMENTS} documents in the node, reply {statistics.mean(sizes):.0f} bytes:"
        f" in memory p50 {p50['memory']:.2f} ms ({cpu_ms['memory']:.2f} ms of CPU),"
        f" with LanceDB {p50['lancedb']:.2f} ms ({cpu_ms['lancedb']:.2f} ms of CPU)\n"
    )
    assert p50["memory"] * FASTER_AT_LEAST <= p50["lancedb"]
    assert cpu_ms["memory"] * FASTER_AT_LEAST <= cpu_ms["lancedb"]
