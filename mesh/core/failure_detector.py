"""Heartbeat failure detector: events in, effects out.

A node stands in one of four places. New: it beats, but has not answered a probe since it started
(suspect). Up: its beats decide (healthy, stalled, overloaded, draining, or suspect when they stay
out). Down: unreachable. Returned: it was down and beats again; unreachable until it answers a
probe.

The detector trusts silence only while it can hear itself: the master's own heartbeat, coming back
through the broker, is the proof. Without it the detector is blind and declares nothing; when sight
returns, silence is counted from that moment on. A process that was paused itself is covered by the
same rule, since its own echo is then as old as everybody's beats.

Source: Das, Gupta, Motivala, "SWIM", DSN 2002 (suspicion, probes); Dadgar, Phillips, Currey,
"Lifeguard", DSN-W 2018 (doubt yourself before you doubt others).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mesh.config import HealthConfig
from mesh.types import Health

# -- events ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HeartbeatReceived:
    node: str
    incarnation: int
    sequence: int
    lag_s: float = 0.0
    overloaded: bool = False
    draining: bool = False


@dataclass(frozen=True, slots=True)
class ProbeAnswered:
    node: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """`no_responders`: the broker says that nobody listens; else the answer stayed out."""

    node: str
    no_responders: bool


@dataclass(frozen=True, slots=True)
class NodeDraining:
    """The node takes no new work from now on; its heartbeats say so too, a little later."""

    node: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class NodeStopped:
    """The node's goodbye."""

    node: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class NodeKnown:
    """Registered, and last heard (by an earlier master) as `incarnation`; 0: never."""

    node: str
    incarnation: int = 0


@dataclass(frozen=True, slots=True)
class NodeForgotten:
    node: str


@dataclass(frozen=True, slots=True)
class BeatEchoed:
    """The master heard its own heartbeat: the broker delivers."""


@dataclass(frozen=True, slots=True)
class BrokerLost:
    pass


@dataclass(frozen=True, slots=True)
class BrokerFound:
    pass


@dataclass(frozen=True, slots=True)
class Tick:
    pass


Event = (
    HeartbeatReceived
    | ProbeAnswered
    | ProbeFailed
    | NodeDraining
    | NodeStopped
    | NodeKnown
    | NodeForgotten
    | BeatEchoed
    | BrokerLost
    | BrokerFound
    | Tick
)

# -- effects ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProbeNode:
    node: str


@dataclass(frozen=True, slots=True)
class SetHealth:
    node: str
    health: Health
    reason: str


@dataclass(frozen=True, slots=True)
class SetBlind:
    blind: bool


Effect = ProbeNode | SetHealth | SetBlind

# -- reasons, as people read them ------------------------------------------------------------------

NEVER_HEARD = "never heard"
NOT_HEARD_YET = "not heard yet"
STARTED = "started; its answer to a probe is awaited"
RETURNED = "back; its answer to a probe is awaited"
BEATS_MISSING = "heartbeats stay out"
SILENT = "no sign of life"
NOBODY_LISTENS = "nobody listens"
STOPPED = "stopped"
LAGGING = "its main loop is stalled"
OVERLOADED = "it has as much work as it takes"
DRAINING = "it takes no new work"


_NEVER = float("-inf")


class _Standing(enum.Enum):
    NEW = enum.auto()
    RETURNED = enum.auto()
    UP = enum.auto()
    DOWN = enum.auto()


_UNANSWERED = {
    _Standing.NEW: (Health.SUSPECT, STARTED),
    _Standing.RETURNED: (Health.UNREACHABLE, RETURNED),
}


@dataclass(slots=True)
class _Node:
    incarnation: int
    standing: _Standing
    why_down: str = ""
    sequence: int = -1
    beat_at: float = _NEVER
    answered_at: float = _NEVER
    stopped: bool = False
    stalled: bool = False
    overloaded: bool = False
    draining: bool = False
    doubted: bool = False
    """Only a probe can tell more, and one has been asked for."""
    probed_at: float = _NEVER
    told: tuple[Health, str] = (Health.UNREACHABLE, "")
    """The last health that was declared."""


