"""Nodes, and what can be wrong with them."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from mesh.core.queueing import Queueing
from simulator.timeline import Timeline

WIRE_S = 0.00025
"""One way through the broker."""
FAILS_S = 0.001
SERVED = "search"
RETRY_AFTER_S = 0.05


class Answer(enum.Enum):
    OK = enum.auto()
    FAILED = enum.auto()
    NO_RESPONDERS = enum.auto()
    OVERLOADED = enum.auto()
    GONE = enum.auto()
    TIMED_OUT = enum.auto()
    DISCONNECTED = enum.auto()
    """The caller's own connection is gone."""


class _Work(NamedTuple):
    deadline: float
    answer: Callable[[Answer], None]


class Node:
    """A process with its broker connection. Faults are attributes; scripts set them."""

    def __init__(
        self,
        time: Timeline,
        slug: str,
        shard: str,
        *,
        service_ms: float,
        parallel: int,
        queued: int,
        refuses_late: bool = True,
    ) -> None:
        """`refuses_late`: what could not be done before its deadline is refused at once."""
        self.time = time
        self.slug = slug
        self.shard = shard
        self.service_ms = service_ms
        self.parallel = parallel
        self.queued = queued
        self.refuses_late = refuses_late
        self.queueing = Queueing(parallel)
        self.slow = 1.0
        self.failing = False
        self.running = True
        self.hung = False
        self.cut_off = False
        """Nothing gets through, and the broker has not noticed."""
        self.stalled = False
        """Its main loop is blocked; heartbeats come from a thread of their own."""
        self.life = 1
        self.beats = 0
        self.at_work = 0
        self.queue: deque[_Work] = deque()
        self.received = 0

    @property
    def well(self) -> bool:
        """Whether declaring it dead would be a mistake."""
        return self.running and not self.hung and not self.cut_off

    @property
    def busy(self) -> int:
        return self.at_work + len(self.queue)

    # -- requests --------------------------------------------------------------------------------

    def receive(self, deadline: float, answer: Callable[[Answer], None]) -> None:
        """A request has come through the broker; `answer` is called when its answer leaves."""
        if self.cut_off:
            return
        if not self.running:
            answer(Answer.NO_RESPONDERS)
            return
        self.received += 1
        if self.hung or self.stalled:
            self.queue.append(_Work(deadline, answer))
        elif self.at_work >= self.parallel and not self._has_room(deadline):
            answer(Answer.OVERLOADED)
        else:
            self.queue.append(_Work(deadline, answer))
            self._work()

    def _has_room(self, deadline: float) -> bool:
        waiting, left_ms = len(self.queue), (deadline - self.time.now) * 1000
        return waiting < self.queued and (
            not self.refuses_late or self.queueing.in_time(waiting, left_ms, kind=SERVED)
        )

    def _work(self) -> None:
        while self.queue and self.at_work < self.parallel and not (self.hung or self.stalled):
            work = self.queue.popleft()
            if work.deadline <= self.time.now:
                continue  # nobody waits for it any more
            self._begin(work)

    def _begin(self, work: _Work) -> None:
        self.at_work += 1
        failing, life = self.failing, self.life
        took_s = self.service_ms * self.slow * self.time.rng.uniform(0.8, 1.2) / 1000
        took_s = FAILS_S if failing else took_s
        left_s = work.deadline - self.time.now
        late = took_s > left_s  # nobody works past a deadline
        took_s = min(took_s, left_s)

        def end() -> None:
            if life != self.life or not self.running:
                return  # it died with its process
            self.queueing.ended(took_s * 1000, kind=SERVED, cut_short=late)
            self._done(work, failed=failing, late=late)

        self.time.after(took_s, end)

    def _done(self, work: _Work, *, failed: bool, late: bool) -> None:
        self.at_work -= 1
        if self.hung or self.cut_off:
            return
        if not late:
            work.answer(Answer.FAILED if failed else Answer.OK)
        self._work()

    # -- faults ----------------------------------------------------------------------------------

    def crash(self) -> None:
        self.running = False
        self.queue.clear()
        self.at_work = 0

    def start(self) -> None:
        self.running = True
        self.life += 1
        self.beats = 0

    def go_on(self) -> None:
        """No longer hung or stalled."""
        self.hung = self.stalled = False
        self._work()
