"""What the history is told of queued actions by the master: that they wait, and how those ended
that no node took on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import structlog

from mesh.core.action_states import rank
from mesh.errors import MeshError, TooLargeError, UnreadableReplyError
from mesh.ports import ActionIndex, ActionQueue, Clock, History, Waiting
from mesh.runtime.action_records import fingerprint_of
from mesh.runtime.queue_rows import attempt_of, has_digest
from mesh.types import ActionState
from mesh.wire import codec
from mesh.wire.messages import (
    DeadLetter,
    ErrorReply,
    HistoryQuery,
    HistoryRecord,
    QueueEntry,
)

log = structlog.get_logger()

T = TypeVar("T")

_HISTORY_TIMEOUT_S = 3.0
_RETRY_FIRST_S, _RETRY_MOST_S = 0.1, 5.0
_MOST_PARAMS_BYTES = 4096
_LOOK_EVERY_S = 0.02
_OURS = 500


class QueueRecords:
    """Writes history and dead letters, and reads what the index has."""

    def __init__(
        self, queue: ActionQueue, history: History, index: ActionIndex, clock: Clock
    ) -> None:
        self._queue = queue
        self._history = history
        self._index = index
        self._clock = clock

    async def announce(self, waiting: Waiting) -> None:
        """Have the history say that it waits, unless that knows more already; or knows the id as
        that of another action, of which nothing may be said here. What the history will never take
        is left to whoever delivers it.

        Raises:
            UnavailableError: Nothing may have been recorded.
        """
        if waiting.item is None:
            return
        record = record_of(waiting, ActionState.QUEUED, waiting.at)
        row = await self.row(record.id, record.node)
        if row is not None and not (has_digest(row, record.digest) and _is_news(record, row)):
            return
        try:
            await self._append(record)
        except MeshError as error:
            if may_pass(error):
                raise
            log.warning("mesh.queue.unrecordable", sequence=waiting.sequence, error=str(error))

    async def ended(
        self, waiting: Waiting, state: ActionState, error: ErrorReply, *, attempt: int | None = None
    ) -> None:
        """Have the history say how it, or an attempt at it that a node began, has ended.

        Raises:
            UnavailableError: It may not have been recorded.
        """
        record = msgspec.structs.replace(
            record_of(waiting, state, self._clock.unix_ms()), error=error
        )
        if attempt is not None:
            record = msgspec.structs.replace(record, attempt=attempt)
        await self.say(record)

    async def say(self, record: HistoryRecord) -> None:
        """Have the history say that, unless its id is that of another action there.

        Raises:
            UnavailableError: It may not have been recorded.
        """
        row = await self.row(record.id, record.node)
        if row is None or has_digest(row, record.digest):
            await self._append(record)

    async def bury(self, waiting: Waiting, error: ErrorReply, *, attempts: int) -> None:
        """Keep it as a dead letter.

        Raises:
            UnavailableError: It may not have been kept.
        """
        letter = letter_of(waiting, error, attempts=attempts, at=self._clock.unix_ms())
        await self._queue.bury(letter, key=f"{waiting.node}/{waiting.sequence}/{waiting.at}")

    async def row(self, action_id: str, node: str) -> HistoryRecord | None:
        """What the index has of an action on a node; it may lag a moment."""
        page = await self._index.page(HistoryQuery(action_id=action_id, node=node, limit=1))
        return page.actions[0] if page.actions else None

    async def rows(self, action_id: str, node: str) -> list[HistoryRecord]:
        """What the index has of an action, on any node if `node` is empty."""
        page = await self._index.page(HistoryQuery(action_id=action_id, node=node, limit=1000))
        return page.actions

    async def freshen(self, within_s: float) -> bool:
        """Return when the index has all that the history had just now, or time is up: whether it
        has.
        """
        try:
            newest = await self._history.last_sequence(timeout_s=within_s)
            give_up = self._clock.monotonic() + within_s
            while self._clock.monotonic() < give_up:
                if (await self._index.place()).cursor >= newest:
                    return True
                await self._clock.sleep(_LOOK_EVERY_S)
        except MeshError as error:
            log.warning("mesh.queue.freshness_unknown", error=str(error))
        return False

    async def insist(self, what: str, step: Callable[[], Awaitable[T]]) -> T:
        """As often as it takes.

        Raises:
            MeshError: It never will do.
        """
        delay_s = _RETRY_FIRST_S
        while True:
            try:
                return await step()
            except MeshError as error:
                if not may_pass(error):
                    raise
                log.warning("mesh.queue.waiting", what=what, error=str(error), retry_s=delay_s)
            await self._clock.sleep(delay_s)
            delay_s = min(delay_s * 2, _RETRY_MOST_S)

    async def _append(self, record: HistoryRecord) -> None:
        try:
            await self._history.append(record, timeout_s=_HISTORY_TIMEOUT_S)
        except TooLargeError:
            bare = msgspec.structs.replace(record, params=None, trace="")
            await self._history.append(bare, timeout_s=_HISTORY_TIMEOUT_S)


def may_pass(error: MeshError) -> bool:
    """Trying again makes sense: it is no flaw of what was asked."""
    return error.retryable or error.code >= _OURS


def record_of(waiting: Waiting, state: ActionState, at: int) -> HistoryRecord:
    """What the history says of a readable item, at unix ms `at`."""
    item = waiting.item
    if item is None:
        raise ValueError("an item that cannot be read has no record")
    fingerprint = fingerprint_of(item)
    return HistoryRecord(
        id=item.id,
        node=waiting.node,
        action=item.action,
        state=state,
        caller=waiting.who,
        at=at,
        attempt=attempt_of(item),
        params=item.params if fingerprint.size <= _MOST_PARAMS_BYTES else None,
        digest=fingerprint.digest,
        accepted_at=waiting.at,
        trace=item.trace,
        mode="queue",
    )


def letter_of(waiting: Waiting, error: ErrorReply, *, attempts: int, at: int) -> DeadLetter:
    """What is kept of it; of an item that cannot be read, what the broker says."""
    item = waiting.item
    return DeadLetter(
        id=item.id if item is not None else f"unreadable-{waiting.sequence}",
        node=waiting.node,
        action=waiting.action,
        caller=waiting.who,
        at=at,
        expires=item.expires if item is not None else 0,
        attempts=attempts,
        error=error,
        params=item.params if item is not None else None,
        digest=fingerprint_of(item).digest if item is not None else "",
        trace=item.trace if item is not None else "",
    )


def entry_of(waiting: Waiting, *, attempts: int = 0, error: ErrorReply | None = None) -> QueueEntry:
    """As lists show it."""
    item = waiting.item
    return QueueEntry(
        id=item.id if item is not None else f"unreadable-{waiting.sequence}",
        node=waiting.node,
        action=waiting.action,
        caller=waiting.who,
        at=waiting.at,
        expires=item.expires if item is not None else 0,
        attempts=attempts or (item.retry if item is not None else 0),
        error=error,
    )


def _is_news(record: HistoryRecord, row: HistoryRecord) -> bool:
    return (record.attempt, rank(record.state)) > (row.attempt, rank(row.state))


def error_in(reply: bytes) -> ErrorReply | None:
    """What a node refuses, or how an attempt ended badly; None: it went well."""
    try:
        codec.result_of(reply, msgspec.Raw)
    except UnreadableReplyError as error:
        return codec.error_reply(error)
    except MeshError:
        return codec.decode(reply, ErrorReply)
    return None
