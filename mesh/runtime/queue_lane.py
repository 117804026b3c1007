"""The queue of one node: its actions go to it one after another, oldest first."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, assert_never

import structlog

from mesh.core import delivery
from mesh.errors import InterruptedActionError, MeshError, NodeGoneError, NotFoundError
from mesh.ports import ActionQueue, Waiting
from mesh.runtime.parts import Surroundings
from mesh.runtime.queue_records import QueueRecords, error_in
from mesh.types import ActionState, Health, Status
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    ActionRequest,
    ErrorReply,
    HistoryRecord,
    NodeRecord,
    QueueItem,
)

log = structlog.get_logger()

_ASK_S = 5.0
"""After that the node is asked again: under the same id it joins what runs."""
_ASKED = frozenset({Health.HEALTHY, Health.SUSPECT, Health.OVERLOADED})
_LOOK_EVERY_S = 2.0
"""How often a queue is looked at that nobody told of, and a node that cannot be asked."""
_TAKEN_ON = frozenset({ActionState.ACCEPTED, ActionState.RUNNING})


class Lane:
    """Delivers to one node as long as its master leads. Two of them for one node, of two masters
    that both think they lead, do no harm: the node knows an id that it has seen.
    """

    def __init__(
        self,
        node: str,
        around: Surroundings,
        queue: ActionQueue,
        records: QueueRecords,
        *,
        announced: Callable[[int], Awaitable[None]],
        removed: Callable[[Waiting], None],
    ) -> None:
        """Args:
        node: Slug.
        around: Of the master.
        queue: Where actions wait.
        records: Tells the history.
        announced: Returns when the history knows what waits up to that sequence.
        removed: An item is no longer in the queue.
        """
        self.node = node
        self._around = around
        self._bus = around.bus
        self._clock = around.clock
        self._queue = queue
        self._records = records
        self._announced = announced
        self._removed = removed
        actions = around.config.actions
        self._policy = delivery.Policy(
            max_deliveries=actions.max_deliveries,
            backoff_s=actions.delivery_backoff_s,
            backoff_most_s=actions.delivery_backoff_most_s,
        )
        self._more = asyncio.Event()
        self._moved = asyncio.Event()
        self._seen: tuple[int, bool] | None = None
        self._asking: tuple[int, asyncio.Future[None]] | None = None
        self._removing: asyncio.Future[None] | None = None
        self.busy = False
        """There is something in this queue."""
        self.head: tuple[int, int, ErrorReply | None] | None = None
        """Of the oldest one: its sequence, attempts so far, and why it is not done yet."""

    # -- what others tell --------------------------------------------------------------------------

    def wake(self) -> None:
        """There may be something to deliver."""
        self._more.set()

    def look(self) -> None:
        """See whether the node has come, gone, or begun a new life; a few times a second."""
        record = self._record
        now = (record.incarnation, _may_be_asked(record)) if record is not None else (0, False)
        if now != self._seen:
            self._seen = now
            self._moved.set()
        if self._asking is not None:
            life, gone = self._asking
            is_gone = (
                record is None or record.incarnation != life or record.health is Health.UNREACHABLE
            )
            if is_gone and not gone.done():
                gone.set_result(None)

    @property
    def _record(self) -> NodeRecord | None:
        return self._around.membership.view.get(self.node)

    # -- one after another -------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._more.clear()
            await self._empty()
            self.busy, self.head = False, None
            await self._more.wait()

    async def _empty(self) -> None:
        """While one is being done, the next one is read and the last one removed: whoever finds it
        there after a crash asks its node, which answers with the outcome it has.
        """
        ahead = asyncio.ensure_future(self._next(0))
        try:
            while (waiting := await ahead) is not None:
                ahead = asyncio.ensure_future(self._next(waiting.sequence))
                self.busy = True
                await self._announced(waiting.sequence)
                await self._finish(waiting)
            await self._removed_last()
        finally:
            removing, self._removing = self._removing, None
            await _end(ahead, removing)

    async def _next(self, after: int) -> Waiting | None:
        return await self._records.insist("read", lambda: self._queue.next(self.node, after))

    async def _finish(self, waiting: Waiting) -> None:
        """Return when it is no longer in the queue."""
        item = waiting.item
        if item is None:
            flaw = ErrorReply(code=400, kind="bad_request", message=waiting.flaw)
            log.warning("mesh.queue.unreadable", node=self.node, sequence=waiting.sequence)
            await self._bury(waiting, flaw, attempts=0)
            await self._remove(waiting)
            return
        tries = delivery.begin(item)
        self.head = waiting.sequence, tries.retry, None
        while True:
            decision, error = await self._decide(waiting, item, tries)
            self.head = waiting.sequence, max(tries.retry, error.attempt if error else 0), error
            match decision:
                case None:
                    return  # somebody else took it out
                case delivery.Hold(after_s):
                    await self._pause(after_s)
                case delivery.AskAgain(after_s, tries):
                    await self._pause(after_s)
                case delivery.RetryAttempt(after_s, tries):
                    await self._clock.sleep(after_s)
                case delivery.Done():
                    await self._removed_last()
                    self._removing = asyncio.ensure_future(self._remove(waiting))
                    return
                case delivery.Expire():
                    await self._expire(waiting)
                    return
                case delivery.Bury(why):
                    await self._give_up(waiting, why, tries)
                    return
                case _:
                    assert_never(decision)

    async def _decide(
        self, waiting: Waiting, item: QueueItem, tries: delivery.Tries
    ) -> tuple[
        delivery.Done
        | delivery.Hold
        | delivery.AskAgain
        | delivery.RetryAttempt
        | delivery.Expire
        | delivery.Bury
        | None,
        ErrorReply | None,
    ]:
        """What follows, and what came back if the node was asked."""
        gone = await self._unregistered()
        if gone is not None:
            return delivery.Bury(gone), gone
        now = self._clock.unix_ms()
        late = isinstance(delivery.due(item, now), delivery.Look)
        if late:
            row = await self._row(item)
            decision = delivery.overdue(
                item, now, taken_on=_taken_on(row, item), ended=_ended(row, item)
            )
            if not isinstance(decision, delivery.Deliver):
                return decision, None
        record = self._record
        if record is None or not _may_be_asked(record):
            away = f"node {self.node!r} cannot be asked now" + (
                f": {record.health.value} {record.reason}".rstrip() if record is not None else ""
            )
            left_s = (item.expires - now) / 1000 if item.expires and not late else _LOOK_EVERY_S
            waits = ErrorReply(code=503, kind="unavailable", message=away)
            return delivery.Hold(min(max(left_s, 0.01), _LOOK_EVERY_S)), waits
        there = await self._records.insist("read", lambda: self._queue.read(waiting.sequence))
        if there is None:
            return None, None
        error = await self._ask(waiting, item, tries.retry, record.incarnation, late=late)
        return delivery.judge(tries, error, self._policy), error

    async def _ask(
        self, waiting: Waiting, item: QueueItem, retry: int, life: int, *, late: bool
    ) -> ErrorReply | None:
        """Why the node has not done it; None: it has."""
        request = ActionRequest(
            id=item.id,
            action=item.action,
            params=item.params,
            retry=retry,
            on_behalf=waiting.who if waiting.who != self._bus.identity else "",
            trace=item.trace,
            deadline=0 if late else item.expires,
            mode="queue",
        )
        subject = subjects.act(self.node, item.action, self._bus.identity)
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            pending = self._bus.ask(
                subject, codec.encode(request), responder=self.node, timeout_s=_ASK_S
            )
        except MeshError as error:
            return codec.error_reply(error)
        self._asking = life, gone
        try:
            await asyncio.wait((pending.future, gone), return_when=asyncio.FIRST_COMPLETED)
            if not pending.future.done():
                raise NodeGoneError(f"node {self.node!r} went away")
            return error_in(pending.future.result())
        except MeshError as error:
            return codec.error_reply(error)
        finally:
            self._asking = None
            pending.forget()
            if pending.future.done() and not pending.future.cancelled():
                pending.future.exception()  # seen

    async def _pause(self, seconds: float) -> None:
        """Shorter where the node comes, or begins a new life, meanwhile."""
        self._moved.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._moved.wait()

    # -- ends --------------------------------------------------------------------------------------

    async def _unregistered(self) -> ErrorReply | None:
        """Why nobody will ever run it."""
        if self._record is not None:
            return None
        try:
            await self._around.membership.find(self.node)
        except NotFoundError:
            return codec.error_reply(
                NotFoundError(f"node {self.node!r} is not registered, or was removed")
            )
        except MeshError as error:
            log.warning("mesh.queue.node_unknown", node=self.node, error=str(error))
        return None

    async def _row(self, item: QueueItem) -> HistoryRecord | None:
        await self._records.freshen(_LOOK_EVERY_S)
        return await self._records.insist(
            "looked up", lambda: self._records.row(item.id, self.node)
        )

    async def _expire(self, waiting: Waiting) -> None:
        error = ErrorReply(
            code=504,
            kind="deadline_exceeded",
            message=f"node {self.node!r} was not there in time; nothing ran",
        )
        log.info("mesh.queue.expired", node=self.node, action=waiting.action)
        await self._bury(waiting, error, attempts=0)
        await self._end(waiting, ActionState.EXPIRED, error)
        await self._remove(waiting)

    async def _give_up(self, waiting: Waiting, error: ErrorReply, tries: delivery.Tries) -> None:
        """It goes to the dead letters before the history hears of it: whoever delivers next, should
        this master die in between, does both again.
        """
        row = await self._row(waiting.item) if waiting.item is not None else None
        taken_on = waiting.item is not None and _taken_on(row, waiting.item)
        if taken_on and not error.attempt:
            why = f"{error.message}; whether it took effect is not known"
            error = codec.error_reply(InterruptedActionError(why))
        attempts = max(error.attempt, tries.retry) - tries.before
        await self._bury(waiting, error, attempts=attempts)
        if taken_on and row is not None and not error.attempt:
            await self._end(waiting, ActionState.INTERRUPTED, error, attempt=row.attempt)
        elif not error.attempt and waiting.item is not None and not _ended(row, waiting.item):
            await self._end(waiting, ActionState.FAILED, error)
        await self._remove(waiting)

    async def _end(
        self, waiting: Waiting, state: ActionState, error: ErrorReply, *, attempt: int | None = None
    ) -> None:
        await self._records.insist(
            "recorded", lambda: self._records.ended(waiting, state, error, attempt=attempt)
        )

    async def _bury(self, waiting: Waiting, error: ErrorReply, *, attempts: int) -> None:
        log.warning(
            "mesh.queue.buried",
            node=self.node,
            action=waiting.action,
            id=waiting.item.id if waiting.item is not None else "",
            error=error.message[:500],
        )
        await self._records.insist(
            "buried", lambda: self._records.bury(waiting, error, attempts=attempts)
        )

    async def _removed_last(self) -> None:
        if self._removing is not None:
            await self._removing

    async def _remove(self, waiting: Waiting) -> None:
        await self._records.insist("removed", lambda: self._queue.remove(waiting.sequence))
        self._removed(waiting)


async def _end(*tasks: asyncio.Future[Any] | None) -> None:
    begun = [task for task in tasks if task is not None]
    for task in begun:
        task.cancel()
    await asyncio.gather(*begun, return_exceptions=True)


def _may_be_asked(record: NodeRecord) -> bool:
    return record.status is Status.ACTIVE and record.health in _ASKED


def _taken_on(row: HistoryRecord | None, item: QueueItem) -> bool:
    """Its node has recorded that it accepted it, and not how it ended."""
    return row is not None and row.attempt > item.retry and row.state in _TAKEN_ON


def _ended(row: HistoryRecord | None, item: QueueItem) -> bool:
    """A node, or a master before, has recorded how it ended."""
    if row is None or not row.final or row.attempt <= item.retry:
        return False
    return row.state not in _TAKEN_ON and row.state is not ActionState.QUEUED
