"""The detector against a simulated mesh: nodes that beat, lose their serving connection, hang, die
and come back, a broker that comes and goes and tells who hung up, callers who doubt, and messages
of lives long over.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from mesh.config import HealthConfig
from mesh.core import failure_detector as fd
from mesh.core.failure_detector import FailureDetector
from mesh.types import Health

NODES = ("a", "b", "c")
TICK = 0.1
CONFIG = HealthConfig()
INTERVAL = CONFIG.heartbeat_interval_s
SUSPECT = CONFIG.suspect_after_intervals * INTERVAL
UNREACHABLE = CONFIG.unreachable_after_intervals * INTERVAL
SLACK = 2 * TICK + 1e-6  # ticks add up to a little more than they should
PROBE_TIMEOUT = 0.5
PING_EVERY = 5.0
RELOGIN = 2 * UNREACHABLE


@dataclass
class Simulated:
    """A node as it really is; `silent_s` is what the master could have noticed of its silence."""

    life: int = 0
    running: bool = False
    hung: bool = False
    serving: bool = True
    sequence: int = 0
    next_beat: float = 0.0
    silent_s: float = float("inf")
    unbeaten_s: float = float("inf")
    well_s: float = 0.0
    deaf_s: float = 0.0
    next_ping: float = 0.0
    probe_due: float | None = None
    heard_at: float = float("-inf")
    answered_at: float = float("-inf")
    hung_up_s: float | None = None
    """Since the broker told that its connections are gone, as far as probes could tell."""
    mishaps: list[float] = field(default_factory=list)
    """Whatever may have made it fall, in all of its lives."""


class Mesh(RuleBasedStateMachine):
    """Time goes on in ticks; in between, things happen to nodes and to the broker."""

    def __init__(self) -> None:
        super().__init__()
        self.detector = FailureDetector(CONFIG)
        self.now = 0.0
        self.nodes = {name: Simulated() for name in NODES}
        self.health: dict[str, Health] = {}
        self.reason: dict[str, str] = {}
        self.connected = True
        self.delivering = True
        self.blind = True
        self.next_echo = 0.0
        self.unechoed_s = 0.0
        self.lives = 0
        self.outage = False
        self.relogins_until = self.sighted_at = float("-inf")

    # -- what happens --------------------------------------------------------------------------

    @initialize()
    def one_is_there(self) -> None:
        self.start("a")
        self.pass_time(3)

    @rule(name=st.sampled_from(NODES))
    def start(self, name: str) -> None:
        """Also a restart without a goodbye."""
        self.lives += 1
        before = self.nodes[name]
        if before.running:
            before.mishaps.append(self.now)
        self.nodes[name] = Simulated(
            life=self.lives,
            running=True,
            next_beat=self.now,
            silent_s=before.silent_s,
            mishaps=before.mishaps,
        )

    @rule(name=st.sampled_from(NODES))
    def kill(self, name: str) -> None:
        """The broker tells, of both connections, if it is there."""
        node = self.nodes[name]
        if not node.running:
            return
        node.running = False
        node.mishaps.append(self.now)
        if self.reachable:
            node.hung_up_s = None if self.blind else 0.0
            self.tell(fd.ConnectionLost(name))
            self.tell(fd.ConnectionLost(name))

    @rule(name=st.sampled_from(NODES))
    def one_connection_breaks_and_is_back(self, name: str) -> None:
        self.tell(fd.ConnectionLost(name))

    @rule(name=st.sampled_from(NODES))
    def callers_doubt(self, name: str) -> None:
        self.tell(fd.Doubted(name))

    @rule(name=st.sampled_from(NODES))
    def crash_and_come_back_again_and_again(self, name: str) -> None:
        for _ in range(CONFIG.flap_after + 1):
            self.start(name)
            self.pass_time(15)
            self.kill(name)
        self.start(name)
        self.pass_time(60)

    @rule(name=st.sampled_from(NODES), doors_first=st.booleans())
    def restart_politely_again_and_again(self, name: str, doors_first: bool) -> None:
        for _ in range(CONFIG.flap_after + 1):
            self.start(name)
            self.pass_time(15)
            self.say_goodbye(name, doors_first=doors_first)
        self.start(name)
        self.pass_time(15)

    @rule(name=st.sampled_from(NODES))
    def fall_silent_and_come_back_in_two_steps(self, name: str) -> None:
        """One fall each time: it was not at work in between."""
        for _ in range(CONFIG.flap_after - 1):
            self.hang(name)
            self.pass_time(35)
            self.serving_connection(name, serving=False)
            self.go_on(name)
            self.pass_time(15)
            self.serving_connection(name, serving=True)
            self.pass_time(15)

    @rule(name=st.sampled_from(NODES))
    def hang(self, name: str) -> None:
        self.nodes[name].hung = True
        self.nodes[name].mishaps.append(self.now)

    @rule(name=st.sampled_from(NODES))
    def go_on(self, name: str) -> None:
        node = self.nodes[name]
        node.hung = False
        node.next_beat = max(node.next_beat, self.now)

    @rule(name=st.sampled_from(NODES), serving=st.booleans())
    def serving_connection(self, name: str, serving: bool) -> None:
        self.nodes[name].serving = serving
        if not serving and self.at_work(name):
            self.nodes[name].mishaps.append(self.now)

    @rule(name=st.sampled_from(NODES))
    def serving_connection_is_away_for_a_while(self, name: str) -> None:
        self.serving_connection(name, serving=False)
        self.pass_time(70)
        self.nodes[name].serving = True
        self.pass_time(35)

    @rule(name=st.sampled_from(NODES), doors_first=st.booleans())
    def say_goodbye(self, name: str, doors_first: bool) -> None:
        node = self.nodes[name]
        if node.running and not node.hung and self.reachable:
            node.running = False
            if doors_first:  # a probe may find its doors closed before its goodbye is heard
                self.tell(fd.ConnectionLost(name))
                self.pass_time(2)
            self.tell(fd.NodeStopped(name, node.life))
            self.tell(fd.ConnectionLost(name))

    @rule(name=st.sampled_from(NODES), back=st.integers(1, 3), lag=st.booleans())
    def an_older_life_speaks(self, name: str, back: int, lag: bool) -> None:
        """A message that was long on its way must change nothing at all."""
        node = self.nodes[name]
        if not self.reachable or node.life == 0 or node.sequence == 0:
            return
        before = dict(self.health)
        stale = node.life - back
        for event in (
            fd.HeartbeatReceived(name, stale, 10**6, lag_s=9.0 if lag else 0.0),
            fd.NodeStopped(name, stale),
            fd.NodeDraining(name, stale),
            fd.ProbeAnswered(name, stale),
            fd.HeartbeatReceived(name, node.life, node.sequence, lag_s=9.0, draining=True),
        ):
            effects = self.detector.handle(event, self.now)
            assert effects == [], (event, effects)
        assert self.health == before

    @rule()
    @precondition(lambda self: self.connected)
    def broker_dies(self) -> None:
        self.connected, self.outage = False, True
        self.tell(fd.BrokerLost())

    @rule()
    @precondition(lambda self: not self.connected)
    def an_echo_was_left_over(self) -> None:
        self.tell(fd.BeatEchoed())

    @rule()
    @precondition(lambda self: not self.connected)
    def broker_returns(self) -> None:
        self.connected = True
        self.next_echo = self.now
        self.tell(fd.BrokerFound())

    @rule()
    def network_breaks(self) -> None:
        """Nothing arrives, and no connection notices."""
        self.delivering = False

    @rule()
    def network_heals(self) -> None:
        self.delivering = True

    @rule(ticks=st.integers(1, 60))
    def pass_time(self, ticks: int) -> None:
        for _ in range(ticks):
            self.tick()

    def at_work(self, name: str) -> bool:
        waits = self.reason.get(name, "").startswith(fd.FLAPPING)
        return waits or self.health.get(name) is not Health.UNREACHABLE

    # -- the world -----------------------------------------------------------------------------

    @property
    def reachable(self) -> bool:
        return self.connected and self.delivering

    def tick(self) -> None:
        self.now += TICK
        self.unechoed_s += TICK
        if self.reachable and self.now >= self.next_echo:
            self.next_echo = self.now + INTERVAL
            self.unechoed_s = 0.0
            self.tell(fd.BeatEchoed())
        for name, node in self.nodes.items():
            self.live(name, node)
            self.ping(name, node)
        self.tell(fd.Tick())
        for node in self.nodes.values():
            node.silent_s = 0.0 if self.blind else node.silent_s + TICK
            if node.sequence:
                node.unbeaten_s = 0.0 if self.blind else node.unbeaten_s + TICK
            if node.hung_up_s is not None:
                clear = self.reachable and not self.blind and not self.unproven(node)
                node.hung_up_s = node.hung_up_s + TICK if clear else None
        self.check_promises()

    def live(self, name: str, node: Simulated) -> None:
        if node.running and not node.hung and self.now >= node.next_beat:
            node.next_beat = self.now + INTERVAL
            if self.reachable:
                node.sequence += 1
                node.silent_s = node.unbeaten_s = 0.0
                node.heard_at = self.now
                self.tell(fd.HeartbeatReceived(name, node.life, node.sequence, lag_s=0.01))
        if node.probe_due is not None:
            self.answer(name, node)
        node.well_s = node.well_s + TICK if self.well(node) and node.serving else 0.0
        node.deaf_s = node.deaf_s + TICK if self.well(node) and not node.serving else 0.0

    def ping(self, name: str, node: Simulated) -> None:
        """The routine ping of nodes that beat."""
        if self.now >= node.next_ping and self.detector.beats(name, self.now):
            node.next_ping = self.now + PING_EVERY
            node.probe_due = node.probe_due or self.now + PROBE_TIMEOUT

    def well(self, node: Simulated) -> bool:
        """It beats, and the master could see it."""
        acts = node.running and not node.hung and node.sequence > 0
        return acts and self.reachable and not self.blind

    def answer(self, name: str, node: Simulated) -> None:
        assert node.probe_due is not None
        if not self.reachable:
            if self.now >= node.probe_due:
                node.probe_due = None
                self.tell(fd.ProbeFailed(name, no_responders=False))
        elif not node.running or not node.serving:
            node.probe_due = None
            self.tell(fd.ProbeFailed(name, no_responders=True))
        elif not node.hung:
            node.probe_due = None
            node.silent_s = 0.0
            node.heard_at = node.answered_at = self.now
            self.tell(fd.ProbeAnswered(name, node.life))
        elif self.now >= node.probe_due:
            node.probe_due = None
            self.tell(fd.ProbeFailed(name, no_responders=False))

    def tell(self, event: fd.Event) -> None:
        was_blind = self.detector.blind
        for effect in self.detector.handle(event, self.now):
            match effect:
                case fd.SetBlind(blind):
                    assert blind is not self.blind, "told twice"
                    self.blind = blind
                    if not blind:
                        if self.outage and self.sighted_at > float("-inf"):
                            self.relogins_until = self.now + RELOGIN
                        self.outage, self.sighted_at = False, self.now
                        for each in self.nodes.values():
                            each.silent_s = 0.0
                            each.unbeaten_s = 0.0 if each.sequence else each.unbeaten_s
                case fd.SetHealth(name, health, reason):
                    assert not self.blind, f"{name} declared {health} while blind"
                    self.health[name] = health
                    self.reason[name] = reason
                    self.check(reason, event, self.nodes[name])
                case fd.ProbeNode(name):
                    assert not self.blind, "probed while blind"
                    node = self.nodes[name]
                    node.probe_due = node.probe_due or self.now + PROBE_TIMEOUT
        if isinstance(event, fd.BrokerLost):
            assert self.blind or was_blind

    def check(self, reason: str, event: fd.Event, node: Simulated) -> None:
        """No false death: it takes silence, a goodbye, or the broker's word that nobody listens."""
        match reason:
            case fd.BEATS_MISSING:
                assert node.unbeaten_s > SUSPECT - SLACK, node
            case fd.SILENT:
                assert node.silent_s > UNREACHABLE - SLACK, node
                assert not self.unproven(node, node.heard_at), node
            case fd.NOBODY_LISTENS:
                assert isinstance(event, fd.ProbeFailed), event
                assert event.no_responders
                assert not self.unproven(node, node.answered_at), node
            case fd.STOPPED:
                assert isinstance(event, (fd.NodeStopped, fd.BeatEchoed)), event
            case _ if reason.startswith(fd.FLAPPING):
                recent = [at for at in node.mishaps if self.now - at < CONFIG.flap_window_s + 10]
                assert len(recent) >= CONFIG.flap_after, (reason, node)

    def unproven(self, node: Simulated, sign_at: float | None = None) -> bool:
        """After an outage of the broker everybody gets the time to log in again."""
        at = node.answered_at if sign_at is None else sign_at
        return at < self.sighted_at and self.now < self.relogins_until - SLACK

    # -- what must hold ------------------------------------------------------------------------

    @invariant()
    def check_promises(self) -> None:
        self.it_knows_whether_it_sees()
        self.who_beats_and_answers_is_healthy()
        self.who_beats_but_does_not_listen_is_unreachable()
        self.who_is_silent_is_unreachable()
        self.silence_is_suspect_in_time()
        self.who_hung_up_is_unreachable_at_once()

    def it_knows_whether_it_sees(self) -> None:
        assert self.blind is self.detector.blind
        if not self.connected or self.unechoed_s > SUSPECT + SLACK:
            assert self.blind

    def who_beats_and_answers_is_healthy(self) -> None:
        """A beat to be seen, at most a running probe to end, and a probe of its own."""
        for name, node in self.nodes.items():
            long = 2 * INTERVAL + PROBE_TIMEOUT + SLACK
            if self.reason.get(name, "").startswith(fd.FLAPPING):
                long += CONFIG.rejoin_most_s
            if self.well(node) and node.serving and node.well_s > long:
                assert self.health.get(name) is Health.HEALTHY, (name, node)

    def who_beats_but_does_not_listen_is_unreachable(self) -> None:
        for name, node in self.nodes.items():
            if self.now < self.relogins_until + INTERVAL + SLACK:
                continue
            long = PING_EVERY + INTERVAL + PROBE_TIMEOUT + SLACK
            if self.well(node) and not node.serving and node.deaf_s > long:
                assert self.health.get(name) is Health.UNREACHABLE, (name, node)

    def who_is_silent_is_unreachable(self) -> None:
        for name, node in self.nodes.items():
            if name in self.health and not self.blind and node.sequence == 0 and node.life:
                continue  # this life has not been heard: the one before it is judged
            if node.heard_at < self.sighted_at and self.now < self.relogins_until + SLACK:
                continue
            if name in self.health and not self.blind and node.silent_s > UNREACHABLE + SLACK:
                assert self.health[name] is Health.UNREACHABLE, (name, node)

    def silence_is_suspect_in_time(self) -> None:
        for name, node in self.nodes.items():
            if name in self.health and not self.blind and node.silent_s > SUSPECT + SLACK:
                assert self.health[name] is not Health.HEALTHY, (name, node)

    def who_hung_up_is_unreachable_at_once(self) -> None:
        for name, node in self.nodes.items():
            if name in self.health and node.hung_up_s is not None and node.hung_up_s > 3 * TICK:
                assert self.health[name] is Health.UNREACHABLE, (name, node)


Mesh.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestMesh = Mesh.TestCase
