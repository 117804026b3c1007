"""Collections kept in memory: the same candidates as LanceDB's, byte for byte, whatever was written
before, and no more memory than there may be.
"""

import asyncio
import gc
import random
import tracemalloc

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from mesh.adapters.clock import SystemClock
from mesh.adapters.embedders import load_embedder
from mesh.adapters.lance import LanceDocuments, candidates, hot, hot_search
from mesh.adapters.lance.candidates import Query, Weights
from mesh.core import bm25, text
from mesh.errors import MeshError
from mesh.wire import codec
from mesh.wire.messages import Document

EMBEDDER = load_embedder("hash")
WORDS = ["red", "green", "apple", "pear", "lime", "sour", "…", "Äpfel"]


async def opened(folder, hot_mb=64):
    return await LanceDocuments.open(
        folder, embedder=EMBEDDER, shard="s1", clock=SystemClock(), hot_mb=hot_mb
    )


def doc(name, content, /, **metadata):
    return Document(id=name, content=content, metadata=metadata)


async def find(store, query, *, mode="hybrid", depth=30, threshold=0.0, texts=None, **filters):
    return await store.search(
        query,
        collections=None,
        mode=mode,
        depth=depth,
        threshold=threshold,
        filters=filters,
        texts=texts,
    )


def is_hot(store, collection="notes"):
    return store._collections[collection]._contents.hot is not None


def wire(found):
    """As it goes out, but for the versions: two stores are not made in the same millisecond."""
    return [codec.encode(msgspec.structs.replace(shard, data_version=0)) for shard in found]


# -- equal to LanceDB ------------------------------------------------------------------------------

names = st.sampled_from([f"d{number}" for number in range(12)])
contents = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
documents = st.builds(
    lambda name, content, n: doc(name, content, **({} if n is None else {"n": n})),
    names,
    contents,
    st.none() | st.integers(0, 3),
)
queries = st.lists(st.sampled_from([*WORDS, "unknown"]), min_size=1, max_size=4).map(" ".join)


class Twins(RuleBasedStateMachine):
    """One store that keeps everything in memory and one that keeps nothing."""

    folder = None
    """Set by the test."""
    runner = None

    @initialize()
    def open(self):
        Twins.count = getattr(Twins, "count", 0) + 1
        folder = Twins.folder / str(Twins.count)
        self.hot = self.run(opened(folder / "hot"))
        self.disk = self.run(opened(folder / "disk", hot_mb=0))
        self.folder_of_hot = folder / "hot"

    def run(self, work):
        return Twins.runner.run(work)

    def compare(self, query, **options):
        found = []
        for store in (self.hot, self.disk):
            try:
                found.append(wire(self.run(find(store, query, **options))))
            except MeshError as error:
                found.append((type(error), error.fields))
        assert found[0] == found[1]

    def both(self, work):
        outcomes = []
        for store in (self.hot, self.disk):
            try:
                outcomes.append(self.run(work(store)).changed)
            except MeshError as error:
                outcomes.append((type(error), error.fields))
        assert outcomes[0] == outcomes[1]

    @rule(batch=st.lists(documents, min_size=1, max_size=8))
    def upsert(self, batch):
        self.both(lambda store: store.index("notes", batch))

    @rule(name=names, content=contents)
    def update(self, name, content):
        self.both(lambda store: store.update("notes", name, {"content": content}))

    @rule(chosen=st.lists(names, min_size=1, max_size=4))
    def delete(self, chosen):
        self.both(lambda store: store.delete("notes", ids=chosen))

    @rule(n=st.integers(0, 3))
    def delete_by_filter(self, n):
        self.both(lambda store: store.delete("notes", filters={"n": n}))

    @rule()
    def drop(self):
        async def drop(store):
            await store.drop("notes")
            return await store.index("notes", [doc("d0", "red apple")])

        self.both(drop)

    @rule()
    def tidy(self):
        for store in (self.hot, self.disk):
            for collection in store._collections.values():
                if copy := collection._contents.hot:
                    collection._contents.hot = copy.compacted()
                self.run(collection._table.optimize())

    @rule()
    def restart(self):
        self.run(self.hot.close())
        self.hot = self.run(opened(self.folder_of_hot))

    @rule(
        query=queries,
        mode=st.sampled_from(["hybrid", "vector", "text"]),
        depth=st.integers(1, 14),
        threshold=st.sampled_from([None, 0.0, 0.3, 0.9]),
        texts=st.none() | st.integers(0, 5),
        n=st.none() | st.integers(0, 3),
    )
    def search(self, query, mode, depth, *, threshold, texts, n):
        filters = {} if n is None else {"n": n}
        self.compare(query, mode=mode, depth=depth, threshold=threshold, texts=texts, **filters)

    @invariant()
    def both_find_the_same(self):
        self.compare("red apple sour", depth=5)
        self.compare("green", depth=14, threshold=None)

    @invariant()
    def one_is_hot_and_one_is_not(self):
        for store, expected in ((self.hot, True), (self.disk, False)):
            if "notes" in store._collections:
                assert is_hot(store) is expected

    def teardown(self):
        self.run(self.hot.close())
        self.run(self.disk.close())


