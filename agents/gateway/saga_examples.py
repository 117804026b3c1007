"""Examples of the routes of sagas, by operation."""

from __future__ import annotations

from typing import Any

_ID = "order-4711"
_BEGAN = 1795348800000


def _step(
    name: str, action: str, undo: str | None, params: dict[str, Any], **more: Any
) -> dict[str, Any]:
    return {
        "name": name,
        "state": "succeeded",
        "call": {"action": action, "node": "shop", "params": params},
        "undo": undo and {"action": undo, "node": "shop", "params": params},
        "final": undo is None,
        "timeout_s": None,
        "retry": 0,
        "attempt": 1,
        "began_at": _BEGAN,
        "ended_at": _BEGAN + 9,
        "result": None,
        "error": None,
        "undo_attempts": 0,
        "undo_error": None,
        "undone_at": 0,
        **more,
    }


def _saga(state: str, steps: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "id": _ID,
        "name": "order",
        "caller": "ann",
        "state": state,
        "version": 5,
        "runner": "1795348790000-1f0c9a2be4d57786",
        "digest": "6f1ed002ab5595859014ebf0951522d9d2f4a1b2e8a3c6f70a4d1f7b3c2e9d10",
        "started_at": _BEGAN,
        "changed_at": _BEGAN + 31,
        "ended_at": _BEGAN + 31,
        "deadline": _BEGAN + 3_600_000,
        "reason": "",
        "stop": False,
        "steps": steps,
        **more,
    }


_RESERVE = _step("reserve", "reserve", "release", {"item": "lamp"}, result={"order": "A-7"})
_CHARGE = _step("charge", "charge", "refund", {"order": "A-7", "cents": 500})
_SHIP = _step("ship", "ship", None, {"order": "A-7"})
_DONE = {"success": True, "saga": _saga("succeeded", [_RESERVE, _CHARGE, _SHIP])}
_WAITS = {
    "success": False,
    "saga": _saga(
        "paused",
        [_RESERVE, _CHARGE | {"state": "uncertain"}, _SHIP | {"state": "waiting", "attempt": 0}],
        ended_at=0,
        reason="step 'charge' ended in the middle: the node stopped while the action ran",
    ),
}
_GOES_ON = {
    "success": False,
    "saga": _saga(
        "running",
        [_RESERVE, _CHARGE | {"state": "running", "retry": 1, "attempt": 1, "ended_at": 0},
         _SHIP | {"state": "waiting", "attempt": 0}],
        ended_at=0,
        reason="resumed by ann",
    ),
}  # fmt: skip
_TURNS_BACK = {
    "success": False,
    "saga": _saga(
        "compensating",
        [_RESERVE, _CHARGE | {"state": "undoing"}, _SHIP | {"state": "waiting", "attempt": 0}],
        ended_at=0,
        reason="aborted by ann",
        stop=True,
    ),
}

REQUESTS: dict[str, dict[str, Any]] = {
    "run_saga": {
        "an order": {
            "id": _ID,
            "name": "order",
            "steps": [
                {
                    "name": "reserve",
                    "action": "reserve",
                    "node": "shop",
                    "params": {"item": "lamp"},
                    "compensate": {"action": "release"},
                },
                {
                    "name": "charge",
                    "action": "charge",
                    "params": {"order": "${reserve.order}", "cents": 500},
                    "compensate": {
                        "action": "refund",
                        "params": {"order": "${reserve.order}", "cents": 500},
                    },
                    "timeout_s": 30,
                },
                {
                    "name": "ship",
                    "action": "ship",
                    "params": {"order": "${reserve.order}"},
                    "final": True,
                },
            ],
        }
    }
}
"""By title."""

ANSWERS: dict[str, Any] = {
    "run_saga": _DONE,
    "run_saga 202": _WAITS,
    "list_sagas": {"sagas": [_DONE["saga"]], "total": 1, "limit": 50, "offset": 0},
    "show_saga": _DONE,
    "resume_saga": _GOES_ON,
    "abort_saga": _TURNS_BACK,
}
"""Of success."""
