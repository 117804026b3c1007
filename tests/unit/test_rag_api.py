"""Whose documents `MeshClient.rag` asks for, and what it makes of the answer."""

from __future__ import annotations

import threading

import msgspec
import pytest
from search_world import ScriptedNode, SearchWorld
from virtual_time import virtual

from mesh.core import passages
from mesh.core.route_table import RouteTable
from mesh.errors import InvalidError
from mesh.runtime.rag_api import RagApi
from mesh.types import Health
from mesh.wire.messages import (
    CollectionInfo,
    Hit,
    RagRequest,
    RouteNode,
    SearchOptions,
    SearchResult,
    ShardReport,
    Shards,
)


def node(slug, *held, rag=True, shard=""):
    infos = [CollectionInfo(name=name, shard=shard or slug) for name in held]
    return RouteNode(
        slug=slug,
        health=Health.HEALTHY,
        collections=infos,
        capabilities=["search", "rag"] if rag else ["search"],
    )


def found(*contents, **fields):
    hits = [
        Hit(
            id=str(number),
            content=content,
            score=1.0,
            model_class="kb",
            model_type="kb",
            metadata={},
            node="docs",
            collection="kb",
            shard="docs",
        )
        for number, content in enumerate(contents)
    ]
    ok = ShardReport(collection="kb", shard="docs", node="docs", status="ok")
    known = {
        "results": hits,
        "count": len(hits),
        "total_results": len(hits),
        "duration_ms": 3.0,
        "nodes_searched": 1,
        "node_breakdown": {},
        "type_breakdown": {},
        "merge_strategy": "score",
        "avg_score": 1.0,
        "partial": False,
        "shards": Shards(total=1, ok=1, failed=0, skipped=0, timed_out=0, details=[ok]),
        "id": "r1",
    }
    return SearchResult(**(known | fields))


class Client(RagApi):
    def __init__(self, *nodes, answer=None):
        self.routes = RouteTable(epoch=1, version=1, nodes=nodes)
        self.asked = []
        self.answer = answer or found("Invoices are late.")

    async def _learn_names(self, options):
        pass

    async def search(self, query, **options):
        self.asked.append({"query": query, **options})
        return self.answer

    async def submit(self, request, *, on_behalf=""):
        self.asked.append((request, on_behalf))
        return self.answer


async def test_what_was_found_becomes_a_prompt():
    client = Client(node("docs", "kb"))
    answer = await client.rag("late", budget=200, limit=5, mode="text", require="all")
    assert client.asked == [
        {
            "query": "late",
            "limit": 5,
            "collections": None,
            "nodes": None,
            "mode": "text",
            "require": "all",
        }
    ]
    assert answer.prompt == "[1] Invoices are late.\n\nSources:\n[1] docs/kb/0"
    assert (answer.count, answer.documents, answer.budget, answer.id) == (1, 1, 200, "r1")
    assert answer.shards.ok == 1


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"query": ""}, "query"),
        ({"query": "x" * 4097}, "query"),
        ({"budget": 99}, "budget"),
        ({"budget": 100_001}, "budget"),
        ({"passages": 0}, "passages"),
        ({"limit": 101}, "limit"),
        ({"nodes": []}, "options.nodes"),
        ({"collections": ["a b"]}, "options.collections[0]"),
    ],
)
async def test_what_cannot_be_is_refused_before_anybody_is_asked(wrong, field):
    client = Client(node("docs", "kb"))
    with pytest.raises(InvalidError) as refused:
        await client.rag(**({"query": "x"} | wrong))
    assert list(refused.value.fields) == [field]
    assert not client.asked


async def test_only_nodes_that_offer_rag_are_asked():
    client = Client(node("docs", "kb"), node("diary", "kb", "private", rag=False))
    answer = await client.rag("late")
    assert client.asked[0]["nodes"] == ["docs"]
    assert answer.shards.skipped == 2
    assert not answer.partial
    skipped = [report for report in answer.shards.details if report.status == "skipped"]
    assert {(report.collection, report.node) for report in skipped} == {
        ("kb", "diary"),
        ("private", "diary"),
    }
    assert {report.reason for report in skipped} == {"its node does not offer rag"}


