"""Reading: the right candidates, with what ranking them anywhere takes."""

import asyncio
import importlib
import inspect
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from mesh.adapters.clock import SystemClock
from mesh.adapters.embedders import load_embedder
from mesh.adapters.lance import LanceDocuments
from mesh.adapters.lance.candidates import (
    MAX_INLINE_BYTES,
    MAX_INLINE_TOTAL_BYTES,
    Query,
    Weights,
    found,
)
from mesh.core import merge, text
from mesh.errors import InvalidError
from mesh.wire import codec
from mesh.wire.messages import Candidates, Document

EMBEDDER = load_embedder("hash")


async def opened(folder, shard="s1", hot_mb=64):
    return await LanceDocuments.open(
        folder, embedder=EMBEDDER, shard=shard, clock=SystemClock(), hot_mb=hot_mb
    )


@pytest.fixture(params=[64, 0], ids=["hot", "disk"])
async def store(tmp_path, request):
    documents = await opened(tmp_path / "data", hot_mb=request.param)
    yield documents
    await documents.close()


def doc(name, content, /, **metadata):
    return Document(id=name, content=content, metadata=metadata)


async def find(
    store, query, *, collections=None, mode="hybrid", depth=30, threshold=0.0, texts=None, **filters
):
    return await store.search(
        query,
        collections=collections,
        mode=mode,
        depth=depth,
        threshold=threshold,
        filters=filters,
        texts=texts,
    )


def ids(hits):
    return {candidate.id for candidate in hits.candidates}


FRUIT = [
    doc("apple", "a red apple and another apple", color="red", n=1),
    doc("pear", "a green pear", color="green", n=2),
    doc("lime", "a green lime, sour", color="green", n=3, sour=True),
]


async def test_a_candidate_has_all_that_ranking_takes(store):
    await store.index("fruit", FRUIT)
    [hits] = await find(store, "Apple, sour! Nothing")
    assert (hits.collection, hits.shard, hits.rows, hits.tokens) == ("fruit", "s1", 3, 13)
    assert hits.df == [1, 1, 0]  # apple sour nothing
    assert hits.fingerprint == EMBEDDER.id
    assert hits.data_version == store.collections()[0].data_version
    by_id = {candidate.id: candidate for candidate in hits.candidates}
    apple = by_id["apple"]
    assert apple.tf == [2, 0, 0]
    assert apple.length == 6
    assert apple.text_hit
    assert apple.vector_hit
    assert apple.content == FRUIT[0].content
    assert apple.metadata == {"color": "red", "n": 1}
    [stored] = await store.fetch("fruit", ["apple"])
    assert apple.hash == stored.hash
    query = EMBEDDER.embed_query("Apple, sour! Nothing")
    expected = float(EMBEDDER.embed_query(FRUIT[0].content) @ query)
    assert apple.cosine == pytest.approx(expected, abs=1e-6)


async def test_modes_and_threshold(store):
    await store.index("fruit", FRUIT)
    [vector] = await find(store, "green pear", mode="vector")
    assert all(c.vector_hit and not c.text_hit for c in vector.candidates)
    [words] = await find(store, "green pear", mode="text")
    assert ids(words) == {"pear", "lime"}
    assert all(c.text_hit and not c.vector_hit and c.cosine is None for c in words.candidates)
    [near] = await find(store, "green pear", threshold=0.6)
    assert {c.id for c in near.candidates if c.vector_hit} == {"pear"}
    lime = next(c for c in near.candidates if c.id == "lime")
    assert lime.text_hit
    assert lime.cosine is not None
    assert 0 < lime.cosine < 0.6
    [calibrated] = await find(store, "zebra quagga okapi", threshold=None)
    assert calibrated.candidates == []


async def test_a_query_without_words_finds_nothing(store):
    await store.index("fruit", FRUIT)
    for query in ("?!", "   ", "❤️"):
        [hits] = await find(store, query)
        assert hits.candidates == []
        assert hits.rows == 3


