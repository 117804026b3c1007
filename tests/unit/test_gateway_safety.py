"""Headers for browsers, pages of other origins, what may be searched, and bounds of bodies."""

from __future__ import annotations

import pytest
from fakes import MemoryBroker
from gateway_fakes import PREFIX, Client

from agents.gateway.app import create_app
from mesh import bootstrap, messages
from mesh.adapters.clock import SystemClock
from mesh.adapters.jwt import token_verifier
from mesh.config import GatewayConfig, MeshConfig
from mesh.errors import ConfigError, InvalidError
from mesh.runtime.gatekeeper import Gatekeeper

STRICT = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}
CLOSED = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
APP = "https://app.example.com"


def of(**settings) -> Client:
    return Client(MeshConfig(gateway=GatewayConfig(**settings)))


# -- headers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "bearer"),
    [
        ("POST", "/search", {"query": "x"}, "all"),
        ("POST", "/search", b"{", "all"),
        ("POST", "/search", {"query": "x"}, None),
        ("GET", "/nodes", None, "all"),
        ("GET", "/nodes", None, "search"),
        ("GET", "/health", None, None),
        ("POST", "/refresh-token", {"refresh_token": "fresh"}, None),
        ("POST", "/register", {"name": "x"}, "join-me"),
        ("GET", "/none", None, None),
        ("PUT", "/search", None, None),
        ("GET", "/docs/none", None, None),
    ],
    ids=str,
)
async def test_every_answer_is_strict_and_kept_by_nobody(method, path, body, bearer):
    answer = await Client().ask(method, path, body, bearer=bearer)
    assert (STRICT | CLOSED).items() <= answer.headers.items()
    assert "strict-transport-security" not in answer.headers
    assert not any(name.startswith("access-control") for name in answer.headers)


async def test_the_docs_say_what_they_need():
    client = Client()
    page = await client.ask("GET", "/docs", bearer=None)
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    script = await client.ask("GET", "/docs/page.js", bearer=None)
    assert script.headers["cache-control"] == "max-age=3600"
    for answer in (page, script, await client.ask("GET", "/openapi.json", bearer=None)):
        assert answer.headers.items() >= STRICT.items()


async def test_https_is_to_stay():
    client = of(tls_cert="c.pem", tls_key="k.pem")
    for path, bearer in (("/nodes", "all"), ("/nodes", None), ("/docs", None)):
        answer = await client.ask("GET", path, bearer=bearer)
        assert answer.headers["strict-transport-security"] == "max-age=31536000"


# -- pages of other origins ------------------------------------------------------------------------


def preflight(origin: str) -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }


async def test_no_page_may_ask_by_default():
    client = Client()
    asked = await client.ask("OPTIONS", "/search", headers=preflight(APP), bearer=None)
    assert asked.status == 405
    answer = await client.ask("POST", "/search", {"query": "x"}, headers={"Origin": APP})
    assert answer.status == 200
    for one in (asked, answer):
        assert not any(name.startswith("access-control") for name in one.headers)
        assert "vary" not in one.headers


async def test_pages_of_exactly_the_configured_origins_may():
    client = of(cors_origins=[APP, "http://localhost:3000"])
    asked = await client.ask("OPTIONS", "/search", headers=preflight(APP), bearer=None)
    assert (asked.status, asked.content) == (204, b"")
    assert asked.headers["access-control-allow-origin"] == APP
    assert asked.headers["access-control-allow-methods"] == "POST"
    assert "authorization" in asked.headers["access-control-allow-headers"]
    assert asked.headers["vary"] == "origin"
    for bearer, status in (("all", 200), (None, 401)):
        sent = {"Origin": "http://localhost:3000"}
        answer = await client.ask("POST", "/search", {"query": "x"}, headers=sent, bearer=bearer)
        assert answer.status == status
        assert answer.headers["access-control-allow-origin"] == sent["Origin"]
        assert "x-ratelimit-remaining" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers
    through = await client.ask("GET", "/nodes", headers={"Origin": APP})
    assert through.headers["access-control-allow-origin"] == APP


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com.evil.example",
        "https://evil.example",
        "http://app.example.com",
        "https://app.example.com:8443",
        "https://APP.example.com",
        "null",
        "*",
        "",
    ],
)
async def test_pages_of_no_other_origin_may(origin):
    client = of(cors_origins=[APP])
    asked = await client.ask("OPTIONS", "/search", headers=preflight(origin), bearer=None)
    assert asked.status == 405
    answer = await client.ask("POST", "/search", {"query": "x"}, headers={"Origin": origin})
    for one in (asked, answer, await client.ask("GET", "/nodes")):
        assert not any(name.startswith("access-control") for name in one.headers)
        assert one.headers["vary"] == "origin"


