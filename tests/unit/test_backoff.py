from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mesh.core.backoff import Backoff, BackoffPolicy


def test_it_doubles_from_one_second_up_to_thirty():
    backoff = Backoff()
    assert [backoff.died(0.1) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize(("alive_s", "then_s"), [(59.9, 8), (60.0, 1)])
def test_a_long_life_forgives(alive_s, then_s):
    backoff = Backoff()
    for _ in range(3):
        backoff.died(0)
    assert backoff.died(alive_s) == then_s


class BackoffMachine(RuleBasedStateMachine):
    """Against the closed formula over the lives since the last long one."""

    @initialize(first=st.floats(0.01, 5), factor=st.floats(1, 4), limit=st.floats(5, 60))
    def begin(self, first, factor, limit):
        self.policy = BackoffPolicy(first_s=first, factor=factor, limit_s=limit, reset_after_s=10)
        self.backoff = Backoff(self.policy)
        self.short_lives = 0
        self.delay = None

    @rule(alive_s=st.sampled_from([0.0, 9.999, 10.0, 1e9]))
    def die(self, alive_s):
        before = self.delay
        self.delay = self.backoff.died(alive_s)
        self.short_lives = 1 if alive_s >= self.policy.reset_after_s else self.short_lives + 1
        if before is not None and self.short_lives > 1:
            assert self.delay >= before

    @invariant()
    def follows_the_formula(self):
        if getattr(self, "delay", None) is not None:
            policy = self.policy
            wanted = policy.first_s * policy.factor ** (self.short_lives - 1)
            assert self.delay == pytest.approx(min(wanted, policy.limit_s))
            assert self.backoff.deaths == self.short_lives


TestBackoff = BackoffMachine.TestCase
TestBackoff.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_thousands_of_deaths_stay_at_the_limit():
    """A power of the count would overflow."""
    backoff = Backoff()
    assert {backoff.died(0) for _ in range(5000)} == {1, 2, 4, 8, 16, 30}
