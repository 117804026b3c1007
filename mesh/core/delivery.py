"""What is done with a queued action, by what has come of it so far.

An error with an attempt number is how an attempt ended; any other is a refusal, or silence: nobody
knows yet whether the action runs, and asking again under the same id is how to find out.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from mesh.wire.messages import ErrorReply, QueueItem

_MASTER = "master"
_ASK_FIRST_S, _ASK_MOST_S = 0.1, 2.0
_ANSWER_S, _ANSWER_MOST_S = 120.0, 3600.0
_PATIENCE_MOST_S = 10.0
_GRACE_MS = 2000
"""Longer than a node takes to say that it has begun what it took on at the last moment."""
_PASSES = frozenset(
    {
        "unavailable",
        "no_responders",
        "disconnected",
        "overloaded",
        "draining",
        "circuit_open",
        "node_gone",
        "deadline_exceeded",
    }
)
"""Kinds of errors that say nothing about the action itself."""
_CANCELLED = "cancelled"
_CALLERS_FAULT = range(400, 500)


class Policy(NamedTuple):
    """How often and how long."""

    max_deliveries: int
    backoff_s: float
    backoff_most_s: float


class Tries(NamedTuple):
    """What has come of an action since somebody began to deliver it."""

    retry: int
    """Goes out with the next request: the last attempt that is known to have ended badly."""
    before: int
    """Attempts there were when it was put into the queue."""
    asked: int = 0
    """In a row without a word on how it stands."""
    absurd: int = 0
    """Answers of those that no sound node gives."""


class Deliver(NamedTuple):
    """Send it to its node."""


class Look(NamedTuple):
    """It is too late to begin. See what the history has of it: `overdue` says what follows."""


class Hold(NamedTuple):
    """Wait, and see again."""

    after_s: float


class AskAgain(NamedTuple):
    """Nobody knows how it stands: ask again, under the same id."""

    after_s: float
    tries: Tries


class RetryAttempt(NamedTuple):
    """It failed in a way that may pass: ask for another attempt."""

    after_s: float
    tries: Tries


class Bury(NamedTuple):
    """It cannot be done: a dead letter."""

    error: ErrorReply


class Expire(NamedTuple):
    """It was not begun in time."""


class Done(NamedTuple):
    """It has ended, and the history knows how."""


def as_trusted(item: QueueItem, caller: str) -> QueueItem:
    """What somebody put there, without what only masters may say: that it is tried again."""
    if caller == _MASTER or not (item.retry or item.requeued):
        return item
    return msgspec.structs.replace(item, retry=0, requeued=0)


def answer_within_s(tries: Tries) -> float:
    """How long its node may take to answer before it is asked again: who asks joins what runs, and
    hears at once of a new life of the node.
    """
    return min(_ANSWER_S * 2.0 ** min(tries.asked, 8), _ANSWER_MOST_S)


def begin(item: QueueItem) -> Tries:
    """Nothing has been tried yet."""
    return Tries(retry=item.retry, before=item.retry)


def due(item: QueueItem, now_ms: int) -> Deliver | Look:
    """What to do with the head of a queue."""
    return Look() if item.expires and now_ms >= item.expires else Deliver()


def overdue(
    item: QueueItem, now_ms: int, *, taken_on: bool, ended: bool
) -> Deliver | Hold | Expire | Done:
    """What to do with one that is too late to begin, by what the history has of it.

    Args:
        item: What it is.
        now_ms: Unix ms, not before `item.expires`.
        taken_on: Its node has recorded that it accepted it.
        ended: It has recorded how it ended.
    """
    if ended:
        return Done()
    if taken_on:
        return Deliver()  # the node answers with the outcome, or goes on until there is one
    left_ms = item.expires + _GRACE_MS - now_ms
    return Hold(left_ms / 1000) if left_ms > 0 else Expire()


def judge(
    tries: Tries, error: ErrorReply | None, policy: Policy
) -> Done | AskAgain | RetryAttempt | Bury:
    """What to do after an answer, or (an error of our own) after none. None: it succeeded."""
    if error is None:
        return Done()
    if error.attempt:
        return _after_attempt(tries, error, policy)
    if error.kind in _PASSES:
        return _again(tries, error)
    if error.code in _CALLERS_FAULT or error.kind == "interrupted":
        return Bury(error)
    if tries.absurd + 1 >= policy.max_deliveries:
        return Bury(error)  # it would keep from the node all that come after it
    return _again(tries._replace(absurd=tries.absurd + 1), error)


def _after_attempt(tries: Tries, error: ErrorReply, policy: Policy) -> Done | RetryAttempt | Bury:
    if error.kind == _CANCELLED:
        return Done()  # as somebody wanted it
    tried = error.attempt - tries.before
    may_pass = error.retryable and error.kind != "deadline_exceeded"
    if not may_pass or tried >= policy.max_deliveries or error.attempt <= tries.retry:
        return Bury(error)
    after_s = min(policy.backoff_s * 2.0 ** min(tried - 1, 60), policy.backoff_most_s)
    return RetryAttempt(after_s, Tries(retry=error.attempt, before=tries.before))


def _again(tries: Tries, error: ErrorReply) -> AskAgain:
    own_s = min(_ASK_FIRST_S * 2.0 ** min(tries.asked, 60), _ASK_MOST_S)
    wanted_s = min((error.retry_after_ms or 0) / 1000, _PATIENCE_MOST_S)
    return AskAgain(max(own_s, wanted_s), tries._replace(asked=tries.asked + 1))
