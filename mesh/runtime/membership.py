"""Who is there and how well: the shell around the failure detector and the view of all nodes.

Hears heartbeats, events, and what the broker and callers notice; carries out what the detector
decides, looks up nodes that another master has registered, and saves to SQL what nodes tell of
themselves, so that it is still known when they are away.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import assert_never

import structlog

from mesh.config import HealthConfig
from mesh.core import health_events as detector
from mesh.core.failure_detector import FailureDetector
from mesh.core.health_events import Effect, Event
from mesh.core.node_view import NodeView
from mesh.core.rate_limit import RateLimiter
from mesh.core.seldom import Seldom
from mesh.errors import BadRequestError, MeshError, NotFoundError
from mesh.ports import SHUT_DOWN, Bus, Clock, Message, Registry, Subscription
from mesh.runtime.background import Background
from mesh.runtime.prober import Answered, Failed, Prober, ProbeResult
from mesh.types import VERSION, Health, Status
from mesh.wire import codec, subjects
from mesh.wire.messages import Changed, Heartbeat, NodeEvent, NodeRecord, NodeUpdate, Revoked

log = structlog.get_logger()

_SELF = "master"
_SAVE_EVERY_S = 1.0
_SAVE_AT_ONCE = 256
_TICKS_PER_INTERVAL = 5
_AHEAD_MS = 60_000
"""Of our clock may a node's be: a life from the future would outrank all that follow."""
_BEATS_PER_INTERVAL = 10
_CHANGES_LOGGED = 30
"""Of one node's health a minute; the others are for whoever debugs."""
_DOUBTS_EVERY_S = 0.1
"""Callers that find nobody tell so twice a second, each."""
_OLD_BEATS_TOLD = 30
"""Heartbeats of an older life in a row of which one is a warning: it does not merely end late."""
_NEVER = float("-inf")
_PING_PACE = 1.5
"""Times the pace at which all would be pinged within the interval: the last ones are not late."""
_HEARD_FROM = len(f"{subjects.PREFIX}.hb.")
_MOST_STRANGERS = 1000
"""Looked up at once; the others beat again."""


