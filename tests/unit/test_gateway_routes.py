"""What each route asks of the mesh, and how its answers and errors look."""

from __future__ import annotations

import re

import pytest
from gateway_fakes import RESULT, Client

from agents.gateway import bodies
from mesh import messages
from mesh.config import GatewayConfig, MeshConfig, RateLimitConfig, SearchConfig
from mesh.core.route_table import RouteTable
from mesh.errors import (
    ActionFailedError,
    BadRequestError,
    CircuitOpenError,
    ConflictError,
    DeadlineExceededError,
    DisconnectedError,
    InternalError,
    MeshError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
    UnreadableReplyError,
)
from mesh.types import ActionState, BreakerState


@pytest.fixture
def client():
    return Client()


async def test_health_needs_no_login_and_tells_what_nodes_that_can_be_asked_offer(client):
    answer = await client.ask("GET", "/health", bearer=None)
    assert answer.status == 200
    assert answer.json()["status"] == "healthy"
    assert answer.json()["capabilities"] == ["rag", "search"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT.*\+00:00", answer.json()["timestamp"])


@pytest.mark.parametrize("missing", ["broker", "master"])
async def test_health_is_degraded_and_readyz_503_without(client, missing):
    if missing == "broker":
        client.mesh.connected = False
    else:
        client.gatekeeper.ready = False
    assert (await client.ask("GET", "/health")).json()["status"] == "degraded"
    ready = await client.ask("GET", "/readyz", prefix="")
    assert ready.status == 503
    assert missing in ready.json()["reason"]
    assert int(ready.headers["retry-after"]) >= 1
    assert (await client.ask("GET", "/livez", prefix="")).status == 200


async def test_a_stopping_gateway_is_not_ready_and_closes_connections(client):
    client.edge.draining = True
    ready = await client.ask("GET", "/readyz", prefix="")
    assert ready.status == 503
    found = await client.ask("POST", "/search", {"query": "x"})
    assert found.status == 200
    assert ready.headers["connection"] == found.headers["connection"] == "close"


# -- search ----------------------------------------------------------------------------------------


async def test_a_search_is_asked_on_behalf_of_its_user_with_the_gateways_defaults():
    settings = SearchConfig(timeout_ms=123, merge_strategy="round_robin", deduplicate=False)
    client = Client(MeshConfig(search=settings))
    answer = await client.ask("POST", "/search", {"query": "late", "options": {"mode": "text"}})
    assert answer.status == 200
    assert answer.json()["count"] == RESULT.count
    ((_, request, on_behalf),) = client.mesh.calls
    assert on_behalf == "ann"
    assert (request.query, request.limit, request.options.mode) == ("late", 10, "text")
    options = request.options
    assert (options.timeout_ms, options.strategy, options.deduplicate) == (
        123,
        "round_robin",
        False,
    )


async def test_options_given_go_before_the_gateways_defaults(client):
    options = {
        "timeout_ms": 5,
        "strategy": "round_robin",
        "deduplicate": False,
        "collections": ["a.B"],
        "filters": {"year": {"gte": 2020}},
    }
    await client.ask("POST", "/search", {"query": "q", "limit": 3, "options": options})
    ((_, request, _),) = client.mesh.calls
    assert request.options == messages.SearchOptions(
        timeout_ms=5,
        strategy="round_robin",
        deduplicate=False,
        collections=["a.B"],
        filters={"year": messages.Range(gte=2020)},
    )


async def test_every_field_that_is_wrong_is_named(client):
    body = {
        "query": "",
        "limit": 101,
        "options": {"mode": "magic", "timeout_ms": 0, "nodes": ["a b"], "extra": 1},
        "surprise": 1,
    }
    answer = await client.ask("POST", "/search", body)
    assert answer.status == 422
    assert answer.json()["error"] == "Validation failed"
    assert set(answer.json()["errors"]) == {
        "query",
        "limit",
        "options.mode",
        "options.timeout_ms",
        "options.nodes[0]",
        "options.extra",
        "surprise",
    }
    assert client.mesh.calls == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"nul",
        b'{"query": "x"} x',
        b"[" * 100_000,
        b'{"query":"\xed\xa0\x80"}',
    ],
    ids=["empty", "cut", "no-utf8", "no-word", "more", "deep", "surrogate"],
)
async def test_what_is_not_json_is_a_400(client, body):
    answer = await client.ask("POST", "/search", body)
    assert answer.status == 400
    assert answer.json()["kind"] == "bad_request"


