"""Examples of `/rag` in the OpenAPI document."""

from __future__ import annotations

from typing import Any

REQUESTS: dict[str, dict[str, Any]] = {
    "rag": {
        "words": {"query": "how do I pay a late invoice?"},
        "budget": {
            "query": "how do I pay a late invoice?",
            "budget": 4000,
            "passages": 8,
            "options": {"collections": ["handbook"], "require": "quorum"},
        },
    }
}

ANSWERS: dict[str, Any] = {
    "rag": {
        "passages": [
            {
                "number": 1,
                "text": "An invoice that is late can still be paid by card.",
                "tokens": 14,
                "score": 0.97,
                "source": {
                    "node": "wiki",
                    "collection": "handbook",
                    "shard": "wiki",
                    "id": "billing",
                    "title": "Billing",
                    "url": "https://wiki.example.com/billing",
                    "part": 2,
                    "parts": 5,
                    "start": 812,
                    "end": 862,
                },
            }
        ],
        "count": 1,
        "prompt": "[1] Billing\nAn invoice that is late can still be paid by card.\n\n"
        "Sources:\n[1] wiki/handbook/billing, part 2 of 5, https://wiki.example.com/billing",
        "tokens": 53,
        "budget": 1500,
        "truncated": False,
        "documents": 1,
        "duration_ms": 4.2,
        "nodes_searched": 1,
        "partial": False,
        "shards": {
            "total": 1,
            "ok": 1,
            "failed": 0,
            "skipped": 0,
            "timed_out": 0,
            "details": [
                {
                    "collection": "handbook",
                    "shard": "wiki",
                    "node": "wiki",
                    "status": "ok",
                    "took_ms": 3.1,
                }
            ],
        },
        "id": "0199f0d3-2b4c-7d5e-8f60-718293a4b5c6",
        "cached": False,
    }
}
