"""Examples of the routes of actions, by operation."""

from __future__ import annotations

from typing import Any

_ID = "0199f0d3-1a2b-7c4d-8e5f-60718293a4b5"
_BEGAN, _ENDED = 1795348800000, 1795348800012

_ATTEMPT = {
    "id": _ID,
    "node": "crm",
    "action": "refund",
    "caller": "ann",
    "accepted_at": _BEGAN,
}
_FAILED = _ATTEMPT | {
    "state": "failed",
    "at": _BEGAN + 5,
    "duration_ms": 4.2,
    "error": {"code": 503, "kind": "unavailable", "message": "the bank is away", "retryable": True},
    "final": False,
}
_DONE = _ATTEMPT | {
    "state": "succeeded",
    "at": _ENDED,
    "attempt": 2,
    "duration_ms": 5.1,
    "params": {"order": "A-7", "cents": 500},
    "result": {"order": "A-7", "refunded": 500},
}
_QUEUED = {
    "success": True,
    "id": _ID,
    "node": "crm",
    "action": "refund",
    "state": "queued",
    "expires": 1795953600000,
}
_OF_REFUND = {
    "type": "object",
    "title": "Refund",
    "properties": {
        "order": {"type": "string"},
        "cents": {"type": "integer", "exclusiveMinimum": 0},
    },
    "required": ["order", "cents"],
}

REQUESTS: dict[str, dict[str, Any]] = {
    "run_action": {
        "one node": {
            "action": "index",
            "params": {
                "collection": "crm.Customer",
                "documents": [{"id": "7", "content": "Ada Lovelace, Ockham", "country": "UK"}],
            },
            "node": "crm",
            "idempotency_key": "import-2026-11-22-7",
        },
        "all holders": {
            "action": "delete",
            "params": {"collection": "crm.Customer", "ids": ["7"]},
            "collection": "crm.Customer",
        },
        "several one after another": {
            "action": "reprice",
            "nodes": ["crm", "shop"],
            "sequential": True,
            "on_failure": "stop",
        },
        "when the node is there": {
            "action": "refund",
            "params": {"order": "A-7", "cents": 500},
            "node": "crm",
            "mode": "queue",
            "expires_s": 172800,
            "idempotency_key": "refund-A-7",
        },
    },
}

ANSWERS: dict[str, Any] = {
    "run_action": {
        "success": True,
        "id": _ID,
        "node": "crm",
        "action": "index",
        "state": "succeeded",
        "result": {"indexed": 1, "ids": ["7"], "data_version": 12},
        "duration_ms": 8.4,
    },
    "run_action 202": _QUEUED,
    "list_actions": {"actions": [_DONE], "total": 1, "limit": 50, "offset": 0},
    "show_action": {"id": _ID, "actions": [_DONE | {"attempts": [_FAILED, _DONE]}]},
    "cancel_action": {
        "success": True,
        "id": _ID,
        "node": "crm",
        "action": "refund",
        "state": "cancelled",
    },
    "retry_action": _QUEUED,
    "list_queue": {
        "actions": [
            {
                "id": _ID,
                "node": "crm",
                "action": "refund",
                "caller": "ann",
                "at": _BEGAN,
                "expires": 1795953600000,
                "attempts": 0,
                "error": None,
            }
        ],
        "total": 1,
        "waiting": {"crm": 1},
    },
    "list_dead_letters": {
        "actions": [
            {
                "id": _ID,
                "node": "crm",
                "action": "refund",
                "caller": "ann",
                "at": _ENDED,
                "expires": 0,
                "attempts": 1,
                "error": {"code": 400, "kind": "action_failed", "message": "more than was paid"},
            }
        ],
        "total": 1,
        "waiting": {},
    },
    "list_offered": {
        "actions": [
            {
                "nodes": ["crm"],
                "action": {
                    "name": "refund",
                    "description": "Give money back for an order.",
                    "idempotent": False,
                    "builtin": False,
                    "compensate": "unrefund",
                    "timeout_s": 10.0,
                    "retries": 0,
                    "concurrency": 0,
                    "params": _OF_REFUND,
                    "result": None,
                },
            }
        ]
    },
}
