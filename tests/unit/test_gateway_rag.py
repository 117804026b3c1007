from __future__ import annotations

import asyncio

import pytest
from gateway_fakes import Client

from agents.gateway.rag_bodies import Rag
from mesh import messages
from mesh.config import MeshConfig, SearchConfig
from mesh.errors import InvalidError, UnavailableError


@pytest.fixture
def client():
    return Client()


async def test_rag_is_asked_on_behalf_of_its_user_with_the_gateways_defaults():
    client = Client(MeshConfig(search=SearchConfig(timeout_ms=300, merge_strategy="round_robin")))
    body = {"query": "late", "budget": 400, "passages": 3, "limit": 7, "options": {"mode": "text"}}
    answer = await client.ask("POST", "/rag", body)
    assert answer.status == 200
    assert answer.json()["budget"] == 400
    ((_, request, on_behalf),) = client.mesh.calls
    assert on_behalf == "ann"
    assert (request.query, request.budget, request.passages, request.limit) == ("late", 400, 3, 7)
    assert request.options.mode == "text"
    assert (request.options.timeout_ms, request.options.strategy) == (300, "round_robin")


async def test_its_defaults_are_those_of_the_mesh(client):
    await client.ask("POST", "/rag", {"query": "late"})
    ((_, request, _),) = client.mesh.calls
    known = messages.RagRequest(query="late")
    assert (request.budget, request.passages, request.limit) == (
        known.budget,
        known.passages,
        known.limit,
    )
    assert set(Rag.__struct_fields__) <= set(messages.RagRequest.__struct_fields__)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"query": ""}, "query"),
        ({"query": "x" * 4097}, "query"),
        ({"budget": 99}, "budget"),
        ({"budget": 100_001}, "budget"),
        ({"budget": "many"}, "budget"),
        ({"budget": None}, "budget"),
        ({"passages": 0}, "passages"),
        ({"passages": 101}, "passages"),
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"options": {"threshold": 2}}, "options.threshold"),
        ({"options": {"strategy": "best"}}, "options.strategy"),
        ({"tokens": 5}, "tokens"),
    ],
)
async def test_what_cannot_be_is_refused_by_its_field(client, wrong, field):
    answer = await client.ask("POST", "/rag", {"query": "x"} | wrong)
    assert answer.status == 422
    assert list(answer.json()["errors"]) == [field]
    assert client.mesh.calls == []


async def test_the_bounds_are_those_of_the_mesh(client):
    for budget in (messages.MIN_BUDGET, messages.MAX_BUDGET):
        answer = await client.ask("POST", "/rag", {"query": "x", "budget": budget})
        assert answer.status == 200
    for budget in (messages.MIN_BUDGET - 1, messages.MAX_BUDGET + 1):
        answer = await client.ask("POST", "/rag", {"query": "x", "budget": budget})
        assert answer.status == 422


async def test_it_takes_the_scope_of_a_search(client):
    assert (await client.ask("POST", "/rag", {"query": "x"}, bearer="search")).status == 200
    assert (await client.ask("POST", "/rag", {"query": "x"}, bearer="refund")).status == 403
    assert (await client.ask("POST", "/rag", {"query": "x"}, bearer="who")).status == 401


async def test_who_may_search_some_collections_gets_passages_of_these(client):
    assert (await client.ask("POST", "/rag", {"query": "x"}, bearer="notes")).status == 200
    assert client.mesh.calls[0][1].options.collections == ["notes"]

    body = {"query": "x", "options": {"collections": ["secrets"]}}
    assert (await client.ask("POST", "/rag", body, bearer="notes")).status == 403

    field = "options.collections"
    client.mesh.error = InvalidError("there are: secrets", fields={field: ["there are: secrets"]})
    answer = await client.ask("POST", "/rag", {"query": "x"}, bearer="notes")
    assert answer.status == 422
    assert b"secrets" not in answer.content


async def test_a_failure_is_told_like_a_search_s(client):
    client.mesh.error = UnavailableError("0 of 2 shards answered", retry_after_ms=1000)
    answer = await client.ask("POST", "/rag", {"query": "x"})
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    client.mesh.error = ValueError("a bug")
    answer = await client.ask("POST", "/rag", {"query": "x"})
    assert (answer.status, answer.json()["error"]) == (500, "Search failed")


async def test_a_search_and_rag_do_not_take_each_other_s_way():
    """The edge's short way is for searches alone."""
    for shortcut in (True, False):
        client = Client(shortcut=shortcut)
        await client.ask("POST", "/search", {"query": "x"})
        await client.ask("POST", "/rag", {"query": "x"})
        kinds = [type(request) for _, request, _ in client.mesh.calls]
        assert kinds == [messages.SearchRequest, messages.RagRequest]


async def test_it_is_counted_apart(client):
    answer = await client.ask("POST", "/rag", {"query": "x"})
    assert int(answer.headers["x-ratelimit-remaining"]) == 59
    await asyncio.sleep(0)
    answer = await client.ask("POST", "/search", {"query": "x"})
    assert int(answer.headers["x-ratelimit-remaining"]) == 59
