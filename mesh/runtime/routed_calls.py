"""One call that any of several replicas can answer: choose, send, repeat elsewhere, hedge.

Every attempt has until the caller's own deadline: a slow replica is not a dead one. When half of
the time is over another one is asked beside it, out of the budget of repetitions, and when half of
the rest is over, another one again. The first answer wins.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from mesh.config import RoutingConfig
from mesh.core.balancer import Balancer
from mesh.core.hedging import Hedging
from mesh.core.retry_budget import RetryBudget
from mesh.core.route_table import refusal
from mesh.core.selection import Candidate, broken, usable
from mesh.errors import (
    CircuitOpenError,
    DeadlineExceededError,
    MeshError,
    OverloadedError,
    UnavailableError,
)
from mesh.ports import Bus, Clock
from mesh.runtime.attempts import ELSEWHERE, GONE, Attempt, Attempts, out_of_time, tail_of
from mesh.runtime.call_traces import CallTraces, Story
from mesh.runtime.outcome_reports import OutcomeReports
from mesh.runtime.peers import Group, Lane, Peers
from mesh.wire.messages import Request

T = TypeVar("T")

_FIRST_PAUSE_S = 0.025
_FULL_RETRY_MS = 50
_EARLY_S = 0.001
"""A timer may come a little before its time."""
_HEDGED = "search"


class _Call(msgspec.Struct, eq=False):
    """What one call has done so far. A Struct is made in a fifth of the time of a class."""

    group: Group
    id: str
    """Of the request."""
    tail: bytes
    """Of the request, all but its deadline."""
    began: float
    """Monotonic seconds, as all times here."""
    give_up: float
    story: Story | None
    prefer: str
    half_at: float = math.inf
    """When to ask another one beside those that still run; inf: never."""
    attempts: int = 0
    tried: tuple[str, ...] = ()
    again: str = ""
    """Why the next attempt is a repetition; empty: it is the first."""


class RoutedCalls:
    """The calls of one client that name no node."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        config: RoutingConfig,
        *,
        peers: Peers,
        attempts: Attempts,
        reports: OutcomeReports,
        traces: CallTraces,
        budget: RetryBudget,
        cancel: Callable[[str, str], None],
        chance: Callable[[], float],
    ) -> None:
        """Args:
        bus: Is there, or not.
        clock: Time.
        config: How many attempts, how many at once.
        peers: What is known of the nodes.
        attempts: Sends.
        reports: Are told of traces.
        traces: Of what was decided.
        budget: Of repetitions.
        cancel: Tells a node that nobody waits for a request any more.
        chance: A number in [0, 1).
        """
        self._bus = bus
        self._clock = clock
        self._config = config
        self._peers = peers
        self._attempts = attempts
        self._reports = reports
        self._traces = traces
        self._budget = budget
        self._cancel = cancel
        self._chance = chance
        self._balancer = Balancer(config.strategy)
        self._encoded: tuple[Request | None, bytes] = (None, b"")
        """The last request and its tail: the same one may be asked again and again."""
        self._hedging = Hedging(config.hedge_quantile)
        self._hedge_budget = RetryBudget(config.hedge_budget, reserve=0)

    def ask(
        self,
        group: Group,
        request: Request,
        kind: type[T],
        timeout_s: float,
        *,
        prefer: str,
        trace: str,
    ) -> Awaitable[tuple[str, T]]:
        """Ask one of a group, and another one where that fails; who answered, and what.

        Args:
            group: Whom.
            request: Its id is what a node is told to stop by.
            kind: Of the answer.
            timeout_s: For all attempts together.
            prefer: Whom to ask first, if that one can be asked; empty: as the strategy says.
            trace: Id that `explain` finds this call by; empty: none.

        Raises:
            CircuitOpenError: Not sent: all of them have failed too often.
            OverloadedError: Not sent: all of them have too much to do for this client already.
            UnavailableError: Not sent: none of them may be asked; names why.
            MeshError: What the last one that was asked answered with, or what became of that.
        """
        if timeout_s <= 0:
            raise out_of_time()
        now = self._clock.monotonic()
        story = Story(trace, group.verb, began=now, at=self._clock.unix_ms()) if trace else None
        if request is not self._encoded[0]:
            self._encoded = (request, tail_of(request))
        tail, give_up = self._encoded[1], now + timeout_s
        call = _Call(group, request.id, tail, now, give_up, story, prefer)
        self._budget.called(now)
        if group.verb == _HEDGED:
            self._hedge_budget.called(now)
        return self._answered(call, kind) if story is None else self._told(call, kind, story)

    async def _told(self, call: _Call, kind: type[T], story: Story) -> tuple[str, T]:
        """`_answered`, and its story is kept."""
        try:
            node, answer = await self._answered(call, kind)
        except MeshError as error:
            self._tell(story, error.kind)
            raise
        except asyncio.CancelledError:
            self._tell(story, "cancelled")
            raise
        story.step(self._clock.monotonic(), node, "answered")
        self._tell(story, "ok")
        return node, answer

    def _tell(self, story: Story, outcome: str) -> None:
        if self._traces.end(story, self._clock.monotonic(), outcome):
            self._reports.note_trace()

    async def _answered(self, call: _Call, kind: type[T]) -> tuple[str, T]:
        now, last = call.began, None
        while True:
            if now < call.give_up and not self._bus.connected:
                await self._bus.until_connected(call.give_up - now)
                now = self._clock.monotonic()
            if now >= call.give_up:
                raise last or out_of_time()
            attempt = self._begin(call, now)
            try:
                try:
                    await attempt.pending.future
                except MeshError:
                    pass  # as `read` tells it
                except BaseException:
                    self._give_up(call, attempt, "nobody waits any more")
                    raise
                if attempt.pending.future.done():
                    return self._read(call, attempt, kind)
                return await self._beside(call, attempt, kind)
            except MeshError as error:
                pause_s = self._pause(call, error)
                if pause_s is None:
                    await self._attempts.judged()  # who asks again at once should meet the breaker
                    raise
                if pause_s:
                    await self._clock.sleep(pause_s)
                now, last = self._clock.monotonic(), error

    def _pause(self, call: _Call, error: MeshError) -> float | None:
        """Seconds until the next attempt; None: there is none."""
        kind, now = error.kind, self._clock.monotonic()
        left_s = call.give_up - now
        if kind not in ELSEWHERE or left_s <= 0 or call.attempts >= self._config.max_attempts:
            return None
        if kind == "disconnected":
            pause_s = _FIRST_PAUSE_S * self._chance()
        elif self._untried(call, now):
            pause_s = 0.0
        elif kind in GONE:
            return None
        elif error.retry_after_ms is not None:
            pause_s = error.retry_after_ms / 1000 * (1 + self._chance() / 4)
        else:
            pause_s = _FIRST_PAUSE_S * 2.0 ** (call.attempts - 1) * (0.5 + self._chance())
        if pause_s >= left_s:
            return None
        if not self._budget.take(now):
            if call.story is not None:
                call.story.step(now, call.tried[-1], "refused", "the retry budget is used up")
            return None
        call.again = kind
        return pause_s

    # -- beside the first ------------------------------------------------------------------------

    async def _beside(self, call: _Call, first: Attempt, kind: type[T]) -> tuple[str, T]:
        """The first answer: `first` has taken so long that another one may be asked as well."""
        running, beaten = [first], False
        now = self._clock.monotonic()
        if now < call.half_at - _EARLY_S and (second := self._another(call, now, hedge=True)):
            running.append(second)
        try:
            while True:
                patience_s = self._patience(call, running)
                futures = [attempt.pending.future for attempt in running]
                await asyncio.wait(futures, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                for attempt in [one for one in running if one.pending.future.done()]:
                    running.remove(attempt)
                    try:
                        answer = self._read(call, attempt, kind)
                    except MeshError as error:
                        if not running or error.kind not in ELSEWHERE:
                            raise
                    else:
                        beaten = True
                        return answer
        finally:
            for attempt in running:
                if call.group.verb == _HEDGED:
                    # Else only the quick ones would be known, and more and more hedged.
                    self._hedging.observed((self._clock.monotonic() - attempt.began) * 1000)
                self._give_up(call, attempt, "nobody waits for it any more", beaten=beaten)

    def _patience(self, call: _Call, running: list[Attempt]) -> float | None:
        """Ask another one as well if it is time to; seconds until the next one's, None: never."""
        now = self._clock.monotonic()
        if now >= call.half_at - _EARLY_S:
            call.half_at = math.inf
            if another := self._another(call, now, hedge=False):
                running.append(another)
                call.half_at = now + (call.give_up - now) / 2
        return None if call.half_at == math.inf else call.half_at - now

    def _another(self, call: _Call, now: float, *, hedge: bool) -> Attempt | None:
        """Ask another one as well, if there is one and the budget has room."""
        found = self._untried(call, now)
        if hedge:  # one that is kept for need is not asked out of impatience
            found = [one for one in found if one.breaker is None or one.breaker.admits(now)]
        elif call.attempts >= self._config.max_attempts:
            return None
        if not found:
            return None
        if not (self._hedge_budget if hedge else self._budget).take(now):
            return None
        index = 0
        if len(found) > 1:
            index = self._balancer.pick([one.load for one in found], now, self._chance).index
        lane = call.group.lanes[found[index].node.slug]
        try:
            attempt = self._send(call, lane, now)
        except MeshError:
            return None  # there is still the first one
        if hedge:
            lane.tally.hedged += 1
        else:
            lane.tally.retried += 1
        if call.story is not None:
            why = f"no answer for {(now - call.began) * 1000:.0f} ms"
            call.story.step(now, lane.slug, "hedged" if hedge else "retried", why)
        return attempt

    def _untried(self, call: _Call, now: float) -> Sequence[Candidate]:
        group = call.group
        self._peers.refresh(group)
        most = self._config.max_in_flight
        return usable(group.candidates, now, max_in_flight=most, tried=call.tried)[0]

    # -- one attempt -----------------------------------------------------------------------------

    def _begin(self, call: _Call, now: float) -> Attempt:
        """Send to the best there is.

        Raises:
            MeshError: Nothing was sent.
        """
        group = call.group
        lane = self._choose(call, now)
        if call.again:
            lane.tally.retried += 1
        if group.askable == 1:
            return self._send(call, lane, now)
        first_s = (call.give_up - now) / 2
        call.half_at = now + first_s
        if group.verb == _HEDGED:
            hedge_s = self._hedging.delay_s()
            if hedge_s is not None and hedge_s < first_s:
                first_s = hedge_s
        return self._send(call, lane, now, first_s)

    def _choose(self, call: _Call, now: float) -> Lane:
        """Whom to ask."""
        group = call.group
        self._peers.refresh(group)
        most = self._config.max_in_flight
        found, skips = usable(group.candidates, now, max_in_flight=most, tried=call.tried)
        if not found and call.tried:
            found, skips = usable(group.candidates, now, max_in_flight=most)
        if not found:
            raise self._nobody(call, now)
        index, rival = 0, -1
        if len(found) > 1:
            slugs = [one.node.slug for one in found] if call.prefer else ()
            if call.prefer in slugs:
                index = slugs.index(call.prefer)
            else:
                index, rival = self._balancer.pick([one.load for one in found], now, self._chance)
        chosen = found[index]
        if call.story is not None:
            for slug, why in skips:
                call.story.step(now, slug, "skipped", why)
            why = self._why(found, index, rival, now)
            what, why = ("retried", f"{call.again}; {why}") if call.again else ("chosen", why)
            call.story.step(now, chosen.node.slug, what, why)
        return group.lanes[chosen.node.slug]

    def _send(self, call: _Call, lane: Lane, now: float, first_s: float = 0.0) -> Attempt:
        breaker = lane.breaker
        # Who is chosen although its breaker admits nobody is there because too many others are out.
        permit = None if breaker is None else breaker.acquire(now) or breaker.exempt()
        attempt = self._attempts.begin(
            lane, permit, call.tail, now, call.give_up - now, first_s=first_s
        )
        call.attempts += 1
        call.tried = (*call.tried, lane.slug)
        return attempt

    def _read(self, call: _Call, attempt: Attempt, kind: type[T]) -> tuple[str, T]:
        slug = attempt.lane.slug
        try:
            answer, now = self._attempts.read(attempt, kind)
        except MeshError as error:
            if call.story is not None:
                now = self._clock.monotonic()
                call.story.step(now, slug, "failed", f"{error.kind}: {error}")
            if call.id and isinstance(error, DeadlineExceededError):
                self._cancel(slug, call.id)
            raise
        if call.group.verb == _HEDGED:
            self._hedging.observed((now - attempt.began) * 1000)
        return slug, answer

    def _give_up(self, call: _Call, attempt: Attempt, why: str, *, beaten: bool = False) -> None:
        now, slug = self._clock.monotonic(), attempt.lane.slug
        self._attempts.drop(attempt, now, beaten=beaten)
        if call.id:
            self._cancel(slug, call.id)
        if call.story is not None:
            call.story.step(now, slug, "cancelled", why)

    # -- in words --------------------------------------------------------------------------------

    def _why(self, found: Sequence[Candidate], index: int, rival: int, now: float) -> str:
        if len(found) == 1:
            return "the only one that can be asked"
        load = found[index].load
        why = f"{self._config.strategy} of {len(found)}: cost {load.cost(now):.3g}"
        if rival >= 0:
            why += f", {found[rival].node.slug} {found[rival].load.cost(now):.3g}"
        return why

    def _nobody(self, call: _Call, now: float) -> MeshError:
        """Why none of the group is asked."""
        verb, candidates = call.group.verb, call.group.candidates
        refused = {one.node.slug: why for one in candidates if (why := refusal(one.node))}
        out = broken(candidates, now)
        for one in out:
            lane = call.group.lanes[one.node.slug]
            lane.tally.refused += 1
            self._reports.note(lane)
        spare = [one for one in candidates if one not in out and one.node.slug not in refused]
        error: MeshError
        if spare:
            error = OverloadedError(
                f"{verb}: as many calls to {_names(spare)} are under way as this client makes at a "
                "time",
                retry_after_ms=_FULL_RETRY_MS,
            )
        elif out:
            opens_in_s = min(one.breaker.retry_after_s(now) for one in out if one.breaker)
            error = CircuitOpenError(
                f"{verb}: calls to {_names(out)} have failed too often; not sent",
                retry_after_ms=max(1, math.ceil(opens_in_s * 1000)),
            )
        else:
            whys = "; ".join(f"{slug}: {why}" for slug, why in refused.items())
            error = UnavailableError(whys or "no such node any more", retry_after_ms=1000)
        if call.story is not None:
            call.story.step(now, "", "refused", str(error))
        return error


def _names(candidates: Sequence[Candidate]) -> str:
    return ", ".join(one.node.slug for one in candidates)