class FailureDetector:
    """All nodes of one master. Not thread-safe: one event loop.

    `now` is always monotonic seconds of one clock.
    """

    def __init__(self, config: HealthConfig) -> None:
        """Starts blind: nothing is known before the first echo."""
        interval_s = config.heartbeat_interval_s
        self._suspect_s = config.suspect_after_intervals * interval_s
        self._unreachable_s = config.unreachable_after_intervals * interval_s
        self._stalled_lag_s = config.stalled_lag_s
        self._probe_again_s = interval_s
        self._nodes: dict[str, _Node] = {}
        self._broker_lost = False
        self._echoed_at = _NEVER
        self._sighted_since = _NEVER
        self.blind = True

    def beats(self, node: str, now: float) -> bool:
        """Whether heartbeats of the node's current life come in: the ones worth a routine ping."""
        known = self._nodes.get(node)
        return (
            known is not None and not known.stopped and self._beat_age(known, now) < self._suspect_s
        )

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event and say what to do about it, in this order."""
        effects: list[Effect] = []
        if not self.blind and now - self._echoed_at > self._suspect_s:
            self._see(sighted=False, now=now, effects=effects)
        match event:
            case BeatEchoed() | BrokerLost() | BrokerFound():
                self._look(event, now, effects)
            case NodeKnown(slug, incarnation):
                why = NOT_HEARD_YET if incarnation else NEVER_HEARD
                told = (Health.UNREACHABLE, why)
                known = _Node(incarnation, _Standing.DOWN, why_down=why, told=told)
                self._nodes.setdefault(slug, known)
            case NodeForgotten(slug):
                self._nodes.pop(slug, None)
            case Tick():
                for slug, node in self._nodes.items():
                    self._settle(slug, node, now, effects, tick=True)
            case _:
                changed = self._hear(event, now)
                if changed is not None:
                    self._settle(event.node, changed, now, effects)
        return effects

    # -- sight ---------------------------------------------------------------------------------

    def _look(
        self, event: BeatEchoed | BrokerLost | BrokerFound, now: float, effects: list[Effect]
    ) -> None:
        match event:
            case BrokerLost():
                self._broker_lost = True
                self._see(sighted=False, now=now, effects=effects)
            case BrokerFound():
                self._broker_lost = False  # sight returns with the first echo, not before
            case BeatEchoed():
                if not self._broker_lost:
                    self._echoed_at = now
                    self._see(sighted=True, now=now, effects=effects)

    def _see(self, *, sighted: bool, now: float, effects: list[Effect]) -> None:
        if self.blind is not sighted:
            return
        self.blind = not sighted
        effects.append(SetBlind(self.blind))
        if sighted:
            self._sighted_since = now
            for slug, node in self._nodes.items():
                self._settle(slug, node, now, effects)

    # -- what an event changes -----------------------------------------------------------------

    def _hear(
        self,
        event: HeartbeatReceived | ProbeAnswered | ProbeFailed | NodeDraining | NodeStopped,
        now: float,
    ) -> _Node | None:
        """Apply a node's event; None if it changes nothing (stale, or about nobody we know)."""
        match event:
            case HeartbeatReceived():
                return self._beat(event, now)
            case ProbeFailed(slug, no_responders):
                return self._failed(slug) if no_responders and not self.blind else None
            case ProbeAnswered(slug, incarnation):
                node = self._current(slug, incarnation) if slug in self._nodes else None
                if node is not None:
                    node.standing, node.answered_at = _Standing.UP, now
                return node
            case NodeDraining(slug, incarnation):
                node = self._current(slug, incarnation)
                if node is not None:
                    node.draining = True
                return node
            case NodeStopped(slug, incarnation):
                node = self._current(slug, incarnation)
                if node is not None:
                    node.stopped = True
                    node.standing, node.why_down = _Standing.DOWN, STOPPED
                return node

    def _failed(self, slug: str) -> _Node | None:
        node = self._nodes.get(slug)
        if node is None or node.standing is _Standing.DOWN:
            return None
        node.standing, node.why_down = _Standing.DOWN, NOBODY_LISTENS
        return node

    def _beat(self, event: HeartbeatReceived, now: float) -> _Node | None:
        node = self._current(event.node, event.incarnation)
        if node is None or event.sequence <= node.sequence:
            return None
        if node.standing is _Standing.DOWN and node.why_down != NOBODY_LISTENS:
            node.standing = _Standing.RETURNED
        node.sequence = event.sequence
        node.beat_at = now
        node.stalled = event.lag_s > self._stalled_lag_s
        node.overloaded = event.overloaded
        node.draining = event.draining
        return node

    def _current(self, slug: str, incarnation: int) -> _Node | None:
        """The node, made anew if this is a later life; None for a life that is over."""
        node = self._nodes.get(slug)
        if node is None or incarnation > node.incarnation:
            life = _Node(incarnation, _Standing.NEW)
            if node is not None:
                life.told = node.told
            self._nodes[slug] = life
            return life
        return node if incarnation == node.incarnation and not node.stopped else None

    # -- what is to be done about it -----------------------------------------------------------

    def _settle(
        self, slug: str, node: _Node, now: float, effects: list[Effect], *, tick: bool = False
    ) -> None:
        if self.blind:
            return
        if node.standing is not _Standing.DOWN and self._life_age(node, now) >= self._unreachable_s:
            node.standing, node.why_down = _Standing.DOWN, SILENT
        verdict = self._verdict(node, now)
        if verdict != node.told:
            node.told = verdict
            effects.append(SetHealth(slug, *verdict))
        doubted = self._doubted(node, now)
        due = tick and now - node.probed_at >= self._probe_again_s
        if doubted and (due or not node.doubted):
            node.probed_at = now
            effects.append(ProbeNode(slug))
        node.doubted = doubted

    def _verdict(self, node: _Node, now: float) -> tuple[Health, str]:
        if node.standing is _Standing.DOWN:
            return Health.UNREACHABLE, node.why_down
        if node.standing is not _Standing.UP:
            return _UNANSWERED[node.standing]
        for applies, health, reason in (
            (self._beat_age(node, now) > self._suspect_s, Health.SUSPECT, BEATS_MISSING),
            (node.draining, Health.DRAINING, DRAINING),
            (node.stalled, Health.STALLED, LAGGING),
            (node.overloaded, Health.OVERLOADED, OVERLOADED),
        ):
            if applies:
                return health, reason
        return Health.HEALTHY, ""

    def _doubted(self, node: _Node, now: float) -> bool:
        """Whether only a probe can tell more: worth one at once, and again every interval."""
        match node.standing:
            case _Standing.NEW | _Standing.RETURNED:
                return True
            case _Standing.UP:
                return self._beat_age(node, now) > self._suspect_s
            case _Standing.DOWN:  # it beats, but nobody listens
                return not node.stopped and self._beat_age(node, now) < self._unreachable_s

    def _beat_age(self, node: _Node, now: float) -> float:
        """Seconds without a heartbeat that the detector would have heard."""
        if node.beat_at == _NEVER:
            return float("inf")
        return now - max(node.beat_at, self._sighted_since)

    def _life_age(self, node: _Node, now: float) -> float:
        """The same, where an answered probe is a sign of life too."""
        return now - max(node.beat_at, node.answered_at, self._sighted_since)