async def test_a_document_without_words_is_kept_and_never_found(store):
    """Its vector would be NaN; LanceDB refuses those, and a zero one would be near everything."""
    await store.index("fruit", [*FRUIT, doc("dots", "…!?")])
    [stored] = await store.fetch("fruit", ["dots"])
    assert stored.content == "…!?"
    [hits] = await find(store, "green", threshold=0.0)
    assert "dots" not in ids(hits)
    assert hits.rows == 4
    assert (await store.update("fruit", "dots", {"content": "green dots"})).changed == ("dots",)
    [hits] = await find(store, "green dots")
    assert "dots" in ids(hits)
    await store.update("fruit", "dots", {"content": "--"})
    [hits] = await find(store, "green dots")
    assert "dots" not in ids(hits)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"color": "green"}, {"pear", "lime"}),
        ({"color": ["red", "blue"]}, {"apple"}),
        ({"n": {"gt": 1, "lte": 3}}, {"pear", "lime"}),
        ({"n": 2}, {"pear"}),
        ({"color": {"gte": "r"}}, {"apple"}),
        ({"sour": True}, {"lime"}),
        ({"sour": None}, {"apple", "pear"}),
        ({"sour": [True, None]}, {"apple", "pear", "lime"}),
        ({"id": ["apple", "lime"]}, {"apple", "lime"}),
        ({"id": None}, set()),
        ({"color": "green", "n": {"lt": 3}}, {"pear"}),
        ({"color": "x' OR '1'='1"}, set()),
    ],
)
@pytest.mark.parametrize("mode", ["vector", "text"])
async def test_filters_hold_in_both_legs(store, filters, expected, mode):
    await store.index("fruit", FRUIT)
    [hits] = await find(store, "a green red apple pear lime", mode=mode, **filters)
    assert ids(hits) == expected
    assert hits.rows == 3


async def test_filters_come_before_the_cut(store):
    """Filtering what was found would leave nothing of a rare value."""
    await store.index("fruit", [doc(f"d{n}", "green apple", rare=n == 99) for n in range(100)])
    for mode in ("vector", "text"):
        [hits] = await find(store, "green apple", mode=mode, depth=5, rare=True)
        assert ids(hits) == {"d99"}


async def test_filters_over_several_collections(store):
    await store.index("fruit", FRUIT)
    await store.index("cars", [doc("beetle", "a green car", wheels=4)])
    fruit_and_cars = await find(store, "green", wheels=4)
    assert [(h.collection, ids(h)) for h in fruit_and_cars] == [
        ("cars", {"beetle"}),
        ("fruit", set()),
    ]
    assert [h.rows for h in fruit_and_cars] == [1, 3]
    assert [h.unmatched for h in fruit_and_cars] == [False, True]
    for filters in ({"wings": 2}, {"wheels": "four"}):
        with pytest.raises(InvalidError) as caught:
            await find(store, "green", **filters)
        assert list(caught.value.fields) == [f"filters.{next(iter(filters))}"]


async def test_collections_asked_and_passed_over(store):
    await store.index("fruit", FRUIT)
    await store.index("cars", [doc("beetle", "a green car")])
    found = await find(store, "green", collections=["cars", "planes", "cars"])
    assert [h.collection for h in found] == ["cars"]
    assert await find(store, "green", collections=["planes"], wings=2) == ()


async def test_rows_are_found_before_they_are_indexed(store):
    """The index does not know them until the table is tidied."""
    await store.index("fruit", FRUIT)
    await store.index("fruit", [doc("kiwi", "a hairy kiwi")])
    await store.update("fruit", "pear", {"content": "a hairy pear"})
    [hits] = await find(store, "hairy", mode="text")
    assert ids(hits) == {"kiwi", "pear"}
    [hits] = await find(store, "green", mode="text")
    assert ids(hits) == {"lime"}
    await store.delete("fruit", ids=["kiwi"])
    [hits] = await find(store, "hairy", mode="text")
    assert ids(hits) == {"pear"}
    assert hits.df == [1]
    await store._collections["fruit"]._table.optimize()
    [hits] = await find(store, "hairy", mode="text")
    assert ids(hits) == {"pear"}