@pytest.mark.parametrize("body", [b"[]", b"7", b"null", b'"x"'])
async def test_json_that_is_no_object_is_a_422(client, body):
    answer = await client.ask("POST", "/search", body)
    assert answer.status == 422
    assert list(answer.json()["errors"]) == ["body"]


async def test_json_is_taken_whatever_it_is_called_unless_it_is_clearly_something_else(client):
    for kind in ("application/json; charset=utf-8", "text/plain", "application/octet-stream"):
        headers = {"Content-Type": kind}
        assert (await client.ask("POST", "/search", {"query": "x"}, headers=headers)).status == 200
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert (await client.ask("POST", "/search", b"--x", headers=headers)).status == 415


async def test_a_whole_number_may_be_written_with_a_point(client):
    answer = await client.ask("POST", "/search", b'{"query":"x","limit":3.0}')
    assert answer.status == 200
    assert client.mesh.calls[0][1].limit == 3
    assert (await client.ask("POST", "/search", b'{"query":"x","limit":3.5}')).status == 422


def test_search_options_are_those_of_the_mesh():
    """What the mesh learns, its clients over HTTP can ask for."""
    assert bodies.SearchOptions.__struct_fields__ == messages.SearchOptions.__struct_fields__


# -- actions ---------------------------------------------------------------------------------------


async def test_an_action_on_one_node(client):
    body = {"action": "refund", "params": {"cents": 5}, "node": "crm", "idempotency_key": "k/1"}
    assert (await client.ask("POST", "/actions", body)).status == 422  # no slash: it is in a path
    body["idempotency_key"] = "k-1"
    body["timeout_s"] = 2.5
    answer = await client.ask("POST", "/actions", body)
    assert answer.status == 200
    assert answer.json() == {
        "success": True,
        "id": "k-1",
        "node": "crm",
        "action": "refund",
        "state": "succeeded",
        "result": 7,
        "duration_ms": 0.0,
    }
    assert client.mesh.calls == [("run_action", "refund", {"cents": 5}, "crm", "k-1", 2.5, "ann")]


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        ({"nodes": ["crm"]}, (["crm"], False, None)),
        ({"all": True}, (None, True, None)),
        ({"collection": "a.B"}, (None, False, "a.B")),
    ],
    ids=["nodes", "all", "collection"],
)
async def test_an_action_on_several_nodes(client, target, asked):
    answer = await client.ask("POST", "/actions", {"action": "delete", **target})
    assert answer.status == 200
    got = answer.json()
    assert (got["success"], got["success_count"], got["failure_count"]) == (True, 1, 0)
    assert got["results"]["crm"]["result"] == 7
    ((name, action, *whom, options),) = client.mesh.calls
    assert (name, action, tuple(whom)) == ("fan_out", "delete", asked)
    assert options == {
        "id": None,
        "timeout_s": None,
        "parallel": 10,
        "sequential": False,
        "on_failure": "continue",
        "mode": "sync",
        "expires_s": None,
        "on_behalf": "ann",
    }


async def test_two_targets_are_refused_by_name(client):
    answer = await client.ask("POST", "/actions", {"action": "x", "node": "a", "all": True})
    assert answer.status == 422
    assert answer.json()["success"] is False
    assert set(answer.json()["errors"]) == {"node", "all"}


@pytest.mark.parametrize(
    ("bearer", "action", "status"),
    [
        ("refund", "refund", 200),
        ("refund", "index", 403),
        ("search", "refund", 403),
        ("crm", "index", 200),
    ],
    ids=["own", "other", "none", "all"],
)
async def test_scopes_of_actions(client, bearer, action, status):
    answer = await client.ask("POST", "/actions", {"action": action}, bearer=bearer)
    assert answer.status == status
    if status == 403:
        assert answer.json()["success"] is False
        assert client.mesh.calls == []


