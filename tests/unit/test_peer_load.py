from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.peer_load import TAU_S, PeerLoad


def served(load, ms, now=0.0):
    load.returned(load.sent(now), now + ms / 1000, counts=True)
    return load


def test_who_is_unknown_and_idle_is_tried_at_once_and_then_waited_for():
    load, known = PeerLoad("a"), served(PeerLoad("b"), 50.0)
    assert load.cost(1.0) == 0
    token = load.sent(1.0)
    assert load.cost(1.0) > known.cost(1.0)
    load.returned(token, 1.005, counts=True)
    assert load.cost(1.005) == pytest.approx(5)


def test_a_longer_sample_counts_at_once_a_shorter_one_slowly():
    load = served(PeerLoad("a"), 5.0)
    served(load, 50.0)
    assert load.ewma_ms == pytest.approx(50)
    served(load, 5.0)
    assert load.ewma_ms == pytest.approx(50, rel=0.01)
    served(load, 5.0, TAU_S)
    assert load.ewma_ms == pytest.approx(5 + 45 / math.e, rel=0.02)


def test_it_fades_without_samples_so_that_a_slow_node_is_tried_again():
    slow, fast = served(PeerLoad("slow"), 50.0), PeerLoad("fast")
    for at in range(30):
        served(fast, 5.0, float(at))
    assert slow.cost(10.0) > 5
    assert slow.cost(30.0) < fast.cost(30.0)


def test_a_call_that_does_not_end_is_news_before_it_ends():
    load = served(PeerLoad("a"), 5.0)
    token = load.sent(1.0)
    assert load.time_ms(1.004) == pytest.approx(5, rel=0.2)
    assert load.time_ms(1.5) == pytest.approx(500)
    load.returned(token, 1.5, counts=False)
    assert load.time_ms(1.5) < 5


def test_the_age_is_of_the_oldest_call():
    load = served(PeerLoad("a"), 1.0)
    tokens = [load.sent(float(at)) for at in range(3)]
    assert load.time_ms(3.0) == pytest.approx(3000)
    load.returned(tokens[1], 3.0, counts=False)
    assert load.time_ms(3.0) == pytest.approx(3000)
    load.returned(tokens[0], 3.0, counts=False)
    assert load.time_ms(3.0) == pytest.approx(1000)


def test_work_that_is_there_counts_and_weight_divides():
    load = served(PeerLoad("a", weight=2.0), 10.0)
    now = 0.01
    assert load.cost(now) == pytest.approx(5)
    load.sent(now)
    load.reported = 3
    assert load.cost(now) == pytest.approx(25)


def test_a_token_frees_once():
    load = PeerLoad("a")
    first, second = load.sent(0.0), load.sent(0.0)
    for _ in range(5):
        load.returned(first, 1.0, counts=True)
    assert load.in_flight == 1
    load.returned(second, 1.0, counts=True)
    load.returned(999, 1.0, counts=True)
    assert load.in_flight == 0


def test_what_does_not_count_says_nothing_of_the_pace():
    load = served(PeerLoad("a"), 10.0)
    load.returned(load.sent(1.0), 1.0001, counts=False)
    assert load.ewma_ms == pytest.approx(10)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.floats(0, 5), st.booleans())))
def test_the_cost_is_finite_and_the_oldest_is_the_oldest(steps):
    load, now, flying = PeerLoad("a"), 0.0, {}
    for sends, which, seconds, counts in steps:
        now += seconds
        if sends:
            flying[load.sent(now)] = now
        elif flying:
            token = sorted(flying)[which % len(flying)]
            del flying[token]
            load.returned(token, now, counts=counts)
        assert load.in_flight == len(flying)
        assert 0 <= load.cost(now) < math.inf
        if load.ewma_ms is not None and flying:
            assert load.time_ms(now) >= (now - min(flying.values())) * 1000 - 1e-6


def test_who_fails_at_once_costs_more_than_who_is_slow():
    quick, slow, broken = served(PeerLoad("q"), 5.0), served(PeerLoad("s"), 500.0), PeerLoad("b")
    broken.failed(broken.sent(1.0), 1.001)
    assert quick.cost(1.001) < slow.cost(1.001) < broken.cost(1.001)
    assert broken.in_flight == broken.node.count == 0
    for at in range(100):
        quick.answered(quick.sent(float(at)), at + 0.005)
    assert broken.cost(100.0) < quick.cost(100.0), "it is tried again"


def test_the_usual_time_is_that_of_answers():
    load = PeerLoad("a")
    for at in range(100):
        load.answered(load.sent(float(at)), at + 0.1)
        load.failed(load.sent(float(at)), at + 0.001)
        load.returned(load.sent(float(at)), at + 0.9, counts=True)
    assert load.usual_ms == pytest.approx(100, rel=0.01)