def test_the_text_leg_is_chosen_by_this_shards_statistics():
    """LanceDB orders rows that it has not indexed yet by other numbers."""
    texts = {"long": "rare " + "x " * 50, "common": "common", "rare": "rare", "both": "rare common"}
    rows = pa.table(
        {
            "id": list(texts),
            "content": list(texts.values()),
            "words": [" ".join(text.terms(content)) for content in texts.values()],
            "hash": list(texts),
            "metadata": ["{}"] * len(texts),
        }
    )
    query = Query(terms=("rare", "common"), text=True, vector=None, depth=2, threshold=0.0)
    chosen = found(query, Weights(rows=100, df=[2, 90], mean_length=2.0), None, rows)
    assert [(c.id, c.tf, c.length) for c in chosen] == [("rare", [1, 0], 1), ("both", [1, 1], 2)]


@pytest.mark.parametrize(
    "sample",
    [
        "Don't PANIC: e-mail me@example.org, re: v2.0_beta (naïve café)",
        "Straße Łódź İstanbul Ærø ½ ①",
        "日本語のテキスト、ガギグ。한국어 문장",
        "हिन्दी भाषा ภาษาไทย שָׁלוֹם العَرَبِيَّة",
        "cafe\N{COMBINING ACUTE ACCENT} A\N{COMBINING RING ABOVE}ngström",
        "x" * 40 + " " + "y" * 41 + " " + "ж" * 20,
        "❤️ 1️⃣ a\x00b tab\tnew\nline",
    ],
)
async def test_lancedb_sees_exactly_our_terms(store, sample):
    """Every term of a document finds it, with the frequency that the statistics know."""
    await store.index("docs", [doc("a", sample), doc("b", "something else")])
    table = store._collections["docs"]._table
    found = text.terms(sample)
    tokens = [token.text for token in await table.tokenize(" ".join(found), column="words")]
    assert tokens == found
    for indexed in (False, True):
        for term, count in Counter(found).items():
            [hits] = await find(store, term, mode="text")
            assert [(c.id, c.tf, c.text_hit) for c in hits.candidates] == [("a", [count], True)]
            assert hits.df == [1]
        if not indexed:
            await table.optimize()


