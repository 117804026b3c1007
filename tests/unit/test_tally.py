"""Counting what may happen ten thousand times: nothing is lost, little is entered, less is kept."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.core.tally import OTHERS, Key, Tallied, Tally

WINDOW_S = 60.0
CAPACITY = 3
KINDS = ("login-refused", "login-granted")

ANN = Key("login-refused", "ann", "10.0.0.1")
BOB = Key("login-refused", "bob", "10.0.0.1")


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


def test_beyond_the_capacity_they_are_counted_together():
    tally = Tally(capacity=2)
    names = [f"mallory-{i}" for i in range(1000)]
    firsts = [tally.count(Key("login-refused", name, "x"), name, 0.0) for name in names]
    entered = [first.key.actor for first in firsts if first]
    assert entered == ["mallory-0", "mallory-1", OTHERS]
    assert len(tally) == 3
    assert tally.close() == [Tallied(Key("login-refused", OTHERS, ""), "", 997)]
    assert tally.close() == []


class TallyMachine(RuleBasedStateMachine):
    """What was counted is what was entered and what waits; one entry a key and minute."""

    def __init__(self):
        super().__init__()
        self.tally = Tally(window_s=WINDOW_S, capacity=CAPACITY)
        self.now = 1000.0
        self.counted = Counter()
        self.entered = Counter()
        self.last = {}
        """When each key had its last entry."""

    def _enter(self, entry):
        assert entry.times > 0
        last = self.last.get(entry.key)
        assert last is None or self.now - last >= WINDOW_S, "two entries within a window"
        self.last[entry.key] = self.now
        self.entered[entry.key.kind] += entry.times

    @rule(
        kind=st.sampled_from(KINDS), actor=st.sampled_from("abcdef"), subject=st.sampled_from("xy")
    )
    def count(self, kind, actor, subject):
        key = Key(kind, actor, "")
        first = self.tally.count(key, subject, self.now)
        self.counted[kind] += 1
        if first is not None:
            assert first.times == 1
            assert first.subject == subject
            assert first.key in (key, Key(kind, OTHERS, ""))
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

    def uncollected(self, kind):
        return sum(window.count for key, window in self.tally._windows.items() if key.kind == kind)

    @invariant()
    def nothing_is_lost(self):
        for kind in KINDS:
            assert self.entered[kind] + self.uncollected(kind) == self.counted[kind]

    @invariant()
    def memory_is_bounded(self):
        assert len(self.tally) <= CAPACITY + len(KINDS)

    @invariant()
    def windows_stand_in_the_order_of_their_beginnings(self):
        windows = list(self.tally._windows.values())
        assert windows == sorted(windows, key=lambda window: window.began)

    def teardown(self):
        for entry in self.tally.close():
            self.entered[entry.key.kind] += entry.times
        assert self.entered == self.counted
        assert len(self.tally) == 0


TestTally = TallyMachine.TestCase
TestTally.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
