"""The queue of one node: its actions go to it one after another, oldest first."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, assert_never

import structlog

from mesh.core import delivery
from mesh.errors import (
    ConflictError,
    InterruptedActionError,
    MeshError,
    NotFoundError,
)
from mesh.ports import ActionQueue, Waiting
from mesh.runtime import queue_rows as rows
from mesh.runtime.parts import Surroundings
from mesh.runtime.queue_asking import Asking
from mesh.runtime.queue_records import QueueRecords
from mesh.types import ActionState, Health, Status
from mesh.wire import codec
from mesh.wire.messages import (
    ErrorReply,
    HistoryRecord,
    NodeRecord,
    QueueItem,
)

log = structlog.get_logger()

_STALE_S = 1.0
"""Longer ago it says nothing that an item was seen in the queue: this master may have slept."""
_NODES_REMEMBER_MS = 6 * 3600 * 1000
"""Nodes answer an id for a day; what is older than this is looked up before it is sent."""
_ASKED = frozenset({Health.HEALTHY, Health.SUSPECT, Health.OVERLOADED})
_LOOK_EVERY_S = 2.0
"""How often a queue is looked at that nobody told of, and a node that cannot be asked."""


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
        self._asking = Asking(node, around.bus)
        self._removing: asyncio.Future[None] | None = None
        self._expiries: dict[int, int] = {}
        """Of what waits here: by its sequence, unix ms after which it is no longer begun."""
        self._soonest = 0
        self.busy = False
        """There is something in this queue."""
        self.head: tuple[int, int, ErrorReply | None] | None = None
        """Of the oldest one: its sequence, attempts so far, and why it is not done yet."""

    # -- what others tell --------------------------------------------------------------------------

    def wake(self, waiting: Waiting | None = None) -> None:
        """There may be something to deliver: this."""
        if waiting is not None and waiting.item is not None and waiting.item.expires:
            self._expiries[waiting.sequence] = waiting.item.expires
            self._soonest = 0
        self._more.set()

    def look(self) -> None:
        """See whether the node has come, gone, or begun a new life; a few times a second."""
        record = self._record
        now = (record.incarnation, _may_be_asked(record)) if record is not None else (0, False)
        if now != self._seen:
            self._seen = now
            self._moved.set()
        self._asking.look(record)

    @property
    def _record(self) -> NodeRecord | None:
        return self._around.membership.view.get(self.node)

    # -- one after another -------------------------------------------------------------------------

    async def run(self) -> None:
        """Until nothing waits."""
        self._more.set()
        while self._more.is_set():
            self._more.clear()
            await self._empty()
            self.busy, self.head = False, None

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
        try:
            if waiting.item is None:
                log.warning("mesh.queue.unreadable", node=self.node, sequence=waiting.sequence)
                if await self._unregistered() is None:
                    flaw = ErrorReply(code=400, kind="bad_request", message=waiting.flaw)
                    await self._bury(waiting, flaw, attempts=0)
                await self._remove(waiting)
            else:
                await self._deliver(waiting, waiting.item)
        except MeshError as error:  # a flaw of its own: those behind it must not wait for ever
            log.error("mesh.queue.thrown_away", sequence=waiting.sequence, error=str(error))  # noqa: TRY400
            await self._remove(waiting)

    async def _deliver(self, waiting: Waiting, item: QueueItem) -> None:
        tries = delivery.begin(item)
        self.head = waiting.sequence, tries.retry, None
        while True:
            decision, error = await self._decide(waiting, item, tries)
            self.head = waiting.sequence, max(tries.retry, error.attempt if error else 0), error
            match decision:
                case None:
                    return  # somebody else took it out
                case delivery.Hold(after_s):
                    await self._expire_behind(waiting)
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
        if not await self._still_there(waiting):
            return None, None
        seen_at = self._clock.monotonic()
        gone = await self._unregistered()
        if gone is not None:
            return delivery.Bury(gone), gone
        now = self._clock.unix_ms()
        late = isinstance(delivery.due(item, now), delivery.Look)
        if late:
            decision = await self._overdue(item, now)
            if not isinstance(decision, delivery.Deliver):
                return decision, None
        record = self._record
        if record is None or not _may_be_asked(record):
            left_s = (item.expires - now) / 1000 if item.expires and not late else _LOOK_EVERY_S
            return delivery.Hold(min(max(left_s, 0.01), _LOOK_EVERY_S)), _away(self.node, record)
        row = await self._row(item) if now - waiting.at > _NODES_REMEMBER_MS else None
        if row is not None and rows.ended(row, item) and row.attempt > tries.retry:
            error = rows.outcome_in(row)
        elif self._clock.monotonic() - seen_at > _STALE_S and not await self._still_there(waiting):
            return None, None
        else:
            error = await self._asking.ask(waiting, item, tries, record.incarnation, late=late)
        return delivery.judge(tries, error, self._policy), error

    async def _still_there(self, waiting: Waiting) -> bool:
        """Whether it was in the queue a moment ago: who takes it out asks its node next."""
        while True:
            began = self._clock.monotonic()
            there = await self._records.insist("read", lambda: self._queue.read(waiting.sequence))
            if there is None:
                return False
            if self._clock.monotonic() - began <= _STALE_S:
                return True

    async def _overdue(
        self, item: QueueItem, now: int
    ) -> delivery.Deliver | delivery.Hold | delivery.Expire | delivery.Done | delivery.Bury:
        row = await self._row(item)
        if row is not None and not rows.is_of(row, item):
            message = f"id {item.id!r} was used for another action, or other parameters"
            return delivery.Bury(codec.error_reply(ConflictError(message)))
        return delivery.overdue(
            item, now, taken_on=rows.taken_on(row, item), ended=rows.ended(row, item)
        )

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
        """What the history has under its id, of whatever action, once the index has it all."""
        while not await self._records.freshen(_LOOK_EVERY_S):
            await self._clock.sleep(_LOOK_EVERY_S)
        return await self._records.insist(
            "looked up", lambda: self._records.row(item.id, self.node)
        )

    async def _expire_behind(self, head: Waiting) -> None:
        """Those that wait behind one that has to wait do not wait longer than they may."""
        now = self._clock.unix_ms()
        if now < self._soonest:
            return
        due = [sequence for sequence, at in self._expiries.items() if at <= now]
        for sequence in due:
            waiting = await self._records.insist("read", partial(self._queue.read, sequence))
            if waiting is None or waiting.item is None:
                del self._expiries[sequence]
            elif sequence != head.sequence:
                decision = await self._overdue(waiting.item, self._clock.unix_ms())
                if isinstance(decision, delivery.Expire):
                    await self._expire(waiting)
                elif not isinstance(decision, delivery.Hold):
                    del self._expiries[sequence]  # when its turn comes
        self._soonest = min(self._expiries.values(), default=0)

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
        item = waiting.item
        row = await self._row(item) if item is not None else None
        taken_on = item is not None and rows.taken_on(row, item)
        if taken_on and not error.attempt:
            why = f"{error.message}; whether it took effect is not known"
            error = codec.error_reply(InterruptedActionError(why))
        attempts = max(error.attempt, tries.retry) - tries.before
        if taken_on or self._record is not None or error.kind != NotFoundError.kind:
            # Who may queue could otherwise flood the dead letters with what nobody can ever run.
            await self._bury(waiting, error, attempts=attempts)
        if taken_on and row is not None and not error.attempt:
            await self._end(waiting, ActionState.INTERRUPTED, error, attempt=row.attempt)
        elif not error.attempt and item is not None and not rows.ended(row, item):
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
        self._expiries.pop(waiting.sequence, None)
        self._removed(waiting)


async def _end(*tasks: asyncio.Future[Any] | None) -> None:
    begun = [task for task in tasks if task is not None]
    for task in begun:
        task.cancel()
    await asyncio.gather(*begun, return_exceptions=True)


def _away(node: str, record: NodeRecord | None) -> ErrorReply:
    why = f": {record.health.value} {record.reason}".rstrip() if record is not None else ""
    return ErrorReply(
        code=503, kind="unavailable", message=f"node {node!r} cannot be asked now{why}"
    )


def _may_be_asked(record: NodeRecord) -> bool:
    return record.status is Status.ACTIVE and record.health in _ASKED
