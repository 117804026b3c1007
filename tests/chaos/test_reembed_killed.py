"""kill -9 while a collection is embedded anew: it is the old one or the new one, whole, and what
was embedded before is not embedded again.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from mesh.adapters.clock import SystemClock
from mesh.adapters.embedders import load_embedder
from mesh.adapters.lance import LanceDocuments
from mesh.wire.messages import Document

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

ROWS = 2000
KILLS = 2
REEMBED = """
import asyncio, json, sys, time
from pathlib import Path
from mesh.adapters.clock import SystemClock
from mesh.adapters.embedders import load_embedder
from mesh.adapters.lance import LanceDocuments

class Slow:
    # What the real one gives, at the pace of a bigger one.
    def __init__(self):
        self.embedder = load_embedder("wordllama")

    def __getattr__(self, name):
        return getattr(self.embedder, name)

    def embed_documents(self, texts):
        print(json.dumps(["embedded", len(texts)]), flush=True)
        time.sleep(0.02)
        return self.embedder.embed_documents(texts)

async def main(folder):
    store = await LanceDocuments.open(
        Path(folder), embedder=Slow(), shard="s", clock=SystemClock()
    )
    told = lambda _share, note: print(json.dumps(["told", note]), flush=True)
    done = await store.reembed("notes", told)
    print(json.dumps(["done", done.documents]), flush=True)

asyncio.run(main(sys.argv[1]))
"""


def content(number):
    return f"document {number} about topic{number % 97} and invoice{number % 13}"


def run(folder, until):
    """Run it until it says so (a line, decoded, is given to `until`), or to its end; its lines."""
    process = subprocess.Popen(
        [sys.executable, "-c", REEMBED, str(folder)], stdout=subprocess.PIPE, text=True
    )
    lines = []
    try:
        for line in process.stdout:
            if not line.endswith("\n"):
                break  # cut short by the kill
            if not line.startswith("["):
                continue  # the log
            lines.append(json.loads(line))
            if until(lines):
                break
    finally:
        process.kill()
        process.communicate()
    return lines


def sizes(lines):
    """Of the batches that were embedded."""
    return [size for what, size in lines if what == "embedded"]


async def opened(folder, embedder):
    return await LanceDocuments.open(folder, embedder=embedder, shard="s", clock=SystemClock())


async def assert_whole(folder, fingerprints):
    """All rows are there, with the vectors of one embedder; its fingerprint and version."""
    hash_, llama = load_embedder("hash"), load_embedder("wordllama")
    store = await opened(folder, llama)
    [info] = store.collections()
    assert (info.rows, info.fingerprint in fingerprints) == (ROWS, True)
    made_by = {hash_.id: hash_, llama.id: llama}[info.fingerprint]
    table = await store._collections["notes"]._table.query().to_arrow()
    rows = table.to_pylist()
    assert {row["id"]: row["content"] for row in rows} == {
        f"d{number}": content(number) for number in range(ROWS)
    }
    some = rows[:: ROWS // 50]
    vectors = np.asarray([row["vector"] for row in some], dtype=np.float32)
    assert np.array_equal(vectors, made_by.embed_documents([row["content"] for row in some]))
    [hits] = await store.search(
        "topic5", collections=None, mode="text", depth=100, threshold=None, filters={}
    )
    assert len(hits.candidates) == len(range(5, ROWS, 97))
    await store.close()
    return info


async def test_kill_9_leaves_the_old_one_or_the_new_one(tmp_path):
    rng = random.Random(7)
    hash_, llama = load_embedder("hash"), load_embedder("wordllama")
    store = await opened(tmp_path, hash_)
    for start in range(0, ROWS, 1000):
        batch = [Document(id=f"d{n}", content=content(n)) for n in range(start, start + 1000)]
        await store.index("notes", batch)
    before = store.collections()[0].data_version
    await store.close()

    embedded = 0
    for killed in range(KILLS):
        at = rng.randint(2, ROWS // 64 // KILLS)  # batches of this life
        lines = run(tmp_path, lambda lines, at=at: len(sizes(lines)) >= at)
        assert len(sizes(lines)) == at, f"life {killed} embedded too little"
        embedded += sum(sizes(lines))
        await assert_whole(tmp_path, {hash_.id})

    def writing(lines):
        """In the last step, at some moment of it."""
        if lines[-1] == ["told", "writing"]:
            time.sleep(rng.uniform(0, 0.3))
            return True
        return False

    lines = run(tmp_path, writing)
    embedded += sum(sizes(lines))
    await assert_whole(tmp_path, {hash_.id, llama.id})

    lines = run(tmp_path, lambda _lines: False)
    assert lines[-1][0] == "done"
    assert not sizes(lines), "it was staged already"
    info = await assert_whole(tmp_path, {llama.id})
    assert info.data_version > before
    # Every life may have lost the batch it was at.
    assert ROWS <= embedded <= ROWS + 64 * (KILLS + 1)
    assert not list(tmp_path.glob("*.reembedding"))
