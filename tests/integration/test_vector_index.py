"""Tables that stay on disk get an index of their vectors, and it finds what reading them finds."""

import asyncio

import numpy as np
import pytest

from mesh.adapters.clock import SystemClock
from mesh.adapters.lance import LanceDocuments, vector_index
from mesh.wire.messages import Document

ROWS, DIM, TOPICS = 12_000, 256, 40
DEPTH = 30


class TopicEmbedder:
    """Vectors as those of texts lie: round their topics, all of them leaning one way."""

    id, dim, default_threshold, quick_chars = "topics-256", DIM, 0.0, 0

    def __init__(self):
        rng = np.random.default_rng(7)
        self._common = rng.normal(size=DIM)
        self._topics = rng.normal(size=(TOPICS, DIM))

    def embed_documents(self, texts):
        return np.stack([self.embed_query(text) for text in texts])

    def embed_query(self, text):
        seed = int(text.split()[-1])
        rng = np.random.default_rng(seed)
        vector = self._common + self._topics[seed % TOPICS] + rng.normal(size=DIM)
        return (vector / np.linalg.norm(vector)).astype(np.float32)


EMBEDDER = TopicEmbedder()


async def opened(folder, hot_mb=0):
    return await LanceDocuments.open(
        folder, embedder=EMBEDDER, shard="s1", clock=SystemClock(), hot_mb=hot_mb
    )


def documents(start, count):
    return [
        Document(id=f"d{n}", content=f"text {n}", metadata={"even": n % 2 == 0, "rare": n % 97})
        for n in range(start, start + count)
    ]


async def found(store, seed, **filters):
    [hits] = await store.search(
        f"query {seed}",
        collections=None,
        mode="vector",
        depth=DEPTH,
        threshold=0.0,
        filters=filters,
    )
    return [candidate.id for candidate in hits.candidates]


async def indexed(store):
    """Until the index is there; how many rows it does not know."""
    table = store._collections["notes"]._table
    async with asyncio.timeout(60):
        while True:
            names = [i.name for i in await table.list_indices() if i.columns == ["vector"]]
            if names:
                return (await table.index_stats(names[0])).num_unindexed_rows
            await asyncio.sleep(0.05)


def nearest(seed, numbers):
    vectors = EMBEDDER.embed_documents([f"text {n}" for n in numbers])
    best = np.argsort(-(vectors @ EMBEDDER.embed_query(f"query {seed}")))[:DEPTH]
    return {f"d{numbers[place]}" for place in best}


async def recall(store, numbers, **filters):
    shares = [
        len(nearest(seed, numbers) & set(await found(store, seed, **filters))) / DEPTH
        for seed in range(100_000, 100_040)
    ]
    return sum(shares) / len(shares)


@pytest.mark.timeout(180)
async def test_it_is_built_in_the_background_and_finds_as_much(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_index, "MIN_ROWS", ROWS)
    store = await opened(tmp_path)
    for start in range(0, ROWS, 1000):
        await store.index("notes", documents(start, 1000))
    await indexed(store)
    everyone = list(range(ROWS))
    assert await recall(store, everyone) >= 0.99
    assert await recall(store, everyone[::2], even=True) == 1.0
    assert await recall(store, everyone[5::97], rare=5) == 1.0

    # What came later is found at once, and what has gone is not.
    await store.index("notes", documents(ROWS, 50))
    await store.delete("notes", ids=[f"d{n}" for n in range(100)])
    later = list(range(100, ROWS + 50))
    assert await recall(store, later) >= 0.99
    await store.close()


@pytest.mark.timeout(180)
async def test_a_small_table_and_a_hot_one_have_none(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_index, "MIN_ROWS", 500)
    store = await opened(tmp_path, hot_mb=64)
    await store.index("notes", documents(0, 1000))
    async with asyncio.timeout(60):
        while store._collections["notes"]._tidier._task is not None:
            await asyncio.sleep(0.02)
    columns = [i.columns for i in await store._collections["notes"]._table.list_indices()]
    assert columns == [["words"]]
    await store.close()

    # With less memory the same table gets one, without a write.
    store = await opened(tmp_path)
    assert await indexed(store) == 0
    assert await recall(store, list(range(1000))) >= 0.99
    await store.close()
