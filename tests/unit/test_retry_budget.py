from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.retry_budget import RetryBudget


def taken(budget, now, most=10_000):
    count = 0
    while count < most and budget.take(now):
        count += 1
    return count


def test_a_fifth_of_the_calls_and_the_reserve():
    budget = RetryBudget(0.2)
    for _ in range(100):
        budget.called(50.0)
    assert budget.available(50.0) == pytest.approx(30)
    assert taken(budget, 50.0) == 30
    assert not budget.take(50.0)


def test_the_reserve_is_there_for_who_seldom_calls_and_comes_back():
    budget = RetryBudget(0.2)
    assert taken(budget, 0.0) == 10
    assert taken(budget, 9.0) == 0
    assert taken(budget, 12.0) == 10


def test_without_a_share_there_is_no_reserve_either():
    budget = RetryBudget(0.0)
    for _ in range(100):
        budget.called(0.0)
    assert not budget.take(0.0)


def test_calls_that_are_long_past_pay_for_nothing():
    budget = RetryBudget(0.5, reserve=0)
    for _ in range(100):
        budget.called(0.0)
    assert taken(budget, 11.0) == 0


def test_in_a_steady_outage_the_load_grows_by_a_fifth():
    budget, repeated, calls = RetryBudget(0.2), 0, 0
    for step in range(6000):
        now = step / 100
        budget.called(now)
        calls += 1
        repeated += budget.take(now)
    assert repeated <= 0.2 * calls + 60
    assert repeated >= 0.15 * calls


@given(
    ratio=st.sampled_from([0.0, 0.05, 0.2, 1.0]),
    reserve=st.sampled_from([0, 3, 10]),
    steps=st.lists(st.tuples(st.floats(0, 4), st.integers(0, 30), st.integers(0, 30)), max_size=60),
)
def test_within_any_window_it_never_exceeds_its_share_and_the_reserve(ratio, reserve, steps):
    budget = RetryBudget(ratio, reserve=reserve)
    now, calls, takes = 0.0, [], []
    for seconds, called, wanted in steps:
        now += seconds
        for _ in range(called):
            budget.called(now)
            calls.append(now)
        for _ in range(wanted):
            if budget.take(now):
                takes.append(now)
                recent = sum(now - at < 10 for at in takes)
                allowed = ratio * sum(now - at <= 10 for at in calls) + reserve
                assert recent <= allowed + 1e-6