async def test_a_preflight_of_no_route_is_a_404():
    answer = await of(cors_origins=[APP]).ask("OPTIONS", "/none", headers=preflight(APP))
    assert answer.status == 404


@pytest.mark.parametrize("origin", ["*", "null", "app.example.com", f"{APP}/", "https://*.x", ""])
def test_what_is_no_origin_is_refused_at_the_start(origin):
    with pytest.raises(ConfigError, match="cors_origins"):
        of(cors_origins=[origin])


# -- scopes of single collections ------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["shortcut", "litestar"])
def client(request):
    return Client(shortcut=request.param)


async def searched(client: Client, bearer: str, **options):
    body = {"query": "x", "options": options}
    answer = await client.ask("POST", "/search", body, bearer=bearer)
    asked = [call[1].options.collections for call in client.mesh.calls]
    return answer, asked[0] if asked else None


async def test_who_may_search_one_collection_searches_that(client):
    answer, asked = await searched(client, "notes")
    assert (answer.status, asked) == (200, ["notes"])


async def test_naming_it_makes_no_difference(client):
    answer, asked = await searched(client, "notes", collections=["notes"])
    assert (answer.status, asked) == (200, ["notes"])


@pytest.mark.parametrize("named", [["secrets"], ["notes", "secrets"], ["none"]], ids=str)
async def test_naming_another_is_a_403(client, named):
    answer, asked = await searched(client, "notes", collections=named)
    assert (answer.status, asked) == (403, None)
    assert "search:" in answer.json()["message"]


async def test_who_may_search_all_is_not_limited(client):
    assert (await searched(client, "search"))[1] is None
    client.mesh.calls.clear()
    assert (await searched(client, "search", collections=["secrets"]))[1] == ["secrets"]


async def test_a_collection_that_is_not_there_does_not_tell_what_else_is(client):
    words = "unknown collection 'gone'; there are: notes, secrets"
    client.mesh.error = InvalidError(words, fields={"options.collections": [words]})
    answer, asked = await searched(client, "gone")
    assert (answer.status, asked) == (422, ["gone"])
    assert "secrets" not in answer.content.decode()
    client.mesh.calls.clear()
    answer, _ = await searched(client, "search", collections=["gone"])
    assert "secrets" in answer.content.decode()


async def test_without_a_scope_to_search_it_is_a_403(client):
    assert (await searched(client, "refund"))[0].status == 403


async def test_a_scope_to_search_opens_nothing_else(client):
    assert (await client.ask("GET", "/nodes", bearer="notes")).status == 403
    assert (await client.ask("GET", "/actions", bearer="notes")).status == 403


# -- where it came from ----------------------------------------------------------------------------


async def test_what_goes_to_the_masters_says_where_it_came_from(client):
    sent = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9"}
    await client.ask("GET", "/nodes", headers=sent)
    assert client.mesh.origins == ["192.0.2.7"]


