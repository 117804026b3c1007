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


async def opened(folder, hot_mb=0, embedder=EMBEDDER):
    return await LanceDocuments.open(
        folder, embedder=embedder, shard="s1", clock=SystemClock(), hot_mb=hot_mb
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


async def recall(store, numbers, **filters):
    vectors = EMBEDDER.embed_documents([f"text {n}" for n in numbers])
    shares = []
    for seed in range(100_000, 100_040):
        best = np.argsort(-(vectors @ EMBEDDER.embed_query(f"query {seed}")))[:DEPTH]
        nearest = {f"d{numbers[place]}" for place in best}
        shares.append(len(nearest & set(await found(store, seed, **filters))) / DEPTH)
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


class OddEmbedder(TopicEmbedder):
    """Vectors whose length the index does not take."""

    id, dim = "topics-250", 250

    def embed_query(self, text):
        return super().embed_query(text)[: self.dim]


async def test_vectors_that_no_index_takes_are_read_through_and_nothing_is_tried(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(vector_index, "MIN_ROWS", 500)
    store = await opened(tmp_path, embedder=OddEmbedder())
    await store.index("notes", documents(0, 1000))
    assert not store._collections["notes"]._contents.wants_review
    assert len(await found(store, 3)) == DEPTH
    await store.close()


async def test_a_build_that_failed_is_not_tried_with_every_write(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_index, "MIN_ROWS", 500)
    tried = []

    async def create_index(*_args, **_options):
        tried.append(1)
        raise OSError("No space left on device")

    store = await opened(tmp_path)
    await store.index("notes", documents(0, 100))
    collection = store._collections["notes"]
    with monkeypatch.context() as full:
        full.setattr(type(collection._table), "create_index", create_index)
        await store.index("notes", documents(100, 900))
        await tidied(collection)
        assert tried == [1]
        for turn in range(5):
            await store.index("notes", documents(1000 + turn, 1))
            await tidied(collection)
        assert tried == [1]
    await store.index("notes", documents(1005, 110))
    await tidied(collection)
    assert await indexed(store) == 0
    await store.close()


async def tidied(collection):
    async with asyncio.timeout(60):
        while collection._tidier._task is not None:
            await asyncio.sleep(0.02)


@pytest.mark.timeout(180)
async def test_a_small_table_and_a_hot_one_have_none(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_index, "MIN_ROWS", 500)
    store = await opened(tmp_path, hot_mb=64)
    await store.index("notes", documents(0, 1000))
    await tidied(store._collections["notes"])
    columns = [i.columns for i in await store._collections["notes"]._table.list_indices()]
    assert columns == [["words"]]
    await store.close()

    # With less memory the same table gets one, without a write.
    store = await opened(tmp_path)
    assert await indexed(store) == 0
    assert await recall(store, list(range(1000))) >= 0.99
    await store.close()
