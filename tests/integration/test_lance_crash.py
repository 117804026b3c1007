"""kill -9 at any moment: what was acknowledged is there, a batch is there whole or not at all, and
the statistics are right.
"""

import random
import subprocess
import sys
import time
from collections import Counter

import pytest

from mesh.adapters.clock import SystemClock
from mesh.adapters.embedders import load_embedder
from mesh.adapters.lance import LanceDocuments
from mesh.core import text

WRITER = """
import asyncio, sys
from pathlib import Path
import structlog
from mesh.adapters.clock import SystemClock
from mesh.adapters.embedders import load_embedder
from mesh.adapters.lance import LanceDocuments, tidying
from mesh.wire.messages import Document

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
tidying.MIN_WRITES = 4  # so that the kill also falls into tidying
tidying.DELAY_S = 0.001

async def main(folder, start):
    store = await LanceDocuments.open(
        Path(folder), embedder=load_embedder("hash"), shard="s", clock=SystemClock()
    )
    print("open", flush=True)
    for number in range(start, start + 10_000):
        batch = [
            Document(
                id=f"{number}-{n}",
                content=f"batch b{number} text {n}",
                metadata={f"k{number % 7}": n},
            )
            for n in range(5)
        ]
        await store.index("notes", batch)
        await store.index("notes", [Document(id="shared", content=f"version {number}")])
        if number % 3 == 0:
            await store.delete("notes", ids=[f"{number}-4"])
        if number % 10 == 9:
            await store.index("other", batch)
            await store.drop("other")
        print(number, flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def killed(folder, start, after_s):
    """Run the writer, kill it, and return the numbers it acknowledged."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(start)], stdout=subprocess.PIPE, text=True
    )
    try:
        first = [process.stdout.readline() for _ in range(3)]
        assert first[0] == "open\n"
        time.sleep(after_s)
    finally:
        process.kill()
        rest, _ = process.communicate()
    # The last line may be cut short by the kill.
    lines = [*first[1:], *rest.splitlines(keepends=True)]
    return [int(line) for line in lines if line.endswith("\n")]


@pytest.mark.parametrize("seed", range(2))
async def test_kill_9_loses_nothing_acknowledged(tmp_path, seed):
    rng = random.Random(seed)
    acknowledged = []
    last_version = 0
    for _ in range(2):
        start = max(acknowledged, default=-1) + 2
        acknowledged += killed(tmp_path, start, rng.uniform(0.0, 1.0))
        store = await LanceDocuments.open(
            tmp_path, embedder=load_embedder("hash"), shard="s", clock=SystemClock()
        )
        infos = {info.name: info for info in store.collections()}
        assert infos["notes"].data_version > last_version
        last_version = infos["notes"].data_version
        await assert_whole(store, acknowledged)
        await store.close()


async def assert_whole(store, acknowledged):
    table = await store._collections["notes"]._table.query().to_arrow()
    rows = {row["id"]: row for row in table.to_pylist()}
    assert len(rows) == table.num_rows
    for number in acknowledged:
        present = {n for n in range(5) if f"{number}-{n}" in rows}
        assert present == ({0, 1, 2, 3} if number % 3 == 0 else {0, 1, 2, 3, 4})
    batches = Counter(name.split("-")[0] for name in rows if name != "shared")
    assert set(batches.values()) <= {4, 5}, "a batch is there whole or not at all"
    version = int(rows["shared"]["content"].split()[1])
    assert version >= max(acknowledged)

    statistics = store._collections["notes"].statistics
    df = Counter(term for row in rows.values() for term in set(text.terms(row["content"])))
    assert (statistics.rows, statistics.terms()) == (len(rows), df)
    [hits] = await store.search(
        f"batch b{acknowledged[-1]}",
        collections=["notes"],
        mode="text",
        depth=30,
        threshold=None,
        filters={},
    )
    matching = {candidate.id for candidate in hits.candidates if all(candidate.tf)}
    assert matching == {name for name in rows if name.startswith(f"{acknowledged[-1]}-")}