async def test_a_page_of_the_history(client):
    path = "/actions?node=crm&state=failed&since=5&until=9&limit=7&offset=2&caller=ann&action=x"
    answer = await client.ask("GET", path)
    assert answer.json() == {"actions": [], "total": 0, "limit": 7, "offset": 2}
    ((_, query),) = client.mesh.calls
    assert query == {
        "node": "crm",
        "action": "x",
        "caller": "ann",
        "state": ActionState.FAILED,
        "since": 5,
        "until": 9,
        "limit": 7,
        "offset": 2,
    }


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "offset=-1", "state=gone", "state=null"]
)
async def test_a_filter_that_cannot_be_is_named(client, query):
    answer = await client.ask("GET", f"/actions?{query}")
    assert answer.status == 422
    ((name, [message]),) = answer.json()["errors"].items()
    assert name == query.partition("=")[0]
    assert re.match(r"must be|expected int, got str|cannot be", message)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_metadata_is_limited(client, method):
    path = "/nodes" if method == "POST" else "/nodes/crm"
    body = {"name": "x", "metadata": {"a": "x" * 16_384}}
    answer = await client.ask(method, path, body)
    assert (answer.status, list(answer.json()["errors"])) == (422, ["metadata"])
    body["metadata"]["a"] = "x" * 16_000
    assert (await client.ask(method, path, body)).status < 300


async def test_two_authorization_headers_are_a_400(client):
    body = {"query": "x"}
    both = {"Authorization": "Bearer search"}
    assert (await client.ask("POST", "/search", body, headers=both)).status == 400
    assert (await client.ask("POST", "/search", body, headers=both, bearer=None)).status == 200


async def test_a_number_that_is_none_is_named_where_it_stands(client):
    body = b'{"query": "x", "options": {"filters": {"a": [1, 1e999]}}}'
    answer = await client.ask("POST", "/search", body)
    assert answer.status == 422
    assert list(answer.json()["errors"]) == ["options.filters.a[1]"]


async def test_not_every_unknown_field_is_listed(client):
    body = {"query": "x"} | {f"f{number}": 1 for number in range(500)}
    answer = await client.ask("POST", "/search", body)
    assert (answer.status, len(answer.json()["errors"])) == (422, 100)


# -- joining, tokens, own state --------------------------------------------------------------------


async def test_register_takes_a_join_token(client):
    body = {"name": "CRM", "version": "1.2", "metadata": {"a": 1}}
    answer = await client.ask("POST", "/register", body, bearer="join-me")
    assert answer.status == 201
    got = answer.json()
    assert got["node"] == {"id": "0199", "slug": "crm", "name": "CRM"}
    assert got["api_key"] == "nmk_x"
    assert got["auth"] == {
        "access_token": "a.b.c",
        "refresh_token": "next",
        "token_type": "Bearer",
        "expires_in": 3600,
        "node": "crm",
    }
    assert (await client.ask("POST", "/register", body, bearer="other")).status == 401
    assert (await client.ask("POST", "/register", body, bearer=None)).status == 401


async def test_refresh_takes_only_the_refresh_token(client):
    good = await client.ask("POST", "/refresh-token", {"refresh_token": "fresh"}, bearer=None)
    assert good.status == 200
    assert good.json()["refresh_token"] == "next"
    assert good.json()["refresh_expires_in"] == 7200
    bad = await client.ask("POST", "/refresh-token", {"refresh_token": "used"}, bearer=None)
    assert bad.status == 401
    assert bad.json()["error"] == "Invalid refresh token"


async def test_a_node_sees_its_own_status_and_an_administrator_any(client):
    own = await client.ask("GET", "/status", bearer="crm")
    assert own.status == 200
    assert own.json()["circuit_breaker"] == {
        "state": "closed",
        "failure_count": 2,
        "reason": "",
        "verbs": {},
    }
    assert (await client.ask("GET", "/status?node=crm", bearer="all")).status == 200
    assert (await client.ask("GET", "/status?node=none", bearer="all")).status == 404
    assert (await client.ask("GET", "/status?node=wiki", bearer="crm")).status == 403
    assert (await client.ask("GET", "/status", bearer="search")).status == 403


