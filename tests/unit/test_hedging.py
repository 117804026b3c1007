from __future__ import annotations

import random

import pytest

from mesh.core.hedging import RECOMPUTED_EVERY, REMEMBERED, Hedging


def test_nothing_is_hedged_before_enough_is_known():
    hedging = Hedging(0.95)
    for _ in range(19):
        hedging.observed(5.0)
        assert hedging.delay_s() is None
    hedging.observed(5.0)
    assert hedging.delay_s() == pytest.approx(0.005, rel=0.05)


def test_the_delay_is_the_quantile_so_that_a_twentieth_is_hedged():
    rng, hedging = random.Random(3), Hedging(0.95)
    times = [rng.lognormvariate(1.5, 0.7) for _ in range(5000)]
    for ms in times:
        hedging.observed(ms)
    longer = sum(ms / 1000 > hedging.delay_s() for ms in times) / len(times)
    assert longer == pytest.approx(0.05, abs=0.02)


def test_it_follows_when_calls_get_slower_or_faster():
    hedging = Hedging(0.95)
    for ms in (5.0, 50.0, 1.0):
        for _ in range(2 * REMEMBERED + RECOMPUTED_EVERY):
            hedging.observed(ms)
        assert hedging.delay_s() == pytest.approx(ms / 1000, rel=0.05)


def test_it_is_computed_now_and_then_only():
    hedging = Hedging(0.5, least_samples=1)
    hedging.observed(5.0)
    first = hedging.delay_s()
    for _ in range(RECOMPUTED_EVERY - 1):
        hedging.observed(500.0)
        assert hedging.delay_s() == first
    hedging.observed(500.0)
    assert hedging.delay_s() == pytest.approx(0.5, rel=0.05)


def test_no_more_than_two_generations_are_remembered():
    hedging = Hedging(0.95)
    for _ in range(10 * REMEMBERED):
        hedging.observed(5.0)
        assert hedging._recent.count + sum(hedging._older.values()) < 2.2 * REMEMBERED
