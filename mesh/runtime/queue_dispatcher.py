"""Delivers what waits in the durable queue, as a part of the leading master.

A master pushes, node by node; docs/adr/0018-durable-queue.md says why. Every master reads what
comes into the queue, so that each can say what waits; the leader tells the history, and delivers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import structlog

from mesh.core.backoff import Backoff, BackoffPolicy
from mesh.errors import MeshError
from mesh.ports import ActionIndex, ActionQueue, History, Message, Subscription, Verb, Waiting
from mesh.runtime.background import Background
from mesh.runtime.parts import Surroundings
from mesh.runtime.queue_lane import Lane
from mesh.runtime.queue_places import Places
from mesh.runtime.queue_records import QueueRecords, record_of
from mesh.runtime.queue_verbs import QueueVerbs
from mesh.types import ActionState
from mesh.wire import subjects
from mesh.wire.messages import HistoryRecord, Request

log = structlog.get_logger()

_POLL_S = 2.0
_FIND_S = 1.0
_PAUSE_AFTER_FAILURE_S = 1.0
_WATCH_S = 0.05
_BATCH = 64
_RETRY = BackoffPolicy(first_s=0.1, limit_s=2.0)


class QueueDispatcher:
    """The queue's part of a master."""

    def __init__(
        self, around: Surroundings, queue: ActionQueue, index: ActionIndex, history: History
    ) -> None:
        """Args:
        around: Of the master.
        queue: Where actions wait.
        index: What is known of actions.
        history: What is told of them.
        """
        self._around = around
        self._clock = around.clock
        self._queue = queue
        self._records = QueueRecords(queue, history, index, around.clock)
        self._places = Places(queue)
        self._lanes: dict[str, Lane] = {}
        self._term: Background | None = None
        """What runs while this master leads."""
        self._wake = asyncio.Event()
        self._moved = asyncio.Condition()
        self._backoff = Backoff(_RETRY)
        self._cursor = 0
        self._announced = 0
        self._prepared = False
        self._subscription: Subscription | None = None
        verbs = QueueVerbs(
            around,
            queue,
            self._records,
            self._places,
            head_of=lambda node: lane.head if (lane := self._lanes.get(node)) else None,
        )
        self.verbs: Mapping[str, tuple[type[Request], Verb]] = verbs.verbs

    async def start(self) -> None:
        """Hear of what comes into the queue."""
        self._subscription = await self._around.bus.subscribe(subjects.QUEUE_SUBJECTS, self._heard)
        self._around.background.repeat("queue-read", self._round)

    async def stop(self) -> None:
        """Deliver no more."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
        term, self._term = self._term, None
        if term is not None:
            await term.stop()

    def lead(self, epoch: int) -> None:
        """Deliver from now on, whatever another master has begun."""
        log.info("mesh.queue.delivering", epoch=epoch)
        self._term = Background(self._clock)
        self._lanes = {}
        self._cursor = self._announced = 0
        self._term.repeat("queue-watch", self._watch)
        self._wake.set()

    def follow(self) -> None:
        """Deliver no more: another master does."""
        term, self._term = self._term, None
        self._lanes = {}
        if term is not None:
            self._around.background.spawn("queue-end", term.stop())

    async def find(self, action_id: str, node: str = "") -> HistoryRecord | None:
        """An action that waits in the queue, of a node, or (empty) of any, as the history would
        have it.

        Raises:
            UnavailableError: The queue cannot be read.
        """
        for waiting in await self._places.find(action_id, node, within_s=_FIND_S):
            return record_of(waiting, ActionState.QUEUED, waiting.at)
        return None

    # -- what comes in -----------------------------------------------------------------------------

    def _heard(self, _message: Message) -> None:
        self._wake.set()  # a hint: what counts is what the stream says

    async def _round(self) -> None:
        self._wake.clear()
        try:
            if not self._prepared:
                await self._queue.prepare()
                self._prepared = True
            more = await self._take_in()
            if not more and self._term is not None:
                await self._look_everywhere()
        except MeshError as error:
            self._prepared = False  # the broker may have come back without its store
            delay_s = self._backoff.died(0.0)
            log.warning("mesh.queue.read_failed", error=str(error), retry_s=delay_s)
            await self._clock.sleep(delay_s)
            return
        self._backoff = Backoff(_RETRY)
        if not more:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._wake.wait()

    async def _take_in(self) -> bool:
        """Read on, a batch; whether there may be more at once."""
        term, batch = self._term, list[Waiting]()
        cursor = self._cursor
        while len(batch) < _BATCH:
            waiting = await self._queue.next_of_all(cursor)
            if waiting is None:
                break
            batch.append(waiting)
            cursor = waiting.sequence
            self._places.read(waiting)
        if term is not None and batch:
            await asyncio.gather(*(self._records.announce(waiting) for waiting in batch))
        if term is not self._term:
            return True  # whoever leads now begins at the start
        self._cursor = cursor
        if term is not None:
            async with self._moved:
                self._announced = cursor
                self._moved.notify_all()
            for waiting in batch:
                self._lane(waiting.node).wake(waiting)
        return len(batch) == _BATCH

    async def _look_everywhere(self) -> None:
        """The safety net: no lane forgets what is in its queue."""
        for node in await self._queue.waiting():
            lane = self._lane(node)
            if not lane.busy:
                lane.wake()

    async def _until_announced(self, sequence: int) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: self._announced >= sequence)

    # -- who delivers ------------------------------------------------------------------------------

    def _lane(self, node: str) -> Lane:
        lane = self._lanes.get(node)
        if lane is None:
            lane = self._lanes[node] = Lane(
                node,
                self._around,
                self._queue,
                self._records,
                announced=self._until_announced,
                removed=self._places.gone,
            )
            if self._term is not None:
                self._term.spawn(f"queue-of-{node}", self._deliver(lane))
        return lane

    async def _deliver(self, lane: Lane) -> None:
        """Until nothing waits for its node."""
        while True:
            try:
                await lane.run()
            except Exception:
                log.exception("mesh.queue.lane_failed", node=lane.node)
                await self._clock.sleep(_PAUSE_AFTER_FAILURE_S)
                continue
            if self._lanes.get(lane.node) is lane:
                del self._lanes[lane.node]
            return

    async def _watch(self) -> None:
        for lane in self._lanes.values():
            if lane.busy:
                lane.look()
        await self._clock.sleep(_WATCH_S)
