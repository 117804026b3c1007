"""A node that gets another embedder, in a mesh of real processes: as its operator sees it, as an
application over HTTP sees it, and as a client sees it.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from embedding_server import KEY, EmbeddingServer, good
from live_mesh import START_S, LiveMesh, clean_environment, incarnation_of, until_reborn

from mesh import bootstrap
from mesh.adapters.embedders import load_embedder
from mesh.adapters.embedders.calibration import TEXTS
from mesh.adapters.embedders.openai import OpenAIEmbedder
from mesh.errors import ConflictError, InvalidError, MeshError, UnavailableError

HASH, LLAMA = load_embedder("hash").id, load_embedder("wordllama").id
DOCUMENTS = [{"id": f"d{n}", "content": f"invoice {n} is late"} for n in range(300)]
PATIENTLY = {"timeout_ms": 10_000}


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    world = LiveMesh(tmp_path_factory.mktemp("reembed"))
    try:
        world.start()
        world.add("kb")
        yield world
    finally:
        world.stop()


@pytest.fixture
async def client(live):
    async with live.connect() as opened:
        await until_reborn(opened, "kb", after=0)
        yield opened


def meshctl(live, *arguments):
    return subprocess.run(
        [Path(sys.executable).parent / "meshctl", "--state-dir", live.state, *arguments],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


async def restarted_with(live, client, embedder, *, number=signal.SIGTERM, **environment):
    before = await incarnation_of(client, "kb")
    live.nodes["kb"].end(number)
    live.add("kb", MESH_SEARCH__EMBEDDER=embedder, **environment)
    await until_reborn(client, "kb", after=before)


async def until_embedded_by(client, collection, fingerprint):
    """As heartbeats and the route table have it."""
    async with asyncio.timeout(START_S):
        while True:
            (node,) = (await client.nodes(node="kb")).nodes
            routed = client.routes.nodes["kb"].collections if "kb" in client.routes.nodes else ()
            if all(
                {info.name: info.fingerprint for info in known}.get(collection) == fingerprint
                for known in (node.collections, routed)
            ):
                return
            await asyncio.sleep(0.05)


async def test_changing_the_embedder_of_a_node(live, client):
    """From hash to wordllama, with meshctl."""
    await client.run_action("index", {"collection": "notes", "documents": DOCUMENTS}, node="kb")
    await restarted_with(live, client, "wordllama")
    await until_embedded_by(client, "notes", HASH)

    found = await client.search("late invoice 7", collections=["notes"], **PATIENTLY)
    assert found.results[0].id == "d7"
    assert found.partial
    [report] = found.shards.details
    assert report.status == "ok"
    assert "`meshctl collections reembed notes --node kb`" in report.reason
    with pytest.raises(UnavailableError, match="embedded by 'hash-512/2'"):
        await client.search("late invoice 7", collections=["notes"], mode="vector", **PATIENTLY)
    shown = meshctl(live, "search", "late invoice 7", "--timeout-ms", "10000")
    assert shown.returncode == 0
    assert "PARTIAL: some of it by words alone" in shown.stdout
    with pytest.raises(ConflictError, match=r"set search\.embedder back to what it was"):
        await client.run_action(
            "index", {"collection": "notes", "documents": DOCUMENTS[:1]}, node="kb"
        )

    done = meshctl(live, "collections", "reembed", "notes")
    assert (done.returncode, done.stdout) == (0, f"kb: 300 documents embedded by {LLAMA}\n")
    await until_embedded_by(client, "notes", LLAMA)
    found = await client.search("late invoice 7", collections=["notes"], explain=True, **PATIENTLY)
    assert found.results[0].id == "d7"
    assert found.results[0].explain["cosine"] > 0.5
    assert not found.partial
    listed = meshctl(live, "collections", "list", "--json")
    assert {row["embedder"] for row in json.loads(listed.stdout)["collections"]} == {LLAMA}
    again = meshctl(live, "collections", "reembed", "notes")
    assert (again.returncode, again.stdout) == (
        0,
        f"kb: nothing to do, it is embedded by {LLAMA}\n",
    )
    assert meshctl(live, "collections", "reembed", "nothing", "--node", "kb").returncode == 2
    await client.run_action("index", {"collection": "notes", "documents": DOCUMENTS}, node="kb")


async def test_it_is_an_action_like_others(live, client):
    """Recorded, heard of while it runs, and asked for over HTTP too."""
    await restarted_with(live, client, "hash")
    await client.run_action("index", {"collection": "old", "documents": DOCUMENTS}, node="kb")
    await restarted_with(live, client, "wordllama")

    told = []
    async with bootstrap.hear_progress(client, lambda node, word: told.append((node, word))):
        done = await client.run_action("reembed", {"collection": "old"}, node="kb", timeout_s=60)
    assert done.result["reembedded"] == 300
    assert (done.result["from"], done.result["to"]) == (HASH, LLAMA)
    assert done.result["data_version"] > 0
    words = [word for node, word in told if node == "kb" and word.id == done.id]
    assert words
    assert 0 < words[-1].fraction <= 1

    grant = await client.access.issue("app", ["search", "actions"])
    async with httpx.AsyncClient(
        base_url=live.file()["http_url"] + "/api/ai-engine",
        headers={"Authorization": f"Bearer {grant.access_token}"},
        timeout=60,
    ) as http:
        body = {"action": "reembed", "node": "kb", "params": {"collection": "old"}}
        answer = await http.post("/actions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["result"]["reembedded"] == 0
        body["params"] = {"collection": "nothing"}
        assert (await http.post("/actions", json=body)).status_code == 422
        body["params"] = {"colection": "old"}
        assert (await http.post("/actions", json=body)).status_code == 422
    with pytest.raises(InvalidError, match="unknown collection 'nothing'"):
        await client.run_action("reembed", {"collection": "nothing"}, node="kb")


async def until_told(client, share):
    """Until an action of the node's is as far as that."""
    far = asyncio.Event()

    def heard(_node, word):
        if (word.fraction or 0) >= share:
            far.set()

    async with bootstrap.hear_progress(client, heard), asyncio.timeout(START_S):
        await far.wait()


