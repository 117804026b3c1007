"""Counting what may happen ten thousand times: nothing is lost, little is entered, less is kept."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.core.tally import OTHERS, Key, Tallied, Tally

WINDOW_S = 60.0
CAPACITY = 3
MOST_ACTORS = 4

ANN = Key("ann", "10.0.0.1")
BOB = Key("bob", "10.0.0.1")


def test_the_first_is_entered_at_once_and_the_others_of_a_minute_together():
    tally = Tally()
    assert tally.count(ANN, "broker", 0.0) == Tallied(ANN, "broker", 1)
    for at in range(1, 10_000):
        assert tally.count(ANN, "broker", at / 1000) is None
    assert tally.due(59.9) == []
    assert tally.due(60.0) == [Tallied(ANN, "broker", 9999)]
    assert tally.due(60.0) == []


def test_a_key_that_rested_for_a_minute_is_a_first_again():
    tally = Tally()
    tally.count(ANN, "x", 0.0)
    assert tally.due(60.0) == []
    assert len(tally) == 0
    assert tally.count(ANN, "x", 61.0) == Tallied(ANN, "x", 1)


def test_one_that_goes_on_is_entered_once_a_minute():
    tally = Tally()
    tally.count(ANN, "x", 0.0)
    entries = []
    for second in range(1, 301):
        tally.count(ANN, "x", second)
        entries += tally.due(second)
    assert [entry.times for entry in entries] == [60] * 5


def test_keys_are_counted_apart_and_a_subject_is_told_where_they_had_one():
    tally = Tally()
    assert tally.count(ANN, "x", 0.0)
    assert tally.count(BOB, "x", 0.0)
    for subject in ("x", "y", "y"):
        tally.count(ANN, subject, 1.0)
        tally.count(BOB, "z", 1.0)
    assert tally.due(60.0) == [Tallied(ANN, "", 3), Tallied(BOB, "z", 3)]


def test_beyond_the_capacity_further_origins_are_counted_together():
    tally = Tally(capacity=2)
    keys = [Key("mallory", f"10.0.0.{number}") for number in range(1000)]
    firsts = [tally.count(key, "x", 0.0) for key in keys]
    entered = [first.key for first in firsts if first]
    assert entered == [*keys[:3], Key("mallory", "")]
    assert tally.close() == [Tallied(Key("mallory", ""), "x", 996)]
    assert tally.close() == []


def test_no_number_of_strangers_hides_somebody_who_has_a_name():
    tally = Tally(capacity=2)
    for number in range(10_000):
        tally.count(Key("(unknown)", f"10.0.{number}"), "x", 0.0)
    names = [Key(f"node-{number}", "192.0.2.7") for number in range(300)]
    assert all(tally.count(key, "x", 1.0) == Tallied(key, "x", 1) for key in names)
    assert tally.count(Key("operator", "192.0.2.9"), "operator", 1.0)


def test_of_more_actors_than_there_can_be_the_others_are_counted_together():
    tally = Tally(most_actors=2)
    keys = [Key(f"actor-{number}", "x") for number in range(1000)]
    entered = [first.key for key in keys if (first := tally.count(key, "x", 0.0))]
    assert entered == [*keys[:2], Key(OTHERS, "")]
    assert len(tally) == 3
    assert tally.close() == [Tallied(Key(OTHERS, ""), "x", 997)]
    assert tally.count(keys[5], "x", 1.0), "all is forgotten"


class TallyMachine(RuleBasedStateMachine):
    """What was counted is what was entered and what waits; one entry a key and minute."""

    def __init__(self):
        super().__init__()
        self.tally = Tally(window_s=WINDOW_S, capacity=CAPACITY, most_actors=MOST_ACTORS)
        self.now = 1000.0
        self.counted = 0
        self.entered = 0
        self.last = {}
        """When each key had its last entry."""

    def _enter(self, entry):
        assert entry.times > 0
        last = self.last.get(entry.key)
        assert last is None or self.now - last >= WINDOW_S, "two entries within a window"
        self.last[entry.key] = self.now
        self.entered += entry.times

    @rule(
        actor=st.sampled_from("abcdef"),
        origin=st.sampled_from(["", "1", "2", "3"]),
        subject=st.sampled_from("xy"),
    )
    def count(self, actor, origin, subject):
        key = Key(actor, origin)
        is_known = any(each.actor == actor for each in self.tally._windows)
        first = self.tally.count(key, subject, self.now)
        self.counted += 1
        if first is not None:
            assert first.times == 1
            assert first.subject == subject
            assert first.key in (key, Key(actor, ""), Key(OTHERS, ""))
            assert not is_known or first.key.actor == actor
            self._enter(first)

    @rule(seconds=st.sampled_from([0.5, 10.0, 59.5, 60.0, 61.0, 300.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def collect(self):
        for entry in self.tally.due(self.now):
            self._enter(entry)
        assert all(window.began + WINDOW_S > self.now for window in self.tally._windows.values()), (
            "something is left that was due"
        )

    @invariant()
    def nothing_is_lost(self):
        uncollected = sum(window.count for window in self.tally._windows.values())
        assert self.entered + uncollected == self.counted

    @invariant()
    def memory_is_bounded(self):
        assert len(self.tally) <= CAPACITY + 2 * (MOST_ACTORS + 1)
        actors = Counter(key.actor for key in self.tally._windows)
        assert actors == self.tally._keys_of
        assert len(actors) <= MOST_ACTORS + 1

    @invariant()
    def windows_stand_in_the_order_of_their_beginnings(self):
        windows = list(self.tally._windows.values())
        assert windows == sorted(windows, key=lambda window: window.began)

    def teardown(self):
        for entry in self.tally.close():
            self.entered += entry.times
        assert self.entered == self.counted
        assert len(self.tally) == 0


TestTally = TallyMachine.TestCase
TestTally.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