@pytest.mark.parametrize(
    ("verbs", "state", "reason"),
    [
        ({"search": "closed", "ping": "closed"}, "closed", ""),
        ({"search": "closed", "fetch": "half_open"}, "half_open", "why fetch"),
        ({"act.refund": "open", "search": "half_open", "zzz": "closed"}, "open", "why act.refund"),
    ],
    ids=["closed", "half-open", "open"],
)
async def test_a_node_is_told_of_the_verb_that_fares_worst(client, verbs, state, reason):
    words = {
        verb: messages.BreakerWord(
            state=BreakerState(state), turn=1, until=77, reason=f"why {verb}"
        )
        for verb, state in verbs.items()
    }
    node = messages.RouteNode(slug="crm", breakers=words)
    client.mesh.routes = RouteTable(epoch=1, version=2, nodes=[node])

    told = (await client.ask("GET", "/status", bearer="crm")).json()["circuit_breaker"]
    assert (told["state"], told["reason"]) == (state, reason)
    assert {verb: word["state"] for verb, word in told["verbs"].items()} == verbs
    assert {word["until"] for word in told["verbs"].values()} == {77}


async def test_a_node_that_is_not_in_the_table_yet_has_a_status(client):
    client.mesh.routes = RouteTable()
    told = (await client.ask("GET", "/status", bearer="crm")).json()
    assert told["circuit_breaker"]["state"] == "closed"


# -- registry --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nodes?status=active&type=child", None, 200),
        ("GET", "/nodes/stats", None, 200),
        ("GET", "/nodes/crm", None, 200),
        ("GET", "/nodes/0199", None, 200),
        ("GET", "/nodes/none", None, 404),
        ("POST", "/nodes", {"name": "New"}, 201),
        ("POST", "/nodes", {"name": "", "weight": 0, "url": "ftp://x"}, 422),
        ("PATCH", "/nodes/crm", {"status": "inactive"}, 200),
        ("PATCH", "/nodes/crm", {"statuss": "inactive"}, 422),
        ("DELETE", "/nodes/crm", None, 200),
        ("POST", "/nodes/crm/rotate-key", None, 200),
        ("POST", "/nodes/crm/drain", None, 200),
        ("POST", "/nodes/none/drain", None, 404),
        ("POST", "/nodes/crm/undrain", None, 200),
        ("POST", "/nodes/none/undrain", None, 404),
        ("GET", "/breakers", None, 200),
        ("GET", "/breakers?node=0199", None, 200),
        ("GET", "/breakers?node=none", None, 404),
        ("POST", "/breakers/reset", {"node": "crm"}, 200),
        ("POST", "/breakers/reset", {"node": "crm", "verb": "act.refund"}, 200),
        ("POST", "/breakers/reset", {"node": "crm", "verb": "export"}, 422),
        ("POST", "/breakers/reset", {}, 422),
        ("POST", "/breakers/reset", {"node": "none"}, 404),
        ("GET", "/explain/r1", None, 200),
        ("GET", "/explain/r2", None, 404),
    ],
    ids=str,
)
async def test_registry(client, method, path, body, status):
    assert (await client.ask(method, path, body)).status == status
    assert (await client.ask(method, path, body, bearer="crm")).status == 403
    assert (await client.ask(method, path, body, bearer=None)).status == 401


async def test_what_an_administrator_does_to_nodes_and_breakers_is_done_in_his_name(client):
    await client.ask("POST", "/nodes/crm/drain")
    await client.ask("POST", "/nodes/crm/undrain")
    await client.ask("POST", "/breakers/reset", {"node": "crm", "verb": "search"})
    assert client.mesh.calls == [
        ("drain", "crm", "ann"),
        ("undrain", "crm", "ann"),
        ("reset", "crm", "search", "ann"),
    ]


# -- errors ----------------------------------------------------------------------------------------


class UnheardOfError(MeshError):
    code = 418
    kind = "teapot"


