"""What callers ask the masters about the queue: what waits, what could not be done, to cancel one,
to try one again.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Mapping

import msgspec
import structlog

from mesh.core.targets import check_id
from mesh.errors import (
    BadRequestError,
    ConflictError,
    DeadlineExceededError,
    MeshError,
    NoRespondersError,
    NotFoundError,
    UnavailableError,
)
from mesh.ports import ActionQueue, Verb, Waiting
from mesh.runtime.attempts import nobody_listens
from mesh.runtime.issued_tokens import who
from mesh.runtime.parts import Surroundings
from mesh.runtime.queue_places import Places
from mesh.runtime.queue_records import QueueRecords, entry_of, error_in, record_of
from mesh.types import ActionState
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    ActionNamed,
    ActionRequest,
    DeadLetter,
    ErrorReply,
    HistoryRecord,
    Queued,
    QueueEntry,
    QueueItem,
    QueueList,
    QueueQuery,
    Request,
)

log = structlog.get_logger()

Head = tuple[int, int, ErrorReply | None]

_FRESH_WITHIN_S = 2.0
_NODE_S = 3.0
_PUT_S = 4.0
_DAY_MS = 24 * 3600 * 1000
_MOST_LETTERS = 10_000
_GOES_ON = frozenset({ActionState.ACCEPTED, ActionState.RUNNING})


class QueueVerbs:
    """`queue`, `dead-letters`, `action-cancel` and `action-retry` of one master."""

    def __init__(
        self,
        around: Surroundings,
        queue: ActionQueue,
        records: QueueRecords,
        places: Places,
        *,
        head_of: Callable[[str], Head | None],
    ) -> None:
        """Args:
        around: Of the master.
        queue: Where actions wait.
        records: Tells the history, and knows what it has.
        places: Finds what waits.
        head_of: Of a node's queue, if this master delivers it: the sequence of the first one,
            attempts so far, why it is not done.
        """
        self._around = around
        self._bus = around.bus
        self._clock = around.clock
        self._queue = queue
        self._records = records
        self._places = places
        self._head_of = head_of
        self.verbs: Mapping[str, tuple[type[Request], Verb]] = {
            "queue": (QueueQuery, self._waiting),
            "dead-letters": (QueueQuery, self._dead),
            "action-cancel": (ActionNamed, self._cancel),
            "action-retry": (ActionNamed, self._retry),
        }

    # -- reading -----------------------------------------------------------------------------------

    async def _waiting(self, query: QueueQuery, _caller: str) -> QueueList:
        counts = await self._queue.waiting()
        if query.node:
            counts = {query.node: counts[query.node]} if query.node in counts else {}
        found: list[QueueEntry] = []
        at = itertools.count()
        async for waiting in self._all(query.node):
            if next(at) >= query.offset:
                found.append(self._entry(waiting))
            if len(found) == query.limit:
                break
        return QueueList(
            actions=found, total=sum(counts.values()), waiting=dict(sorted(counts.items()))
        )

    async def _all(self, node: str) -> AsyncIterator[Waiting]:
        after = 0
        while (waiting := await self._queue.next(node, after)) is not None:
            yield waiting
            after = waiting.sequence

    def _entry(self, waiting: Waiting) -> QueueEntry:
        head = self._head_of(waiting.node)
        if head is None or head[0] != waiting.sequence:
            return entry_of(waiting)
        return entry_of(waiting, attempts=head[1], error=head[2])

    async def _dead(self, query: QueueQuery, _caller: str) -> QueueList:
        found, total = await self._queue.dead(query.node, query.limit, query.offset)
        fields = QueueEntry.__struct_fields__
        entries = [
            QueueEntry(**{name: getattr(each.letter, name) for name in fields}) for each in found
        ]
        return QueueList(actions=entries, total=total)

    # -- cancelling --------------------------------------------------------------------------------

    async def _cancel(self, asked: ActionNamed, caller: str) -> HistoryRecord:
        """Raises:
        NotFoundError: No such action.
        BadRequestError: Several nodes were to run it.
        ConflictError: It has ended.
        UnavailableError: Its node may have begun it, and does not answer.
        """
        waiting, row = await self._known(asked)
        by = who(asked, caller)
        if waiting is not None and await self._queue.remove(waiting.sequence):
            self._places.gone(waiting)
            return await self._taken_out(waiting, by)
        await self._records.freshen(_FRESH_WITHIN_S)
        node = waiting.node if waiting is not None else row.node if row is not None else ""
        row = await self._records.row(asked.action_id, node)
        if row is None:
            raise NotFoundError(f"no action {asked.action_id!r} in the history")
        if row.state is ActionState.QUEUED:  # whoever took it out did not live to say so
            return await self._cancelled(row, by)
        if row.state not in _GOES_ON and row.final:
            raise ConflictError(f"the action has ended already: {row.state.value}")
        outcome = await self._stop(row.id, row.node, row.action)
        if isinstance(outcome, ErrorReply) and not outcome.attempt:
            raise codec.as_error(outcome)
        return await self._ended(row.id, row.node)

    async def _taken_out(self, waiting: Waiting, by: str) -> HistoryRecord:
        """Of the queue; but it may have been on its way to its node a moment before."""
        item = waiting.item
        if item is None:
            raise NotFoundError("it cannot be read")
        try:
            outcome = await self._stop(item.id, waiting.node, item.action)
        except NoRespondersError:
            return await self._cancelled(record_of(waiting, ActionState.QUEUED, waiting.at), by)
        except DeadlineExceededError as error:
            raise UnavailableError(
                f"it was taken out of the queue, but node {waiting.node!r} does not say: it may "
                "have begun and not stopped yet"
            ) from error
        if isinstance(outcome, ErrorReply) and not outcome.attempt:
            if outcome.code == NotFoundError.code:
                return await self._cancelled(record_of(waiting, ActionState.QUEUED, waiting.at), by)
            raise codec.as_error(outcome)
        return await self._ended(item.id, waiting.node)

    async def _cancelled(self, queued: HistoryRecord, by: str) -> HistoryRecord:
        """It is out of the queue: the history hears of it when it can."""
        record = msgspec.structs.replace(
            queued,
            state=ActionState.CANCELLED,
            at=self._clock.unix_ms(),
            error=ErrorReply(code=409, kind="cancelled", message=f"cancelled by {by}; nothing ran"),
        )
        log.info("mesh.queue.cancelled", node=record.node, action=record.action, by=by)
        try:
            await self._records.say(record)
        except MeshError as failure:
            log.warning("mesh.queue.cancel_unrecorded", error=str(failure))
            self._around.background.spawn("queue-cancelled", self._insist(record))
        return record

    async def _insist(self, record: HistoryRecord) -> None:
        await self._records.insist("recorded", lambda: self._records.say(record))

    async def _stop(self, action_id: str, node: str, action: str) -> ErrorReply | None:
        """Ask a node to stop what runs under that id; None: it has just succeeded."""
        request = ActionRequest(
            id=action_id,
            action=action,
            cancel=True,
            deadline=self._clock.unix_ms() + round(_NODE_S * 1000),
        )
        try:
            reply = await self._bus.request(
                subjects.act(node, action, self._bus.identity),
                codec.encode(request),
                responder=node,
                timeout_s=_NODE_S,
            )
        except NoRespondersError as error:
            raise nobody_listens(node) from error
        return error_in(reply)

    async def _ended(self, action_id: str, node: str) -> HistoryRecord:
        await self._records.freshen(_FRESH_WITHIN_S)
        row = await self._records.row(action_id, node)
        if row is None:
            raise UnavailableError("it was stopped; the history does not say so yet")
        return row

    # -- trying again ------------------------------------------------------------------------------

    async def _retry(self, asked: ActionNamed, caller: str) -> Queued:
        """Raises:
        NotFoundError: No such action.
        BadRequestError: Several nodes were to run it; or its parameters were not kept.
        ConflictError: It waits, runs, or has succeeded.
        UnavailableError: The queue is full or away.
        """
        waiting, row = await self._known(asked)
        if waiting is not None:
            raise ConflictError(f"the action waits in the queue of {waiting.node!r}")
        node = row.node if row is not None else asked.node
        sequence, letter = await self._letter(asked.action_id, node)
        if row is None and letter is None:
            raise NotFoundError(f"no action {asked.action_id!r} in the history")
        if row is not None and (row.state is ActionState.SUCCEEDED or not _has_ended(row)):
            raise ConflictError(f"the action is {row.state.value}: there is nothing to retry")
        item = self._again(row, letter, who(asked, caller))
        node = row.node if row is not None else letter.node if letter is not None else ""
        kept = await self._queue.put(node, self._bus.identity, item, timeout_s=_PUT_S)
        self._places.seen(
            Waiting(kept, node, item.action, self._bus.identity, self._clock.unix_ms(), item)
        )
        if sequence:
            await self._queue.exhume(sequence)
        log.info("mesh.queue.retried", node=node, action=item.action, id=item.id)
        return Queued(id=item.id, node=node, action=item.action, expires=item.expires)

    def _again(self, row: HistoryRecord | None, letter: DeadLetter | None, by: str) -> QueueItem:
        params = row.params if row is not None else None
        if params is None and letter is not None and (row is None or letter.digest == row.digest):
            params = letter.params
        known = row or letter
        if params is None or known is None:
            raise BadRequestError(
                "its parameters are too long for the history: ask again with a new id"
            )
        days_ms = self._around.config.actions.queue_days * _DAY_MS
        return QueueItem(
            id=known.id,
            action=known.action,
            params=params,
            retry=row.attempt if row is not None else 0,
            on_behalf=by.rpartition(" for ")[2],
            trace=known.trace,
            expires=self._clock.unix_ms() + round(days_ms),
            digest=known.digest,
            requeued=known.at,
        )

    async def _letter(self, action_id: str, node: str) -> tuple[int, DeadLetter | None]:
        for offset in range(0, _MOST_LETTERS, 1000):
            found, total = await self._queue.dead(node, 1000, offset)
            for buried in found:
                if buried.letter.id == action_id:
                    return buried.sequence, buried.letter
            if offset + 1000 >= total:
                break
        return 0, None

    # -- finding -----------------------------------------------------------------------------------

    async def _known(self, asked: ActionNamed) -> tuple[Waiting | None, HistoryRecord | None]:
        """What waits under that id, and what the history has of it: of one node."""
        check_id(asked.action_id)
        await self._records.freshen(_FRESH_WITHIN_S)
        waiting = await self._places.find(asked.action_id, asked.node)
        rows = await self._records.rows(asked.action_id, asked.node)
        nodes = sorted({each.node for each in waiting} | {each.node for each in rows})
        if len(nodes) > 1:
            raise BadRequestError(
                f"{len(nodes)} nodes have an action {asked.action_id!r}; say which: "
                + ", ".join(nodes)
            )
        return (waiting[0] if waiting else None), (rows[0] if rows else None)


def _has_ended(row: HistoryRecord) -> bool:
    return row.final and row.state not in _GOES_ON and row.state is not ActionState.QUEUED