async def test_a_killed_node_goes_on_by_itself_and_does_without_its_endpoint(live, client):
    """From hash to an HTTP endpoint that takes its time."""
    documents = [{"id": f"d{n}", "content": f"invoice {n} is late"} for n in range(640)]
    await restarted_with(live, client, "hash")
    await client.run_action("index", {"collection": "long", "documents": documents}, node="kb")
    with EmbeddingServer() as server:
        environment = {
            "MESH_SEARCH__EMBEDDER_URL": server.url,
            "MESH_SEARCH__EMBEDDER_MODEL": "words-1",
            "MESH_SEARCH__EMBEDDER_KEY": KEY,
            "MESH_SEARCH__EMBEDDER_BATCH": "64",
        }
        await restarted_with(live, client, "openai", **environment)
        server.behaviour = lambda asked: good(asked)._replace(after_s=0.3)
        told = asyncio.create_task(until_told(client, 0.3))
        work = asyncio.create_task(
            client.run_action("reembed", {"collection": "long"}, node="kb", timeout_s=60)
        )
        await told
        await restarted_with(live, client, "openai", number=signal.SIGKILL, **environment)
        await until_embedded_by(client, "long", OpenAIEmbedder(server.settings()).id)
        await asyncio.gather(work, return_exceptions=True)  # whoever waits may have been told off

        texts = [text for asked in server.asked for text in asked["input"] if text not in TEXTS]
        assert set(texts) == {document["content"] for document in documents}
        assert len(texts) <= 640 + 64  # what was under way at the kill
        server.behaviour = good
        found = await client.search("late invoice 7", mode="vector", collections=["long"])
        assert found.results[0].id == "d7"

    found = await client.search("late invoice 8", collections=["long"], **PATIENTLY)
    assert found.results[0].id == "d8"
    assert found.partial
    assert "cannot be reached" in found.shards.details[0].reason
    with pytest.raises(MeshError, match="cannot be reached"):
        await client.run_action(
            "index",
            {"collection": "long", "documents": [{"id": "x", "content": "new"}]},
            node="kb",
            timeout_s=60,
        )
    assert KEY not in live.nodes["kb"].log.read_text()
