"""Nodes whose embedders differ are compared by the caller's own."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from search_world import ScriptedNode, SearchWorld

from mesh.adapters.clock import SystemClock
from mesh.adapters.embedders import load_embedder
from mesh.core import common_scale
from mesh.errors import StateError
from mesh.runtime.client import MeshClient
from mesh.runtime.common_embedder import CommonEmbedder, compared
from mesh.wire.messages import Candidate, Candidates, SearchOptions, SearchRequest, ShardHits

HASH = load_embedder("hash")
QUERY = "late invoice of the customer"


def part(node, fingerprint, *texts, cosine=0.3, **fields):
    candidates = [
        Candidate(
            **{
                "id": f"{node}{number}",
                "cosine": cosine,
                "vector_hit": True,
                "hash": f"{node}{number}",
                "length": 5,
                "tf": [1],
                "content": text,
            }
            | fields
        )
        for number, text in enumerate(texts)
    ]
    hits = ShardHits(
        collection="notes",
        shard=node,
        rows=10,
        tokens=50,
        df=[1],
        fingerprint=fingerprint,
        data_version=1,
        candidates=candidates,
    )
    return Candidates(node=node, terms=["late"], shards=[hits])


def cosines(parts):
    return {
        found.id: (found.cosine, found.vector_hit)
        for each in parts
        for shard in each.shards
        for found in shard.candidates
    }


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


def request(**options):
    return SearchRequest(query=QUERY, options=SearchOptions(**options))


def own(text):
    return round(float(HASH.embed_documents([text])[0] @ HASH.embed_query(QUERY)), 7)


TEXTS = [QUERY, "late customer", "an invoice came late", "of the", "parcel", "customer"]


async def test_texts_of_others_are_embedded_and_ours_are_as_they_came():
    parts = [part("a", HASH.id, "x", cosine=0.4), part("b", "other", *TEXTS, cosine=0.99)]
    common = CommonEmbedder(lambda: HASH, Clock())
    judged, why, _ = await compared(common, request(), parts, 10.0)
    assert why == ""
    found = cosines(judged)
    assert found["a0"] == (0.4, True)
    for number, text in enumerate(TEXTS):
        cosine = own(text)
        expected = cosine or found[f"b{number}"][0]
        assert found[f"b{number}"] == (expected, expected >= HASH.default_threshold)
    assert found["b0"][0] == pytest.approx(1)
    assert {shard.fingerprint for one in judged for shard in one.shards} == {HASH.id}
    assert parts == [part("a", HASH.id, "x", cosine=0.4), part("b", "other", *TEXTS, cosine=0.99)]


async def test_a_text_that_did_not_come_along_is_estimated():
    """Every embedded one has twice its own cosine, so this one has, too."""
    half = [part("b", "other", *TEXTS[:3] * 2), part("a", HASH.id, "x")]
    exact = [own(text) for text in TEXTS[:3] * 2]
    shard = half[0].shards[0]
    candidates = [
        msgspec.structs.replace(found, cosine=cosine / 2)
        for found, cosine in zip(shard.candidates, exact, strict=True)
    ]
    candidates.append(Candidate(id="long", cosine=0.21, vector_hit=True, hash="long"))
    shard = msgspec.structs.replace(shard, candidates=candidates)
    parts = [msgspec.structs.replace(half[0], shards=[shard]), half[1]]
    judged, why, _ = await compared(CommonEmbedder(lambda: HASH, Clock()), request(), parts, 10.0)
    assert why == ""
    assert cosines(judged)["long"] == (pytest.approx(0.42, abs=1e-6), True)


async def test_without_enough_texts_cosines_are_scaled_and_it_is_said():
    parts = [part("a", HASH.id, "x"), part("b", "other", None, None)]
    judged, why, _ = await compared(CommonEmbedder(lambda: HASH, Clock()), request(), parts, 10.0)
    assert judged == parts
    assert "too few texts" in why


async def test_an_explicit_threshold_is_one_of_the_callers_embedder():
    parts = [
        part("a", HASH.id, "x", "y", cosine=0.4),
        part("b", "other", *TEXTS, cosine=0.9),
    ]
    common = CommonEmbedder(lambda: HASH, Clock())
    judged, _, _ = await compared(common, request(threshold=0.5), parts, 10.0)
    found = cosines(judged)
    assert not found["a0"][1]
    hits = {name for name, (cosine, hit) in found.items() if hit}
    assert hits == {name for name, (cosine, _) in found.items() if cosine >= 0.5}
    scaled, why, _ = await compared(None, request(threshold=0.5), parts, 10.0)
    assert "no embedder" in why
    assert {name for name, (_, hit) in cosines(scaled).items() if hit} == {
        f"b{number}" for number in range(6)
    }


async def test_an_embedder_that_cannot_be_loaded_is_said_and_tried_again_later():
    clock, tries = Clock(), []

    def load():
        tries.append(clock.now)
        if len(tries) == 1:
            raise StateError("no model here")
        return HASH

    common = CommonEmbedder(load, clock)
    parts = [part("a", HASH.id, "x"), part("b", "other", *TEXTS)]
    for now, expected in [(0.0, "no model here"), (30.0, "no model here"), (61.0, "")]:
        clock.now = now
        _, why, _ = await compared(common, request(), parts, now + 10)
        assert expected in why
        assert bool(why) == bool(expected)
    assert len(tries) == 2


class Slow:
    """Takes its time for each chunk of texts."""

    id, dim, default_threshold = HASH.id, HASH.dim, HASH.default_threshold

    def __init__(self, takes_s=0.2):
        self.takes_s = takes_s

    def embed_query(self, text):
        return HASH.embed_query(text)

    def embed_documents(self, texts):
        threading.Event().wait(self.takes_s)
        return HASH.embed_documents(texts)


async def test_what_is_still_loading_is_not_waited_for():
    """Neither does it take the threads of others."""
    loop, go_on = asyncio.get_running_loop(), threading.Event()

    def load():
        go_on.wait(30)
        return HASH

    common = CommonEmbedder(load, SystemClock())
    parts = [part("a", HASH.id, "x"), part("b", "other", *TEXTS)]
    loop.set_default_executor(ThreadPoolExecutor(1))
    began = loop.time()
    judged, why, _ = await compared(common, request(), parts, began + 20)
    await asyncio.to_thread(HASH.embed_query, QUERY)
    assert loop.time() - began < 5
    assert "still being loaded" in why
    assert judged == parts
    go_on.set()
    async with asyncio.timeout(30):
        while why:
            _, why, _ = await compared(common, request(), parts, loop.time() + 30)


async def test_who_has_an_embedder_loads_none_however_often_it_is_too_slow():
    clock, loads = Clock(), []

    def load():
        loads.append(clock.now)
        return Slow(0.1)

    common = CommonEmbedder(load, clock)
    parts = [part("a", HASH.id, "x"), part("b", "other", *TEXTS)]
    await common.compare(QUERY, [], 10.0)
    for clock.now in (100.0, 200.0, 300.0):
        _, why, _ = await compared(common, request(), parts, clock.now + 0.02)
        assert "took too long" in why
    assert len(loads) == 1


async def test_time_that_is_over_leaves_what_was_not_embedded():
    """And what was embedded is there in time."""
    clock = SystemClock()
    common = CommonEmbedder(Slow, clock)
    await common.compare(QUERY, [], clock.monotonic() + 30)
    texts = [f"late invoice {number}" for number in range(32 * 10)]
    judged = await common.compare(QUERY, texts, clock.monotonic() + 1.15)
    missing = [cosine is None for cosine in judged.cosines]
    assert missing[:32] == [False] * 32
    assert missing[-32:] == [True] * 32
    assert judged.hurried
    await common.compare(QUERY, texts[:32], clock.monotonic() + 1.15)


async def test_a_text_is_embedded_once():
    embedded = []

    class Counting:
        id, dim, default_threshold = HASH.id, HASH.dim, HASH.default_threshold

        def embed_query(self, text):
            return HASH.embed_query(text)

        def embed_documents(self, texts):
            embedded.extend(texts)
            return HASH.embed_documents(texts)

    common = CommonEmbedder(Counting, Clock())
    first = await common.compare(QUERY, [*TEXTS, TEXTS[0]], 10.0)
    again = await common.compare(QUERY, [*TEXTS, "new"], 10.0)
    assert sorted(embedded) == sorted([*TEXTS, "new"])
    assert first.cosines[:6] == again.cosines[:6]
    assert first.cosines[6] == first.cosines[0]


def test_an_estimate_takes_some_to_learn_from():
    parts = [part("a", "ours", "x"), part("b", "other", *TEXTS[:5])]
    few = [0.5, 0.5, 0.5, 0.5, None]
    assert common_scale.rescaled(parts, "ours", few, 0.1) is None
    assert common_scale.rescaled(parts, "ours", [0.5] * 5, 0.1) is not None


# -- through a client ------------------------------------------------------------------------------


def world(embedder, *nodes):
    made = SearchWorld(
        *(nodes or (ScriptedNode("a", fingerprint=HASH.id), ScriptedNode("b", fingerprint="o")))
    )
    made.clock = SystemClock()  # the loop's is no thread's
    made.client = MeshClient(made.bus, made.client._config, made.clock, embedder=embedder)
    for node in made.nodes.values():
        node.after_s = 0.001
    return made


def finds(node, *texts):
    """From now on."""
    found = node.found()
    shard = found.shards[0]
    made = [
        msgspec.structs.replace(shard.candidates[0], id=f"{node.slug}{n}", content=text, hash="")
        for n, text in enumerate(texts)
    ]
    found = msgspec.structs.replace(found, shards=[msgspec.structs.replace(shard, candidates=made)])
    node.found = lambda: found


def broken():
    raise StateError("no model here")


async def test_an_answer_says_where_cosines_were_only_scaled_and_is_not_kept():
    async with world(broken) as mixed:
        for _ in range(2):
            answer = await mixed.search()
            assert not answer.partial
            assert not answer.cached
            reasons = {report.reason for report in answer.shards.details}
            assert len(reasons) == 1
            assert "no model here" in reasons.pop()


async def test_an_answer_compared_by_one_embedder_says_nothing_and_is_kept():
    async with world(lambda: HASH) as mixed:
        for node in mixed.nodes.values():
            finds(node, *TEXTS)
        answer = await mixed.search(timeout_ms=30_000)
        assert {report.reason for report in answer.shards.details} == {""}
        assert (await mixed.search(timeout_ms=30_000)).cached


async def test_one_that_hangs_leaves_time_to_compare_the_others():
    nodes = [ScriptedNode("a", fingerprint=HASH.id), ScriptedNode("b", fingerprint="o")]
    nodes.append(ScriptedNode("c", fingerprint="o"))
    async with world(lambda: HASH, *nodes) as mixed:
        for node in nodes:
            finds(node, *TEXTS)
        await mixed.search(timeout_ms=30_000)
        nodes[2].hung = True
        answer = await mixed.search("late invoice", timeout_ms=1_000)
        reasons = {report.node: report.reason for report in answer.shards.details}
        assert reasons == {"a": "", "b": "", "c": "no answer in time"}


async def test_an_answer_of_estimates_for_want_of_time_is_not_kept():
    """The next one may have more of it."""
    async with world(lambda: Slow(0.2)) as mixed:
        finds(mixed.nodes["a"], *TEXTS)
        finds(mixed.nodes["b"], *(f"late invoice {number}" for number in range(320)))
        await mixed.client._common.compare(QUERY, [], mixed.clock.monotonic() + 30)
        answer = await mixed.search(timeout_ms=1_150)
        assert {report.reason for report in answer.shards.details} == {""}
        assert not (await mixed.search(timeout_ms=30_000)).cached
        assert (await mixed.search(timeout_ms=1_150)).cached


async def test_who_answers_by_words_alone_says_so_where_others_are_scaled():
    async with world(broken) as mixed:
        finds(mixed.nodes["a"], *TEXTS)
        finds(mixed.nodes["b"], *TEXTS)
        third = ScriptedNode("c", fingerprint="o")
        found = third.found()
        shard = msgspec.structs.replace(found.shards[0], no_vectors="its embedder is away")
        third.found = lambda: msgspec.structs.replace(found, shards=[shard])
        mixed.nodes["c"] = third
        await mixed.publish()
        answer = await mixed.search()
        reasons = {report.node: report.reason for report in answer.shards.details}
        assert reasons["c"] == "its embedder is away"
        assert "no model here" in reasons["a"]


async def test_nodes_are_asked_without_a_threshold_where_their_embedders_differ():
    async with world(lambda: HASH) as mixed:
        await mixed.search(threshold=0.4, timeout_ms=30_000)
        await mixed.search(threshold=0.4, nodes=["a"], timeout_ms=30_000)
        a, b = (mixed.nodes[slug].searches for slug in "ab")
        assert [one.options.threshold for one in a] == [0.0, 0.4]
        assert [one.options.threshold for one in b] == [0.0]


async def test_text_alone_needs_no_embedder():
    async with world(broken) as mixed:
        answer = await mixed.search(mode="text")
        assert {report.reason for report in answer.shards.details} == {""}
