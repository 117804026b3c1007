"""Copies whose vectors are another embedder's: who is asked, and how the answer tells of it."""

from __future__ import annotations

import pytest

from mesh.core.merge import Ranking
from mesh.core.route_table import RouteTable
from mesh.runtime.federation import plan
from mesh.runtime.results import coverage, how_it_went, lacks_a_leg, search_result
from mesh.types import Health
from mesh.wire.messages import (
    CollectionInfo,
    RouteNode,
    SearchRequest,
    ShardHits,
    ShardReport,
)


def replica(slug, *, outdated=False, health=Health.HEALTHY):
    info = CollectionInfo(name="notes", shard="s", outdated=outdated)
    return RouteNode(slug=slug, shard="s", health=health, collections=[info])


def asked(*nodes):
    table = RouteTable(epoch=1, version=1, nodes=nodes)
    [part] = plan(table, SearchRequest(query="x")).parts
    return list(part.searched.slugs)


OLD = {"outdated": True}
AWAY = {"health": Health.UNREACHABLE}


@pytest.mark.parametrize(
    ("copies", "wanted"),
    [
        ({"a": {}, "b": {}}, ["a", "b"]),
        ({"a": OLD, "b": {}, "c": {}}, ["b", "c"]),
        ({"a": OLD, "b": OLD}, ["a", "b"]),
        ({"a": OLD}, ["a"]),
        ({"a": OLD, "b": AWAY}, ["a", "b"]),  # words are better than nothing
        ({"a": OLD, "b": AWAY, "c": {}}, ["c"]),
    ],
    ids=str,
)
def test_a_whole_copy_is_asked_where_there_is_one(copies, wanted):
    nodes = [replica(slug, **fields) for slug, fields in copies.items()]
    assert asked(*nodes) == wanted
    assert asked(*reversed(nodes)) == wanted


def hits(no_vectors=""):
    return ShardHits(
        collection="notes",
        shard="s",
        rows=1,
        tokens=1,
        df=[],
        fingerprint="e",
        data_version=1,
        no_vectors=no_vectors,
    )


def test_one_leg_is_an_answer_unless_the_other_was_all_that_was_asked():
    assert how_it_went(hits(), "vector") == ("ok", "")
    for mode in ("hybrid", "text"):
        assert how_it_went(hits("other vectors"), mode) == ("ok", "other vectors")
    assert how_it_went(hits("other vectors"), "vector") == ("failed", "other vectors")


@pytest.mark.parametrize(
    ("status", "reason", "partial"),
    [
        ("ok", "", False),
        ("ok", "other vectors", True),
        ("failed", "away", True),
        ("timed_out", "no answer in time", True),
        ("skipped", "it cannot be filtered", False),
    ],
)
def test_an_answer_by_words_alone_is_partial(status, reason, partial):
    report = ShardReport(collection="notes", shard="s", node="a", status=status, reason=reason)
    answer = search_result(
        Ranking([], 0),
        texts={},
        shards=coverage([report]),
        strategy="score",
        duration_ms=1.0,
        one_leg=lacks_a_leg([report]),
    )
    assert answer.partial is partial
