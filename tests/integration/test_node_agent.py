"""`mesh-agent run` as a process: loads its files once, keeps its folder private, goes quietly."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
import statistics
import time

import pytest
from live_mesh import START_S, LiveMesh, health_of, incarnation_of, until_reborn

from mesh.errors import InvalidError

pytestmark = pytest.mark.timeout(180)

APP = """
import msgspec
from mesh import Node

node = Node("crm")


class Refund(msgspec.Struct):
    order: str
    cents: int


@node.action("refund")
async def refund(params: Refund, ctx) -> dict:
    return {"refunded": params.cents, "by": ctx.caller}


@node.search("orders")
def orders(request):
    return [{"id": "A-7", "content": f"an order about {request.query}"}]
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agent")
    (folder / "crm_app.py").write_text(APP)
    notes = [{"id": f"n{n}", "content": f"late invoice {n}", "cents": n} for n in range(5)]
    (folder / "notes.jsonl").write_text("\n".join(map(json.dumps, notes)))
    (folder / "later.jsonl").touch()  # loaded after the notes
    mesh = LiveMesh(folder)
    try:
        mesh.start()
        sources = [f"notes={folder}/notes.jsonl", f"later={folder}/later.jsonl"]
        typed = [word for source in sources for word in ("--collection", source)]
        mesh.add("crm", "--app", "crm_app:node", *typed)
        asyncio.run(ready(mesh))
        yield mesh
    finally:
        mesh.stop()


async def ready(mesh):
    async with asyncio.timeout(START_S), mesh.connect() as client:
        while await health_of(client, "crm") != "healthy" or await rows_of(client) != 5:
            await asyncio.sleep(0.1)


async def rows_of(client):
    """Of the collection `notes`, as a search would count them."""
    if "notes" not in client.routes.collections():
        return 0
    answer = await client.search(
        "late invoice", collections=["notes"], mode="text", limit=100, timeout_ms=5000
    )
    return answer.count


async def indexed(client, collection):
    """How often the node was made to index into a collection, with success."""
    page = await client.history(node="crm", action="index", limit=1000)
    done = [step.params["collection"] for step in page.actions if str(step.state) == "succeeded"]
    return done.count(collection)


async def test_typed_action_and_own_search(live):
    async with live.connect() as client:
        done = await client.run_action("refund", {"order": "A-7", "cents": 5})
        assert done.result == {"refunded": 5, "by": "operator"}
        with pytest.raises(InvalidError) as caught:
            await client.run_action("refund", {"order": "A-7", "cents": "five"})
        assert list(caught.value.fields) == ["params.cents"]
        answer = await client.search("late invoice", timeout_ms=5000)
        assert {hit.collection for hit in answer.results} == {"notes", "orders"}
        filtered = await client.search("late", filters={"cents": {"gte": 3}}, timeout_ms=5000)
        assert {hit.id for hit in filtered.results} == {"n3", "n4"}
        assert not filtered.partial
        assert filtered.shards.skipped == 1


async def test_new_collection_is_known_at_once_and_gone_at_once(live):
    """Word of it races the action's answer, on another connection; the median, as a busy machine
    may hold up any one. Waiting for the next beat would cost each about a second: one is seen
    right after a beat, and the next begins then.
    """
    took = []
    async with live.connect() as client:
        for name in ("fresh-1", "fresh-2", "fresh-3", "fresh-4", "fresh-5"):
            document = {"id": "1", "content": "brand new"}
            params = {"collection": name, "documents": [document]}
            await client.run_action("index", params, node="crm")
            began = time.monotonic()
            async with asyncio.timeout(2):
                while await count_of(client, name) != 1:
                    await asyncio.sleep(0.01)
            took.append(time.monotonic() - began)
            await client.run_action("drop", {"collection": name}, node="crm")
            async with asyncio.timeout(2):
                while name in {info.name for info in client.routes.nodes["crm"].collections}:
                    await asyncio.sleep(0.01)
    assert statistics.median(took) < 0.5


async def count_of(client, collection):
    """Results in a collection; 0 while it is not known."""
    try:
        answer = await client.search("brand", collections=[collection], timeout_ms=5000)
    except InvalidError:
        return 0
    return answer.count


async def test_what_was_deleted_does_not_come_back_with_a_restart(live):
    """Files are loaded in order: once the later one is in, the notes were not loaded again."""
    node = live.nodes["crm"]
    async with live.connect() as client:
        before = await indexed(client, "notes"), await indexed(client, "later")
        assert before == (1, 0)
        (live.folder / "later.jsonl").write_text('{"id": "l", "content": "something else"}')
        await client.run_action("delete", {"collection": "notes", "ids": ["n0"]}, node="crm")
        assert node.end(signal.SIGTERM) == 0
        async with asyncio.timeout(5):
            while await health_of(client, "crm") != "unreachable":
                await asyncio.sleep(0.02)
        (record,) = (await client.nodes(node="crm")).nodes
        assert record.reason == "stopped"
        node.start()
        await until_reborn(client, "crm", after=record.incarnation)
        async with asyncio.timeout(30):
            while not await indexed(client, "later"):
                await asyncio.sleep(0.05)
        assert await indexed(client, "notes") == 1
        assert await rows_of(client) == 4


async def test_ids_answer_the_same_after_a_restart(live):
    node = live.nodes["crm"]
    async with live.connect() as client:
        params = {"order": "A-8", "cents": 8}
        first = await client.run_action("refund", params, node="crm", id="refund-a8")
        before = await incarnation_of(client, "crm")
        node.end(signal.SIGKILL)
        node.start()
        await until_reborn(client, "crm", after=before)
        assert await client.run_action("refund", params, node="crm", id="refund-a8") == first
        page = await client.history(action_id="refund-a8")
        assert [str(record.state) for record in page.actions] == ["succeeded"]


def test_its_folder_is_its_owners_alone(live):
    folder = live.state / "nodes" / "crm"
    for path in (folder, *folder.rglob("*")):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
