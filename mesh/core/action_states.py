"""Which of two records of one action is the later one, and what is kept of all of them.

Records come from a stream that may be read twice, from its start, or by two masters at once; the
join below is commutative, associative and idempotent, so every reader ends with the same row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from mesh.types import ActionState
from mesh.wire import codec
from mesh.wire.messages import HistoryRecord

_BEFORE_OUTCOME = {ActionState.QUEUED: 0, ActionState.ACCEPTED: 1, ActionState.RUNNING: 2}
_OUTCOME = 3
MOST_ATTEMPTS = 100
"""Of one action; earlier ones are forgotten."""


def rank(state: ActionState) -> int:
    """0 queued, 1 accepted, 2 running, 3 any outcome."""
    return _BEFORE_OUTCOME.get(state, _OUTCOME)


class Story(NamedTuple):
    """What is known of an action on one node."""

    row: HistoryRecord
    """Where it stands."""
    attempts: dict[int, HistoryRecord]
    """What is known of each attempt, by its number; 0: of the time before its node took it on."""


def enter(known: Story | None, record: HistoryRecord) -> Story:
    """What is known after hearing `record` as well; a join, as `join` is."""
    if known is None:
        one = _normal(record)
        return Story(one, {record.attempt: one})
    attempts = known.attempts | {record.attempt: join(known.attempts.get(record.attempt), record)}
    for number in sorted(attempts)[:-MOST_ATTEMPTS]:
        del attempts[number]
    return Story(join(known.row, record), attempts)


def join(known: HistoryRecord | None, record: HistoryRecord) -> HistoryRecord:
    """What is known of an action after hearing `record` as well.

    State, time, attempt, duration, result and error come from the record that is further on: by
    attempt, within one by rank (queued < accepted < running < outcomes, of these one that is not
    final first), then by time. What belongs to the action as a whole (parameters, digest, trace,
    mode, the time it was accepted) is kept from whichever record has it.
    """
    one = _normal(record)
    if known is None:
        return one
    other = _normal(known)
    later = max(one, other, key=_progress)
    return msgspec.structs.replace(
        later,
        accepted_at=min(one.accepted_at, other.accepted_at),
        params=max(one.params, other.params, key=_weight(codec.encode)),
        digest=max(one.digest, other.digest),
        trace=max(one.trace, other.trace),
        mode="queue" if "queue" in (one.mode, other.mode) else "sync",
    )


def _normal(record: HistoryRecord) -> HistoryRecord:
    """An action is accepted when its first record says so, at the latest."""
    return msgspec.structs.replace(record, accepted_at=record.accepted_at or record.at)


def _progress(record: HistoryRecord) -> tuple[Any, ...]:
    return (
        record.attempt,
        rank(record.state),
        record.final,
        record.at,
        record.state.value,
        -1.0 if record.duration_ms is None else record.duration_ms,
        codec.encode(record.result),
        codec.encode(record.error),
        record.caller,
        record.action,
    )


def _weight(encode: Callable[[Any], bytes]) -> Callable[[Any], tuple[bool, bytes]]:
    """Something wins over nothing; else any fixed order will do."""
    return lambda value: (value is not None, encode(value))
