"""The rules of health, case by case. Times are in heartbeat intervals of one second."""

from __future__ import annotations

import pytest

from mesh.config import HealthConfig
from mesh.core import failure_detector as fd
from mesh.core.failure_detector import (
    BeatEchoed,
    BrokerFound,
    BrokerLost,
    ConnectionLost,
    Doubted,
    Effect,
    FailureDetector,
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

FIRST_LIFE, SECOND_LIFE = 100, 200


class World:
    """A detector and a clock; the master hears its own echo unless told otherwise."""

    def __init__(self) -> None:
        self.detector = FailureDetector(HealthConfig())
        self.now = 1000.0
        self.sequence = 0
        self.health: dict[str, tuple[Health, str]] = {}
        self.tell(BeatEchoed())

    def tell(self, event: fd.Event) -> list[Effect]:
        effects = self.detector.handle(event, self.now)
        for effect in effects:
            if isinstance(effect, SetHealth):
                self.health[effect.node] = (effect.health, effect.reason)
        return effects

    def beat(self, life: int = FIRST_LIFE, **flags: object) -> list[Effect]:
        self.sequence += 1
        return self.tell(HeartbeatReceived("a", life, self.sequence, **flags))

    def wait(self, seconds: float, *, echo: bool = True) -> list[Effect]:
        """Let time pass in ticks of 0.1 s, with an echo every second."""
        effects: list[Effect] = []
        for step in range(round(seconds * 10)):
            self.now += 0.1
            if echo and step % 10 == 0:
                effects += self.tell(BeatEchoed())
            effects += self.tell(Tick())
        return effects

    def healthy(self) -> World:
        self.beat()
        self.tell(ProbeAnswered("a", FIRST_LIFE))
        assert self.health["a"] == (Health.HEALTHY, "")
        return self

    @property
    def of_a(self) -> Health:
        return self.health["a"][0]


@pytest.fixture
def world() -> World:
    return World()


def test_a_new_life_is_suspect_and_probed_at_once_and_healthy_on_its_answer(world):
    assert world.beat() == [SetHealth("a", Health.SUSPECT, fd.STARTED), ProbeNode("a")]
    assert world.tell(ProbeAnswered("a", FIRST_LIFE)) == [SetHealth("a", Health.HEALTHY, "")]


def test_silence_makes_it_suspect_and_probed_then_unreachable(world):
    world.healthy()
    assert world.wait(1.4) == []
    assert world.wait(0.2) == [
        SetHealth("a", Health.SUSPECT, fd.BEATS_MISSING),
        ProbeNode("a"),
    ]
    world.tell(ProbeFailed("a", no_responders=False))
    assert world.of_a is Health.SUSPECT, "a probe without an answer is not yet proof"
    effects = world.wait(1.5)
    assert SetHealth("a", Health.UNREACHABLE, fd.SILENT) in effects
    assert world.of_a is Health.UNREACHABLE


def test_suspect_and_nobody_listening_is_unreachable_at_once(world):
    world.healthy()
    world.wait(1.6)
    assert world.tell(ProbeFailed("a", no_responders=True)) == [
        SetHealth("a", Health.UNREACHABLE, fd.NOBODY_LISTENS)
    ]


def test_a_beat_in_time_heals_a_suspect(world):
    world.healthy()
    world.wait(1.6)
    assert world.beat() == [SetHealth("a", Health.HEALTHY, "")]


def test_beats_without_a_serving_connection_are_unreachable_until_a_probe_is_answered(world):
    world.healthy()
    world.tell(ProbeFailed("a", no_responders=True))
    probes = 0
    for _ in range(5):
        effects = world.beat() + world.wait(1)
        assert world.of_a is Health.UNREACHABLE
        probes += effects.count(ProbeNode("a")) + effects.count(ProbeNode("a", again=True))
        world.tell(ProbeFailed("a", no_responders=True))
    assert 4 <= probes <= 6, "probed again, about once per interval"
    assert world.tell(ProbeAnswered("a", FIRST_LIFE)) == [SetHealth("a", Health.HEALTHY, "")]


def test_one_that_was_unreachable_is_probed_on_its_first_beat_and_healthy_on_the_answer(world):
    world.healthy()
    world.wait(4)
    assert world.of_a is Health.UNREACHABLE
    assert ProbeNode("a") in world.beat()
    assert world.health["a"] == (Health.UNREACHABLE, fd.RETURNED)
    world.tell(ProbeAnswered("a", FIRST_LIFE))
    assert world.of_a is Health.HEALTHY


def test_lag_stalls_and_its_end_heals_without_a_probe(world):
    world.healthy()
    assert world.beat(lag_s=2.5) == [SetHealth("a", Health.STALLED, fd.LAGGING)]
    assert world.beat(lag_s=0.01) == [SetHealth("a", Health.HEALTHY, "")]


def test_a_stalled_node_is_not_evicted_when_probes_time_out(world):
    world.healthy()
    for _ in range(10):
        world.beat(lag_s=5)
        world.wait(1)
        world.tell(ProbeFailed("a", no_responders=False))
        assert world.of_a is Health.STALLED


def test_overload_and_draining_are_told_by_the_node(world):
    world.healthy()
    world.beat(overloaded=True)
    assert world.of_a is Health.OVERLOADED
    world.beat(overloaded=True, draining=True)
    assert world.of_a is Health.DRAINING
    world.beat()
    assert world.of_a is Health.HEALTHY


def test_an_announced_drain_does_not_wait_for_the_next_beat(world):
    world.healthy()
    world.tell(NodeDraining("a", FIRST_LIFE - 1))
    assert world.of_a is Health.HEALTHY, "that was an older life"
    world.tell(NodeDraining("a", FIRST_LIFE))
    assert world.of_a is Health.DRAINING


def test_a_goodbye_is_final_for_that_life(world):
    world.healthy()
    assert world.tell(NodeStopped("a", FIRST_LIFE)) == [
        SetHealth("a", Health.UNREACHABLE, fd.STOPPED)
    ]
    # its heartbeats come over another connection, and may be late
    assert world.beat() == []
    assert world.tell(ProbeAnswered("a", FIRST_LIFE)) == []
    assert ProbeNode("a") not in world.wait(5)
    assert ProbeNode("a") in world.beat(SECOND_LIFE)
    world.tell(ProbeAnswered("a", SECOND_LIFE))
    assert world.of_a is Health.HEALTHY


def test_an_older_life_and_an_old_sequence_change_nothing(world):
    world.healthy()
    world.beat(SECOND_LIFE)
    world.tell(ProbeAnswered("a", SECOND_LIFE))
    assert world.beat(FIRST_LIFE, lag_s=9) == []
    assert world.tell(NodeStopped("a", FIRST_LIFE)) == []
    assert world.tell(HeartbeatReceived("a", SECOND_LIFE, 1, lag_s=9)) == []
    world.wait(1.4)
    world.beat(FIRST_LIFE)
    world.wait(0.2)
    assert world.of_a is Health.SUSPECT, "a beat of the older life is no sign of this one"


def test_an_answer_of_an_older_life_does_not_clear_a_new_one(world):
    world.beat(SECOND_LIFE)
    assert world.tell(ProbeAnswered("a", FIRST_LIFE)) == []
    assert world.of_a is Health.SUSPECT


def test_a_restart_is_probed_even_while_it_was_healthy(world):
    world.healthy()
    assert world.beat(SECOND_LIFE) == [
        SetHealth("a", Health.SUSPECT, fd.STARTED),
        ProbeNode("a"),
    ]


def test_a_node_that_answers_but_does_not_beat_stays_suspect_and_is_asked_again(world):
    world.healthy()
    for _ in range(6):
        effects = world.wait(1)
        if {ProbeNode("a"), ProbeNode("a", again=True)} & {*effects}:
            world.tell(ProbeAnswered("a", FIRST_LIFE))
    assert world.of_a is Health.SUSPECT
    world.wait(3.1)
    assert world.of_a is Health.UNREACHABLE


def test_everybody_silent_with_the_echo_is_death(world):
    world.healthy()
    world.tell(HeartbeatReceived("b", 1, 1))
    world.tell(ProbeAnswered("b", 1))
    world.wait(4)
    assert {health for health, _ in world.health.values()} == {Health.UNREACHABLE}


def test_everybody_silent_without_the_echo_is_blindness(world):
    world.healthy()
    effects = world.wait(10, echo=False)
    assert effects.count(SetBlind(True)) == 1
    assert world.of_a is not Health.UNREACHABLE
    assert world.detector.blind


def test_sight_gives_everybody_a_fresh_grace_period(world):
    world.healthy()
    world.wait(10, echo=False)
    effects = world.tell(BeatEchoed())
    assert effects[0] == SetBlind(False)
    assert world.of_a is Health.HEALTHY
    world.wait(1.4)
    assert world.of_a is Health.HEALTHY
    world.wait(1.8)
    assert world.of_a is Health.UNREACHABLE


def test_a_lost_broker_blinds_at_once_and_a_found_one_needs_the_echo(world):
    world.healthy()
    assert world.tell(BrokerLost()) == [SetBlind(True)]
    assert world.tell(BeatEchoed()) == [], "left over from before"
    assert world.tell(ProbeFailed("a", no_responders=True)) == []
    assert world.tell(BrokerFound()) == []
    assert world.detector.blind
    assert SetBlind(False) in world.tell(BeatEchoed())


def test_a_pause_of_the_master_itself_kills_nobody(world):
    """Everything that was sent meanwhile lies in the socket: the old echo is read first."""
    world.healthy()
    world.now += 30
    world.tell(BeatEchoed())
    world.tell(Tick())
    assert world.of_a is Health.HEALTHY
    world.beat()
    world.wait(1)
    assert world.of_a is Health.HEALTHY


def test_what_is_learnt_blind_counts_once_sight_returns(world):
    world.healthy()
    world.tell(BrokerLost())
    assert world.beat(SECOND_LIFE) == []
    world.tell(BrokerFound())
    assert ProbeNode("a") in world.tell(BeatEchoed())
    assert world.of_a is Health.SUSPECT


def test_nothing_is_declared_before_the_first_echo():
    detector = FailureDetector(HealthConfig())
    assert detector.handle(HeartbeatReceived("a", 1, 1), 0.0) == []
    assert ProbeNode("a") in detector.handle(BeatEchoed(), 0.1)


def test_a_registered_node_that_beats_on_is_probed_and_back(world):
    """A master that restarts finds the node in the life it knew."""
    world.tell(NodeKnown("a", FIRST_LIFE))
    assert world.wait(5) == []
    assert ProbeNode("a") in world.beat(FIRST_LIFE)
    assert world.of_a is Health.UNREACHABLE
    world.tell(ProbeAnswered("a", FIRST_LIFE))
    assert world.of_a is Health.HEALTHY


def test_a_registered_node_ignores_a_life_older_than_the_last(world):
    world.tell(NodeKnown("a", SECOND_LIFE))
    assert world.beat(FIRST_LIFE) == []


def test_a_forgotten_node_is_gone(world):
    world.healthy()
    world.tell(NodeForgotten("a"))
    assert world.wait(5) == []
    assert world.tell(ProbeFailed("a", no_responders=True)) == []
    assert world.tell(ProbeAnswered("a", FIRST_LIFE)) == []


def test_beats_tells_whom_a_routine_ping_makes_sense_for(world):
    assert not world.detector.beats("a", world.now)
    world.healthy()
    assert world.detector.beats("a", world.now)
    world.wait(1.6)
    assert not world.detector.beats("a", world.now)


# -- what others notice ----------------------------------------------------------------------------


@pytest.mark.parametrize("event", [ConnectionLost("a"), Doubted("a")])
def test_a_node_that_others_doubt_is_probed_at_once_and_dead_if_nobody_listens(world, event):
    world.healthy()
    assert world.tell(event) == [ProbeNode("a")], "asked, not judged"
    assert world.of_a is Health.HEALTHY
    assert world.tell(ProbeFailed("a", no_responders=True))[0] == SetHealth(
        "a", Health.UNREACHABLE, fd.NOBODY_LISTENS
    )


def test_each_doubt_is_a_question_of_its_own(world):
    """A process has two connections: a probe after the first may still go down with the second."""
    world.healthy()
    for _ in range(3):
        assert world.tell(ConnectionLost("a")) == [ProbeNode("a")]


def test_a_doubted_node_that_answers_goes_on(world):
    world.healthy()
    world.tell(ConnectionLost("a"))
    assert world.tell(ProbeAnswered("a", FIRST_LIFE)) == []
    assert world.of_a is Health.HEALTHY


def test_nobody_doubts_who_is_known_to_be_away(world):
    world.tell(NodeKnown("a", FIRST_LIFE))
    assert world.tell(ConnectionLost("a")) == world.tell(Doubted("nobody")) == []
    world.healthy()
    world.tell(NodeStopped("a", FIRST_LIFE))
    assert world.tell(ConnectionLost("a")) == world.tell(Doubted("a")) == []


def test_a_blind_master_asks_nobody(world):
    world.healthy()
    world.tell(BrokerLost())
    assert world.tell(ConnectionLost("a")) == world.tell(Doubted("a")) == []


def test_a_storm_of_hang_ups_while_the_broker_restarts_is_no_mass_death(world):
    """Everybody has to log in again: until then that nobody listens proves nothing."""
    names = [f"n{number}" for number in range(1000)]
    for name in names:
        world.tell(HeartbeatReceived(name, 1, 1))
        world.tell(ProbeAnswered(name, 1))
    asked = [effect for name in names for effect in world.tell(ConnectionLost(name))]
    assert len(asked) == len(names)
    world.tell(BrokerLost())
    for name in names:
        assert world.tell(ProbeFailed(name, no_responders=True)) == []
    world.now += 1
    world.tell(BrokerFound())
    world.tell(BeatEchoed())
    for name in names:
        assert world.tell(Doubted(name)) == [ProbeNode(name)]
        assert world.tell(ProbeFailed(name, no_responders=True)) == [ProbeNode(name)]
    effects = world.wait(1.1)
    assert effects.count(ProbeNode("n0", again=True)) == 1, "asked again until it is sure"
    for number, name in enumerate(names):
        world.tell(HeartbeatReceived(name, 1, 2))
        if number % 2:
            world.tell(ProbeAnswered(name, 1))
    assert {health for health, _ in world.health.values()} == {Health.HEALTHY}
    effects = world.tell(ProbeFailed("n1", no_responders=True))
    assert world.health["n1"] == (Health.UNREACHABLE, fd.NOBODY_LISTENS), "it was back already"
    for _ in range(6):
        for name in names:
            world.tell(HeartbeatReceived(name, 1, round(world.now)))
        world.wait(1)
    world.tell(ProbeFailed("n2", no_responders=True))
    assert world.health["n2"] == (Health.UNREACHABLE, fd.NOBODY_LISTENS), "it had its time"


def test_who_is_not_back_after_an_outage_gets_the_time_to_log_in(world):
    world.healthy()
    world.tell(BrokerLost())
    world.wait(5, echo=False)
    world.tell(BrokerFound())
    world.tell(BeatEchoed())
    world.wait(5.8)
    assert world.of_a is Health.SUSPECT
    world.wait(0.4)
    assert world.health["a"] == (Health.UNREACHABLE, fd.SILENT)


# -- flapping --------------------------------------------------------------------------------------


def fall(world: World, life: int) -> None:
    world.tell(ConnectionLost("a"))
    world.tell(ProbeFailed("a", no_responders=True))
    assert world.of_a is Health.UNREACHABLE
    world.beat(life)
    world.tell(ProbeAnswered("a", life))


def waited(world: World, life: int) -> int:
    """Seconds until it is used again, while it beats."""
    for second in range(100):
        if world.of_a is Health.HEALTHY:
            return second
        assert world.of_a is Health.UNREACHABLE
        assert world.health["a"][1].startswith(fd.FLAPPING)
        world.beat(life)
        world.wait(1)
    raise AssertionError("never")


def test_who_falls_again_and_again_waits_longer_and_longer(world):
    world.healthy()
    waits = []
    for life in range(FIRST_LIFE + 1, FIRST_LIFE + 8):
        fall(world, life)
        waits.append(waited(world, life))
    assert waits[:6] == pytest.approx([0, 0, 2, 4, 8, 16], abs=1)
    fall(world, 999)
    assert world.health["a"] == (
        Health.UNREACHABLE,
        "flapping: it fell 8 times within 120 s and waits 60 s",
    )


def test_a_restart_that_nobody_saw_is_a_fall_too(world):
    world.healthy()
    for life in range(1, 4):
        world.beat(FIRST_LIFE + life)
        world.tell(ProbeAnswered("a", FIRST_LIFE + life))
    assert world.health["a"][1].startswith(fd.FLAPPING)


@pytest.mark.parametrize("closed_first", [False, True])
def test_goodbyes_are_no_falls(world, closed_first):
    world.healthy()
    for life in range(FIRST_LIFE, FIRST_LIFE + 10):
        if closed_first:  # the broker tells of the first connection before the goodbye is heard
            world.tell(ConnectionLost("a"))
            world.tell(ProbeFailed("a", no_responders=True))
        world.tell(NodeStopped("a", life))
        world.tell(ConnectionLost("a"))
        world.beat(life + 1)
        world.tell(ProbeAnswered("a", life + 1))
        assert world.of_a is Health.HEALTHY


def test_who_falls_while_it_waits_begins_anew(world):
    world.healthy()
    for life in range(1, 4):
        fall(world, life + FIRST_LIFE)
    assert "waits 2 s" in world.health["a"][1]
    world.wait(3.5)
    assert world.health["a"] == (Health.UNREACHABLE, fd.SILENT)
    world.beat(200)
    world.tell(ProbeAnswered("a", 200))
    assert "4 times" in world.health["a"][1]
    assert "waits 4 s" in world.health["a"][1]


def test_a_node_that_loses_the_broker_with_everybody_else_has_not_fallen(world):
    world.healthy()
    for _ in range(5):
        world.tell(BrokerLost())
        world.wait(1, echo=False)
        world.tell(BrokerFound())
        world.tell(BeatEchoed())
        world.beat()
        world.tell(ProbeAnswered("a", FIRST_LIFE))
        assert world.of_a is Health.HEALTHY


def test_the_clock_may_begin_at_zero():
    detector = FailureDetector(HealthConfig())
    detector.handle(BeatEchoed(), 0.0)
    detector.handle(HeartbeatReceived("a", 1, 1), 0.0)
    assert SetHealth("a", Health.HEALTHY, "") in detector.handle(ProbeAnswered("a", 1), 0.0)
    detector.handle(BeatEchoed(), 1.0)
    assert detector.handle(Tick(), 1.4) == []


# -- what a node says of itself outranks what is missed of it --------------------------------------


@pytest.mark.parametrize(
    ("flags", "health"),
    [({"draining": True}, Health.DRAINING), ({"lag_s": 9.0}, Health.STALLED)],
    ids=["draining", "stalled"],
)
def test_a_node_that_takes_no_work_gets_none_because_its_beats_are_late(world, flags, health):
    """Callers ask suspect nodes."""
    world.healthy()
    world.beat(**flags)
    assert world.of_a is health
    world.wait(2)
    assert world.of_a is health
    world.wait(2)
    assert world.of_a is Health.UNREACHABLE


def test_a_new_node_that_takes_no_work_says_so_before_it_answers_a_probe(world):
    world.beat()
    assert world.of_a is Health.SUSPECT
    world.beat(draining=True)
    assert world.of_a is Health.DRAINING


def test_a_heartbeat_made_before_the_drain_does_not_end_it(world):
    world.healthy()
    world.tell(NodeDraining("a", FIRST_LIFE, world.sequence + 1))
    assert world.of_a is Health.DRAINING
    world.beat()
    assert world.of_a is Health.DRAINING
    world.beat()
    assert world.of_a is Health.HEALTHY, "one made later says that it is over"


def test_a_drain_that_is_heard_after_its_end_is_none(world):
    world.healthy()
    before = world.sequence
    world.beat(draining=True)
    world.beat()
    world.tell(NodeDraining("a", FIRST_LIFE, before))
    assert world.of_a is Health.HEALTHY
