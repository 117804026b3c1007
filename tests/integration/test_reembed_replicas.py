"""Replicas change their embedder one after the other: the shard is whole and can be written all the
while, and the one that waited has every write in the end.
"""

from __future__ import annotations

import msgspec
import pytest
import pytest_asyncio
from test_replicas_live import Live, contents, following, until, until_equal

import mesh
from mesh.adapters.embedders import load_embedder
from mesh.config import SearchConfig
from mesh.errors import ConflictError

HASH, LLAMA = load_embedder("hash").id, load_embedder("wordllama").id


class Changing(Live):
    """Nodes whose embedder the test says."""

    embedder = "hash"

    def config(self, shard="", **node):
        config = super().config(shard, **node)
        return msgspec.structs.replace(config, search=SearchConfig(embedder=self.embedder))


@pytest_asyncio.fixture
async def live(broker, tmp_path):
    world = Changing(broker, tmp_path)
    await world.start_master()
    yield world
    await world.stop_all()


@pytest_asyncio.fixture
async def client(live):
    async with mesh.connect(
        url=live.broker.url, credentials=live.broker.credentials("operator")
    ) as opened:
        yield opened


def infos(client):
    return {
        slug: info
        for slug, node in client.routes.nodes.items()
        for info in node.collections
        if info.name == "notes"
    }


def documents(*names):
    return [{"id": name, "content": f"invoice {name} is late"} for name in names]


async def index(client, *names, node=None):
    params = {"collection": "notes", "documents": documents(*names)}
    return await client.run_action("index", params, node=node, timeout_s=20)


async def search(client):
    return await client.search("late invoice", collections=["notes"], timeout_ms=10_000)


async def known(client, **outdated):
    await until(lambda: {slug: info.outdated for slug, info in infos(client).items()} == outdated)


@pytest.mark.timeout(180)
async def test_one_replica_after_the_other_changes_its_embedder(live, client):
    await live.start("kb1", "s")
    await index(client, "a", "b", node="kb1")
    await live.start("kb2", "s")
    await following(live, "kb1", "kb2")
    await until_equal(live, "kb1", "kb2")

    live.embedder = "wordllama"
    await live.stop("kb2")
    await live.start("kb2", "s")
    await known(client, kb1=False, kb2=True)
    assert infos(client)["kb2"].fingerprint == HASH
    found = [await search(client) for _ in range(10)]  # never of the one that has words alone
    assert {hit.node for answer in found for hit in answer.results} == {"kb1"}
    assert not any(answer.partial for answer in found)
    with pytest.raises(ConflictError, match="collections reembed notes --node kb2"):
        await index(client, "c", node="kb2")
    await index(client, "c")  # goes to the one that can take it
    assert set(await contents(live, "kb1")) == {"a", "b", "c"}

    done = await client.run_action("reembed", {"collection": "notes"}, node="kb2", timeout_s=60)
    assert (done.result["from"], done.result["to"]) == (HASH, LLAMA)
    await following(live, "kb1", "kb2")
    assert set(await until_equal(live, "kb1", "kb2")) == {"a", "b", "c"}
    await known(client, kb1=False, kb2=False)
    await index(client, "d", node="kb2")
    assert set(await until_equal(live, "kb1", "kb2")) == {"a", "b", "c", "d"}

    await live.stop("kb1")
    await live.start("kb1", "s")
    await known(client, kb1=True, kb2=False)
    found = [await search(client) for _ in range(10)]
    assert {hit.node for answer in found for hit in answer.results} == {"kb2"}
    await client.run_action("reembed", {"collection": "notes"}, node="kb1", timeout_s=60)
    await following(live, "kb1", "kb2")
    await index(client, "e", node="kb1")
    assert len(await until_equal(live, "kb1", "kb2")) == 5
    await until(lambda: {info.fingerprint for info in infos(client).values()} == {LLAMA})


async def test_a_copy_that_waits_can_be_dropped_for_all(live, client):
    await live.start("kb1", "s")
    await index(client, "a", node="kb1")
    await live.start("kb2", "s")
    await following(live, "kb1", "kb2")
    await until_equal(live, "kb1", "kb2")
    live.embedder = "wordllama"
    await live.stop("kb2")
    await live.start("kb2", "s")
    await known(client, kb1=False, kb2=True)
    await following(live, "kb1", "kb2")
    await client.run_action("drop", {"collection": "notes"}, node="kb1", timeout_s=20)
    await until(lambda: not live.nodes["kb2"]._documents.collections())
    await index(client, "b", node="kb2")
    assert set(await until_equal(live, "kb1", "kb2")) == {"b"}
