"""A search that goes round Litestar is answered like one that goes through it."""

from __future__ import annotations

import pytest
from gateway_fakes import Client

from mesh.errors import DisconnectedError, InvalidError

GOOD = {"query": "late", "limit": 3, "options": {"mode": "text", "filters": {"a": [1, None]}}}
DEEP = b'{"query":1,"options":[' + b"[" * 900 + b"]" * 900 + b"]}"


@pytest.mark.parametrize(
    ("body", "bearer", "error"),
    [
        (GOOD, "all", None),
        ({"query": ""}, "all", None),
        ({"limit": "x", "more": 1}, "all", None),
        (b"{", "all", None),
        (b"", "all", None),
        (b"[]", "all", None),
        (DEEP, "all", None),
        (b"x" * (1024 * 1024 + 1), "all", None),
        (GOOD, "refund", None),
        (GOOD, "nobody", None),
        (GOOD, None, None),
        (GOOD, "all", InvalidError("unknown node", fields={"options.nodes": ["unknown node"]})),
        (GOOD, "all", DisconnectedError("away", retry_after_ms=2500)),
        (GOOD, "all", ValueError("a bug")),
    ],
    ids=[
        "good",
        "wrong",
        "wrong-twice",
        "cut",
        "empty",
        "list",
        "deep",
        "large",
        "scope",
        "nobody",
        "none",
        "refused",
        "away",
        "bug",
    ],
)
async def test_both_ways_answer_alike(body, bearer, error):
    answers, calls = [], []
    for shortcut in (True, False):
        client = Client(shortcut=shortcut)
        client.mesh.error = error
        headers = {"X-Request-Id": "the-same"}
        answers.append(await client.ask("POST", "/search", body, bearer=bearer, headers=headers))
        calls.append(client.mesh.calls)
    assert answers[0] == answers[1]
    assert calls[0] == calls[1]


@pytest.mark.parametrize("shortcut", [True, False], ids=["shortcut", "litestar"])
async def test_what_is_nested_too_deeply_is_a_400(shortcut):
    answer = await Client(shortcut=shortcut).ask("POST", "/search", DEEP)
    assert answer.status == 400
    assert "nested too deeply" in answer.json()["message"]
