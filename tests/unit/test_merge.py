"""The promise: however documents are spread over nodes, the answer is that of one index."""

import math
from collections import Counter
from dataclasses import dataclass
from unittest import mock

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesh.core import bm25, merge
from mesh.core.documents import content_hash
from mesh.core.merge import depth, rank
from mesh.wire.messages import Candidate, Candidates, ShardHits

TERMS = ["late", "invoice", "refund"]


def candidate(name, *, cosine=None, tf=(0, 0, 0), length=10, digest="", vector=None, text=None):
    return Candidate(
        id=name,
        cosine=cosine,
        vector_hit=cosine is not None if vector is None else vector,
        text_hit=any(tf) if text is None else text,
        length=length,
        tf=list(tf),
        hash=digest or name,
    )


def part(node, *found, terms=TERMS, collection="notes", fingerprint="e", rows=100, df=(10, 10, 10)):
    shard = ShardHits(
        collection=collection,
        shard=node,
        rows=rows,
        tokens=rows * 10,
        df=list(df),
        fingerprint=fingerprint,
        data_version=1,
        candidates=list(found),
    )
    return Candidates(node=node, terms=list(terms), shards=[shard])


def ids(ranking):
    return [hit.candidate.id for hit in ranking.hits]


def test_vector_mode_is_the_cosine_and_only_vector_hits():
    parts = [
        part("a", candidate("x", cosine=0.4), candidate("y", cosine=0.9)),
        part("b", candidate("z", cosine=0.6), candidate("text", cosine=0.95, vector=False)),
    ]
    ranking = rank(parts, mode="vector", limit=10)
    assert [(h.candidate.id, h.score, h.node) for h in ranking.hits] == [
        ("y", 0.9, "a"),
        ("z", 0.6, "b"),
        ("x", 0.4, "a"),
    ]
    assert ranking.total == 3


def test_text_mode_is_bm25_by_the_statistics_of_all_shards():
    """`late` is rare on a and common on b; together it weighs the same on both."""
    parts = [
        part("a", candidate("x", tf=(1, 0, 0)), rows=100, df=(1, 0, 0)),
        part("b", candidate("y", tf=(2, 0, 0)), rows=100, df=(99, 0, 0)),
    ]
    ranking = rank(parts, mode="text", limit=10)
    idf = math.log(1 + (200 - 100 + 0.5) / (100 + 0.5))
    assert ids(ranking) == ["y", "x"]
    assert ranking.hits[0].score == pytest.approx(idf * 2 * 2.2 / (2 + 1.2))
    assert ranking.hits[1].score == pytest.approx(idf * 1 * 2.2 / (1 + 1.2))


def test_hybrid_is_the_mean_of_both_legs_by_their_maxima():
    best_of_both = candidate("both", cosine=0.8, tf=(1, 1, 0))
    parts = [
        part("a", best_of_both, candidate("near", cosine=0.4, tf=(0, 0, 0))),
        part("b", candidate("words", cosine=-0.2, tf=(1, 0, 0), vector=False)),
    ]
    ranking = rank(parts, mode="hybrid", limit=10, explain=True)
    assert [h.candidate.id for h in ranking.hits] == ["both", "near", "words"]
    assert [h.score for h in ranking.hits] == pytest.approx([1.0, 0.25, 0.25])
    explained = ranking.hits[0].explain
    assert explained is not None
    assert explained["text"] + explained["vector"] == pytest.approx(1.0)
    assert explained["cosine"] == 0.8
    assert explained["bm25"] > 0


def test_without_vector_hits_cosines_say_nothing():
    """They are all below the threshold: noise must not decide between good text hits."""
    parts = [
        part(
            "a",
            candidate("noise", cosine=0.05, tf=(1, 0, 0), vector=False),
            candidate("match", cosine=0.01, tf=(1, 1, 0), vector=False),
        )
    ]
    ranking = rank(parts, mode="hybrid", limit=10)
    assert (ranking.hits[0].candidate.id, ranking.hits[0].score) == ("match", 0.5)


def test_ties_are_broken_by_collection_then_id():
    found = [candidate(name, cosine=0.5) for name in ("b", "a")]
    parts = [part("n1", *found, collection="z"), part("n2", candidate("c", cosine=0.5))]
    ranking = rank(parts, mode="vector", limit=10)
    assert [(h.collection, h.candidate.id) for h in ranking.hits] == [
        ("notes", "c"),
        ("z", "a"),
        ("z", "b"),
    ]


