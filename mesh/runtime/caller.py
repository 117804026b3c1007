"""One call: the only way a request leaves a client, whatever it asks and whomever."""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import TypeVar

import msgspec
import structlog

from mesh.config import MeshConfig
from mesh.core.breaker import Permit
from mesh.core.retry_budget import RetryBudget
from mesh.core.route_table import RouteTable, refusal
from mesh.errors import (
    CircuitOpenError,
    DisconnectedError,
    MeshError,
    NodeGoneError,
    NoRespondersError,
    OverloadedError,
)
from mesh.ports import Bus, Clock
from mesh.runtime.attempts import NOT_RUN, Attempts, nobody_listens, out_of_time, tail_of
from mesh.runtime.call_traces import CallTraces, Story
from mesh.runtime.outcome_reports import OutcomeReports
from mesh.runtime.peers import Group, Lane, Peers
from mesh.runtime.routed_calls import RoutedCalls
from mesh.wire import codec, subjects
from mesh.wire.messages import CancelRequest, Request

T = TypeVar("T")

log = structlog.get_logger()

request_origin: ContextVar[str] = ContextVar("origin", default="")
"""Network address of whoever the caller speaks for, told to masters for their audit trail; empty:
not known, or the caller speaks for itself.
"""

_MOST_ORIGIN_CHARS = 64
_RETRY_FIRST_S = 0.05
_RETRY_MOST_S = 1.0
_FULL_RETRY_MS = 50


