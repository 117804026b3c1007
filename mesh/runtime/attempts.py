"""One request to one node, and what its end says: of the node, of the breaker, of trying again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import msgspec

from mesh.core.breaker import Outcome, Permit, had_its_time
from mesh.core.latency import bucket
from mesh.errors import DeadlineExceededError, MeshError, NoRespondersError
from mesh.ports import Bus, Clock, Pending
from mesh.runtime.background import Background
from mesh.runtime.outcome_reports import OutcomeReports
from mesh.runtime.peers import Lane, Peers
from mesh.wire import codec
from mesh.wire.messages import Request

T = TypeVar("T")

NOT_RUN = frozenset({"no_responders", "overloaded", "draining"})
"""Kinds of errors after which nothing of the request was done."""
GONE = frozenset({"no_responders", "node_gone", "draining"})
"""Kinds of errors of a node that does not work any more: only another one helps."""
_FAILED = frozenset({"internal", "unreadable_reply", "unavailable", "deadline_exceeded"})
"""Kinds of errors that the node is to blame for. A refusal of what was wrong is none, nor is one
for want of room, and who is not there any more is the business of the route table.
"""
_PUSHED_BACK = frozenset({"overloaded", "draining"})
ELSEWHERE = _FAILED | _PUSHED_BACK | GONE | {"disconnected"}
"""Kinds of errors that the same request may not meet again."""

_FULL_S = 0.25
"""How long who has no place for more is spared, where it does not say."""
_PONG_S = 0.05
"""How long the broker has to say that it is there."""


def tail_of(request: Request) -> bytes:
    """A request all but its deadline, which comes first: encoded once, however often it is sent."""
    if request.deadline:
        request = msgspec.structs.replace(request, deadline=0)
    encoded = codec.encode(request)
    return b"}" if encoded == b"{}" else b"," + encoded[1:]


def out_of_time() -> DeadlineExceededError:
    """For who asks with no time to wait, or a deadline that has passed."""
    message = "no time is left for this request"
    return DeadlineExceededError(message, fields={"deadline": ["must be in the future"]})


def nobody_listens(responder: str) -> NoRespondersError:
    """In words for whoever asked `responder`."""
    who = "no master answers" if responder == "master" else f"node {responder!r} is away"
    return NoRespondersError(f"{who}: nobody listens there", retry_after_ms=1000)


class Attempt(msgspec.Struct, eq=False):
    """A request under way. Exactly one of `Attempts.read` and `Attempts.drop` ends it."""

    lane: Lane
    permit: Permit | None
    began: float
    """Monotonic seconds."""
    token: int
    """Of the lane's load."""
    pending: Pending
    open: bool = True


