"""What the answer of a node, or a record of the history, says of a saga's step."""

from __future__ import annotations

from mesh.core.saga_events import CutShort, Failed, Interrupted, Outcome, Succeeded
from mesh.errors import MeshError
from mesh.types import ActionState
from mesh.wire import codec
from mesh.wire.messages import ActionResult, ErrorReply, HistoryRecord, Reply

_REFUSED = frozenset(
    {
        "action_failed",
        "bad_request",
        "conflict",
        "forbidden",
        "invalid",
        "not_found",
        "too_large",
        "unauthorized",
    }
)
"""Answers that are no outcome, and still say that this request had nothing run."""
_CUT_SHORT = frozenset({"cancelled", "deadline_exceeded"})


def outcome_of(reply: Reply) -> Outcome | None:
    """What a node's answer says of the action; None: nothing for sure."""
    if not isinstance(reply, ErrorReply):
        try:
            done = codec.decode(reply.result, ActionResult)
        except MeshError:
            return None
        return Succeeded(done.result, done.attempt)
    if reply.kind == "interrupted":
        return Interrupted(reply, reply.attempt)
    if reply.attempt and reply.kind in _CUT_SHORT:
        return CutShort(reply, reply.attempt)
    if reply.attempt or reply.kind in _REFUSED:
        return Failed(reply, reply.attempt)
    return None


def outcome_in(record: HistoryRecord) -> Outcome | None:
    """None: it has not ended."""
    error = record.error or ErrorReply(code=500, kind=record.state.value, message="it did not end")
    match record.state:
        case ActionState.SUCCEEDED:
            return Succeeded(record.result, record.attempt)
        case ActionState.FAILED:
            return Failed(error, record.attempt)
        case ActionState.CANCELLED | ActionState.EXPIRED:
            return CutShort(error, record.attempt)
        case ActionState.INTERRUPTED:
            return Interrupted(error, record.attempt)
        case _:
            return None