@pytest.mark.parametrize(
    ("error", "status", "title"),
    [
        (BadRequestError("unknown action"), 400, "Bad request"),
        (ActionFailedError("no money"), 400, "Action failed"),
        (NotFoundError("unknown node"), 404, "Not found"),
        (ConflictError("other parameters"), 409, "Conflict"),
        (UnreadableReplyError("the reply cannot be read"), 502, "Bad gateway"),
        (DisconnectedError("the broker is away"), 503, "Service unavailable"),
        (OverloadedError("busy", retry_after_ms=1001), 503, "Service unavailable"),
        (DeadlineExceededError("too late"), 504, "Gateway timeout"),
        (InternalError("see abc", reference="abc"), 500, "Action failed"),
        (UnheardOfError("hm"), 500, "Action failed"),
        (ZeroDivisionError("secret"), 500, "Action failed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_errors_of_the_mesh_over_http(client, error, status, title):
    client.mesh.error = error
    answer = await client.ask("POST", "/actions", {"action": "x"}, headers={"X-Request-Id": "r-1"})
    assert answer.status == status
    got = answer.json()
    assert (got["success"], got["error"], got["reference"]) == (False, title, "r-1")
    assert answer.headers["x-request-id"] == "r-1"
    assert "secret" not in got["message"]
    if status == 503:
        assert answer.headers["retry-after"] == ("2" if "busy" in got["message"] else "1")


@pytest.mark.parametrize(
    ("retry_after_ms", "seconds"), [(None, 1), (0, 1), (1, 1), (1000, 1), (1001, 2), (29_400, 30)]
)
async def test_an_open_breaker_says_how_long_in_head_and_body(client, retry_after_ms, seconds):
    client.mesh.error = CircuitOpenError("no replica may be asked", retry_after_ms=retry_after_ms)
    answer = await client.ask("POST", "/search", {"query": "x"})
    assert answer.status == 503
    assert answer.json()["kind"] == "circuit_open"
    assert answer.headers["retry-after"] == str(seconds)
    assert answer.json()["retry_after_s"] == seconds


async def test_a_search_without_enough_shards_says_how_each_fared(client):
    silent = messages.ShardReport(
        collection="kb", shard="b", node="b", status="timed_out", reason="no answer in time"
    )
    error = UnavailableError("1 of 2 shards answered, all required")
    error.shards = messages.Shards(
        total=2, ok=1, failed=0, skipped=0, timed_out=1, details=[silent]
    )
    client.mesh.error = error
    answer = await client.ask("POST", "/search", {"query": "x", "options": {"require": "all"}})
    assert answer.status == 503
    assert answer.json()["shards"]["timed_out"] == 1
    assert answer.json()["shards"]["details"][0]["reason"] == "no answer in time"
    client.mesh.error = UnavailableError("away")
    assert "shards" not in (await client.ask("POST", "/search", {"query": "x"})).json()


async def test_an_error_that_says_nothing_of_trying_again_has_no_such_field(client):
    client.mesh.error = NotFoundError("unknown node")
    answer = await client.ask("POST", "/actions", {"action": "x"})
    assert "retry_after_s" not in answer.json()
    assert "retry-after" not in answer.headers


async def test_the_id_of_a_request_made_here_is_the_search_s(client):
    answer = await client.ask("POST", "/search", {"query": "x"})
    ((_, request, _),) = client.mesh.calls
    assert answer.json()["id"] == answer.headers["x-request-id"] == request.id


async def test_the_id_of_a_client_is_none_of_a_search(client):
    """Two that run at once under one id would be cancelled together."""
    sent = {"X-Request-Id": "mine"}
    answer = await client.ask("POST", "/search", {"query": "x"}, headers=sent)
    ((_, request, _),) = client.mesh.calls
    assert (answer.headers["x-request-id"], request.id) == ("mine", "")
    assert answer.json()["id"] == "made-by-the-mesh"


async def test_a_failed_search_says_so(client):
    client.mesh.error = RuntimeError("secret")
    answer = await client.ask("POST", "/search", {"query": "x"})
    assert (answer.status, answer.json()["error"]) == (500, "Search failed")
    assert b"secret" not in answer.content


@pytest.mark.parametrize("sent", ["a" * 65, "a b", "a\tb", "ä", ""], ids=repr)
async def test_a_request_id_that_is_no_token_is_replaced(client, sent):
    answer = await client.ask("GET", "/health", headers={"X-Request-Id": sent})
    assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["x-request-id"])


async def test_unknown_routes_and_methods(client):
    gone = await client.ask("GET", "/none")
    assert (gone.status, gone.json()["kind"]) == (404, "not_found")
    wrong = await client.ask("PUT", "/search", {})
    assert wrong.status == 405
    assert wrong.headers["allow"] == "POST"
    assert (await client.ask("GET", "/schema/openapi.json", prefix="")).status == 404
    assert (await client.ask("GET", "/health/")).status == 200
    assert (await client.ask("HEAD", "/health")).status == 200


# -- login, limits ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic YTpi", "nobody", "Bearer ünknown"], ids=repr
)
async def test_what_is_no_bearer_is_a_401_and_asks_nobody(client, header):
    headers = {"Authorization": header} if header else {}
    answer = await client.ask("POST", "/search", {"query": "x"}, bearer=None, headers=headers)
    assert answer.status == 401
    assert answer.json()["error"] == "Unauthorized"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert client.gatekeeper.asked == 0


async def test_a_bearer_that_is_not_known_is_asked_about(client):
    assert (await client.ask("POST", "/search", {"query": "x"}, bearer="who")).status == 401
    assert client.gatekeeper.asked == 1


async def test_the_61st_request_within_a_second_is_a_429(client):
    for left in range(59, -1, -1):
        answer = await client.ask("POST", "/search", {"query": "x"})
        assert answer.status == 200
        assert answer.headers["x-ratelimit-remaining"] == str(left)
    answer = await client.ask("POST", "/search", {"query": "x"})
    assert answer.status == 429
    assert answer.headers["x-ratelimit-limit"] == "60"
    assert 1 <= int(answer.headers["retry-after"]) <= 2
    assert 58 <= int(answer.headers["x-ratelimit-reset"]) <= 60
    assert len(client.mesh.calls) == 60
    # another route, another identity, and what is exempt
    assert (await client.ask("GET", "/nodes")).status == 200
    assert (await client.ask("POST", "/search", {"query": "x"}, bearer="crm")).status == 200
    for _ in range(70):
        assert (await client.ask("GET", "/health")).status == 200


async def test_failed_logins_are_limited_by_address():
    client = Client(MeshConfig(rate_limit=RateLimitConfig(max_attempts=3)))
    statuses = [
        (await client.ask("POST", "/search", {}, bearer=f"guess-{number}")).status
        for number in range(5)
    ]
    assert statuses == [401, 401, 401, 429, 429]
    assert (await client.ask("POST", "/search", {"query": "x"})).status == 200


async def test_a_route_that_takes_no_body_takes_none(client):
    for sent in ({"overlap_s": 60}, [], b"overlap_s=60"):
        answer = await client.ask("POST", "/nodes/crm/rotate-key", sent)
        assert answer.status == 400
        assert "no body" in answer.json()["message"]
    chunked = {"Transfer-Encoding": "chunked"}
    parts = [b'{"overlap_s"', b": 60}"]
    answer = await client.ask("POST", "/nodes/crm/rotate-key", headers=chunked, chunks=parts)
    assert answer.status == 400
    assert client.mesh.calls == []
    for sent in (None, {}, b" {}\n", b"\n"):
        assert (await client.ask("POST", "/nodes/crm/rotate-key", sent)).status == 200
    assert (await client.ask("GET", "/nodes", {})).status == 200


async def test_no_limit_where_it_is_switched_off():
    client = Client(MeshConfig(rate_limit=RateLimitConfig(enabled=False)))
    for _ in range(70):
        answer = await client.ask("POST", "/search", {"query": "x"})
        assert answer.status == 200
    assert "x-ratelimit-limit" not in answer.headers


async def test_a_body_that_is_too_large_is_a_413_by_its_length_or_as_it_comes():
    client = Client(MeshConfig(gateway=GatewayConfig(max_body_bytes=1024)))
    large = b'{"query":"' + b"x" * 1024 + b'"}'
    assert (await client.ask("POST", "/search", large)).status == 413
    said = {"Content-Length": "2097152"}
    assert (await client.ask("POST", "/search", chunks=[b""], headers=said)).status == 413
    assert (await client.ask("POST", "/search", chunks=[b"x" * 600, b"x" * 600])).status == 413
    assert (await client.ask("POST", "/nodes", chunks=[b"x" * 600, b"x" * 600])).status == 413
    assert (await client.ask("POST", "/search", chunks=[b'{"query":', b'"x"}'])).status == 200


async def test_answers_are_never_cached_or_sniffed(client):
    for answer in (await client.ask("GET", "/health"), await client.ask("GET", "/none")):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_another_prefix_or_none():
    for prefix in ("/search-api/v2", ""):
        client = Client(MeshConfig(gateway=GatewayConfig(prefix=prefix)))
        assert (await client.ask("POST", "/search", {"query": "x"}, prefix=prefix)).status == 200
        assert (await client.ask("GET", "/docs", prefix=prefix)).status == 200
        assert (await client.ask("GET", "/livez", prefix="")).status == 200