async def test_long_texts_do_not_come_along(store):
    short, long = "word " * 100, "word " * (MAX_INLINE_BYTES // 5 + 1)
    await store.index("docs", [doc("short", short), doc("long", long)])
    [hits] = await find(store, "word")
    content = {candidate.id: candidate.content for candidate in hits.candidates}
    assert content == {"short": short, "long": None}
    assert [d.content for d in await store.fetch("docs", ["long", "short"])] == [long, short]


@pytest.mark.parametrize("mode", ["hybrid", "vector", "text"])
async def test_the_texts_of_the_best_come_along(store, mode):
    """Of those that a caller would rank first if there were no other nodes."""
    words = [["apple"] * (n % 5) + ["pear"] * (n % 3) + [f"w{n}"] for n in range(40)]
    await store.index("docs", [doc(f"d{n}", " ".join(found)) for n, found in enumerate(words)])
    found = await find(store, "apple pear", mode=mode, texts=7)
    part = Candidates(node="a", terms=text.query_terms("apple pear"), shards=list(found))
    wanted = merge.rank([part], mode=mode, limit=7, deduplicate=False).hits
    came = {candidate.id for candidate in found[0].candidates if candidate.content is not None}
    assert len(came) == 7
    assert {hit.candidate.id for hit in wanted} <= came | _equals_of_the_last(wanted)


def _equals_of_the_last(wanted):
    return {hit.candidate.id for hit in wanted if hit.score == wanted[-1].score}


async def test_a_reply_does_not_outgrow_a_message(store):
    size = MAX_INLINE_BYTES - 100
    for collection in ("a", "b"):
        documents = [
            doc(f"d{n}", f"word{n} word " + "x" * 39 + " y" * (size // 2 - 40)) for n in range(40)
        ]
        await store.index(collection, documents)
    hits = await find(store, "word")
    inline = [sum(c.content is not None for c in shard.candidates) for shard in hits]
    total = sum(len(c.content or "") for shard in hits for c in shard.candidates)
    assert size * 31 < total <= MAX_INLINE_TOTAL_BYTES
    assert min(inline) > 10, "both collections have their best with them"
    assert len(codec.encode(list(hits))) < 2_000_000


async def test_at_most_so_many_queries_at_once(tmp_path, monkeypatch):
    store = await LanceDocuments.open(
        tmp_path / "data",
        embedder=EMBEDDER,
        shard="s",
        clock=SystemClock(),
        max_queries=2,
        hot_mb=0,
    )
    for collection in "abc":
        await store.index(collection, FRUIT)
    running = most = 0
    query = type(store._collections["a"]._table.query().nearest_to(np.zeros(512, np.float32)))
    words = type(store._collections["a"]._table.query().nearest_to_text("x"))
    for kind in (query, words):
        genuine = kind.to_arrow

        async def counted(self, genuine=genuine):
            nonlocal running, most
            running += 1
            most = max(most, running)
            try:
                return await genuine(self)
            finally:
                running -= 1

        monkeypatch.setattr(kind, "to_arrow", counted)
    await asyncio.gather(*(find(store, "green apple") for _ in range(5)))
    assert most == 2
    await store.close()


async def test_searches_during_writes_and_drops_never_fail(store):
    await store.index("fruit", FRUIT)
    await store.index("cars", [doc("beetle", "a green car")])
    stop = asyncio.Event()

    async def search():
        count = 0
        while not stop.is_set():
            for hits in await find(store, "green apple"):
                assert all(c.content for c in hits.candidates)
                count += 1
        return count

    searching = [asyncio.create_task(search()) for _ in range(3)]
    for number in range(5):
        await store.index("cars", [doc(f"car{n}", f"green car {number} {n}") for n in range(20)])
        await store.delete("fruit", ids=["lime"])
        await store.index("fruit", FRUIT)
        await store.drop("cars")
    stop.set()
    assert all(count > 0 for count in await asyncio.gather(*searching))


# -- one index, many nodes -------------------------------------------------------------------------


def library():
    """A few hundred texts that every machine has."""
    found = {}
    for name in ("asyncio", "collections", "datetime", "email", "json", "logging", "os", "random"):
        module = importlib.import_module(name)
        for attribute, value in sorted(vars(module).items()):
            documentation = inspect.getdoc(value)
            if not attribute.startswith("_") and documentation and not isinstance(value, int | str):
                found[f"{name}.{attribute}"] = f"{attribute}\n{documentation}"
    return [doc(name, content) for name, content in sorted(found.items())]


QUERIES = [
    "parse a date from a string",
    "random integer in a range",
    "wait for the first task to complete",
    "log a message with severity error",
    "environment variable",
    "remove a file or directory",
    "dictionary that remembers order",
    "queue",
]


@pytest.mark.parametrize("mode", ["hybrid", "vector", "text"])
async def test_three_nodes_answer_like_one_index(tmp_path, mode):
    documents = library()
    assert len(documents) > 250
    one = await opened(tmp_path / "one")
    await one.index("lib", documents)
    nodes = [await opened(tmp_path / f"n{place}", f"s{place}") for place in range(3)]
    for place, node in enumerate(nodes):
        # By the alphabet: each node knows other modules, as real nodes do.
        share = documents[place * len(documents) // 3 : (place + 1) * len(documents) // 3]
        await node.index("lib", share)

    async def answer(stores, query):
        terms = text.query_terms(query)
        parts = [
            Candidates(
                node=f"n{place}", terms=terms, shards=list(await find(store, query, mode=mode))
            )
            for place, store in enumerate(stores)
        ]
        ranking = merge.rank(parts, mode=mode, limit=10)
        return [(hit.candidate.id, hit.score) for hit in ranking.hits]

    for query in QUERIES:
        whole, spread = await answer([one], query), await answer(nodes, query)
        assert len(whole) == 10 or mode == "text"
        assert whole
        assert spread == whole
    for store in (one, *nodes):
        await store.close()