async def test_what_was_not_asked_for_is_not_skipped():
    client = Client(node("docs", "kb"), node("diary", "private", rag=False))
    answer = await client.rag("late", collections=["kb"])
    assert answer.shards.skipped == 0


async def test_a_replica_that_offers_it_stands_for_one_that_does_not():
    client = Client(node("a", "kb", shard="s"), node("b", "kb", shard="s", rag=False))
    answer = await client.rag("late")
    assert client.asked[0]["nodes"] == ["a"]
    assert answer.shards.skipped == 0


async def test_a_node_named_that_does_not_offer_it_is_refused():
    client = Client(node("docs", "kb"), node("diary", "private", rag=False))
    with pytest.raises(InvalidError) as refused:
        await client.rag("late", nodes=["docs", "diary"])
    assert list(refused.value.fields) == ["options.nodes"]
    assert "diary" in str(refused.value)
    await client.rag("late", nodes=["docs"])
    assert client.asked[0]["nodes"] == ["docs"]


async def test_an_unknown_node_is_the_searchs_to_refuse():
    client = Client(node("docs", "kb"), node("diary", "private", rag=False))
    await client.rag("late", nodes=["nobody"])
    assert client.asked[0]["nodes"] == ["nobody"]


async def test_where_nobody_offers_it_nobody_is_asked_and_all_is_skipped():
    client = Client(node("diary", "private", rag=False))
    answer = await client.rag("late")
    assert not client.asked
    assert (answer.count, answer.shards.skipped, answer.shards.total) == (0, 1, 1)
    with pytest.raises(InvalidError):
        await client.rag("late", collections=["nope"])


async def test_a_request_that_is_made_already_is_submitted_as_it_is():
    client = Client(node("docs", "kb"), node("diary", "kb", rag=False))
    options = SearchOptions(mode="vector", timeout_ms=77)
    request = RagRequest(id="r9", query="late", limit=4, options=options, origin="10.0.0.1")
    answer = await client.submit_rag(request, on_behalf="ann")
    ((search, on_behalf),) = client.asked
    assert on_behalf == "ann"
    assert (search.id, search.limit, search.origin) == ("r9", 4, "10.0.0.1")
    assert search.options == msgspec.structs.replace(options, nodes=["docs"])
    assert answer.shards.skipped == 1


async def test_a_partial_search_is_a_partial_answer():
    client = Client(node("docs", "kb"), answer=found("Late.", partial=True))
    assert (await client.rag("late")).partial


async def test_much_text_is_split_beside_the_loop(monkeypatch):
    threads = []
    split = passages.split

    def watched(text, start=0):
        threads.append(threading.current_thread())
        return split(text, start)

    monkeypatch.setattr(passages, "split", watched)
    await Client(node("docs", "kb")).rag("late")
    await Client(node("docs", "kb"), answer=found("Late. " * 20_000)).rag("late")
    assert [thread is threading.main_thread() for thread in threads] == [True, False]


@virtual
async def test_a_collection_that_is_newer_than_the_table_is_found():
    """Also where other nodes do not offer rag: whom to ask is told by the newest table."""
    silent = ScriptedNode("silent", capabilities=["search"])
    offering = ScriptedNode("offering", capabilities=["search", "rag"])
    silent.empty = offering.empty = True
    async with SearchWorld(silent, offering) as world:
        world.nodes["new"] = ScriptedNode("new", capabilities=["search", "rag"])
        answer = await world.client.rag("version", collections=["notes"])
        assert [passage.source.node for passage in answer.passages] == ["new"]


@virtual
async def test_passages_of_an_answer_that_was_kept_say_so():
    async with SearchWorld(ScriptedNode("docs", capabilities=["search", "rag"])) as world:
        assert [(await world.client.rag("version")).cached for _ in range(2)] == [False, True]
