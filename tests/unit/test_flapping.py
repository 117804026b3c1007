from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.config import HealthConfig
from mesh.core.flapping import Falls

CONFIG = HealthConfig(flap_window_s=100, flap_after=3, rejoin_first_s=2, rejoin_most_s=30)


@pytest.mark.parametrize(
    ("falls", "wait_s"),
    [(0, 0), (1, 0), (2, 0), (3, 2), (4, 4), (5, 8), (6, 16), (7, 30), (90, 30)],
)
def test_the_wait_doubles_from_the_first_that_is_too_many(falls, wait_s):
    node = Falls(CONFIG)
    for number in range(falls):
        node.fell(number / 10)
    assert node.wait_s(20) == wait_s


def test_falls_are_forgiven_with_time():
    node = Falls(CONFIG)
    for at in (0, 50, 60, 70):
        node.fell(at)
    assert (node.within_window(100), node.wait_s(100)) == (4, 4)
    assert (node.within_window(101), node.wait_s(101)) == (3, 2)
    assert (node.within_window(171), node.wait_s(171)) == (0, 0)


def test_a_goodbye_is_taken_back_and_nothing_more_than_there_was():
    node = Falls(CONFIG)
    node.forgive_last()
    for at in range(4):
        node.fell(at)
    node.forgive_last()
    assert node.within_window(5) == 3


@given(st.lists(st.floats(0, 50), max_size=300), st.floats(0, 400))
def test_any_history_gives_a_wait_within_its_bounds_that_more_falls_never_shorten(gaps, later):
    node, now = Falls(CONFIG), 0.0
    for gap in gaps:
        now += gap
        before = node.wait_s(now)
        node.fell(now)
        assert before <= node.wait_s(now) <= CONFIG.rejoin_most_s
    assert node.wait_s(now) >= node.wait_s(now + later)


def test_the_most_extreme_settings_overflow_nothing():
    config = HealthConfig(flap_after=1, rejoin_first_s=1e-300, rejoin_most_s=86_400)
    node = Falls(config)
    for at in range(5000):
        node.fell(at / 1e6)
    assert 0 < node.wait_s(1) <= 86_400
