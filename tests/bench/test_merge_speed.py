"""Merging what eight nodes found, from candidates to the answer, with canned replies."""

from __future__ import annotations

import gc
import random
import statistics
import sys
import time

import pytest

from mesh.core.merge import rank
from mesh.runtime.results import coverage, search_result
from mesh.wire import codec
from mesh.wire.messages import Candidate, Candidates, ShardHits, ShardReport

pytestmark = [pytest.mark.bench, pytest.mark.timeout(120)]

NODES, EACH = 8, 60
AT_MOST_MS = 2.0
ROUNDS = 200
TERMS = ["late", "invoice", "of", "the", "customer"]


def reply(node, chance):
    words = ["lorem", "ipsum", "dolor", "sit", "amet", "late", "invoice", "customer"]
    candidates = [
        Candidate(
            id=f"{node}-{number}",
            cosine=round(chance.random(), 7),
            vector_hit=number < EACH // 2,
            text_hit=number >= EACH // 2,
            length=chance.randint(20, 200),
            tf=[chance.randint(0, 3) for _ in TERMS],
            hash=f"{chance.getrandbits(256):064x}",
            content=" ".join(chance.choices(words, k=100)),
            metadata={"section": chance.choice(words), "title": "of something", "year": 2024},
        )
        for number in range(EACH)
    ]
    hits = ShardHits(
        collection="packages",
        shard=node,
        rows=1105,
        tokens=90_000,
        df=[3, 50, 200, 10, 7],
        fingerprint="one",
        data_version=12,
        candidates=candidates,
    )
    return codec.ok(Candidates(node=node, terms=TERMS, shards=[hits], took_ms=2.0))


def p50_ms(work):
    took = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


def test_merging_the_candidates_of_eight_nodes():
    """Ranking, deduplicating and building the answer. Decoding is told beside it."""
    chance = random.Random(7)
    replies = [reply(f"n{number}", chance) for number in range(NODES)]
    parts = [codec.result_of(each, Candidates) for each in replies]
    reports = [
        ShardReport(collection="packages", shard=part.node, node=part.node, status="ok")
        for part in parts
    ]

    def merge():
        ranking = rank(parts, mode="hybrid", limit=10)
        return search_result(
            ranking, texts={}, shards=coverage(reports), strategy="score", duration_ms=1.0
        )

    assert merge().count == 10
    gc.collect()
    merge_ms = p50_ms(merge)
    decode_ms = p50_ms(lambda: [codec.result_of(each, Candidates) for each in replies])
    sys.stdout.write(
        f"\n{NODES} x {EACH} candidates, {sum(map(len, replies)) // 1024} KB: "
        f"merged in {merge_ms:.2f} ms, decoded in {decode_ms:.2f} ms (p50)\n"
    )
    assert merge_ms < AT_MOST_MS
