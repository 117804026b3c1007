"""Tells the masters how this caller's calls went: batched, and at once when a breaker changes.

What could not be sent, because the broker is away, is part of the next report: nothing is counted
twice and nothing is lost but what a process takes with it when it is killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from mesh.errors import MeshError, TooLargeError
from mesh.ports import Bus, Clock
from mesh.runtime.call_traces import CallTraces
from mesh.types import BreakerState
from mesh.wire import codec, subjects
from mesh.wire.messages import Outcomes, VerbOutcome

if TYPE_CHECKING:
    from mesh.runtime.peers import Lane

log = structlog.get_logger()

_SOON_S = 0.01
"""After a breaker changed: what changes in the same moment goes along."""
_VERBS_AT_MOST = 500
"""Of one message."""


class Tally:
    """The calls of one verb to one life of a node since the last report."""

    __slots__ = (
        "calls",
        "failures",
        "gone",
        "hedged",
        "latency",
        "pushed_back",
        "refused",
        "retried",
        "told",
    )

    def __init__(self) -> None:
        self.told = True
        """The masters know it all."""
        self.clear()

    def clear(self) -> None:
        """Count from zero."""
        self.calls = self.failures = self.pushed_back = self.gone = self.retried = self.hedged = 0
        self.refused = 0
        self.latency: dict[int, int] = {}
        """Bucket of `mesh.core.latency` → calls."""


class OutcomeReports:
    """The reports of one client. `close` it while the bus is open: what is left is sent then."""

    def __init__(
        self, bus: Bus, clock: Clock, traces: CallTraces, *, connection: str, interval_s: float
    ) -> None:
        """Args:
        bus: Sends.
        clock: Time.
        traces: Go along.
        connection: Tells this client from others of the same identity.
        interval_s: Between two reports, while there is something to tell.
        """
        self._bus = bus
        self._clock = clock
        self._traces = traces
        self._connection = connection
        self._interval_s = interval_s
        self._subject = subjects.outcome(bus.identity)
        self._untold: list[Lane] = []
        self._timer: asyncio.TimerHandle | None = None
        self._hurried = False
        self._closed = False

    def note(self, lane: Lane, *, soon: bool = False) -> None:
        """The tally or the breaker of `lane` has changed."""
        if lane.tally.told:
            lane.tally.told = False
            self._untold.append(lane)
        if self._timer is None or (soon and not self._hurried):
            self._arm(soon=soon)

    def note_trace(self) -> None:
        """There is a trace to tell."""
        if self._timer is None:
            self._arm(soon=False)

    def close(self) -> None:
        """Send what is left, and nothing after it."""
        self._send()
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, *, soon: bool) -> None:
        if self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._hurried = soon
        delay_s = _SOON_S if soon else self._interval_s
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._due)

    def _due(self) -> None:
        self._timer = None
        self._hurried = False
        if not self._send():
            self._arm(soon=False)

    def _send(self) -> bool:
        """Whether all that there was to tell is told."""
        most = _VERBS_AT_MOST
        while self._untold or self._traces.waiting():
            lanes = self._untold[:most]
            report = Outcomes(
                connection=self._connection,
                verbs=[self._outcome(lane) for lane in lanes],
                traces=self._traces.waiting(),
            )
            try:
                self._bus.publish(self._subject, codec.encode(report))
            except TooLargeError as error:
                log.warning("mesh.caller.report_too_large", verbs=len(lanes), error=str(error))
                if self._traces.waiting():  # figures count, stories are nice to have
                    self._traces.sent()
                elif len(lanes) > 1:
                    most = len(lanes) // 2
                else:
                    self._forget(lanes)
                continue
            except MeshError as error:
                log.debug("mesh.caller.report_delayed", error=str(error))
                return False
            self._traces.sent()
            self._forget(lanes)
        return True

    def _forget(self, lanes: Sequence[Lane]) -> None:
        """The first of those that there was to tell of."""
        del self._untold[: len(lanes)]
        for lane in lanes:
            lane.tally.clear()
            lane.tally.told = True

    def _outcome(self, lane: Lane) -> VerbOutcome:
        tally, breaker = lane.tally, lane.breaker
        state, until = BreakerState.CLOSED, 0
        turn = succeeded = failed = probing = 0
        if breaker is not None:
            state, turn = breaker.state, breaker.turn
            succeeded, failed = breaker.probes_succeeded, breaker.probes_failed
            probing = breaker.probing
            if state is BreakerState.OPEN:
                left_s = breaker.open_until - self._clock.monotonic()
                until = self._clock.unix_ms() + round(left_s * 1000)
        return VerbOutcome(
            node=lane.slug,
            incarnation=lane.incarnation,
            verb=lane.verb,
            calls=tally.calls,
            failures=tally.failures,
            pushed_back=tally.pushed_back,
            gone=tally.gone,
            retried=tally.retried,
            hedged=tally.hedged,
            state=state,
            until=until,
            turn=turn,
            probes_succeeded=succeeded,
            probes_failed=failed,
            probing=probing,
            refused=tally.refused,
            latency=tally.latency,
        )