class Membership:
    """All nodes of one master."""

    def __init__(
        self,
        bus: Bus,
        registry: Registry,
        clock: Clock,
        background: Background,
        health: HealthConfig,
        *,
        incarnation: int,
        on_change: Callable[[], None],
    ) -> None:
        """Args:
        bus: Where nodes are heard.
        registry: Open.
        clock: Time.
        background: Its owner ends it.
        health: When a node counts as what.
        incarnation: Of this master, unix ms.
        on_change: Callers may have to route otherwise.
        """
        self._bus = bus
        self._registry = registry
        self._clock = clock
        self._background = background
        self._health = health
        self._incarnation = incarnation
        self._on_change = on_change
        self._detector = FailureDetector(health)
        self._prober = Prober(
            bus, clock, background, timeout_s=health.probe_timeout_s, report=self._probed
        )
        self._tick_s = health.heartbeat_interval_s / _TICKS_PER_INTERVAL
        self._sequence = 0
        self._sighted_at: float | None = None
        self._beats = RateLimiter(_BEATS_PER_INTERVAL, health.heartbeat_interval_s)
        self._logged_changes = RateLimiter(_CHANGES_LOGGED, 60.0)
        self._old_beats: Counter[str] = Counter()
        self._doubted_at: dict[str, float] = {}
        self._pinged_at: dict[str, float] = {}
        self._strangers: dict[str, Heartbeat] = {}
        """The last beats of nodes that are not in the view, until they are looked up."""
        self._looking = False
        self._changed: set[str] = set()
        """Nodes that a master has changed, until they are looked up."""
        self._looking_again = False
        self._seldom = Seldom()
        self._subscriptions: list[Subscription] = []
        self.view = NodeView()
        self.dropped = 0
        """Messages refused for their subject or form, and beats of nodes that nobody registered."""

    @property
    def blind(self) -> bool:
        """Whether the broker is out of sight: health is what it was."""
        return self._detector.blind

    @property
    def settled(self) -> bool:
        """Whether every node that was here before has been heard, or has had its chance."""
        if self._sighted_at is None:
            return False
        chance_s = self._health.suspect_after_intervals * self._health.heartbeat_interval_s
        return self._clock.monotonic() - self._sighted_at >= chance_s or not any(
            record.incarnation
            and record.status is Status.ACTIVE
            and record.health in (Health.UNREACHABLE, Health.SUSPECT)
            for record in self.view
        )

    # -- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load the registry, then hear, beat, watch and save until stopped.

        Raises:
            UnavailableError: The database or the broker is away.
        """
        self.view.load(await self._registry.nodes())
        for record in self.view.records():
            self._decide(detector.NodeKnown(record.slug, record.incarnation))
        self._bus.on_connection(self._connection_changed)
        for subject, handler in (
            (f"{subjects.PREFIX}.hb.*", self._on_heartbeat),
            (f"{subjects.PREFIX}.evt.*.*", self._on_event),
            (subjects.REVOKED, self._on_revoked),
        ):
            self._subscriptions.append(await self._bus.subscribe(subject, handler))
        self._background.repeat("beat", self._beat)
        self._background.repeat("watch", self._watch)
        self._background.repeat("save", self._save_round)

    async def stop(self) -> None:
        """Hear no more, and save what is left; the background tasks are their owner's to end."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        await self._save()

    async def _beat(self) -> None:
        self._publish_beat()
        await self._clock.sleep(self._health.heartbeat_interval_s)

    def _publish_beat(self) -> None:
        """The master's own heartbeat: coming back, it proves that the broker delivers."""
        self._sequence += 1
        beat = Heartbeat(
            node=_SELF,
            name=_SELF,
            incarnation=self._incarnation,
            sequence=self._sequence,
            version=VERSION,
            type=_SELF,
            capabilities=[],
            dropped=self.dropped,
        )
        try:
            self._bus.publish(subjects.heartbeat(_SELF), codec.encode(beat))
        except MeshError as error:
            log.debug("mesh.membership.beat_skipped", error=str(error))

    async def _watch(self) -> None:
        self._decide(detector.Tick())
        self._ping_due()
        self._announce(loads=True)
        await self._clock.sleep(self._tick_s)

    def _ping_due(self) -> None:
        """Routine pings, for the response times of nodes that beat; spread over the interval."""
        now = self._clock.monotonic()
        interval_s, tick_s = self._health.probe_interval_s, self._tick_s
        left = math.ceil(_PING_PACE * len(self.view) * min(1.0, tick_s / interval_s))
        for record in self.view:
            since = now - self._pinged_at.get(record.slug, _NEVER)
            if since >= interval_s and self._detector.beats(record.slug, now):
                self._pinged_at[record.slug] = now
                self._prober.request(record.slug)
                left -= 1
                if not left:
                    return

    # -- what is heard -----------------------------------------------------------------------------

    def _connection_changed(self, connected: bool) -> None:
        if connected:
            self._decide(detector.BrokerFound())
            self._publish_beat()
        else:
            self._decide(detector.BrokerLost())

    def doubt(self, slug: str) -> None:
        """Callers found that nobody listens there: probe it at once."""
        now = self._clock.monotonic()
        if slug in self.view and now - self._doubted_at.get(slug, _NEVER) >= _DOUBTS_EVERY_S:
            self._doubted_at[slug] = now
            self._decide(detector.Doubted(slug))

    def departed(self, login: str, reason: str) -> None:
        """The broker saw a connection end that was logged in under this name; probe the node, if it
        is one, at once.
        """
        if login in self.view:
            log.info("mesh.node.connection_lost", node=login, reason=reason)
            if reason != SHUT_DOWN:
                self._decide(detector.ConnectionLost(login))

    def _on_heartbeat(self, message: Message) -> None:
        slug = message.subject[_HEARD_FROM:]
        try:
            if slug != _SELF and not self._beats.check(slug, self._clock.monotonic()).allowed:
                raise BadRequestError("heartbeats come too often")
            beat = codec.decode(message.data, Heartbeat)
            if slug not in self.view:  # else it is a name: no need to take the subject apart
                _, slug = subjects.parts(message.subject)
            if beat.node != slug:
                raise BadRequestError(f"{slug!r} beats for {beat.node[:64]!r}")
            self._check_incarnation(slug, beat.incarnation)
        except (MeshError, ValueError) as error:
            self._drop(message, error)
            return
        if slug == _SELF:
            if beat.incarnation == self._incarnation:
                self._decide(detector.BeatEchoed())
        elif slug in self.view:
            self._heard(beat)
        else:
            self._heard_stranger(beat)

    def _check_incarnation(self, slug: str, incarnation: int) -> None:
        """Raises:
        BadRequestError: It lies in the future.
        """
        record = self.view.get(slug)
        known = record.incarnation if record is not None else 0
        if incarnation > max(self._clock.unix_ms(), known) + _AHEAD_MS:
            raise BadRequestError(
                f"node {slug[:64]!r} says that it started in the future ({incarnation}): set its "
                "clock, remove incarnation.json from its data folder, and start it again"
            )

    def _heard(self, beat: Heartbeat) -> None:
        record = self.view.get(beat.node)
        if record is not None and beat.incarnation < record.incarnation:
            self._old_beats[beat.node] += 1
            if self._old_beats[beat.node] % _OLD_BEATS_TOLD == 0:
                log.warning(
                    "mesh.node.older_life_beats",
                    node=beat.node,
                    incarnation=beat.incarnation,
                    newer=record.incarnation,
                )
            return
        self._old_beats.pop(beat.node, None)
        self.view.heard(beat)
        self._decide(
            detector.HeartbeatReceived(
                beat.node,
                beat.incarnation,
                beat.sequence,
                lag_s=beat.lag_ms / 1000,
                overloaded=beat.overloaded,
                draining=beat.draining,
            )
        )

    def _heard_stranger(self, beat: Heartbeat) -> None:
        """Another master may have registered it. One query an interval, however many there are."""
        if beat.node in self._strangers or len(self._strangers) >= _MOST_STRANGERS:
            self.dropped += 1
        if beat.node in self._strangers or len(self._strangers) < _MOST_STRANGERS:
            self._strangers[beat.node] = beat
        if not self._looking:
            self._looking = True
            self._background.spawn("look-up", self._look_up())

    async def _look_up(self) -> None:
        try:
            while strangers := self._strangers:
                self._strangers = {}
                await self._look_up_all(strangers)
                await self._clock.sleep(self._health.heartbeat_interval_s)
        finally:
            self._looking = False

    async def _look_up_all(self, strangers: dict[str, Heartbeat]) -> None:
        try:
            found = await self._registry.lookup(list(strangers))
        except MeshError as error:
            self.dropped += len(strangers)
            log.warning("mesh.membership.look_up_failed", nodes=len(strangers), error=str(error))
            return
        for record in found:
            beat = strangers.pop(record.slug, None)
            if beat is not None:
                if record.slug not in self.view:
                    log.info("mesh.node.looked_up", node=record.slug)
                self.add(record)
                self._heard(beat)
        if strangers:
            self.dropped += len(strangers)
            log.warning(
                "mesh.membership.strangers_dropped",
                nodes=len(strangers),
                some=sorted(strangers)[:5],
            )

    def _on_event(self, message: Message) -> None:
        try:
            _, slug, name = subjects.parts(message.subject)
            if slug not in self.view:
                return
            match name:
                case "changed":
                    self.view.collection_changed(slug, codec.decode(message.data, Changed))
                    self._announce()
                case "draining":
                    event = self._event(slug, message)
                    self._decide(detector.NodeDraining(slug, event.incarnation, event.sequence))
                case "stopped":
                    event = self._event(slug, message)
                    self._decide(detector.NodeStopped(slug, event.incarnation))
        except (MeshError, ValueError) as error:
            self._drop(message, error)

    def _event(self, slug: str, message: Message) -> NodeEvent:
        event = codec.decode(message.data, NodeEvent)
        self._check_incarnation(slug, event.incarnation)
        return event

    def _on_revoked(self, message: Message) -> None:
        """Another master has removed or changed these nodes."""
        try:
            names = codec.decode(message.data, Revoked).subjects
        except (MeshError, ValueError) as error:
            self._drop(message, error)
            return
        self._changed.update(name for name in names if name in self.view)
        if self._changed and not self._looking_again:
            self._looking_again = True
            self._background.spawn("look-again", self._look_again())

    async def _look_again(self) -> None:
        try:
            while names := self._changed:
                self._changed = set()
                try:
                    found = await self._registry.lookup(names)
                except MeshError as error:
                    self._changed |= names
                    log.warning(
                        "mesh.membership.look_up_failed", nodes=len(names), error=str(error)
                    )
                    await self._clock.sleep(self._health.heartbeat_interval_s)
                else:
                    self._take_over(names, {record.slug: record for record in found})
        finally:
            self._looking_again = False

    def _take_over(self, names: Collection[str], found: Mapping[str, NodeRecord]) -> None:
        """What the database has of these nodes now."""
        for record in self.view.records():
            if record.slug not in names:
                continue
            now = found.get(record.slug)
            if now is None:
                self.remove(record)
                log.info("mesh.node.gone", node=record.slug)
            elif _settings(now) != _settings(record):
                self.change(now)

    def _drop(self, message: Message, error: Exception) -> None:
        self._count_dropped(message.subject, error)

    def _count_dropped(self, subject: str, error: Exception) -> None:
        self.dropped += 1
        more = self._seldom.turn(self._clock.monotonic())
        if more is not None:
            log.warning(
                "mesh.membership.message_dropped",
                subject=subject[:200],
                error=str(error),
                more_before=more,
            )

    # -- what is decided ---------------------------------------------------------------------------

    def _decide(self, event: Event) -> None:
        for effect in self._detector.handle(event, self._clock.monotonic()):
            self._carry_out(effect)
        self._announce()

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case detector.ProbeNode(slug, again):
                self._prober.request(slug, again=again)
            case detector.SetHealth(slug, health, reason):
                self.view.set_health(slug, health, reason)
                tell = self._logged_changes.check(slug, self._clock.monotonic()).allowed
                (log.info if tell else log.debug)(
                    "mesh.node.health_changed", node=slug, health=health.value, reason=reason
                )
            case detector.SetBlind(blind):
                if not blind and self._sighted_at is None:
                    self._sighted_at = self._clock.monotonic()
                log.info("mesh.membership.sight_changed", blind=blind)
                self._on_change()
            case _:
                assert_never(effect)

    def _announce(self, *, loads: bool = False) -> None:
        if self.view.moved or (loads and self.view.loads_moved):
            self.view.moved = self.view.loads_moved = False
            self._on_change()

    def _probed(self, result: ProbeResult) -> None:
        now_ms = self._clock.unix_ms()
        self._pinged_at[result.node] = self._clock.monotonic()
        match result:
            case Answered(slug, incarnation, took_ms):
                try:
                    self._check_incarnation(slug, incarnation)
                except BadRequestError as error:
                    self._count_dropped(f"answer of {slug}", error)
                    return
                self.view.probed(slug, took_ms=took_ms, at=now_ms)
                self._decide(detector.ProbeAnswered(slug, incarnation))
            case Failed(slug, no_responders):
                self.view.probed(slug, took_ms=None, at=now_ms)
                self._decide(detector.ProbeFailed(slug, no_responders))

    async def probe(self, slug: str) -> None:
        """Ping a node now and take the result into account."""
        await self._prober.probe(slug)

    # -- the registry ------------------------------------------------------------------------------

    def add(self, record: NodeRecord) -> None:
        """A node was registered, by us or another master.

        It may be known by now: a heartbeat that comes while the registration is being answered
        makes us look the node up. What was heard of it since then stays.
        """
        known = self.view.get(record.slug)
        if known is not None and known.id == record.id:
            return
        if known is not None:
            self.remove(known)
        self.view.load([record])
        self._decide(detector.NodeKnown(record.slug, record.incarnation))

    def change(self, record: NodeRecord) -> NodeRecord:
        """An operator changed a node; `record` is what the database has now."""
        changed = self.view.change(record, at=self._clock.unix_ms())
        self._announce()
        return changed

    def remove(self, record: NodeRecord) -> None:
        """A node was removed."""
        self.view.remove(record.slug)
        self._prober.forget(record.slug)
        for by_slug in (self._pinged_at, self._doubted_at, self._old_beats):
            by_slug.pop(record.slug, None)
        self._decide(detector.NodeForgotten(record.slug))

    async def find(self, name: str) -> NodeRecord:
        """The node with this slug or id, also one that only another master has seen yet.

        Raises:
            NotFoundError: It names the nodes that there are.
            UnavailableError: The database is away.
        """
        try:
            return self.view.find(name)
        except NotFoundError:
            for record in await self._registry.lookup([name]):
                self.add(record)
        return self.view.find(name)

    async def _save_round(self) -> None:
        await self._clock.sleep(_SAVE_EVERY_S)
        await self._save()

    async def _save(self) -> None:
        unsaved = self.view.unsaved()
        for start in range(0, len(unsaved), _SAVE_AT_ONCE):
            batch = unsaved[start : start + _SAVE_AT_ONCE]
            try:
                await self._registry.observe(*batch)
            except MeshError as error:  # they stay unsaved, and are tried again
                log.warning("mesh.registry.save_failed", nodes=len(batch), error=str(error))
            else:
                for record in batch:
                    self.view.saved(record)


def _settings(record: NodeRecord) -> tuple[object, ...]:
    """What an operator may change."""
    return tuple(getattr(record, field) for field in NodeUpdate.__struct_fields__)
