from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import latency
from mesh.core.latency import BUCKETS, Histogram, SlidingHistogram, bucket, middle_ms, quantile_of

TIMES = st.floats(latency.LEAST_MS, latency.MOST_MS)
COUNTS = st.dictionaries(st.integers(0, BUCKETS - 1), st.integers(1, 1000), max_size=30)


def histogram_of(counts):
    made = Histogram()
    made.merge(counts)
    return made


@given(TIMES)
def test_what_stands_for_a_bucket_is_within_five_percent_of_any_time_in_it(ms):
    assert abs(middle_ms(bucket(ms)) - ms) <= latency.ERROR * ms * (1 + 1e-9)


@given(TIMES, TIMES)
def test_a_longer_time_is_never_in_an_earlier_bucket(one, other):
    less, more = sorted((one, other))
    assert bucket(less) <= bucket(more)


@pytest.mark.parametrize(
    ("ms", "number"),
    [
        (0.0, 0),
        (-1.0, 0),
        (math.nan, 0),
        (-math.inf, 0),
        (latency.LEAST_MS, 0),
        (math.inf, BUCKETS - 1),
        (1e300, BUCKETS - 1),
    ],
)
def test_what_is_out_of_range_is_in_the_first_or_the_last_bucket(ms, number):
    assert bucket(ms) == number


def test_the_range_is_from_ten_microseconds_to_a_day():
    assert latency.LEAST_MS == 0.01
    assert latency.MOST_MS >= 86_400_000
    assert BUCKETS <= 256


@given(st.lists(TIMES, min_size=1, max_size=200), st.floats(0, 1))
def test_a_quantile_is_within_five_percent_of_the_exact_one(times, q):
    histogram = Histogram()
    for ms in times:
        histogram.add(ms)
    exact = sorted(times)[math.floor(q * (len(times) - 1))]
    assert histogram.quantile(q) == pytest.approx(exact, rel=latency.ERROR * (1 + 1e-9))
    assert histogram.count == len(times) == sum(histogram.counts.values())


@given(COUNTS, COUNTS, COUNTS)
def test_merging_is_commutative_and_associative(one, two, three):
    ab_c = histogram_of(one)
    ab_c.merge(two)
    ab_c.merge(three)
    bc = histogram_of(two)
    bc.merge(three)
    bc.merge(one)
    assert ab_c.counts == bc.counts
    assert ab_c.count == bc.count


def test_counts_of_strangers_that_can_be_none_are_passed_over():
    histogram = Histogram()
    histogram.merge({-1: 5, BUCKETS: 7, 3: -2, 4: 0, 5: 1})
    assert histogram.counts == {5: 1}
    assert histogram.count == 1


def test_clearing_leaves_the_counts_that_were_handed_out_alone():
    histogram = Histogram()
    histogram.add(5)
    out = histogram.counts
    histogram.clear()
    histogram.add(7)
    assert out == {bucket(5): 1}
    assert histogram.counts == {bucket(7): 1}


def test_nothing_has_no_quantile():
    assert Histogram().quantile(0.5) is None
    assert quantile_of({}, 0.5) is None
    assert SlidingHistogram(60, 6).quantile(0.5, 0.0) is None


def test_a_window_forgets_slice_by_slice():
    window = SlidingHistogram(60, 6)
    for at in range(0, 60, 10):
        window.add(at // 10, 1, at)
    assert window.counts(59.9) == dict.fromkeys(range(6), 1)
    assert window.counts(60) == dict.fromkeys(range(1, 6), 1)
    assert window.counts(85) == dict.fromkeys(range(3, 6), 1)
    assert window.counts(1000) == {}
    assert window.quantile(0.5, 1000) is None


def test_a_clock_that_steps_back_loses_and_invents_nothing():
    window = SlidingHistogram(60, 6)
    window.add(1, 1, 100)
    window.add(2, 1, 10)
    assert window.counts(50) == {1: 1, 2: 1}
    window.add(999, 1, 100)
    assert window.counts(100) == {1: 1, 2: 1}


@given(st.lists(st.tuples(st.floats(0, 300), st.integers(0, BUCKETS - 1)), max_size=60))
def test_a_window_holds_what_is_younger_than_it_less_a_slice_and_nothing_older_than_it(samples):
    window = SlidingHistogram(60, 12)
    samples.sort()
    for at, number in samples:
        window.add(number, 1, at)
    end = samples[-1][0] if samples else 0.0
    held = sum(window.counts(end).values())
    assert held >= sum(end - at < 55 - 1e-9 for at, _ in samples)
    assert held <= sum(end - at <= 60 + 1e-9 for at, _ in samples)


def test_p99_of_many_is_what_it_should_be():
    rng = random.Random(7)
    times = [rng.lognormvariate(1.5, 0.8) for _ in range(20_000)]
    histogram = Histogram()
    for ms in times:
        histogram.add(ms)
    assert histogram.quantile(0.99) == pytest.approx(sorted(times)[19_799], rel=0.05)
    assert len(histogram.counts) < 100