class Caller:
    """Sends requests with a deadline on the wire and reads the one reply."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        config: MeshConfig | None = None,
        *,
        connection: str = "",
        chance: Callable[[], float] | None = None,
    ) -> None:
        """Args:
        bus: Carries them.
        clock: Time.
        config: Of routing and breakers; None: the defaults.
        connection: What the masters know this client by; empty: 96 random bits.
        chance: A number in [0, 1) each time; None: random.
        """
        config = config or MeshConfig()
        self._bus = bus
        self._clock = clock
        self._config = config.routing
        self._chance = chance or random.Random().random  # noqa: S311 (spreads load, guards nothing)
        self.connection = connection or secrets.token_urlsafe(12)
        self._peers = Peers(
            clock, config.breaker, identity=bus.identity, connection=self.connection
        )
        self._traces = CallTraces()
        self._reports = OutcomeReports(
            bus,
            clock,
            self._traces,
            connection=self.connection,
            interval_s=config.routing.outcome_interval_s,
        )
        self._attempts = Attempts(bus, clock, self._peers, self._reports, self._chance)
        self._budget = RetryBudget(config.routing.retry_budget)
        self._routed = RoutedCalls(
            bus,
            clock,
            config.routing,
            peers=self._peers,
            attempts=self._attempts,
            reports=self._reports,
            traces=self._traces,
            budget=self._budget,
            cancel=self.give_up,
            chance=self._chance,
        )

    def adopt(self, table: RouteTable) -> None:
        """Route by this table from now on. What is under way to a node that is gone by it ends."""
        for slug, older_than_s in self._peers.adopt(table).items():
            gone = NodeGoneError(f"node {slug!r} went away", retry_after_ms=1000)
            if ended := self._bus.abandon(slug, gone, older_than_s=older_than_s):
                log.info("mesh.caller.node_gone", node=slug, calls=ended)

    def close(self) -> None:
        """Tell the masters what they have not heard yet. The bus must still be open."""
        self._reports.close()

    # -- to whoever can answer -------------------------------------------------------------------

    @staticmethod
    def group(nodes: Sequence[str], verb: str) -> Group:
        """Nodes any of which can answer `verb`, for `any`; keep it as long as it is true."""
        return Group(nodes, verb)

    def any(
        self,
        group: Group,
        request: Request,
        kind: type[T],
        timeout_s: float,
        *,
        prefer: str = "",
        trace: str | None = None,
    ) -> Awaitable[tuple[str, T]]:
        """Ask one of a group, and another one where that fails: who answered, and what. Only for
        requests that may be sent more than once.

        Args:
            group: Whom and what.
            request: With an id, nodes that need not answer any more are told so.
            kind: Of the answer.
            timeout_s: For all attempts together.
            prefer: Whom to ask first, if that one can be asked.
            trace: Id that `explain` finds this call by; None: the request's.

        Raises:
            CircuitOpenError, OverloadedError, UnavailableError: None of them could be asked.
            DeadlineExceededError: No time is left, or no answer came in time.
            MeshError: What the last one that was asked answered with.
        """
        return self._routed.ask(
            group,
            request,
            kind,
            timeout_s,
            prefer=prefer,
            trace=request.id if trace is None else trace,
        )

    # -- to one node -----------------------------------------------------------------------------

    async def node(
        self, node: str, verb: str, request: Request, kind: type[T], timeout_s: float
    ) -> T:
        """Ask one node, and no other: it is asked whatever its breaker says, and what comes of it
        is not held against it.

        Raises:
            MeshError: What the node answered with, or what became of the request.
        """
        subject = subjects.rpc(node, verb, self._bus.identity)
        return await self._send(subject, node, request, kind, timeout_s)

    def give_up(self, node: str, request_id: str) -> None:
        """Tell a node that nobody waits for that request any more. Nothing is waited for here
        either: a node that does not hear of it stops at the request's deadline.
        """
        subject = subjects.rpc(node, "cancel", self._bus.identity)
        try:
            self._bus.publish(subject, codec.encode(CancelRequest(request=request_id)))
        except MeshError as error:
            log.debug("mesh.caller.cancel_lost", node=node, error=str(error))

    async def action(
        self, node: str, action: str, request: Request, kind: type[T], timeout_s: float
    ) -> T:
        """Run an action; its id makes it safe to ask again when the answer was lost. While the
        broker is away that is done as long as there is time; a node that took nothing on is asked
        again a few times, if the route table has it among the living.

        Raises:
            CircuitOpenError: Not sent: this action has failed there too often.
            NodeGoneError: The node went away: it may or may not have run.
            MeshError: As `node`.
        """
        lane = self._peers.lane(node, f"act.{action}")
        began = self._clock.monotonic()
        story = Story(request.id, lane.verb, began=began, at=self._clock.unix_ms())
        self._budget.called(began)
        try:
            answer = await self._act(lane, tail_of(request), kind, began + timeout_s, story)
        except MeshError as error:
            self._told(story, error.kind)
            raise
        except BaseException:
            self._told(story, "cancelled")
            raise
        story.step(self._clock.monotonic(), node, "answered")
        self._told(story, "ok")
        return answer

    async def _act(self, lane: Lane, tail: bytes, kind: type[T], give_up: float, story: Story) -> T:
        outage_s, attempts = _RETRY_FIRST_S, 0
        while True:
            now = self._clock.monotonic()
            if now < give_up and not self._bus.connected:
                await self._bus.until_connected(give_up - now)
                now = self._clock.monotonic()
                lane = self._peers.lane(lane.slug, lane.verb)  # the node may have a new life
            if give_up <= now:
                raise out_of_time()
            permit = self._admitted(lane, now, story)
            attempts += 1
            if attempts == 1:
                story.step(now, lane.slug, "chosen", "named by the caller")
            try:
                return await self._act_once(lane, permit, tail, kind, timeout_s=give_up - now)
            except DisconnectedError as error:
                pause_s: float | None = outage_s
                outage_s = min(outage_s * 2, _RETRY_MOST_S)
                failure: MeshError = error
            except MeshError as error:
                pause_s = self._act_pause(lane, error, attempts)
                failure = error
            now = self._clock.monotonic()
            story.step(now, lane.slug, "failed", f"{failure.kind}: {failure}")
            await self._attempts.judged()
            if pause_s is None or give_up - now <= pause_s:
                raise failure
            await self._clock.sleep(pause_s)
            lane = self._peers.lane(lane.slug, lane.verb)
            lane.tally.retried += 1
            story.step(self._clock.monotonic(), lane.slug, "retried", failure.kind)

    async def _act_once(
        self,
        lane: Lane,
        permit: Permit | None,
        tail: bytes,
        kind: type[T],
        *,
        timeout_s: float,
    ) -> T:
        now = self._clock.monotonic()
        attempt = self._attempts.begin(lane, permit, tail, now, timeout_s)
        try:
            await attempt.pending.future
        except MeshError:
            pass  # as `read` tells it
        except BaseException:
            self._attempts.drop(attempt, self._clock.monotonic())
            raise
        return self._attempts.read(attempt, kind)[0]

    def _admitted(self, lane: Lane, now: float, story: Story) -> Permit | None:
        """Leave of the breaker, if there is one, to send this now; nothing is awaited in between.

        Raises:
            OverloadedError, CircuitOpenError: Nothing may be sent.
        """
        if lane.load.node.count >= self._config.max_in_flight:
            full = f"{lane.load.node.count} calls of this client are under way there"
            story.step(now, lane.slug, "refused", full)
            raise OverloadedError(f"{lane.slug}: {full}", retry_after_ms=_FULL_RETRY_MS)
        if lane.breaker is None:
            return None
        permit = lane.breaker.acquire(now)
        if permit is None:
            story.step(now, lane.slug, "refused", f"its breaker is open: {lane.breaker.reason}")
            lane.tally.refused += 1
            self._reports.note(lane)
            raise CircuitOpenError(
                f"{lane.verb}: calls to {lane.slug} have failed too often; not sent",
                retry_after_ms=max(1, math.ceil(lane.breaker.retry_after_s(now) * 1000)),
            )
        return permit

    def _act_pause(self, lane: Lane, error: MeshError, attempts: int) -> float | None:
        """Seconds until an action that did not run is asked for again; None: it is not."""
        if error.kind not in NOT_RUN or attempts >= self._config.max_attempts:
            return None
        route = self._peers.route(lane.slug)
        if route is None or refusal(route):
            return None
        if not self._budget.take(self._clock.monotonic()):
            return None
        if error.retry_after_ms is not None and not isinstance(error, NoRespondersError):
            return error.retry_after_ms / 1000 * (1 + self._chance() / 4)
        return _RETRY_FIRST_S * 2.0 ** (attempts - 1) * (0.5 + self._chance())

    def _told(self, story: Story, outcome: str) -> None:
        if story.id and self._traces.end(story, self._clock.monotonic(), outcome):
            self._reports.note_trace()

    # -- to the masters --------------------------------------------------------------------------

    async def master(self, verb: str, request: Request, kind: type[T], timeout_s: float) -> T:
        """Ask any master.

        Raises:
            MeshError: As `node`.
        """
        subject = subjects.master(verb, self._bus.identity)
        if origin := request_origin.get():
            request = msgspec.structs.replace(request, origin=origin[:_MOST_ORIGIN_CHARS])
        return await self._send(subject, "master", request, kind, timeout_s)

    async def _send(
        self, subject: str, responder: str, request: Request, kind: type[T], timeout_s: float
    ) -> T:
        if timeout_s <= 0:
            raise out_of_time()
        deadline = self._clock.unix_ms() + round(timeout_s * 1000)
        payload = codec.encode(msgspec.structs.replace(request, deadline=deadline))
        try:
            reply = await self._bus.request(
                subject, payload, responder=responder, timeout_s=timeout_s
            )
        except NoRespondersError as error:
            raise nobody_listens(responder) from error
        return codec.result_of(reply, kind)
