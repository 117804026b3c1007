"""What is written down of an action, and what its caller is answered."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import msgspec

from mesh.errors import (
    CancelledActionError,
    ConflictError,
    DeadlineExceededError,
    InterruptedActionError,
    MeshError,
)
from mesh.ports import JournalEntry
from mesh.types import ActionState
from mesh.wire import codec
from mesh.wire.messages import ActionRequest, ActionResult, ErrorReply, HistoryRecord

_MOST_PARAMS_BYTES = 4096
_REFUSED = "refused: the history was away; nothing was run"
_ENDED_BADLY = frozenset(
    {
        ActionState.FAILED,
        ActionState.EXPIRED,
        ActionState.CANCELLED,
        ActionState.INTERRUPTED,
    }
)
_canonical = msgspec.json.Encoder(order="deterministic")


class Fingerprint(NamedTuple):
    """Of action and parameters."""

    digest: str
    size: int
    """Bytes of both as JSON."""


UNKNOWN = Fingerprint("", _MOST_PARAMS_BYTES + 1)
"""Of an action that is to be stopped before anybody has said what its parameters are."""


def fingerprint_of(request: ActionRequest) -> Fingerprint:
    """Equal for equal action and parameters, whatever the order of keys."""
    canonical = _canonical.encode([request.action, request.params])
    return Fingerprint(hashlib.sha256(canonical).hexdigest(), len(canonical))


def check_same(request: ActionRequest, digest: str, known: str, action: str = "") -> None:
    """Raises ConflictError where an id stands for something else already.

    Args:
        request: What is asked now.
        digest: Of it.
        known: Digest of what was asked before; empty: nobody has said.
        action: What was asked before; empty: nobody has said.
    """
    if (known and digest != known) or (action and action != request.action):
        raise ConflictError(
            f"the id {request.id!r} was used for another action or other parameters; "
            "choose a new one"
        )


def record_of(
    request: ActionRequest,
    fingerprint: Fingerprint,
    *,
    node: str,
    caller: str,
    at: int,
    attempt: int,
    state: ActionState = ActionState.ACCEPTED,
) -> HistoryRecord:
    """Of an action that was accepted, or (`state`) is found without an outcome."""
    return HistoryRecord(
        id=request.id,
        node=node,
        action=request.action,
        state=state,
        caller=caller,
        at=at,
        attempt=attempt,
        params=request.params if fingerprint.size <= _MOST_PARAMS_BYTES else None,
        digest=fingerprint.digest,
        accepted_at=at,
        trace=request.trace,
        mode=request.mode,
    )


def ended(
    record: HistoryRecord,
    state: ActionState,
    at: int,
    error: MeshError | ErrorReply | None = None,
) -> HistoryRecord:
    """How it ended without having run, or without our knowing."""
    reply = codec.error_reply(error) if isinstance(error, MeshError) else error
    return msgspec.structs.replace(record, state=state, at=at, error=reply)


def refused(accepted: HistoryRecord, at: int) -> HistoryRecord:
    """It may be stored although its acknowledgement is missing: this says that nothing ran."""
    error = ErrorReply(code=503, kind="unavailable", message=_REFUSED, retryable=True)
    return ended(accepted, ActionState.CANCELLED, at, error)


def unfit(record: HistoryRecord, at: int, refusal: MeshError) -> HistoryRecord:
    """It was accepted, and what the node offers by now does not fit it."""
    error = codec.error_reply(refusal)
    why = f"{error.message}; {_not_begun(record)}"
    return ended(record, ActionState.FAILED, at, msgspec.structs.replace(error, message=why))


def not_followed(outcome: HistoryRecord, refusal: MeshError) -> HistoryRecord:
    """What to answer, and not to store, where another attempt cannot be made."""
    error = codec.error_reply(refusal)
    why = f"{error.message}; no other attempt was begun"
    return msgspec.structs.replace(outcome, error=msgspec.structs.replace(error, message=why))


def lighter(record: HistoryRecord) -> tuple[HistoryRecord, HistoryRecord, HistoryRecord]:
    """All of it, it without its bulk, and nothing in it that anybody wrote: the first one that can
    be stored is.
    """
    light = msgspec.structs.replace(record, params=None, result=None, trace="")
    error = record.error
    if error is None:
        return record, light, light
    message = f"{error.kind}; what it says beyond that could not be stored"
    bare = ErrorReply(code=error.code, kind=error.kind, message=message, retryable=error.retryable)
    return record, light, msgspec.structs.replace(light, error=bare)


def interrupted(record: HistoryRecord, at: int) -> HistoryRecord:
    """Nobody knows."""
    why = "the node stopped while the action ran; whether it took effect is not known"
    return ended(record, ActionState.INTERRUPTED, at, InterruptedActionError(why))


def too_late(record: HistoryRecord, at: int, why: str) -> HistoryRecord:
    """Its deadline passed before it began."""
    late = DeadlineExceededError(f"{why}; {_not_begun(record)}")
    return ended(record, ActionState.EXPIRED, at, late)


def cancelled(record: HistoryRecord, at: int, by: str) -> HistoryRecord:
    """Before it began."""
    why = CancelledActionError(f"cancelled by {by} before it began; {_not_begun(record)}")
    return ended(record, ActionState.CANCELLED, at, why)


def _not_begun(record: HistoryRecord) -> str:
    """What that says of the action: earlier attempts may have had an effect."""
    return "nothing ran" if record.attempt <= 1 else f"attempt {record.attempt} did not run"


def was_refused(entry: JournalEntry) -> bool:
    """Whether it ended before it began, for want of the history: its id is free."""
    error = entry.outcome.error if entry.outcome is not None else None
    return (
        entry.state is ActionState.CANCELLED and error is not None and (error.kind == "unavailable")
    )


def may_try_again(entry: JournalEntry, request: ActionRequest) -> bool:
    """Whether its end is one that the request asks to follow with another attempt. The queue may
    know of later attempts, which were cancelled before they came here.

    Raises:
        ConflictError: It asks to follow one that there has not been.
    """
    if entry.state not in _ENDED_BADLY or request.retry < entry.attempt:
        return False
    if request.retry > entry.attempt and request.mode != "queue":
        raise ConflictError(
            f"{request.id!r} has had {entry.attempt} attempts here, so there is no attempt "
            f"{request.retry} that another one could follow; nothing was run"
        )
    return True


def reply_to(outcome: HistoryRecord) -> bytes:
    """The reply that an outcome stands for, today as on the first day."""
    if outcome.error is not None:
        return codec.encode(msgspec.structs.replace(outcome.error, attempt=outcome.attempt))
    return codec.ok(
        ActionResult(
            id=outcome.id,
            node=outcome.node,
            action=outcome.action,
            state=outcome.state,
            result=outcome.result,
            duration_ms=outcome.duration_ms or 0.0,
            attempt=outcome.attempt,
        )
    )
