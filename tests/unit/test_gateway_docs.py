"""The OpenAPI document and the pages made from it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from gateway_fakes import PREFIX, Client

from agents.gateway import action_bodies, bodies, rag_bodies, reports
from agents.gateway.examples import ANSWERS, REQUESTS
from agents.gateway.reference import reference
from mesh import messages

DOCS = Path(__file__).parents[2] / "docs" / "http.md"


def test_the_committed_reference_is_the_running_app():
    assert DOCS.read_text() == reference(), (
        "make it again: python -m agents.gateway.reference > docs/http.md"
    )


def operations(made):
    for path, methods in made["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


async def test_every_operation_says_who_may_what_comes_and_what_goes_wrong():
    made = (await Client().ask("GET", "/openapi.json", bearer=None)).json()
    assert made["openapi"].startswith("3.1")
    found = {(method, path.removeprefix(PREFIX)) for method, path, _ in operations(made)}
    assert found == {
        ("get", "/livez"),
        ("get", "/readyz"),
        ("get", "/.well-known/jwks.json"),
        ("get", "/health"),
        ("post", "/register"),
        ("post", "/search"),
        ("post", "/rag"),
        ("post", "/actions"),
        ("get", "/actions"),
        ("get", "/actions/catalogue"),
        ("get", "/actions/queue"),
        ("get", "/actions/dead-letters"),
        ("get", "/actions/{action_id}"),
        ("post", "/actions/{action_id}/cancel"),
        ("post", "/actions/{action_id}/retry"),
        ("post", "/sagas"),
        ("get", "/sagas"),
        ("get", "/sagas/{saga_id}"),
        ("post", "/sagas/{saga_id}/resume"),
        ("post", "/sagas/{saga_id}/abort"),
        ("get", "/status"),
        ("post", "/refresh-token"),
        ("get", "/nodes"),
        ("post", "/nodes"),
        ("get", "/nodes/stats"),
        ("get", "/nodes/{node}"),
        ("patch", "/nodes/{node}"),
        ("delete", "/nodes/{node}"),
        ("post", "/nodes/{node}/rotate-key"),
        ("post", "/nodes/{node}/drain"),
        ("post", "/nodes/{node}/undrain"),
        ("get", "/breakers"),
        ("post", "/breakers/reset"),
        ("get", "/explain/{request_id}"),
        ("get", "/cache"),
        ("delete", "/cache"),
    }
    for _, path, operation in operations(made):
        assert operation["description"], path
        assert "security" in operation, path
        if body := operation.get("requestBody"):
            assert body["content"]["application/json"]["examples"], path
        for code, response in operation["responses"].items():
            assert response["description"], (path, code)


def test_references_lead_somewhere():
    text = reference()
    anchors = {heading.lower() for heading in re.findall(r"^### (\w+)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(\w+)\)", text)) <= anchors


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("search", bodies.Search),
        ("rag", rag_bodies.Rag),
        ("run_action", action_bodies.Action),
        ("register", bodies.Join),
        ("refresh_token", bodies.Refresh),
        ("register_node", bodies.NewNode),
        ("change_node", bodies.NodeChanges),
        ("reset_breakers", bodies.BreakerReset),
    ],
)
def test_examples_of_bodies_are_good_bodies(operation, kind):
    for value in REQUESTS[operation].values():
        msgspec.convert(value, kind)


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("search", messages.SearchResult),
        ("rag", messages.RagResult),
        ("run_action", action_bodies.ActionDone),
        ("run_action 202", action_bodies.ActionQueued),
        ("list_actions", action_bodies.ActionPage),
        ("show_action", action_bodies.ActionRecords),
        ("cancel_action", action_bodies.ActionStopped),
        ("retry_action", action_bodies.ActionQueued),
        ("list_queue", messages.QueueList),
        ("list_dead_letters", messages.QueueList),
        ("list_offered", messages.OfferedActions),
        ("health", reports.HealthReport),
        ("register", bodies.Joined),
        ("refresh_token", bodies.Refreshed),
        ("status", reports.OwnStatus),
        ("node_stats", messages.NodeStats),
        ("list_breakers", messages.BreakerList),
        ("reset_breakers", messages.BreakerList),
        ("explain", messages.Explanation),
    ],
)
def test_examples_of_answers_are_answers(operation, kind):
    msgspec.convert(ANSWERS[operation], kind)


async def test_the_page_takes_nothing_from_outside():
    client = Client()
    page = await client.ask("GET", "/docs", bearer=None)
    assert page.status == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert b"http:" not in page.content
    assert b"https:" not in page.content
    for path in re.findall(rb'(?:src|href)="([^"]+)"', page.content):
        if path != b"data:,":
            asset = await client.ask("GET", path.decode(), prefix="", bearer=None)
            assert asset.status == 200, path
            assert asset.content
    script = await client.ask("GET", "/docs/page.js")
    assert b"validatorUrl: null" in script.content
    assert (await client.ask("GET", "/docs/..%2Fsecret")).status == 404


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
async def test_the_root_leads_to_the_docs(path):
    answer = await Client().ask("GET", path, prefix="", bearer=None)
    assert (answer.status, answer.headers["location"]) == (307, PREFIX + path)
