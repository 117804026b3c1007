"""Breakers, drain and explain over HTTP, against a real mesh."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest
from live_mesh import LiveMesh, health_of


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    mesh = LiveMesh(tmp_path_factory.mktemp("routing"))
    try:
        mesh.start()
        mesh.add("shop")
        yield mesh
    finally:
        mesh.stop()


@pytest.fixture
async def http(live):
    async with live.connect() as client:
        async with asyncio.timeout(60):
            while await health_of(client, "shop") != "healthy":
                await asyncio.sleep(0.05)
        grant = await client.access.issue("ann", ["search", "actions", "admin"])
    headers = {"Authorization": f"Bearer {grant.access_token}"}
    base = live.file()["http_url"] + "/api/ai-engine"
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=20) as client:
        yield client


async def until(http, path, good):
    give_up = time.monotonic() + 10
    while not ((answer := await http.get(path)).status_code == 200 and good(answer.json())):
        assert time.monotonic() < give_up, answer.text
        await asyncio.sleep(0.1)
    return answer.json()


async def test_a_search_is_explained_by_the_id_that_every_answer_carries(http):
    documents = [{"id": "1", "content": "late invoice"}]
    body = {"action": "index", "node": "shop"}
    body["params"] = {"collection": "items", "documents": documents}
    assert (await http.post("/actions", json=body)).status_code == 200
    found = await http.post("/search", json={"query": "late", "options": {"timeout_ms": 5000}})
    assert found.status_code == 200
    assert found.json()["id"] == found.headers["x-request-id"]

    told = await until(http, f"/explain/{found.json()['id']}", lambda told: told["calls"])
    assert {call["caller"] for call in told["calls"]} == {"gateway"}
    assert told["calls"][0]["steps"][-1]["what"] == "answered"
    assert (await http.get("/explain/nobody-asked")).status_code == 404

    listed = await until(http, "/breakers?node=shop", lambda listed: listed["breakers"])
    assert {"search", "act.index"} <= {seen["verb"] for seen in listed["breakers"]}
    stats = (await http.get("/nodes/stats")).json()
    assert stats["verbs"]["search"]["calls"] >= 1
    # The node tells of its own times with its next heartbeat.
    own = await until(
        http,
        "/status?node=shop",
        lambda own: own["load"]["verbs"].get("search", {}).get("p95_ms", 0) > 0,
    )
    assert own["circuit_breaker"]["state"] == "closed"


async def test_breakers_are_reset_and_what_is_none_is_refused(http):
    assert (await http.post("/breakers/reset", json={"node": "shop"})).status_code == 200
    unknown = await http.post("/breakers/reset", json={"node": "shop", "verb": "act.nope"})
    assert (unknown.status_code, list(unknown.json()["errors"])) == (422, ["verb"])
    assert (await http.post("/breakers/reset", json={"node": "nope"})).status_code == 404


async def test_a_node_is_drained_and_taken_back(http):
    drained = await http.post("/nodes/shop/drain")
    assert (drained.status_code, drained.json()["health"]) == (200, "draining")
    ping = {"action": "index", "node": "shop"}
    ping["params"] = {"collection": "items", "documents": [{"id": "2", "content": "x"}]}
    refused = await http.post("/actions", json=ping)
    assert refused.status_code == 503, refused.text
    assert refused.json()["retry_after_s"] == int(refused.headers["retry-after"]) >= 1

    back = await http.post("/nodes/shop/undrain")
    assert (back.status_code, back.json()["health"]) == (200, "healthy")
    await until(http, "/status?node=shop", lambda own: own["health"] == "healthy")
    assert (await http.post("/actions", json=ping)).status_code == 200
    assert (await http.post("/nodes/nope/drain")).status_code == 404