def test_both_find_the_same_whatever_is_written(tmp_path):
    Twins.folder = tmp_path
    with asyncio.Runner() as Twins.runner:
        run_state_machine_as_test(
            Twins,
            settings=settings(
                max_examples=8,
                stateful_step_count=20,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


# -- exact, also where much is equal ---------------------------------------------------------------


def brute_force(store, query, depth, threshold):
    """Ids of each leg from nothing but the texts, in the order that candidates have."""
    rows = {row.id: row.content for row in store}
    asked = EMBEDDER.embed_query(query)
    vectors = EMBEDDER.embed_documents(list(rows.values()))
    cosines = candidates.cosines(vectors, asked)
    near = sorted(
        (-cosine, name)
        for name, cosine, vector in zip(rows, cosines, vectors, strict=True)
        if cosine >= threshold and vector.any()
    )
    terms = text.query_terms(query)
    counted = {name: text.terms(content) for name, content in rows.items()}
    mean = sum(map(len, counted.values())) / len(counted)
    idf = [bm25.idf(len(rows), sum(t in found for found in counted.values())) for t in terms]
    scores = {
        name: bm25.score([found.count(t) for t in terms], idf, len(found), mean)
        for name, found in counted.items()
    }
    matching = sorted((-score, name) for name, score in scores.items() if score > 0)
    return [name for _, name in near[:depth]], [name for _, name in matching[:depth]]


def many(count, seed=1):
    """Half of them equal to others, so that the last place is often a tie."""
    rng = random.Random(seed)
    vocabulary = [f"word{n}" for n in range(60)] + WORDS
    texts = [" ".join(rng.choices(vocabulary, k=rng.randint(1, 30))) for _ in range(count // 2)]
    return [doc(f"d{n:04}", rng.choice(texts)) for n in range(count)]


@pytest.mark.parametrize("inline", [True, False], ids=["loop", "thread"])
async def test_a_big_collection_is_searched_exactly(tmp_path, monkeypatch, inline):
    if not inline:
        monkeypatch.setattr(hot_search, "_QUICK_VALUES", 0)
    store = await opened(tmp_path)
    stored = {found.id: found for found in many(700)}
    await store.index("notes", list(stored.values()))
    for changed in many(300, seed=2):  # rows that die
        stored[changed.id] = changed
    await store.index("notes", list(stored.values()))
    gone = [f"d{n:04}" for n in range(0, 700, 9)]
    await store.delete("notes", ids=gone)
    left = [found for name, found in stored.items() if name not in gone]
    for query in ("word1 word2 red", "word59 word59 nothing", "apple", "word3 word4 word5 word6"):
        for depth in (1, 5, 30, 100):
            near, matching = brute_force(left, query, depth, 0.1)
            [hits] = await find(store, query, depth=depth, threshold=0.1)
            assert [c.id for c in hits.candidates if c.vector_hit] == near
            assert {c.id for c in hits.candidates if c.text_hit} == set(matching)
            only_text = [name for name in matching if name not in near]
            assert [c.id for c in hits.candidates if not c.vector_hit] == only_text
    await store.close()


async def test_equal_texts_fill_the_last_places_in_order_of_their_ids(tmp_path):
    store = await opened(tmp_path)
    await store.index("notes", [doc(f"d{n:03}", "red apple") for n in reversed(range(200))])
    [hits] = await find(store, "red apple", depth=7)
    assert [c.id for c in hits.candidates] == [f"d{n:03}" for n in range(7)]
    await store.close()


def test_vectors_that_float32_cannot_tell_apart_are_ordered_as_they_are():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=256) + 1e-5 * rng.normal(size=(600, 256))
    vectors = (vectors / np.linalg.norm(vectors, axis=1)[:, None]).astype(np.float32)
    copy = hot.HotCopy(256)
    names = [f"d{n:03}" for n in range(600)]
    copy.add(hot_rows(names, "x"), vectors)
    copy.publish()
    asked = vectors[0] + rng.normal(size=256).astype(np.float32) / 16
    asked = asked / np.linalg.norm(asked)
    cosines = candidates.cosines(vectors, asked)
    assert 10 < len(set(cosines)) < 300
    expected = sorted(zip([-cosine for cosine in cosines], names, strict=True))[:30]
    query = Query(terms=(), text=False, vector=asked, depth=30, threshold=0.0)
    found = hot_search.found(query, Weights(600, [], 1.0), copy.snapshot)
    assert [(-c.cosine, c.id) for c in found] == expected


# -- while others write ----------------------------------------------------------------------------


def rows_of(snapshot, term):
    return [snapshot.ids[row] for row in snapshot.posting(term)[0]]


def hot_rows(names, content):
    words = text.terms(content)
    return [hot.HotRow(name, content, "0" * 32, "{}", words) for name in names]


def test_a_snapshot_does_not_change_whatever_is_written():
    copy = hot.HotCopy(4)
    copy.add(hot_rows("ab", "red apple"), np.eye(4, dtype=np.float32)[:2])
    copy.publish()
    before = copy.snapshot
    kept = before.vectors.copy()
    copy.add(hot_rows("b", "green pear"), np.eye(4, dtype=np.float32)[2:3])
    assert (copy.snapshot.rows, len(copy)) == (2, 2), "nobody sees it yet"
    assert rows_of(copy.snapshot, "pear") == []
    copy.publish(removed=["a"])
    copy.add(hot_rows([f"n{n}" for n in range(500)], "red"), np.ones((500, 4), np.float32))
    copy.publish()
    assert (before.rows, before.living, before.directed) == (2, None, None)
    assert rows_of(before, "red") == ["a", "b"]
    assert rows_of(before, "pear") == []
    assert np.array_equal(before.vectors, kept)
    now = copy.snapshot
    copy.publish(removed=["n7"])
    assert rows_of(now, "red")[9] == "n7"
    assert len(copy) == 500
    assert np.flatnonzero(~now.living).tolist() == [0, 1]
    assert rows_of(now, "pear") == ["b"]


def test_what_is_dead_goes():
    copy = hot.HotCopy(4)
    for turn in range(400):
        copy.add(hot_rows(["a", f"d{turn}"], f"word{turn} red"), np.full((2, 4), turn, np.float32))
        copy.publish(removed=[f"d{turn - 1}"])
    assert copy.wasteful
    new = copy.compacted()
    assert not new.wasteful
    assert len(new) == len(copy) == 2
    assert new.bytes < copy.bytes / 50
    now = new.snapshot
    assert (now.rows, now.living) == (2, None)
    assert sorted(now.ids) == ["a", "d399"]
    assert sorted(rows_of(now, "red")) == sorted(rows_of(now, "word399")) == ["a", "d399"]
    assert "word1" not in now.postings
    assert now.vectors.tolist() == [[399.0] * 4] * 2
    assert [int(new.place(name)) for name in now.ids] == [0, 1]
    assert len(copy.snapshot.ids) == 800, "whoever still reads the old one is left alone"


async def test_searches_in_threads_while_rows_come_and_go(tmp_path, monkeypatch):
    """Each sees a collection as it was at one moment: `even` and `odd` change together."""
    monkeypatch.setattr(hot_search, "_QUICK_VALUES", 0)
    store = await opened(tmp_path)
    stop = asyncio.Event()

    async def write():
        for turn in range(40):
            word = ("even", "odd")[turn % 2]
            await store.index("notes", [doc(f"d{n}", f"{word} turn {turn}") for n in range(20)])
        stop.set()

    async def read():
        count = 0
        while not stop.is_set():
            for hits in await find(store, "even odd turn", mode="text", depth=100):
                words = {c.content for c in hits.candidates}
                assert len(words) <= 1
                assert len(hits.candidates) in (0, 20)
                assert sorted(hits.df) in ([0, 0, 0], [0, 20, 20])
                count += bool(words)
        return count

    await store.index("notes", [doc(f"d{n}", "odd turn 0") for n in range(20)])
    readers = [asyncio.create_task(read()) for _ in range(4)]
    await write()
    assert all(count > 0 for count in await asyncio.gather(*readers))
    await store.close()


# -- within its budget -----------------------------------------------------------------------------


def texts(start, count):
    """About 4 KiB each in memory: 2 KiB of vector, then text and postings."""
    return [
        doc(f"d{n}", " ".join(f"w{k}" for k in range(n % 7, n % 7 + 100)))
        for n in range(start, start + count)
    ]


async def tidied(store, collection="notes"):
    tidier = store._collections[collection]._tidier
    tidier.begin()
    async with asyncio.timeout(30):
        while tidier._task is not None:
            await asyncio.sleep(0.01)


async def test_what_outgrows_the_budget_goes_on_with_lancedb_and_comes_back(tmp_path):
    store = await opened(tmp_path, hot_mb=1)
    await store.index("notes", texts(0, 150))
    assert is_hot(store)
    hot_hits = wire(await find(store, "w50 w51"))
    await store.index("notes", texts(150, 300))
    assert not is_hot(store)
    [hits] = await find(store, "w50 w51")
    assert len(hits.candidates) >= 30

    await store.delete("notes", ids=[f"d{n}" for n in range(250, 450)])
    await tidied(store)
    assert not is_hot(store), "it would fit, but hardly: the next write might throw it out again"
    await store.delete("notes", ids=[f"d{n}" for n in range(150, 250)])
    await tidied(store)
    assert is_hot(store)
    assert wire(await find(store, "w50 w51")) == hot_hits
    await store.close()


async def test_the_budget_is_of_all_collections_together(tmp_path):
    store = await opened(tmp_path, hot_mb=1)
    await store.index("notes", texts(0, 150))
    await store.index("other", texts(0, 150))
    assert (is_hot(store), is_hot(store, "other")) == (True, False)
    await store.drop("notes")
    await tidied(store, "other")
    assert is_hot(store, "other")
    await store.index("notes", texts(0, 150))
    assert not is_hot(store)
    await store.close()

    store = await opened(tmp_path, hot_mb=4)
    assert is_hot(store)
    assert is_hot(store, "other")
    await store.close()


async def test_the_estimate_is_honest(tmp_path):
    """Against what Python and numpy say they took: a budget that is off by half is none."""
    rng = random.Random(3)
    vocabulary = ["".join(rng.choices("abcdefghij", k=7)) for _ in range(4000)]
    rows = []
    for n in range(1500):
        content = " ".join(rng.choices(vocabulary, k=90))
        rows.append((f"document-{n}", content, f"{n:032}", f'{{"section":"games","n":{n}}}'))
    vectors = np.ones((1500, 256), dtype=np.float32)
    gc.collect()
    tracemalloc.start()
    copy = hot.HotCopy(256)
    for start in range(0, 1500, 500):
        # Texts of its own, as they come from LanceDB.
        some = [[str(v.encode(), "utf8") for v in row] for row in rows[start : start + 500]]
        copy.add([hot.HotRow(*row, text.terms(row[1])) for row in some], vectors[start:][:500])
        copy.publish()
    del some
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.8 * taken <= copy.bytes <= 1.4 * taken
    tokens = int(copy.snapshot.lengths.sum())
    assert 0.6 * taken <= hot.estimate_bytes(1500, tokens, 256) <= 1.5 * taken
    assert copy.compacted().bytes == pytest.approx(copy.bytes, rel=0.05)