async def test_the_question_about_a_key_says_where_the_key_came_from():
    """It is asked by a task of its own, of which others who show the key may wait as well."""
    origins = []

    class Masters:
        async def trust(self):
            return messages.Trust(keys=[], revoked=[])

        async def authenticate(self, _key):
            origins.append(bootstrap.request_origin.get())
            return messages.Identity(subject="ann", scopes=["search"])

    verifier = token_verifier(secret="", issuer="i", audience="a", leeway_s=0)
    gatekeeper = Gatekeeper(MemoryBroker().bus("gateway"), Masters(), verifier, SystemClock())
    client = Client()
    client.edge = create_app(client.mesh, gatekeeper, MeshConfig())
    assert (await client.ask("GET", "/status", bearer=f"nmk_{'k' * 43}")).status == 403
    await gatekeeper.stop()
    assert origins == ["192.0.2.7"]


# -- bounds ----------------------------------------------------------------------------------------


def nested(depth: int):
    value = 1
    for _ in range(depth):
        value = {"a": [value]}
    return value


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/actions", {"action": "x", "params": nested(20)}, "params"),
        ("/nodes", {"name": "x", "metadata": nested(20)}, "metadata"),
        ("/register", {"name": "x", "metadata": nested(20)}, "metadata"),
        ("/search", {"query": "x", "options": {"filters": {"a": ["x"] * 1001}}}, "filters"),
        ("/search", {"query": "x", "options": {"filters": {"a": "x" * 4097}}}, "filters"),
        ("/search", {"query": "x", "options": {"filters": {"a": {"lt": "x" * 4097}}}}, "filters"),
        ("/search", {"query": "x", "options": {"filters": {"x" * 257: 1}}}, "filters"),
        ("/search", {"query": "x", "options": {"filters": dict.fromkeys(map(str, range(33)))}},
         "filters"),
        ("/search", {"query": "x", "options": {"collections": ["c"] * 257}}, "collections"),
        ("/search", {"query": "x", "options": {"nodes": ["n"] * 1025}}, "nodes"),
        ("/actions", {"action": "x", "nodes": ["n"] * 1025}, "nodes"),
        ("/nodes", {"name": "x", "capabilities": ["n"] * 33}, "capabilities"),
        ("/nodes", {"name": "x", "domains": ["n"] * 65}, "domains"),
        ("/nodes", {"name": "x", "keywords": ["n" * 201]}, "keywords"),
        ("/nodes", {"name": "x", "description": "n" * 2001}, "description"),
        ("/refresh-token", {"refresh_token": "n" * 1025}, "refresh_token"),
    ],
    ids=range(16),
)  # fmt: skip
async def test_what_is_beyond_its_bounds_is_a_422(path, body, field):
    client = Client()
    answer = await client.ask(
        "POST", path, body, bearer="join-me" if path == "/register" else "all"
    )
    assert answer.status == 422, answer.content
    assert any(field in name for name in answer.json()["errors"])
    assert client.mesh.calls == []


@pytest.mark.parametrize("depth", [900, 100_000])
@pytest.mark.parametrize("path", ["/search", "/actions", "/nodes", "/refresh-token"])
async def test_a_depth_bomb_is_refused(path, depth):
    start = b'{"action":"x","params":' if path == "/actions" else b'{"query":'
    body = start + b'[{"a":' * depth + b"1" + b"}]" * depth + b"}"
    answer = await Client().ask("POST", path, body)
    assert answer.status in {400, 422}


async def test_rotating_a_key_takes_an_overlap():
    client = Client()
    path = "/nodes/crm/rotate-key"
    assert (await client.ask("POST", path)).status == 200
    assert (await client.ask("POST", f"{path}?overlap_s=3600")).status == 200
    assert [call[2] for call in client.mesh.calls] == [0, 3600]
    for bad in ("-1", "x", str(10**9)):
        answer = await client.ask("POST", f"{path}?overlap_s={bad}")
        assert answer.status == 422
        assert "overlap_s" in answer.json()["errors"]


def test_the_prefix_of_the_tests_is_the_default():
    assert GatewayConfig().prefix == PREFIX