def test_equal_documents_of_one_collection_count_once():
    parts = [
        part("a", candidate("x", cosine=0.5, digest="same")),
        part(
            "b", candidate("y", cosine=0.5, digest="same"), candidate("x", cosine=0.3, digest="old")
        ),
        part("c", candidate("x", cosine=0.4, digest="same"), collection="other"),
    ]
    ranking = rank(parts, mode="vector", limit=10)
    assert [(h.collection, h.candidate.id, h.node) for h in ranking.hits] == [
        ("notes", "x", "a"),
        ("other", "x", "c"),
    ]
    assert ranking.total == 2
    assert rank(parts, mode="vector", limit=10, deduplicate=False).total == 4


def test_a_document_equal_to_one_left_out_stays():
    """b equals a by content; c is b's newer text, and equals nothing that is shown."""
    parts = [
        part(
            "n1", candidate("a", cosine=0.9, digest="h1"), candidate("b", cosine=0.8, digest="h1")
        ),
        part("n2", candidate("b", cosine=0.7, digest="h2")),
    ]
    hits = rank(parts, mode="vector", limit=10).hits
    assert [(h.candidate.id, h.candidate.hash) for h in hits] == [("a", "h1"), ("b", "h2")]


def test_fingerprints_that_differ_are_not_compared_by_raw_cosine():
    low = part("a", candidate("low1", cosine=0.3), candidate("low2", cosine=0.2), fingerprint="l")
    high = part("b", candidate("high1", cosine=0.9), candidate("high2", cosine=0.8))
    ranking = rank([low, high], mode="vector", limit=10)
    assert ids(ranking) == ["high1", "low1", "high2", "low2"]
    assert [h.score for h in ranking.hits] == pytest.approx([1, 1, 8 / 9, 2 / 3])
    assert ids(rank([high], mode="vector", limit=10)) == ["high1", "high2"]
    assert rank([high], mode="vector", limit=10).hits[0].score == 0.9


def test_terms_are_matched_by_text_not_by_place():
    """A node of another version may take the query apart differently."""
    here = part("a", candidate("x", tf=(2, 0, 0)), df=(5, 5, 5))
    there = part("b", candidate("y", tf=(0, 2)), terms=["invoice", "late"], df=(5, 5))
    hits = rank([here, there], mode="text", limit=10).hits
    assert [h.candidate.id for h in hits] == ["x", "y"]
    assert hits[0].score == pytest.approx(hits[1].score)


def test_a_text_hit_without_any_term_is_none():
    parts = [part("a", candidate("x", tf=(0, 0, 0), text=True))]
    assert rank(parts, mode="text", limit=10) == merge.Ranking([], 0)


def test_round_robin_takes_the_nodes_in_turn():
    parts = [
        part("b", candidate("b1", cosine=0.2), candidate("b2", cosine=0.1)),
        part("a", *(candidate(f"a{n}", cosine=0.9 - n / 10) for n in range(3))),
        part("c"),
    ]
    ranking = rank(parts, mode="vector", limit=4, strategy="round_robin")
    assert ids(ranking) == ["a0", "b1", "a1", "b2"]
    assert ranking.total == 5


def test_nothing_from_nobody():
    for mode in ("vector", "text", "hybrid"):
        for strategy in ("score", "round_robin"):
            assert rank([], mode=mode, limit=5, strategy=strategy) == merge.Ranking([], 0)


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            Candidate,
            id=st.sampled_from("abc"),
            cosine=st.none() | st.floats(-1e6, 1e6),
            vector_hit=st.booleans(),
            text_hit=st.booleans(),
            length=st.integers(-5, 10**9),
            tf=st.lists(st.integers(-3, 10**9), max_size=5),
        ),
        max_size=4,
    ),
    st.integers(-5, 10**9),
    st.integers(-5, 10**9),
    st.lists(st.integers(-5, 10**9), max_size=5),
    st.sampled_from(["vector", "text", "hybrid"]),
)
def test_no_statistics_from_the_network_break_the_ranking(found, rows, tokens, df, mode):
    """A bad node must not make the mesh bad."""
    bad = part("bad", *found, df=df)
    shard = msgspec.structs.replace(bad.shards[0], rows=rows, tokens=tokens)
    parts = [msgspec.structs.replace(bad, shards=[shard]), part("good", candidate("z", cosine=0.5))]
    ranking = rank(parts, mode=mode, limit=10)
    assert all(math.isfinite(hit.score) and hit.score >= 0 for hit in ranking.hits)


@settings(deadline=None)
@given(st.integers(0, 10**9), st.integers(-5, 10**9))
def test_a_term_never_counts_against_a_document(rows, df):
    assert bm25.idf(rows, df) >= 0


def test_bm25_of_lengths():
    """Half the mean length counts more, twice the mean length less."""
    scores = [bm25.score([1], [1.0], length, 10.0) for length in (5, 10, 20)]
    assert scores == pytest.approx([2.2 / 1.75, 2.2 / 2.2, 2.2 / 3.1])
    assert bm25.score([1], [1.0], 5, 0.0) == pytest.approx(1.0)
    assert bm25.score([0, 3], [1.0], 5, 5.0) == 0


