"""What callers tell of their calls, at a master: breakers that all of them share, figures of the
whole mesh, and why requests went where they went.

Every master hears every report. The leading one decides; the others keep up with what it says, so
that a takeover starts warm.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog
from uuid_utils import uuid7

from mesh.config import BreakerConfig
from mesh.core.call_figures import CallFigures
from mesh.core.rate_limit import RateLimiter
from mesh.core.seldom import Seldom
from mesh.core.shared_breakers import SharedBreakers
from mesh.core.trace_log import TraceLog
from mesh.errors import BadRequestError, InvalidError, MeshError, NotFoundError
from mesh.ports import Audit, Bus, Clock, Message, Subscription, Verb
from mesh.runtime.background import Background
from mesh.runtime.issued_tokens import who
from mesh.types import BreakerState
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    BreakerList,
    BreakersQuery,
    BreakersReset,
    BreakerWord,
    ExplainQuery,
    Explanation,
    NodeRecord,
    Outcomes,
    Request,
    RouteNode,
    VerbFigures,
    VerbOutcome,
)

log = structlog.get_logger()

_TICK_S = 0.05
"""A breaker that callers have opened is open for all of them that soon, and a message later."""
_SWEEP_S = 5.0
_RESET = subjects.event("master", "breakers-reset")
"""Heard by all masters; said by them alone: no node is called `master`."""
_REPORTS_PER_S = 500
"""Of one caller, all of its connections together: two a second of each, and a few at once."""
_RESETS_KEPT = 64
_PLAIN_VERBS = frozenset({"search", "fetch", "ping"})


class BreakerBoard:
    """The breakers, figures and traces of one master. `leading` is set by whoever knows."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        background: Background,
        config: BreakerConfig,
        *,
        get: Callable[[str], NodeRecord | None],
        find: Callable[[str], Awaitable[NodeRecord]],
        audit: Audit,
        on_change: Callable[[], None],
        on_gone: Callable[[str], None],
    ) -> None:
        """Args:
        bus: Where callers are heard.
        clock: Time.
        background: Its owner ends it.
        config: When calls are no longer let through.
        get: The record of a slug, or None: `NodeView.get`.
        find: The record of a slug or id: `Membership.find`.
        audit: Where a reset is written down.
        on_change: `words` has changed.
        on_gone: Nobody listened where a caller asked this node: `Membership.doubt`.
        """
        self._bus = bus
        self._clock = clock
        self._background = background
        self._get = get
        self._find = find
        self._audit = audit
        self._on_change = on_change
        self._on_gone = on_gone
        self._shared = SharedBreakers(config)
        self._figures = CallFigures()
        self._traces = TraceLog()
        self._seldom = Seldom()
        self._swept_at = clock.monotonic()
        self._reports = RateLimiter(_REPORTS_PER_S, 1.0)
        self._own_resets: deque[str] = deque(maxlen=_RESETS_KEPT)
        """The last ones; each comes back once."""
        self._subscriptions: list[Subscription] = []
        self.leading = False
        self.dropped = 0
        """Reports refused for their subject, form or number."""
        self.verbs: Mapping[str, tuple[type[Request], Verb]] = {
            "breakers": (BreakersQuery, self._list),
            "breakers-reset": (BreakersReset, self._reset),
            "explain": (ExplainQuery, self._explain),
        }

    async def start(self) -> None:
        """Hear callers from now on.

        Raises:
            UnavailableError: The broker is away.
        """
        for subject, handler in (
            (f"{subjects.PREFIX}.outcome.*", self._on_outcomes),
            (_RESET, self._on_reset),
        ):
            self._subscriptions.append(await self._bus.subscribe(subject, handler))
        self._background.repeat("breakers", self._round)

    async def stop(self) -> None:
        """Hear no more."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.unsubscribe()

    # -- for the route table and the figures -------------------------------------------------------

    def words(self) -> Mapping[str, dict[str, BreakerWord]]:
        """What callers should know, by node and verb; a word is of the node's present life."""
        told: dict[str, dict[str, BreakerWord]] = {}
        for node in self._shared.nodes():
            if self._know(node) is not None and (words := self._shared.words(node)):
                told[node] = words
        return told

    def follow(self, routes: Sequence[RouteNode]) -> None:
        """Another master leads, and this is what it says. `routes`: of nodes that have changed, or
        of all; one that is not listed stays as it is.
        """
        now_ms = self._clock.unix_ms()
        for route in routes:
            record = self._know(route.slug)
            if record is not None and record.incarnation == route.incarnation:
                self._shared.follow(route.slug, route.breakers, now_ms)

    def figures(self) -> tuple[dict[str, VerbFigures], dict[str, int], int]:
        """Of the last minute: figures by verb, how many breakers are open and half open, and how
        many callers told of calls.
        """
        now = self._clock.monotonic()
        states = self._shared.states()
        breakers = {
            state.value: states[state] for state in (BreakerState.OPEN, BreakerState.HALF_OPEN)
        }
        return self._figures.by_verb(now), breakers, self._figures.callers(now)

    # -- what is heard -----------------------------------------------------------------------------

    def _on_outcomes(self, message: Message) -> None:
        now_ms, now = self._clock.unix_ms(), self._clock.monotonic()
        try:
            _, caller = subjects.parts(message.subject)
            if not self._reports.check(caller, now).allowed:
                raise BadRequestError(f"{caller} tells of its calls too often")
            told = codec.decode(message.data, Outcomes)
        except (MeshError, ValueError) as error:
            self._drop(message, error)
            return
        for outcome in told.verbs:
            self._hear(caller, told.connection, outcome, now_ms, now)
        for trace in told.traces:
            self._traces.add(trace, caller)

    def _hear(
        self, caller: str, connection: str, outcome: VerbOutcome, now_ms: int, now: float
    ) -> None:
        """Of nodes that there are, and of what they offer, or anybody could fill the memory."""
        record = self._know(outcome.node)
        if record is None or not _offers(record, outcome.verb):
            return
        self._figures.add(caller, outcome, now)
        if outcome.incarnation == record.incarnation:
            self._shared.heard(caller, connection, outcome, now_ms)
            if outcome.gone:
                self._on_gone(outcome.node)

    def _know(self, node: str) -> NodeRecord | None:
        """The record of a node; what was told of an earlier life is forgotten."""
        record = self._get(node)
        if record is not None:
            self._shared.lives(node, record.incarnation)
        return record

    def _drop(self, message: Message, error: Exception) -> None:
        self.dropped += 1
        more = self._seldom.turn(self._clock.monotonic())
        if more is not None:
            log.warning(
                "mesh.breakers.message_dropped",
                subject=message.subject[:200],
                error=str(error),
                more_before=more,
            )

    # -- what is decided ---------------------------------------------------------------------------

    async def _round(self) -> None:
        await self._clock.sleep(_TICK_S)
        now = self._clock.monotonic()
        if now - self._swept_at >= _SWEEP_S:
            self._swept_at = now
            self._sweep()
        if not self.leading:
            return
        changes = self._shared.tick(self._clock.unix_ms())
        for node, verb, word in changes:
            log.info(
                "mesh.breaker.changed",
                node=node,
                verb=verb,
                state=word.state.value,
                reason=word.reason,
                until=word.until,
            )
        if changes:
            self._on_change()

    def _sweep(self) -> None:
        """What is over: nodes that are gone, connections that have nothing to tell."""
        for node in self._shared.nodes():
            if self._get(node) is None:
                self._shared.forget(node)
        self._shared.sweep(self._clock.unix_ms())
        self._figures.sweep(self._clock.monotonic())

    # -- what is asked -----------------------------------------------------------------------------

    async def _list(self, query: BreakersQuery, _caller: str) -> BreakerList:
        node = (await self._find(query.node)).slug if query.node else ""
        return BreakerList(breakers=self._shared.list(self._clock.unix_ms(), node=node))

    async def _reset(self, asked: BreakersReset, caller: str) -> BreakerList:
        record = await self._find(asked.node)
        if asked.verb and not _offers(record, asked.verb):
            message = f"{record.slug} offers no {asked.verb[:80]!r}; " + _offered(record)
            raise InvalidError(message, fields={"verb": [message]})
        order = BreakersReset(id=str(uuid7()), node=record.slug, verb=asked.verb)
        self._own_resets.append(order.id)
        self._close(record, asked.verb)
        self._bus.publish(_RESET, codec.encode(order))  # another master may lead
        by = who(asked, caller)
        self._audit.note(
            "breakers-reset",
            actor=by,
            subject=record.slug,
            origin=asked.origin,
            verb=asked.verb or "all",
        )
        log.info("mesh.breaker.reset", node=record.slug, verb=asked.verb or "all", by=by)
        return BreakerList(breakers=self._shared.list(self._clock.unix_ms(), node=record.slug))

    def _on_reset(self, message: Message) -> None:
        try:
            order = codec.decode(message.data, BreakersReset)
        except MeshError as error:
            self._drop(message, error)
            return
        record = self._get(order.node)
        if order.id not in self._own_resets and record is not None:
            self._close(record, order.verb)

    def _close(self, record: NodeRecord, verb: str) -> None:
        self._shared.lives(record.slug, record.incarnation)
        self._shared.reset(record.slug, verb, self._clock.unix_ms())
        self._on_change()

    async def _explain(self, query: ExplainQuery, _caller: str) -> Explanation:
        calls = self._traces.find(query.request)
        if not calls:
            raise NotFoundError(
                f"nothing is known of request {query.request[:80]!r}: masters keep the last "
                f"{self._traces.capacity} calls that callers told of, a moment after they end"
            )
        return Explanation(request=query.request, calls=calls)


def _offers(record: NodeRecord, verb: str) -> bool:
    kind, _, action = verb.partition(".")
    return verb in _PLAIN_VERBS or (
        kind == "act" and any(offered.name == action for offered in record.actions)
    )


def _offered(record: NodeRecord) -> str:
    actions = (f"act.{action.name}" for action in record.actions)
    return "there are: " + ", ".join((*sorted(_PLAIN_VERBS), *sorted(actions)))[:1000]
