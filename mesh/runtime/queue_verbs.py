"""What callers ask the masters about the queue: what waits, what could not be done, to cancel one,
to try one again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping

import msgspec
import structlog

from mesh.core.targets import check_id
from mesh.errors import (
    BadRequestError,
    ConflictError,
    DeadlineExceededError,
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
from mesh.runtime.queue_rows import has_ended
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
_NOT_BEGUN = frozenset({ActionState.QUEUED, ActionState.CANCELLED})


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
        self._retrying = asyncio.Lock()
        """Who asks twice at once finds the second time that it waits."""
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
        while waiting := await (
            self._queue.next(node, after) if node else self._queue.next_of_all(after)
        ):
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
        if not waiting and row is not None and row.state is ActionState.QUEUED:
            waiting = await self._places.find(row.id, row.node, thorough=True)
        if waiting:
            return await self._cancel_waiting(waiting, by)
        if row is None:
            raise NotFoundError(f"no action {asked.action_id!r} in the history")
        if has_ended(row):
            raise ConflictError(f"the action has ended already: {row.state.value}")
        outcome = await self._stop(_request_of(row), row.node, by)
        if isinstance(outcome, ErrorReply) and not outcome.attempt:
            if outcome.kind == NotFoundError.kind and row.state is ActionState.QUEUED:
                return await self._cancelled(row, by)  # and nobody will ever bring it there
            raise codec.as_error(outcome)
        return await self._ended(row.id, row.node)

    async def _cancel_waiting(self, waiting: list[Waiting], by: str) -> HistoryRecord:
        """Its node is asked first: from then on it knows the id as cancelled, whatever is still on
        its way there. Where nobody listens the history hears of it, then it is taken out, then the
        node is asked once more: it may have come in between. Whoever dies half-way has left
        nothing that says it waits and does not.
        """
        first = waiting[0]
        queued = record_of(first, ActionState.QUEUED, first.at)
        knew = await self._knew(first, by)
        record = queued if knew else await self._cancelled(queued, by)
        for each in waiting:
            await self._queue.remove(each.sequence)
            self._places.gone(each)
        if knew or await self._knew(first, by):
            return await self._ended(queued.id, queued.node)
        return record

    async def _knew(self, waiting: Waiting, by: str) -> bool:
        """Have its node stop it. False: nobody listens there, or it has not begun it.

        Raises:
            ConflictError: It has ended.
            UnavailableError: That is not known.
        """
        item = waiting.item
        if item is None:
            raise NotFoundError("it cannot be read")
        try:
            outcome = await self._stop(item, waiting.node, by)
        except NoRespondersError:
            return False
        except DeadlineExceededError as error:
            raise UnavailableError(
                f"node {waiting.node!r} does not answer; it may have begun, or begin it: ask again"
            ) from error
        if outcome is None or outcome.attempt:
            return True
        if outcome.kind == NotFoundError.kind:
            return False
        if outcome.kind == ConflictError.kind and item.requeued:
            await self._records.freshen(_FRESH_WITHIN_S)
            row = await self._records.row(item.id, waiting.node)
            if row is None or row.attempt <= item.retry or row.state in _NOT_BEGUN:
                return False  # what has ended is an attempt before
        raise codec.as_error(outcome)

    async def _cancelled(self, queued: HistoryRecord, by: str) -> HistoryRecord:
        record = msgspec.structs.replace(
            queued,
            state=ActionState.CANCELLED,
            at=self._clock.unix_ms(),
            error=ErrorReply(code=409, kind="cancelled", message=f"cancelled by {by}; nothing ran"),
        )
        log.info("mesh.queue.cancelled", node=record.node, action=record.action, by=by)
        await self._records.say(record)
        return record

    async def _stop(self, of: ActionRequest, node: str, by: str) -> ErrorReply | None:
        """Ask a node to stop what runs under that id; None: it has just succeeded."""
        request = ActionRequest(
            id=of.id,
            action=of.action,
            params=of.params,
            retry=of.retry,
            on_behalf=by.rpartition(" for ")[2],
            trace=of.trace,
            mode="queue",
            cancel=True,
            deadline=self._clock.unix_ms() + round(_NODE_S * 1000),
        )
        try:
            reply = await self._bus.request(
                subjects.act(node, request.action, self._bus.identity),
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
        if row is None or not has_ended(row):
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
        async with self._retrying:
            return await self._put_back(asked, caller)

    async def _put_back(self, asked: ActionNamed, caller: str) -> Queued:
        waiting, row = await self._known(asked)
        if waiting:
            raise ConflictError(f"the action waits in the queue of {waiting[0].node!r}")
        buried = await self._queue.letter(
            asked.action_id, row.node if row is not None else asked.node
        )
        letter = buried.letter if buried is not None else None
        if row is None and letter is None:
            raise NotFoundError(f"no action {asked.action_id!r} in the history")
        if row is not None and (row.state is ActionState.SUCCEEDED or not has_ended(row)):
            raise ConflictError(f"the action is {row.state.value}: there is nothing to retry")
        item = self._again(row, letter, who(asked, caller))
        node = row.node if row is not None else letter.node if letter is not None else ""
        kept = await self._queue.put(node, self._bus.identity, item, timeout_s=_PUT_S)
        self._places.seen(
            Waiting(kept, node, item.action, self._bus.identity, self._clock.unix_ms(), item)
        )
        if buried is not None:
            await self._queue.exhume(buried.sequence)
        log.info("mesh.queue.retried", node=node, action=item.action, id=item.id)
        return Queued(id=item.id, node=node, action=item.action, expires=item.expires)

    def _again(self, row: HistoryRecord | None, letter: DeadLetter | None, by: str) -> QueueItem:
        params = row.params if row is not None else None
        if params is None and letter is not None and (row is None or letter.digest == row.digest):
            params = letter.params
        known = row or letter
        if params is None or known is None:
            raise BadRequestError(
                "its parameters are too long for the history, and no dead letter has them: ask "
                "again with a new id"
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

    # -- finding -----------------------------------------------------------------------------------

    async def _known(self, asked: ActionNamed) -> tuple[list[Waiting], HistoryRecord | None]:
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
        return waiting, (rows[0] if rows else None)


def _request_of(row: HistoryRecord) -> ActionRequest:
    return ActionRequest(id=row.id, action=row.action, params=row.params or {}, trace=row.trace)