# -- one index, many nodes -------------------------------------------------------------------------


@dataclass(frozen=True)
class Doc:
    collection: str
    id: str
    words: tuple[str, ...]
    cosine: float | None

    @property
    def hash(self):
        return content_hash(" ".join(self.words), {})

    @property
    def tf(self):
        counts = Counter(self.words)
        return [counts[term] for term in TERMS]


def global_bm25(docs):
    rows, tokens = len(docs), sum(len(doc.words) for doc in docs)
    idf = [bm25.idf(rows, sum(term in doc.words for doc in docs)) for term in TERMS]
    mean = tokens / rows if rows else 0.0
    return {doc: bm25.score(doc.tf, idf, len(doc.words), mean) for doc in docs}


def nodes(docs, split, deep):
    """Nodes as they would answer: each one's best `deep` of each leg, per collection."""
    scores = global_bm25(docs)
    parts = []
    for node in sorted(set(split)):
        own = [doc for doc, place in zip(docs, split, strict=True) if place == node]
        shards = []
        for collection in sorted({doc.collection for doc in own}):
            held = sorted((d for d in own if d.collection == collection), key=lambda d: d.id)
            near = sorted((d for d in held if d.cosine is not None), key=lambda d: -d.cosine)[:deep]
            words = sorted((d for d in held if any(d.tf)), key=lambda d: -scores[d])[:deep]
            shards.append(
                ShardHits(
                    collection=collection,
                    shard=f"s{node}",
                    rows=len(held),
                    tokens=sum(len(d.words) for d in held),
                    df=[sum(term in d.words for d in held) for term in TERMS],
                    fingerprint="e",
                    data_version=1,
                    candidates=[
                        Candidate(
                            id=d.id,
                            cosine=d.cosine,
                            vector_hit=d in near,
                            text_hit=d in words,
                            length=len(d.words),
                            tf=d.tf,
                            hash=d.hash,
                        )
                        for d in held
                        if d in near or d in words
                    ],
                )
            )
        parts.append(Candidates(node=f"n{node}", terms=TERMS, shards=shards))
    return parts


words = st.lists(st.sampled_from([*TERMS, "x", "y"]), min_size=1, max_size=6).map(tuple)
cosines = st.none() | st.sampled_from([-0.2, 0.0, 0.1, 0.3, 0.30000001, 0.5, 0.9])
docs_and_splits = st.lists(
    st.tuples(st.sampled_from(["notes", "mails"]), words, cosines, st.integers(0, 3)),
    min_size=1,
    max_size=30,
)


_AWAY = ("mails", ("late",), -0.2, 0)


@settings(max_examples=300, deadline=None)
@given(
    docs_and_splits,
    st.sampled_from(["vector", "text", "hybrid"]),
    st.integers(1, 6),
    st.booleans(),
)
@example([_AWAY, _AWAY, _AWAY, ("mails", ("late",), 0.0, 1)], "vector", 3, False)
def test_any_split_gives_the_answer_of_one_index(drawn, mode, limit, deduplicate):
    docs = [Doc(c, f"{number:02}", w, cos) for number, (c, w, cos, _) in enumerate(drawn)]
    split = [place for *_, place in drawn]
    with mock.patch.object(merge, "MIN_DEPTH", 3):  # so that few documents already exceed it
        deep = depth(limit)
        whole, spread = (
            rank(nodes(docs, where, deep), mode=mode, limit=limit, deduplicate=deduplicate)
            for where in ([0] * len(docs), split)
        )
    seen = [
        [(hit.collection, hit.candidate.id, hit.score) for hit in ranking.hits]
        for ranking in (whole, spread)
    ]
    assert seen[0] == seen[1]
    assert whole.total == spread.total


@settings(deadline=None)
@given(docs_and_splits, st.sampled_from(["vector", "text", "hybrid"]), st.randoms())
def test_the_order_of_answers_does_not_matter(drawn, mode, rng):
    docs = [Doc(c, f"{number:02}", w, cos) for number, (c, w, cos, _) in enumerate(drawn)]
    parts = nodes(docs, [place for *_, place in drawn], depth(10))
    shuffled = list(parts)
    rng.shuffle(shuffled)
    for strategy in ("score", "round_robin"):
        assert rank(parts, mode=mode, limit=10, strategy=strategy) == rank(
            shuffled, mode=mode, limit=10, strategy=strategy
        )


def test_depth_covers_the_limit():
    assert [depth(limit) for limit in (1, 30, 31, 100)] == [30, 30, 31, 100]
