"""What a row of the history says of an item of the queue."""

from __future__ import annotations

from typing import TypeGuard

import msgspec

from mesh.runtime.action_records import fingerprint_of
from mesh.types import ActionState
from mesh.wire.messages import ErrorReply, HistoryRecord, QueueItem

_TAKEN_ON = frozenset({ActionState.ACCEPTED, ActionState.RUNNING})


def attempt_of(item: QueueItem) -> int:
    """Under which an action is recorded that no node has taken on: 0 for one that is new, so that
    whatever a node says of it comes later; for one that is to be tried again, its next one.
    """
    return item.retry + 1 if item.requeued else 0


def has_digest(row: HistoryRecord, digest: str) -> bool:
    """The id stands for the action of that digest there, or was stopped before it came."""
    return row.digest in (digest, "")


def is_of(row: HistoryRecord | None, item: QueueItem) -> TypeGuard[HistoryRecord]:
    """The id stands for this action there, with these parameters."""
    return row is not None and has_digest(row, fingerprint_of(item).digest)


def taken_on(row: HistoryRecord | None, item: QueueItem) -> bool:
    """Its node has recorded that it accepted it, and not how it ended."""
    return is_of(row, item) and row.attempt > item.retry and row.state in _TAKEN_ON


def ended(row: HistoryRecord | None, item: QueueItem) -> bool:
    """A node, or a master before, has recorded how it ended."""
    return is_of(row, item) and row.attempt >= attempt_of(item) and has_ended(row)


def has_ended(row: HistoryRecord) -> bool:
    """Nothing more comes of it, unless somebody asks for another attempt."""
    return row.final and row.state not in _TAKEN_ON and row.state is not ActionState.QUEUED


def outcome_in(row: HistoryRecord) -> ErrorReply | None:
    """How it ended, as its node would answer; None: well."""
    if row.state is ActionState.SUCCEEDED:
        return None
    known = row.error or ErrorReply(code=500, kind=row.state.value, message="it did not end well")
    return msgspec.structs.replace(known, attempt=row.attempt)
