"""Examples of bodies and answers in the OpenAPI document, by operation."""

from __future__ import annotations

from typing import Any

from agents.gateway import action_examples, rag_examples, saga_examples

_NODE = {
    "id": "0199f0d2-7c1e-7a33-9d0c-5f1f2f7a4b10",
    "slug": "crm",
    "name": "CRM",
}
_SEARCH_ID = "0199f0d3-2b4c-7d5e-8f60-718293a4b5c6"

_BREAKER = {
    "node": "crm",
    "verb": "search",
    "state": "open",
    "reason": "5 failures in a row",
    "until": 1795348830000,
    "calls": 512,
    "failures": 5,
    "callers": 4,
    "open_at": 3,
}

REQUESTS: dict[str, dict[str, Any]] = {
    "search": {
        "words": {"query": "late invoice"},
        "options": {
            "query": "late invoice",
            "limit": 5,
            "options": {
                "collections": ["crm.Customer"],
                "filters": {"country": ["DE", "FR"], "since": {"gte": 2020}},
                "mode": "hybrid",
                "require": "quorum",
                "timeout_ms": 500,
            },
        },
    },
    **action_examples.REQUESTS,
    **saga_examples.REQUESTS,
    **rag_examples.REQUESTS,
    "register": {
        "node": {
            "name": "CRM",
            "url": "https://crm.example.com",
            "capabilities": ["search", "actions"],
            "metadata": {"team": "sales"},
            "version": "1.4.0",
        }
    },
    "refresh_token": {"token": {"refresh_token": "the one from /register or the last refresh"}},
    "register_node": {"node": {"name": "CRM", "capabilities": ["search"], "weight": 2}},
    "reset_breakers": {
        "all of a node": {"node": "crm"},
        "one verb": {"node": "crm", "verb": "act.refund"},
    },
    "change_node": {"pause": {"status": "maintenance", "description": "Moves to another host."}},
}

_CACHE: dict[str, Any] = {
    "gateway": "web-1:4711",
    "stats": {
        "entries": 412,
        "bytes": 3_145_728,
        "max_bytes": 67_108_864,
        "hits": 9000,
        "misses": 1000,
        "evictions": 0,
        "shared": 77,
        "hit_rate": 0.9,
    },
    "cleared": None,
}

ANSWERS: dict[str, Any] = {
    "search": {
        "results": [
            {
                "id": "7",
                "content": "Ada Lovelace, Ockham",
                "score": 0.92,
                "model_class": "crm.Customer",
                "model_type": "Customer",
                "metadata": {"country": "UK"},
                "node": "crm",
                "collection": "crm.Customer",
                "shard": "crm",
                "explain": None,
            }
        ],
        "count": 1,
        "total_results": 1,
        "duration_ms": 4.2,
        "nodes_searched": 1,
        "node_breakdown": {"crm": 1},
        "type_breakdown": {"Customer": 1},
        "merge_strategy": "score",
        "avg_score": 0.92,
        "partial": False,
        "shards": {
            "total": 1,
            "ok": 1,
            "failed": 0,
            "skipped": 0,
            "timed_out": 0,
            "details": [
                {
                    "collection": "crm.Customer",
                    "shard": "crm",
                    "node": "crm",
                    "status": "ok",
                    "took_ms": 3.1,
                }
            ],
        },
        "id": _SEARCH_ID,
        "cached": False,
    },
    **action_examples.ANSWERS,
    **saga_examples.ANSWERS,
    **rag_examples.ANSWERS,
    "health": {
        "status": "healthy",
        "version": "0.1.0",
        "capabilities": ["actions", "search"],
        "timestamp": "2026-11-22T12:00:00.000+00:00",
    },
    "register": {
        "success": True,
        "node": _NODE,
        "auth": {
            "access_token": "eyJhbGciOiJFZERTQSIs…",
            "refresh_token": "shown this once",
            "token_type": "Bearer",
            "expires_in": 3600,
            "node": "crm",
        },
        "api_key": "shown this once",
    },
    "refresh_token": {
        "access_token": "eyJhbGciOiJFZERTQSIs…",
        "refresh_token": "the next one",
        "token_type": "Bearer",
        "expires_in": 3600,
        "refresh_expires_in": 2592000,
    },
    "status": {
        "node": _NODE,
        "status": "active",
        "health": "healthy",
        "circuit_breaker": {
            "state": "open",
            "failure_count": 0,
            "reason": "5 failures in a row",
            "verbs": {
                "search": {
                    "state": "open",
                    "until": 1795348830000,
                    "reason": "5 failures in a row",
                },
            },
        },
        "load": {
            "in_flight": 1,
            "queued": 0,
            "lag_ms": 0.4,
            "weight": 1.0,
            "verbs": {
                "search": {
                    "count": 512,
                    "errors": 5,
                    "ewma_ms": 4.1,
                    "p50_ms": 3.6,
                    "p95_ms": 9.9,
                    "p99_ms": 14.2,
                }
            },
        },
        "response_time_ms": 0.8,
        "last_ping_at": 1795348800000,
    },
    "node_stats": {
        "total": 3,
        "active": 3,
        "inactive": 0,
        "error": 0,
        "healthy": 2,
        "avg_response_time_ms": 0.9,
        "by_type": {"child": 3},
        "by_health": {"healthy": 2, "draining": 1},
        "collections": 2,
        "documents": 7600,
        "blind": False,
        "verbs": {
            "search": {
                "calls": 3000,
                "failures": 5,
                "per_s": 50.0,
                "p50_ms": 4.4,
                "p95_ms": 11.0,
                "p99_ms": 19.5,
                "retried": 5,
                "hedged": 61,
            }
        },
        "breakers": {"open": 1, "half_open": 0},
        "callers": 4,
    },
    "list_breakers": {"breakers": [_BREAKER]},
    "reset_breakers": {
        "breakers": [
            _BREAKER
            | {"state": "closed", "reason": "", "until": 0, "calls": 0, "failures": 0, "open_at": 0}
        ]
    },
    "cache_stats": {"gateways": [_CACHE]},
    "clear_cache": {
        "gateways": [
            {**_CACHE, "stats": {**_CACHE["stats"], "entries": 0, "bytes": 0}, "cleared": 412}
        ]
    },
    "explain": {
        "request": _SEARCH_ID,
        "calls": [
            {
                "id": _SEARCH_ID,
                "caller": "gateway",
                "verb": "search",
                "at": 1795348800000,
                "took_ms": 9.3,
                "outcome": "ok",
                "steps": [
                    {"at_ms": 0.1, "node": "crm-2", "what": "skipped", "why": "draining"},
                    {"at_ms": 0.1, "node": "crm", "what": "chosen", "why": "p2c"},
                    {"at_ms": 9.3, "node": "crm", "what": "answered"},
                ],
            }
        ],
    },
}
