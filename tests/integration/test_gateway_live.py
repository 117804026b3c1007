"""Outside clients in front of a real mesh: broker, master, gateway and two nodes."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import httpx
import pytest
from live_mesh import LiveMesh, health_of, until_reborn

from mesh.errors import InvalidError

COLLECTION = "shop.Item"


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    mesh = LiveMesh(tmp_path_factory.mktemp("gateway"))
    try:
        mesh.start()
        mesh.add("shop")
        mesh.add("wiki")
        yield mesh
    finally:
        mesh.stop()


@pytest.fixture(scope="module")
def base(live):
    return live.file()["http_url"] + "/api/ai-engine"


@pytest.fixture
async def mesh(live):
    async with live.connect() as client:
        until = time.monotonic() + 60
        for slug in live.nodes:
            while await health_of(client, slug) != "healthy":
                assert time.monotonic() < until, live.nodes[slug].log.read_text()
        yield client


@pytest.fixture
async def http(base, mesh):
    """With every scope, and a name of its own for each test: limits are by identity."""
    serial = time.monotonic_ns()
    grant = await mesh.access.issue(f"user-{serial}", ["search", "actions", "admin"])
    headers = {"Authorization": f"Bearer {grant.access_token}"}
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=20) as client:
        client.subject = f"user-{serial}"
        yield client


async def index(http, *documents, node="shop"):
    body = {
        "action": "index",
        "node": node,
        "params": {"collection": COLLECTION, "documents": list(documents)},
    }
    answer = await http.post("/actions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def found(http, query, **options):
    answer = await http.post("/search", json={"query": query, "options": options})
    assert answer.status_code == 200, answer.text
    return [hit["id"] for hit in answer.json()["results"]]


async def until_found(http, query, ids):
    until = time.monotonic() + 10
    while (got := await found(http, query)) != ids:
        assert time.monotonic() < until, got


async def test_index_find_update_delete_and_read_who_did_it(http):
    done = await index(http, {"id": "a", "content": "a purple umbrella"})
    assert (done["node"], done["state"], done["result"]["indexed"]) == ("shop", "succeeded", 1)
    await until_found(http, "umbrella", ["a"])
    update = {"collection": COLLECTION, "id": "a", "fields": {"content": "a green hat"}}
    assert (await http.post("/actions", json={"action": "update", "params": update})).is_success
    await until_found(http, "green hat", ["a"])
    delete = {"collection": COLLECTION, "ids": ["a"]}
    body = {"action": "delete", "params": delete, "collection": COLLECTION}
    many = (await http.post("/actions", json=body)).json()
    assert (many["success"], many["success_count"]) == (True, 1)
    assert many["results"]["shop"]["success"]
    await until_found(http, "green hat", [])
    until = time.monotonic() + 10
    while True:
        page = (await http.get("/actions", params={"caller": http.subject})).json()
        if {entry["action"] for entry in page["actions"]} == {"index", "update", "delete"}:
            break
        assert time.monotonic() < until, page
    one = (await http.get(f"/actions/{done['id']}")).json()
    assert [entry["caller"] for entry in one["actions"]] == [http.subject]
    several = (await http.get(f"/actions/{many['id']}")).json()
    assert [entry["node"] for entry in several["actions"]] == ["shop"]


async def test_the_same_key_runs_once_and_other_parameters_are_a_409(http):
    params = {"collection": COLLECTION, "documents": [{"id": "k", "content": "kettle"}]}
    body = {"action": "index", "node": "shop", "params": params, "idempotency_key": "once-1"}
    first = (await http.post("/actions", json=body)).json()
    assert (await http.post("/actions", json=body)).json()["result"] == first["result"]
    body["params"] = {"collection": COLLECTION, "documents": []}
    assert (await http.post("/actions", json=body)).status_code == 422  # before any key counts
    body["params"] = {"collection": COLLECTION, "documents": [{"id": "x", "content": "other"}]}
    assert (await http.post("/actions", json=body)).status_code == 409


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "fields"),
    [
        ("POST", "/search", b"{", 400, None),
        ("POST", "/search", {}, 422, ["query"]),
        ("POST", "/search", {"query": "", "limit": 0, "x": 1}, 422, ["query", "limit", "x"]),
        (
            "POST",
            "/search",
            {"query": "x", "options": {"collections": ["no.Such"]}},
            422,
            ["options.collections"],
        ),
        ("POST", "/search", {"query": "x", "options": {"nodes": ["none"]}}, 422, ["options.nodes"]),
        ("POST", "/search", b"x" * (2 * 1024 * 1024), 413, None),
        ("POST", "/actions", {"action": "dance"}, 400, None),
        ("POST", "/actions", {"action": "index"}, 400, None),
        ("POST", "/actions", {"action": "index", "node": "none"}, 404, None),
        ("POST", "/actions", {"action": "index", "node": "shop", "params": {}}, 422, None),
        ("GET", "/actions/none", None, 404, None),
        ("GET", "/nodes/none", None, 404, None),
        ("PATCH", "/nodes/none", {"weight": 2}, 404, None),
        ("DELETE", "/nodes/none", None, 404, None),
        ("POST", "/nodes/none/rotate-key", None, 404, None),
        ("POST", "/nodes", {"name": "shop"}, 409, None),
        ("GET", "/none", None, 404, None),
        ("PUT", "/search", {}, 405, None),
    ],
    ids=str,
)
async def test_bad_input(http, method, path, body, status, fields):  # noqa: PLR0917
    sent = {"content": body} if isinstance(body, bytes) else {"json": body} if body else {}
    if body == {}:
        sent = {"json": {}}
    answer = await http.request(method, path, **sent)
    assert answer.status_code == status, answer.text
    shown = answer.json()
    assert shown["error"]
    assert shown["message"]
    assert shown["reference"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    if fields:
        assert set(shown["errors"]) == set(fields)


async def test_a_batch_of_too_many_documents_is_refused_whole(http, mesh):
    many = [{"id": f"many{n}", "content": "one too many"} for n in range(1001)]
    params = {"collection": COLLECTION, "documents": many}
    answer = await http.post("/actions", json={"action": "index", "node": "shop", "params": params})
    assert answer.status_code == 422, answer.text
    assert list(answer.json()["errors"]) == ["params.documents"]
    with pytest.raises(InvalidError) as refused:
        await mesh.run_action("index", params, node="shop")
    assert list(refused.value.fields) == ["params.documents"]
    assert "1000" in str(refused.value)
    assert "many0" not in await found(http, "one too many")


async def test_tokens_that_are_none_bad_foreign_or_too_narrow(http, mesh, base):
    narrow = await mesh.access.issue("narrow", ["search"])
    brief = await mesh.access.issue("brief", ["search"], ttl_s=1)
    head, payload, signature = narrow.access_token.split(".")
    foreign = f"{head}.{payload}.{signature[::-1]}"
    async with httpx.AsyncClient(base_url=base) as client:

        async def status(token, path="/search", body=None):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            answer = await client.post(path, json=body or {"query": "x"}, headers=headers)
            return answer.status_code

        assert await status(None) == 401
        assert await status("nonsense") == 401
        assert await status(foreign) == 401
        assert await status("nmk_" + "A" * 43) == 401
        assert await status(narrow.access_token) == 200
        assert await status(narrow.access_token, "/actions", {"action": "index"}) == 403
        assert await status(narrow.access_token, "/nodes", {"name": "x"}) == 403
        await mesh.access.revoke(narrow.id)
        until = time.monotonic() + 3
        while await status(narrow.access_token) != 401:
            assert time.monotonic() < until
        until = time.monotonic() + 15  # its second, and the skew that clocks are allowed
        while await status(brief.access_token) != 401:
            assert time.monotonic() < until
            time.sleep(0.5)  # noqa: ASYNC251 (nothing else runs)


async def test_join_use_refresh_and_the_old_refresh_token_is_refused(mesh, base):
    join = await mesh.access.create_join_token(description="test")
    async with httpx.AsyncClient(base_url=base) as client:
        headers = {"Authorization": f"Bearer {join.join_token}"}
        made = await client.post("/register", json={"name": "joiner"}, headers=headers)
        assert made.status_code == 201, made.text
        auth = made.json()["auth"]
        assert auth["node"] == made.json()["node"]["slug"] == "joiner"
        again = await client.post("/register", json={"name": "second"}, headers=headers)
        assert again.status_code == 401

        async def status(bearer):
            got = await client.get("/status", headers={"Authorization": f"Bearer {bearer}"})
            return got.status_code, got.json()

        code, own = await status(auth["access_token"])
        assert (code, own["health"]) == (200, "unreachable")
        assert own["circuit_breaker"]["state"] == "closed", "no call to it has failed"
        assert (await status(made.json()["api_key"]))[0] == 200
        body = {"refresh_token": auth["refresh_token"]}
        fresh = await client.post("/refresh-token", json=body)
        assert fresh.status_code == 200
        assert (await status(fresh.json()["access_token"]))[0] == 200
        old = await client.post("/refresh-token", json=body)
        assert (old.status_code, old.json()["error"]) == (401, "Invalid refresh token")
        assert (
            await client.post(
                "/refresh-token", json={"refresh_token": fresh.json()["refresh_token"]}
            )
        ).status_code == 401
        until = time.monotonic() + 1
        while (await status(fresh.json()["access_token"]))[0] != 401:
            assert time.monotonic() < until, "its family outlived it"
    page = await mesh.access.audit(kind="token-reused", subject="joiner")
    (entry,) = page.entries
    assert entry.actor == "gateway"
    assert entry.origin == "127.0.0.1"
    await mesh.remove_node("joiner")


async def test_the_61st_request_is_a_429(http):
    statuses = [(await http.get("/nodes/stats")).status_code for _ in range(61)]
    assert statuses[:60] == [200] * 60
    answer = await http.get("/nodes/stats")
    assert 429 in {statuses[60], answer.status_code}


async def test_a_node_that_is_killed_during_a_search_is_named(http, live, mesh):
    """It has the request when it dies: stopped before, killed while the search waits for it."""
    await index(http, {"id": "c", "content": "a copper spoon"})
    await index(http, {"id": "d", "content": "an iron fork"}, node="wiki")
    await until_found(http, "copper", ["c"])
    await until_found(http, "iron fork", ["d"])
    (record,) = (await mesh.nodes(node="wiki")).nodes
    wiki = live.nodes["wiki"]
    os.kill(wiki.pid, signal.SIGSTOP)
    body = {"query": "copper", "options": {"timeout_ms": 2500, "cache": False}}
    asking = asyncio.create_task(http.post("/search", json=body))
    await asyncio.sleep(0.5)
    assert not asking.done()
    wiki.end(signal.SIGKILL)
    answer = await asking
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert [hit["id"] for hit in found["results"]] == ["c"]
    assert found["partial"] is True
    (missing,) = [each for each in found["shards"]["details"] if each["status"] != "ok"]
    assert missing["node"] == "wiki"
    assert missing["reason"]
    wiki.start()
    await until_reborn(mesh, "wiki", after=record.incarnation)
    for node, document in (("shop", "c"), ("wiki", "d")):
        delete = {"collection": COLLECTION, "ids": [document]}
        asked = {"action": "delete", "node": node, "params": delete}
        done = await http.post("/actions", json=asked)
        assert done.is_success, done.text


async def test_the_deadline_of_an_action_and_a_node_that_is_away(http, live, mesh):
    """Last in the file: it stops nodes."""
    await index(http, {"id": "s", "content": "a silver spoon"})
    await index(http, {"id": "w", "content": "a wooden spoon"}, node="wiki")
    await until_found(http, "wooden spoon", ["w", "s"])
    body = {
        "action": "index",
        "node": "shop",
        "params": {"collection": COLLECTION, "documents": [{"id": "t", "content": "tea"}]},
        "timeout_s": 0.000001,
    }
    late = await http.post("/actions", json=body)
    assert late.status_code == 504, late.text
    live.nodes["wiki"].end()
    answer = (await http.post("/search", json={"query": "spoon"})).json()
    assert answer["partial"] is True
    assert "wiki" in {detail["node"] for detail in answer["shards"]["details"]}
    gone = await http.post("/actions", json={**body, "node": "wiki", "timeout_s": 5})
    assert gone.status_code == 503, gone.text
    assert int(gone.headers["retry-after"]) >= 1
    live.nodes["shop"].end()
    none = await http.post("/search", json={"query": "spoon"})
    assert none.status_code == 503, none.text
    assert int(none.headers["retry-after"]) >= 1
    assert "shop" in none.json()["message"]