class Attempts:
    """Begins and ends the attempts of one client."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        peers: Peers,
        reports: OutcomeReports,
        chance: Callable[[], float],
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._peers = peers
        self._reports = reports
        self._chance = chance
        self._background = Background(clock)
        self._overdue: list[tuple[Attempt, float]] = []
        """Whose time was up, and when; nobody knows yet whether that is to blame on the node."""
        self._judged = asyncio.Event()
        self._judged.set()
        self._mute_at = float("-inf")
        """When the broker was last found silent (monotonic s)."""

    def begin(
        self,
        lane: Lane,
        permit: Permit | None,
        tail: bytes,
        now: float,
        timeout_s: float,
        *,
        first_s: float = 0.0,
    ) -> Attempt:
        """Send a request; its node has `timeout_s` seconds. `first_s`: as `Bus.ask` has it.

        Raises:
            MeshError: Nothing was sent, and nothing of it is left here.
        """
        deadline = self._clock.unix_ms() + (int(timeout_s * 1000) or 1)
        try:
            pending = self._bus.ask(
                lane.subject,
                b'{"deadline":%d%b' % (deadline, tail),
                responder=lane.slug,
                timeout_s=timeout_s,
                first_s=first_s,
            )
        except BaseException:
            if permit is not None and lane.breaker is not None:
                lane.breaker.settle(permit, Outcome.IGNORED, now, 0.0)
            raise
        attempt = Attempt(lane, permit, now, lane.load.sent(now), pending)
        if lane.breaker is not None and lane.breaker.probing:
            self._reports.note(lane)  # who judges the probes should know of those that still run
        return attempt

    def read(self, attempt: Attempt, kind: type[T]) -> tuple[T, float]:
        """The answer of an attempt whose future is done, and the time (monotonic s).

        Raises:
            MeshError: What the node answered with, or what became of the request.
        """
        lane = attempt.lane
        attempt.pending.forget()
        try:
            value = codec.result_of(attempt.pending.future.result(), kind)
        except MeshError as error:
            self._failed(attempt, error)
            if type(error) is NoRespondersError:
                raise nobody_listens(lane.slug) from error
            raise
        except BaseException:
            self._free(attempt, self._clock.monotonic())
            raise
        now = self._clock.monotonic()
        attempt.open = False
        lane.load.answered(attempt.token, now)
        tally = lane.tally
        tally.calls += 1
        index = bucket((now - attempt.began) * 1000)
        tally.latency[index] = tally.latency.get(index, 0) + 1
        self._settle(attempt, Outcome.SUCCESS, now)
        return value, now

    def drop(self, attempt: Attempt, now: float, *, beaten: bool = False) -> None:
        """Nobody waits for this attempt any more; it says nothing against its node, but that it
        takes at least as long as this. `beaten`, another node has answered meanwhile: then one
        that had its time has failed.
        """
        if not attempt.open:
            return
        attempt.pending.forget()
        future = attempt.pending.future
        if future.done() and not future.cancelled():
            future.exception()  # seen; else asyncio tells of an error that nobody fetched
        load = attempt.lane.load
        if beaten and self._had_its_time(attempt, now):
            attempt.open = False
            load.failed(attempt.token, now)
            self._judge(attempt, now, now)  # the broker has brought the other's answer
        else:
            known_ms = load.ewma_ms or 0.0
            self._free(attempt, now, counts=(now - attempt.began) * 1000 > known_ms)

    def _failed(self, attempt: Attempt, error: MeshError) -> None:
        now = self._clock.monotonic()
        lane, tally, kind = attempt.lane, attempt.lane.tally, error.kind
        if kind in _FAILED:
            attempt.open = False
            late = isinstance(error, DeadlineExceededError)
            if late and not self._had_its_time(attempt, now):
                lane.load.returned(attempt.token, now, counts=True)
            else:
                lane.load.failed(attempt.token, now)
            if not late:
                tally.calls += 1
                tally.failures += 1
                self._settle(attempt, Outcome.FAILURE, now)
            elif attempt.pending.future.exception() is None:
                self._judge(attempt, now, now)  # it is the node that says so
            else:
                self._suspect(attempt, now)
            return
        if kind in _PUSHED_BACK:
            tally.pushed_back += 1
            wait_ms = error.retry_after_ms
            self._peers.away(lane.slug, now, _FULL_S if wait_ms is None else wait_ms / 1000)
        elif kind in GONE:
            tally.gone += kind == "no_responders"
            self._peers.away(lane.slug, now)
        self._free(attempt, now)

    # -- no answer in time -------------------------------------------------------------------------

    def _suspect(self, attempt: Attempt, now: float) -> None:
        """No answer came: of the node, or of a broker that hangs, for which no node is to blame."""
        self._overdue.append((attempt, now))
        if self._judged.is_set():
            self._judged.clear()
            self._background.spawn("ask the broker", self._ask_broker())

    async def judged(self) -> None:
        """Return when breakers know of every attempt that was late so far: at once, or after a
        round trip to the broker, or after 50 ms of its silence.
        """
        await self._judged.wait()

    async def _ask_broker(self) -> None:
        """Once for all that were late together."""
        reads, there = self._bus.reads, False
        try:
            await self._bus.flush(timeout_s=_PONG_S)
            there = True
        except MeshError:
            there = self._bus.connected and self._bus.reads != reads
        finally:
            self._judged.set()
            now = self._clock.monotonic()
            if not there:
                self._mute_at = now
            overdue, self._overdue = self._overdue, []
            for attempt, late_at in overdue:
                self._judge(attempt, late_at, now)

    def _judge(self, attempt: Attempt, late_at: float, now: float) -> None:
        """A late attempt counts against its node, unless it was its caller who did not wait; or the
        broker was silent while it ran: then nobody can tell, also where the broker has come to
        since.
        """
        if attempt.began < self._mute_at or not self._had_its_time(attempt, late_at):
            self._settle(attempt, Outcome.IGNORED, now)
            return
        tally = attempt.lane.tally
        tally.calls += 1
        tally.failures += 1
        index = bucket((late_at - attempt.began) * 1000)
        tally.latency[index] = tally.latency.get(index, 0) + 1
        self._settle(attempt, Outcome.FAILURE, now)

    @staticmethod
    def _had_its_time(attempt: Attempt, now: float) -> bool:
        return had_its_time((now - attempt.began) * 1000, attempt.lane.load.usual_ms)

    # -- ends --------------------------------------------------------------------------------------

    def _free(self, attempt: Attempt, now: float, *, counts: bool = False) -> None:
        attempt.open = False
        attempt.lane.load.returned(attempt.token, now, counts=counts)
        self._settle(attempt, Outcome.IGNORED, now)

    def _settle(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        lane, permit = attempt.lane, attempt.permit
        changed = (
            permit is not None
            and lane.breaker is not None
            and lane.breaker.settle(permit, outcome, now, self._chance())
        )
        if changed or lane.tally.told:
            self._reports.note(lane, soon=changed)
