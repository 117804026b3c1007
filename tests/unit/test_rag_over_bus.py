"""`MeshClient.rag` over a bus in memory: nodes answer with candidates, and one hangs."""

from __future__ import annotations

import pytest
from fakes import MemoryBroker

from mesh.adapters.clock import SystemClock
from mesh.config import MeshConfig
from mesh.core.route_table import RouteTable
from mesh.core.text import query_terms, terms
from mesh.errors import InvalidError
from mesh.runtime.client import MeshClient
from mesh.types import Health
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    Candidate,
    Candidates,
    CollectionInfo,
    FetchRequest,
    FetchResult,
    RagRequest,
    RouteNode,
    SearchRequest,
    ShardHits,
    StoredDocument,
)

HELD = {
    "docs": {"bill": "A late invoice is paid by card.", "copy": "a LATE invoice is paid by card"},
    "wiki": {"long": "Filler says little about anything. " * 200 + "A late invoice costs nothing."},
    "diary": {"secret": "My late invoice is nobody's business."},
}


class World:
    def __init__(self, *, hung=()):
        self.bus = MemoryBroker()
        self.client = MeshClient(self.bus.bus("ops"), MeshConfig(), SystemClock())
        self.hung = hung
        self.asked = []

    async def start(self):
        nodes = []
        for slug, held in HELD.items():
            infos = [CollectionInfo(name="kb", shard=slug, rows=len(held))]
            capabilities = ["search"] if slug == "diary" else ["search", "rag"]
            nodes.append(
                RouteNode(
                    slug=slug,
                    health=Health.HEALTHY,
                    collections=infos,
                    capabilities=capabilities,
                )
            )
            self._serving = self.bus.bus(slug)
            await self._serving.subscribe(f"{subjects.PREFIX}.rpc.{slug}.search.*", self._search)
            await self._serving.subscribe(f"{subjects.PREFIX}.rpc.{slug}.fetch.*", self._fetch)
        self.client._routes.follower.table = RouteTable(epoch=2, version=1, nodes=nodes)
        return self

    def _search(self, message):
        slug = message.subject.split(".")[3]
        request = codec.decode(message.data, SearchRequest)
        self.asked.append((slug, request))
        if slug in self.hung:
            return
        words = query_terms(request.query)
        found = {name: terms(text) for name, text in HELD[slug].items()}
        hits = ShardHits(
            collection="kb",
            shard=slug,
            rows=len(found),
            tokens=sum(map(len, found.values())),
            df=[sum(word in each for each in found.values()) for word in words],
            fingerprint="f",
            data_version=1,
            candidates=[
                Candidate(
                    id=name,
                    text_hit=True,
                    length=len(own),
                    tf=[own.count(word) for word in words],
                    hash=name,
                    content=HELD[slug][name] if len(HELD[slug][name]) < 1000 else None,
                    metadata={"title": name.upper()},
                )
                for name, own in found.items()
            ],
        )
        answer = Candidates(node=slug, terms=words, shards=[hits])
        self._serving.publish(message.reply, codec.ok(answer))

    def _fetch(self, message):
        slug = message.subject.split(".")[3]
        ids = codec.decode(message.data, FetchRequest).ids
        documents = [StoredDocument(id=name, content=HELD[slug][name]) for name in ids]
        self._serving.publish(message.reply, codec.ok(FetchResult(documents=documents)))


async def test_the_passages_of_all_nodes_that_offer_it():
    world = await World().start()
    answer = await world.client.rag("late invoice", budget=300, timeout_ms=5000)
    assert {slug for slug, _ in world.asked} == {"docs", "wiki"}
    docs, wiki = sorted(answer.passages, key=lambda each: each.source.node)[:2]
    assert docs.text.startswith(("A late", "a LATE"))
    assert (docs.source.title, docs.source.parts) in {("BILL", 1), ("COPY", 1)}
    assert "A late invoice costs nothing." in wiki.text  # fetched, and its best part taken
    assert wiki.source.part == wiki.source.parts > 1
    said = [each.text.casefold().rstrip(".") for each in answer.passages]
    assert said.count("a late invoice is paid by card") == 1
    assert (answer.shards.ok, answer.shards.skipped, answer.partial) == (2, 1, False)
    assert answer.tokens <= 300


async def test_a_made_request_is_for_whom_it_is():
    world = await World().start()
    answer = await world.client.submit_rag(
        RagRequest(query="late invoice", budget=300), on_behalf="ann"
    )
    assert {request.on_behalf for _, request in world.asked} == {"ann"}
    assert answer.id == world.asked[0][1].id != ""


async def test_a_node_that_hangs_makes_it_partial():
    world = await World(hung=("wiki",)).start()
    answer = await world.client.rag("late invoice", timeout_ms=100)
    assert answer.partial
    assert {each.source.node for each in answer.passages} == {"docs"}
    (missed,) = [each for each in answer.shards.details if each.node == "wiki"]
    assert missed.status == "timed_out"


async def test_bad_values_of_a_search_are_refused_by_their_field():
    world = await World().start()
    for wrong, field in (
        ({"mode": "magic"}, "options.mode"),
        ({"threshold": 2}, "options.threshold"),
        ({"strategy": "best"}, "options.strategy"),
        ({"nodes": ["diary"]}, "options.nodes"),
        ({"collections": ["nope"]}, "options.collections"),
    ):
        with pytest.raises(InvalidError) as refused:
            await world.client.rag("late", **wrong)
        assert list(refused.value.fields) == [field]
    assert not world.asked
