"""The leading master: detector and shared breakers, and the routes that callers get to see."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from mesh.core import health_events as events
from mesh.core.failure_detector import FailureDetector
from mesh.core.shared_breakers import SharedBreakers
from mesh.types import Health
from mesh.wire.messages import NodeLoad, RouteNode, VerbOutcome
from simulator.nodes import WIRE_S, Answer, Node
from simulator.policies import Policy
from simulator.timeline import Timeline

PUBLISH_S = 0.005
"""From a decision to the callers' tables."""
TICK_S = 0.2
EPOCH_MS = 1_700_000_000_000


class Master:
    """Hears what gets through the broker, which `broker` says."""

    def __init__(self, time: Timeline, policy: Policy, nodes: list[Node]) -> None:
        self.time = time
        self.policy = policy
        self.nodes = {node.slug: node for node in nodes}
        self.broker_up = True
        self.hears = True
        """Else its own connection is deaf, and all others are not."""
        self.alive = True
        self.detector = FailureDetector(policy.health)
        self.board = SharedBreakers(policy.breaker)
        self.routes: dict[str, RouteNode] = {}
        """As decided."""
        self.published: dict[str, RouteNode] = {}
        """As callers have it."""
        self.versions: dict[str, int] = {}
        """Of each shard's published routes."""
        self.listeners: list[Callable[[RouteNode, RouteNode], None]] = []
        self.out_s: dict[str, float] = {}
        """When a node was last taken out of the published table."""
        self.in_s: dict[str, float] = {}
        self.declared: list[tuple[float, str, Health, str]] = []
        self.false_deaths: list[tuple[float, str, str]] = []
        self._due: set[str] = set()
        for node in nodes:
            route = RouteNode(slug=node.slug, health=Health.HEALTHY, incarnation=node.life)
            self.routes[node.slug] = self.published[node.slug] = route
            self.versions[node.shard] = 0
            self.board.lives(node.slug, node.life)
            self._begin_beating(node)
        time.every(policy.health.heartbeat_interval_s, self._echo)
        time.every(TICK_S, lambda: self._tell(events.Tick()), first=0.1)
        time.every(0.02, self._tick_board, first=0.02)

    # -- what is heard ---------------------------------------------------------------------------

    def _begin_beating(self, node: Node) -> None:
        interval = self.policy.health.heartbeat_interval_s
        first = self.time.rng.uniform(0, interval)
        self._beat(node)
        self._tell(events.ProbeAnswered(node.slug, node.life))
        self.time.every(interval, lambda: self._beat(node), first=first)

    def _beat(self, node: Node) -> None:
        if not (node.well and self.broker_up and self.hears):
            return
        node.beats += 1
        lag_s = 3.0 if node.stalled else 0.0
        self._tell(events.HeartbeatReceived(node.slug, node.life, node.beats, lag_s=lag_s))
        route = self.routes[node.slug]
        busy = 1 << (node.busy - 1).bit_length() if node.busy else 0
        if route.load.busy != busy or route.incarnation != node.life:
            if route.incarnation != node.life:
                self.board.lives(node.slug, node.life)
            self._route(node.slug, load=NodeLoad(busy=busy), incarnation=node.life)

    def _echo(self) -> None:
        if self.broker_up and self.hears:
            self._tell(events.BeatEchoed())

    def broker_lost(self) -> None:
        self.broker_up = False
        self._tell(events.BrokerLost())

    def broker_found(self) -> None:
        self.broker_up = True
        self._tell(events.BrokerFound())
        self._echo()

    def disconnected(self, node: Node) -> None:
        """The broker has noticed that a connection of the node ended."""
        self.time.after(WIRE_S, lambda: self._tell(events.ConnectionLost(node.slug)))

    def outcome(self, connection: str, outcome: VerbOutcome) -> None:
        """A caller's report arrives."""
        if not (self.alive and self.broker_up and self.hears):
            return
        if outcome.gone:
            self._tell(events.Doubted(outcome.node))
        if self.policy.shared:
            self.board.heard(connection, connection, outcome, self.unix_ms())

    def unix_ms(self) -> int:
        return EPOCH_MS + round(self.time.now * 1000)

    # -- what is done about it -------------------------------------------------------------------

    def _tell(self, event: events.Event) -> None:
        if not self.alive:
            return
        for effect in self.detector.handle(event, self.time.now):
            match effect:
                case events.ProbeNode(slug):
                    self._probe(self.nodes[slug])
                case events.SetHealth(slug, health, reason):
                    self._declare(slug, health, reason)
                case events.SetBlind():
                    pass

    def _declare(self, slug: str, health: Health, reason: str) -> None:
        self.declared.append((self.time.now, slug, health, reason))
        killed = health is Health.UNREACHABLE and reason in (events.SILENT, events.NOBODY_LISTENS)
        if killed and self.nodes[slug].well:
            self.false_deaths.append((self.time.now, slug, reason))
        self._route(slug, health=health, reason=reason)

    def _probe(self, node: Node) -> None:
        sent = self.time.now
        timeout_s = self.policy.health.probe_timeout_s
        answered: list[Answer] = []

        def heard(answer: Answer) -> None:
            if answered or not (self.broker_up and self.hears):
                return
            answered.append(answer)
            if answer is Answer.NO_RESPONDERS:
                self._tell(events.ProbeFailed(node.slug, no_responders=True))
            else:
                self._tell(events.ProbeAnswered(node.slug, node.life))

        def timed_out() -> None:
            if not answered:
                answered.append(Answer.TIMED_OUT)
                self._tell(events.ProbeFailed(node.slug, no_responders=False))

        def arrive() -> None:
            if not self.broker_up or node.cut_off:
                return
            if not node.running:
                self.time.after(WIRE_S, lambda: heard(Answer.NO_RESPONDERS))
            elif not (node.hung or node.stalled):
                self.time.after(WIRE_S, lambda: heard(Answer.OK))

        self.time.after(WIRE_S, arrive)
        self.time.at(sent + timeout_s, timed_out)

    def _tick_board(self) -> None:
        if self.alive and self.policy.shared:
            for change in self.board.tick(self.unix_ms()):
                self._route(change.node, breakers=self.board.words(change.node))

    def _route(self, slug: str, **changes: object) -> None:
        self.routes[slug] = msgspec.structs.replace(self.routes[slug], **changes)
        if slug not in self._due:
            self._due.add(slug)
            self.time.after(PUBLISH_S, lambda: self._publish(slug))

    def _publish(self, slug: str) -> None:
        self._due.discard(slug)
        if not self.broker_up:
            self.time.after(PUBLISH_S, lambda: self._publish(slug))
            return
        old, new = self.published[slug], self.routes[slug]
        self.published[slug] = new
        self.versions[self.nodes[slug].shard] += 1
        was_in, is_in = (one.health in _ASKED for one in (old, new))
        if was_in != is_in:
            (self.in_s if is_in else self.out_s)[slug] = self.time.now
        for listener in self.listeners:
            listener(old, new)


_ASKED = (Health.HEALTHY, Health.SUSPECT, Health.OVERLOADED)
