"""One request to one node, and what its end says: of the node, of the breaker, of trying again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from mesh.core.breaker import Outcome, Permit
from mesh.core.latency import bucket
from mesh.errors import DeadlineExceededError, MeshError, NoRespondersError
from mesh.ports import Bus, Clock, Pending
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


class Attempt:
    """A request under way. Exactly one of `Attempts.read` and `Attempts.drop` ends it."""

    __slots__ = ("began", "lane", "open", "pending", "permit", "token")

    def __init__(self, lane: Lane, permit: Permit | None, began: float) -> None:
        self.lane = lane
        self.permit = permit
        self.token = lane.load.sent(began)
        self.began = began
        """Monotonic seconds."""
        self.open = True
        self.pending: Pending


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

    def begin(
        self, lane: Lane, permit: Permit | None, tail: bytes, now: float, timeout_s: float
    ) -> Attempt:
        """Send a request; its node has `timeout_s` seconds.

        Raises:
            MeshError: Nothing was sent, and nothing of it is left here.
        """
        attempt = Attempt(lane, permit, now)
        deadline = self._clock.unix_ms() + (int(timeout_s * 1000) or 1)
        try:
            attempt.pending = self._bus.ask(
                lane.subject,
                b'{"deadline":%d%b' % (deadline, tail),
                responder=lane.slug,
                timeout_s=timeout_s,
            )
        except BaseException:
            self._free(attempt, now)
            raise
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
        lane.load.returned(attempt.token, now, counts=True)
        tally = lane.tally
        tally.calls += 1
        index = bucket((now - attempt.began) * 1000)
        tally.latency[index] = tally.latency.get(index, 0) + 1
        self._settle(attempt, Outcome.SUCCESS, now)
        return value, now

    def drop(self, attempt: Attempt, now: float) -> None:
        """Nobody waits for this attempt any more; it says nothing against its node, but that it
        takes at least as long as this.
        """
        if not attempt.open:
            return
        attempt.pending.forget()
        future = attempt.pending.future
        if future.done() and not future.cancelled():
            future.exception()  # seen; else asyncio tells of an error that nobody fetched
        known_ms = attempt.lane.load.ewma_ms or 0.0
        self._free(attempt, now, counts=(now - attempt.began) * 1000 > known_ms)

    def _failed(self, attempt: Attempt, error: MeshError) -> None:
        now = self._clock.monotonic()
        lane, tally, kind = attempt.lane, attempt.lane.tally, error.kind
        if kind in _FAILED:
            attempt.open = False
            late = isinstance(error, DeadlineExceededError)
            # One that fails at once is not quick: its time would draw calls to it.
            lane.load.returned(attempt.token, now, counts=late)
            tally.calls += 1
            tally.failures += 1
            if late:
                index = bucket((now - attempt.began) * 1000)
                tally.latency[index] = tally.latency.get(index, 0) + 1
            self._settle(attempt, Outcome.FAILURE, now)
            return
        if kind in _PUSHED_BACK:
            tally.pushed_back += 1
            wait_ms = error.retry_after_ms
            self._peers.away(lane.slug, now, _FULL_S if wait_ms is None else wait_ms / 1000)
        elif kind in GONE:
            tally.gone += kind == "no_responders"
            self._peers.away(lane.slug, now)
        self._free(attempt, now)

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
