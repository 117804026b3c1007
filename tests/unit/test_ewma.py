from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.ewma import ewma

samples = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)
weights = st.floats(0.01, 1)


def mean_of(values: list[float], weight: float) -> float:
    mean = None
    for value in values:
        mean = ewma(mean, value, weight)
    assert mean is not None
    return mean


def test_the_first_sample_is_the_mean():
    assert ewma(None, 12.5, 0.2) == 12.5


def test_a_sample_counts_by_its_weight():
    assert ewma(10.0, 20.0, 0.25) == pytest.approx(12.5)


@given(samples, weights)
def test_it_is_the_weighted_sum_of_the_formula(values, weight):
    expected = values[0] * (1 - weight) ** (len(values) - 1) + sum(
        weight * (1 - weight) ** (len(values) - 1 - at) * value
        for at, value in enumerate(values)
        if at
    )
    assert mean_of(values, weight) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(samples, weights)
def test_it_never_leaves_the_range_of_its_samples(values, weight):
    assert min(values) - 1e-6 <= mean_of(values, weight) <= max(values) + 1e-6
