from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.rate_limit import RateLimiter


@pytest.mark.parametrize("start", [0.0, 0.1, 1234.5678, 1e6 + 1 / 3])
def test_sixty_at_once_pass_and_the_next_within_a_second_does_not(start):
    limiter = RateLimiter(60, 60)
    verdicts = [limiter.check("ann", start) for _ in range(60)]
    assert all(verdict.allowed for verdict in verdicts)
    assert [verdict.remaining for verdict in verdicts] == list(range(59, -1, -1))
    refused = limiter.check("ann", start + 0.9)
    assert not refused.allowed
    assert refused.remaining == 0
    assert refused.retry_after_s == pytest.approx(0.1, abs=1e-6)
    assert limiter.check("ann", start + 1.0001).allowed


def test_whoever_waits_as_told_is_let_in():
    limiter = RateLimiter(3, 10)
    for _ in range(3):
        limiter.check("ann", 0)
    refused = limiter.check("ann", 0)
    assert not limiter.check("ann", refused.retry_after_s - 0.001).allowed
    assert limiter.check("ann", refused.retry_after_s).allowed


def test_refused_requests_do_not_prolong_the_wait():
    limiter = RateLimiter(1, 10)
    limiter.check("ann", 0)
    for at in range(1, 10):
        assert not limiter.check("ann", at).allowed
    assert limiter.check("ann", 10).allowed


def test_one_key_costs_another_nothing():
    limiter = RateLimiter(1, 10)
    assert limiter.check(("ann", "GET", "/a"), 0).allowed
    assert limiter.check(("ann", "GET", "/b"), 0).allowed
    assert limiter.check(("bob", "GET", "/a"), 0).allowed


def test_the_whole_allowance_is_back_when_it_says():
    limiter = RateLimiter(5, 10)
    for _ in range(4):
        verdict = limiter.check("ann", 7)
    assert verdict.reset_s == pytest.approx(8)
    assert limiter.check("ann", 7 + verdict.reset_s).remaining == 4


def test_keys_are_bounded_and_those_that_are_whole_again_are_forgotten():
    limiter = RateLimiter(10, 10, capacity=100)
    for number in range(1000):
        limiter.check(number, 0)
        assert len(limiter) <= 100
    for _ in range(100):
        limiter.check("later", 1000)
    assert len(limiter) == 1


def test_a_busy_key_outlives_idle_ones():
    limiter = RateLimiter(1, 1000, capacity=10)
    limiter.check("busy", 0)
    for number in range(100):
        limiter.check(number, 1)
        assert not limiter.check("busy", 1).allowed


@given(
    limit=st.integers(1, 1_000_000),
    period=st.floats(0.001, 86_400),
    start=st.floats(0, 1e9),
)
def test_the_first_of_many_always_passes_and_the_figures_make_sense(limit, period, start):
    verdict = RateLimiter(limit, period).check("ann", start)
    assert verdict.allowed
    assert verdict.remaining == limit - 1
    assert 0 < verdict.reset_s <= period + 1
