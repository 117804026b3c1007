"""Failure detector: events in, effects out.

A node stands in one of five places. New: it beats, but has not answered a probe since it started
(suspect, unless it drains or stalls). Up: its beats decide (draining, stalled, suspect when they
stay out, overloaded, or healthy: the first that applies). Down: unreachable. Returned: it was down
and beats again; unreachable until it answers a probe. Waiting: it answers, but fell too often
lately; unreachable for a while (see `flapping`).

What others notice (the broker: a connection of it is gone; callers: nobody listened) is a reason to
ask, never a verdict: the node is probed at once, and the broker's word that nobody listens to the
probe is what counts. So is it when beats stay out. A probe that merely times out proves nothing: a
node whose main loop is blocked beats on and is stalled, not dead.

The detector trusts silence only while it can hear itself: the master's own heartbeat, coming back
through the broker, is the proof. Without it the detector is blind and declares nothing; when sight
returns, silence is counted from that moment on. A process that was paused itself is covered by the
same rule, since its own echo is then as old as everybody's beats. After an outage of the broker
everybody has to log in again: for a while nodes that are not back yet are neither silent nor
unheard for sure.

Source: Das, Gupta, Motivala, "SWIM", DSN 2002 (suspicion, probes); Dadgar, Phillips, Currey,
"Lifeguard", DSN-W 2018 (doubt yourself before you doubt others).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mesh.config import HealthConfig
from mesh.core.flapping import Falls
from mesh.core.health_events import (
    BEATS_MISSING,
    DRAINING,
    FLAPPING,
    LAGGING,
    NEVER_HEARD,
    NOBODY_LISTENS,
    NOT_HEARD_YET,
    OVERLOADED,
    RETURNED,
    SILENT,
    STARTED,
    STOPPED,
    BeatEchoed,
    BrokerFound,
    BrokerLost,
    ConnectionLost,
    Doubted,
    Effect,
    Event,
    HeartbeatReceived,
    NodeDraining,
    NodeForgotten,
    NodeKnown,
    NodeStopped,
    ProbeAnswered,
    ProbeFailed,
    ProbeNode,
    SetBlind,
    SetHealth,
    Tick,
)
from mesh.types import Health

_NEVER = float("-inf")
_WELL = (Health.HEALTHY, "")


class _Standing(enum.Enum):
    NEW = enum.auto()
    RETURNED = enum.auto()
    UP = enum.auto()
    DOWN = enum.auto()
    WAITING = enum.auto()


_AT_WORK = (_Standing.UP, _Standing.WAITING)
"""It answered: losing it now is a fall."""


@dataclass(slots=True)
class _Node:
    incarnation: int
    standing: _Standing
    falls: Falls
    fell: bool = False
    """Since it was last at work in this life; that was no goodbye, as far as is known."""
    why_down: str = ""
    rejoin_at: float = _NEVER
    """Waiting: until then."""
    why_waiting: str = ""
    sequence: int = -1
    beat_at: float = _NEVER
    answered_at: float = _NEVER
    stopped: bool = False
    stalled: bool = False
    overloaded: bool = False
    draining: bool = False
    drained_after: int = -1
    """Heartbeats up to this one may have been made before the node said that it drains."""
    doubted: bool = False
    """Only a probe can tell more, and one has been asked for."""
    questioned: bool = False
    """Something has just happened that makes a probe due at once."""
    unproven: bool = False
    """Nobody listened, at a time when that is no proof yet."""
    probed_at: float = _NEVER
    told: tuple[Health, str] = (Health.UNREACHABLE, "")
    """The last health that was declared."""


class FailureDetector:
    """All nodes of one master. Not thread-safe: one event loop.

    `now` is always monotonic seconds of one clock.
    """

    def __init__(self, config: HealthConfig) -> None:
        """Starts blind: nothing is known before the first echo."""
        self._config = config
        interval_s = config.heartbeat_interval_s
        self._suspect_s = config.suspect_after_intervals * interval_s
        self._unreachable_s = config.unreachable_after_intervals * interval_s
        self._stalled_lag_s = config.stalled_lag_s
        self._probe_again_s = interval_s
        self._relogin_s = 2 * self._unreachable_s
        self._nodes: dict[str, _Node] = {}
        self._broker_lost = False
        self._logins_lost = False
        """The broker was away since it was last in sight."""
        self._echoed_at = _NEVER
        self._sighted_since = _NEVER
        self._relogins_until = _NEVER
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
                known = _Node(
                    incarnation, _Standing.DOWN, Falls(self._config), why_down=why, told=told
                )
                self._nodes.setdefault(slug, known)
            case NodeForgotten(slug):
                self._nodes.pop(slug, None)
            case Tick():
                for slug, node in self._nodes.items():
                    if not (_is_calm(node) and now - node.beat_at <= self._suspect_s):
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
                self._broker_lost = self._logins_lost = True
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
            if self._logins_lost and self._sighted_since != _NEVER:
                self._relogins_until = now + self._relogin_s
            self._logins_lost = False
            self._sighted_since = now
            for slug, node in self._nodes.items():
                self._settle(slug, node, now, effects)

    # -- what an event changes -----------------------------------------------------------------

    def _hear(
        self,
        event: HeartbeatReceived
        | ProbeAnswered
        | ProbeFailed
        | ConnectionLost
        | Doubted
        | NodeDraining
        | NodeStopped,
        now: float,
    ) -> _Node | None:
        """Apply a node's event; None if it changes nothing (stale, or about nobody we know)."""
        match event:
            case HeartbeatReceived():
                return self._beat(event, now)
            case ProbeFailed(slug, no_responders):
                return self._failed(slug, now) if no_responders and not self.blind else None
            case ProbeAnswered(slug, incarnation):
                return self._answered(slug, incarnation, now)
            case ConnectionLost(slug) | Doubted(slug):
                return self._question(slug, now)
            case NodeDraining(slug, incarnation, sequence):
                return self._drained(slug, incarnation, sequence, now)
            case NodeStopped(slug, incarnation):
                node = self._current(slug, incarnation, now)
                if node is not None:
                    if node.fell:  # its doors were found closed before its goodbye was heard
                        node.falls.forgive_last()
                        node.fell = False
                    node.stopped = True
                    node.standing, node.why_down = _Standing.DOWN, STOPPED
                return node

    def _drained(self, slug: str, incarnation: int, sequence: int, now: float) -> _Node | None:
        node = self._current(slug, incarnation, now)
        if node is None or 0 < sequence < node.sequence:
            return None  # a heartbeat that was made later has been heard
        node.draining = True
        node.drained_after = sequence
        return node

    def _question(self, slug: str, now: float) -> _Node | None:
        """Something is wrong with the node, perhaps: news only of one that seems to be there."""
        node = self._nodes.get(slug)
        if node is None or node.stopped or self.blind:
            return None
        if node.standing is _Standing.DOWN and self._beat_age(node, now) >= self._unreachable_s:
            return None
        node.questioned = True
        return node

    def _failed(self, slug: str, now: float) -> _Node | None:
        """Nobody listens."""
        node = self._nodes.get(slug)
        if node is None or node.standing is _Standing.DOWN:
            return None
        if now < self._relogins_until and node.answered_at < self._sighted_since:
            node.unproven = True
            return node
        self._fall(node, NOBODY_LISTENS, now)
        return node

    def _fall(self, node: _Node, why: str, now: float) -> None:
        if node.standing in _AT_WORK:
            node.falls.fell(now)
            node.fell = True
        node.standing, node.why_down = _Standing.DOWN, why

    def _answered(self, slug: str, incarnation: int, now: float) -> _Node | None:
        node = self._current(slug, incarnation, now) if slug in self._nodes else None
        if node is None:
            return None
        node.answered_at = now
        node.unproven = False
        if node.standing not in _AT_WORK:
            node.fell = False
            self._rejoin(node, now)
        return node

    def _rejoin(self, node: _Node, now: float) -> None:
        wait_s = node.falls.wait_s(now)
        if not wait_s:
            node.standing = _Standing.UP
            return
        node.standing, node.rejoin_at = _Standing.WAITING, now + wait_s
        node.why_waiting = (
            f"{FLAPPING}: it fell {node.falls.within_window(now)} times within "
            f"{self._config.flap_window_s:g} s and waits {wait_s:g} s"
        )

    def _beat(self, event: HeartbeatReceived, now: float) -> _Node | None:
        node = self._current(event.node, event.incarnation, now)
        if node is None or event.sequence <= node.sequence:
            return None
        if node.standing is _Standing.DOWN and node.why_down != NOBODY_LISTENS:
            node.standing = _Standing.RETURNED
        node.sequence = event.sequence
        node.beat_at = now
        draining = event.draining or event.sequence <= node.drained_after
        told = (event.lag_s > self._stalled_lag_s, event.overloaded, draining)
        if _is_calm(node) and told == (node.stalled, node.overloaded, node.draining):
            return None  # nearly every time
        node.stalled, node.overloaded, node.draining = told
        return node

    def _current(self, slug: str, incarnation: int, now: float) -> _Node | None:
        """The node, made anew if this is a later life; None for a life that is over."""
        node = self._nodes.get(slug)
        if node is not None and incarnation <= node.incarnation:
            return node if incarnation == node.incarnation and not node.stopped else None
        if node is None:
            life = _Node(incarnation, _Standing.NEW, Falls(self._config))
        else:
            if node.standing in _AT_WORK:  # it ended without a goodbye, and was quick to return
                node.falls.fell(now)
            life = _Node(incarnation, _Standing.NEW, node.falls, told=node.told)
        self._nodes[slug] = life
        return life

    # -- what is to be done about it -----------------------------------------------------------

    def _settle(
        self, slug: str, node: _Node, now: float, effects: list[Effect], *, tick: bool = False
    ) -> None:
        if self.blind:
            return
        if node.standing is not _Standing.DOWN and self._silent(node, now):
            self._fall(node, SILENT, now)
        if node.standing is _Standing.WAITING and now >= node.rejoin_at:
            node.standing = _Standing.UP
        verdict = self._verdict(node, now)
        if verdict != node.told:
            node.told = verdict
            effects.append(SetHealth(slug, *verdict))
        doubted = self._doubted(node, now)
        news = node.questioned or (doubted and not node.doubted)
        if news or (doubted and tick and now - node.probed_at >= self._probe_again_s):
            node.probed_at = now
            effects.append(ProbeNode(slug, again=not news))
        node.doubted, node.questioned = doubted, False

    def _verdict(self, node: _Node, now: float) -> tuple[Health, str]:
        match node.standing:
            case _Standing.DOWN:
                return Health.UNREACHABLE, node.why_down
            case _Standing.WAITING:
                return Health.UNREACHABLE, node.why_waiting
            case _Standing.RETURNED:
                return Health.UNREACHABLE, RETURNED
        # Callers still ask a suspect node: never one that said it takes no work, or hangs.
        for applies, health, reason in (
            (node.draining, Health.DRAINING, DRAINING),
            (node.stalled, Health.STALLED, LAGGING),
            (node.standing is _Standing.NEW, Health.SUSPECT, STARTED),
            (self._beat_age(node, now) > self._suspect_s, Health.SUSPECT, BEATS_MISSING),
            (node.overloaded, Health.OVERLOADED, OVERLOADED),
        ):
            if applies:
                return health, reason
        return _WELL

    def _doubted(self, node: _Node, now: float) -> bool:
        """Whether only a probe can tell more: worth one at once, and again every interval."""
        match node.standing:
            case _Standing.NEW | _Standing.RETURNED:
                return True
            case _Standing.UP | _Standing.WAITING:
                return node.unproven or self._beat_age(node, now) > self._suspect_s
            case _Standing.DOWN:  # it beats, but nobody listens
                return not node.stopped and self._beat_age(node, now) < self._unreachable_s

    def _beat_age(self, node: _Node, now: float) -> float:
        """Seconds without a heartbeat that the detector would have heard."""
        if node.beat_at == _NEVER:
            return float("inf")
        return now - max(node.beat_at, self._sighted_since)

    def _silent(self, node: _Node, now: float) -> bool:
        """Whether any sign of life has been out for too long; an answered probe is one too."""
        heard_at = max(node.beat_at, node.answered_at)
        if now - max(heard_at, self._sighted_since) < self._unreachable_s:
            return False
        return heard_at >= self._sighted_since or now >= self._relogins_until


def _is_calm(node: _Node) -> bool:
    """Whether nothing is to be done about the node while it beats and says the same of itself; a
    thousand of them are asked several times a second.
    """
    return node.standing is _Standing.UP and not node.doubted
