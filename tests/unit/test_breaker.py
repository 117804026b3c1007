"""The breaker, case by case. Times are seconds."""

from __future__ import annotations

import pytest

from mesh.config import BreakerConfig
from mesh.core.breaker import JITTER, SLICES, VOID_AFTER_S, Breaker, Outcome, had_its_time
from mesh.types import BreakerState
from mesh.wire.messages import BreakerWord

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
SUCCESS, FAILURE, IGNORED = Outcome.SUCCESS, Outcome.FAILURE, Outcome.IGNORED
CONFIG = BreakerConfig()


@pytest.fixture
def breaker():
    return Breaker(CONFIG)


def call(breaker, outcome, now=0.0, chance=0.0):
    permit = breaker.acquire(now)
    assert permit is not None
    return breaker.settle(permit, outcome, now, chance)


def opened(breaker, now=0.0, chance=0.0):
    for _ in range(CONFIG.failure_threshold):
        call(breaker, FAILURE, now, chance)
    assert breaker.state is OPEN
    return breaker


def word(state, turn, **fields):
    return BreakerWord(state=state, turn=turn, **fields)


# -- closed ----------------------------------------------------------------------------------------


def test_five_failures_in_a_row_open_it(breaker):
    assert [call(breaker, FAILURE) for _ in range(5)] == [False] * 4 + [True]
    assert breaker.state is OPEN
    assert breaker.reason == "5 failures in a row"
    assert not breaker.admits(29.9)
    assert breaker.acquire(29.9) is None
    assert breaker.retry_after_s(10) == pytest.approx(20)


def test_a_success_begins_the_row_anew(breaker):
    for _ in range(10):
        for _ in range(4):
            call(breaker, FAILURE, 0.0)
        for _ in range(9):
            call(breaker, SUCCESS, 0.0)
    assert breaker.state is CLOSED


def test_what_is_ignored_neither_counts_nor_ends_a_row(breaker):
    for _ in range(4):
        call(breaker, FAILURE)
        call(breaker, IGNORED)
    assert call(breaker, FAILURE)


def test_half_of_twenty_calls_open_it(breaker):
    for _ in range(9):
        assert not call(breaker, FAILURE)
        assert not call(breaker, SUCCESS)
    assert not call(breaker, FAILURE)
    assert call(breaker, SUCCESS), "the 20th call gives the share its meaning"
    assert breaker.reason == "10 of 20 calls failed"


def test_less_than_half_does_not(breaker):
    for _ in range(100):
        call(breaker, FAILURE)
        call(breaker, SUCCESS)
        call(breaker, SUCCESS)
    assert breaker.state is CLOSED


def test_failures_that_the_window_has_left_behind_are_forgotten(breaker):
    for _ in range(9):
        call(breaker, FAILURE, 5.0)
        call(breaker, SUCCESS, 5.0)
    for _ in range(50):
        call(breaker, SUCCESS, 70.0)
    call(breaker, FAILURE, 70.0)
    assert breaker._calls == 51
    assert breaker._failures == 1


def test_the_window_slides_slice_by_slice(breaker):
    for at in range(0, 60, 6):
        call(breaker, SUCCESS, float(at))
    assert breaker._calls == 10
    call(breaker, SUCCESS, 62.0)
    assert breaker._calls == 10
    call(breaker, SUCCESS, 100.0)
    assert breaker._calls == 5, "those of 42, 48, 54, 62 and now"


@pytest.mark.parametrize("window_s", [0.7, 10.0, 60.0])
def test_calls_on_the_edge_of_slices_are_forgotten_too(window_s):
    breaker = Breaker(BreakerConfig(window_s=window_s))
    slice_s = window_s / SLICES
    for number in range(1000):
        for nudge in (-1e-12, 0.0, 1e-12):
            call(breaker, SUCCESS, number * slice_s + nudge)
    call(breaker, SUCCESS, 5000 * slice_s)
    assert breaker._calls == 1


def test_a_stale_result_changes_nothing(breaker):
    before = [breaker.acquire(0.0) for _ in range(10)]
    opened(breaker)
    for permit in before:
        assert not breaker.settle(permit, SUCCESS, 1.0, 0.0)
    assert breaker.state is OPEN
    probe = breaker.acquire(31.0)
    for permit in before:
        breaker.settle(permit, SUCCESS, 31.0, 0.0)
    assert breaker.state is HALF_OPEN
    breaker.settle(probe, SUCCESS, 31.0, 0.0)
    assert call(breaker, SUCCESS, 31.0)
    for permit in before:
        breaker.settle(permit, FAILURE, 32.0, 0.0)
    assert breaker.state is CLOSED


def test_failures_of_exempt_calls_never_count(breaker):
    for _ in range(100):
        assert not breaker.settle(breaker.exempt(), FAILURE, 0.0, 0.0)
    assert breaker.state is CLOSED


def test_exempt_calls_that_succeed_in_a_row_close_it_before_anybody_has_probed(breaker):
    opened(breaker)
    for outcome in (SUCCESS, FAILURE, SUCCESS, IGNORED):
        assert not breaker.settle(breaker.exempt(), outcome, 1.0, 0.0)
    assert breaker.settle(breaker.exempt(), SUCCESS, 1.0, 0.0)
    assert breaker.state is CLOSED


def test_exempt_calls_of_an_earlier_opening_close_nothing(breaker):
    opened(breaker)
    early = [breaker.exempt() for _ in range(2)]
    breaker.settle(breaker.acquire(30.0), FAILURE, 30.0, 0.0)
    assert breaker.state is OPEN
    for permit in early:
        assert not breaker.settle(permit, SUCCESS, 31.0, 0.0)
    assert breaker.state is OPEN


def test_exempt_calls_do_not_outvote_the_masters(breaker):
    breaker.adopt(word(OPEN, 1), until=30.0, probes=0, now=0.0)
    for _ in range(10):
        assert not breaker.settle(breaker.exempt(), SUCCESS, 1.0, 0.0)
    assert breaker.state is OPEN


# -- open and half open, alone ---------------------------------------------------------------------


def test_half_open_admits_as_many_probes_as_must_succeed_and_closes(breaker):
    opened(breaker)
    probes = [breaker.acquire(30.0), breaker.acquire(30.0)]
    assert all(probes)
    assert breaker.state is HALF_OPEN
    assert not breaker.admits(30.0)
    assert breaker.acquire(1e9) is None
    assert not breaker.settle(probes[0], SUCCESS, 30.1, 0.0)
    assert breaker.acquire(30.1) is None, "one in flight and one succeeded are two"
    assert breaker.settle(probes[1], SUCCESS, 30.2, 0.0)
    assert breaker.state is CLOSED
    assert breaker.reason == ""
    assert breaker.retry_after_s(30.2) == 0


def test_a_probe_that_is_ignored_frees_its_place(breaker):
    opened(breaker)
    probes = [breaker.acquire(30.0), breaker.acquire(30.0)]
    breaker.settle(probes[0], IGNORED, 30.1, 0.0)
    assert breaker.admits(30.1)
    assert breaker.acquire(30.1)
    assert breaker.acquire(30.1) is None


def test_each_probe_that_fails_doubles_the_wait_up_to_the_most(breaker):
    opened(breaker)
    waits, now = [breaker.open_until], breaker.open_until
    for _ in range(20):
        assert call(breaker, FAILURE, now)
        waits.append(breaker.open_until - now)
        now = breaker.open_until
    assert waits[:5] == pytest.approx([30, 60, 120, 240, 300])
    assert set(waits[5:]) == {300}


def test_closing_forgives(breaker):
    opened(breaker)
    call(breaker, FAILURE, 30.0)
    now = breaker.open_until
    call(breaker, SUCCESS, now)
    call(breaker, SUCCESS, now)
    assert breaker._calls == 0
    opened(breaker, now)
    assert breaker.open_until - now == pytest.approx(30)


@pytest.mark.parametrize("chance", [0.0, 0.5, 0.999])
def test_chance_makes_it_longer_never_shorter(breaker, chance):
    opened(breaker, chance=chance)
    assert breaker.open_until == pytest.approx(30 * (1 + JITTER * chance))


def test_when_it_opened_is_when_it_was_last_closed(breaker):
    opened(breaker, 100.0)
    call(breaker, FAILURE, 130.0)
    assert breaker.opened_at == 100


def test_asking_whether_it_admits_changes_nothing(breaker):
    opened(breaker)
    assert breaker.admits(30.0)
    assert breaker.state is OPEN
    for _ in range(10):
        assert breaker.admits(30.0)


# -- the masters' word -----------------------------------------------------------------------------


def test_an_open_word_opens_until_the_masters_say_otherwise(breaker):
    told = word(OPEN, 1, reason="half of the callers")
    assert breaker.adopt(told, until=50.0, probes=0, now=20.0)
    assert (breaker.state, breaker.turn, breaker.open_until) == (OPEN, 1, 50.0)
    assert breaker.reason == "half of the callers"
    assert not breaker.admits(50.0), "who probes is for the masters to say"
    assert not breaker.admits(50.0 + VOID_AFTER_S - 0.1)


def test_the_same_or_an_older_word_changes_nothing(breaker):
    breaker.adopt(word(OPEN, 5), until=50.0, probes=0, now=20.0)
    for turn in (5, 4, 1):
        assert not breaker.adopt(word(CLOSED, turn), until=0.0, probes=0, now=21.0)
        assert not breaker.adopt(word(HALF_OPEN, turn), until=60.0, probes=9, now=21.0)
    assert breaker.state is OPEN


@pytest.mark.parametrize("probes", [0, 1, 2, 5])
def test_a_half_open_word_gives_exactly_the_probes_it_names(breaker, probes):
    opened(breaker)
    breaker.adopt(word(HALF_OPEN, 1), until=31.0, probes=probes, now=30.0)
    permits = [breaker.acquire(30.0) for _ in range(10)]
    assert [permit is not None for permit in permits] == [True] * probes + [False] * (10 - probes)
    for permit in permits[:probes]:
        assert not breaker.settle(permit, SUCCESS, 30.5, 0.0), "the masters decide"
    assert breaker.probes_succeeded == probes
    assert breaker.state is HALF_OPEN
    assert not breaker.admits(30.5)


def test_a_probe_that_fails_stops_further_ones_until_the_masters_have_decided(breaker):
    breaker.adopt(word(HALF_OPEN, 1), until=31.0, probes=3, now=30.0)
    first, second = breaker.acquire(30.0), breaker.acquire(30.0)
    assert not breaker.settle(first, FAILURE, 30.1, 0.0)
    assert breaker.probes_failed == 1
    assert breaker.acquire(30.1) is None
    breaker.settle(second, IGNORED, 30.1, 0.0)
    assert breaker.acquire(30.1) is None
    assert breaker.state is HALF_OPEN


def test_probes_that_are_still_out_keep_their_places_under_the_next_word(breaker):
    breaker.adopt(word(HALF_OPEN, 1), until=31.0, probes=2, now=30.0)
    slow = [breaker.acquire(30.0), breaker.acquire(30.0)]
    breaker.adopt(word(HALF_OPEN, 2), until=32.0, probes=2, now=31.0)
    assert breaker.acquire(31.0) is None
    breaker.settle(slow[0], SUCCESS, 31.5, 0.0)
    assert breaker.probes_succeeded == 1
    assert breaker.acquire(31.5) is None
    breaker.settle(slow[1], IGNORED, 31.5, 0.0)
    assert breaker.acquire(31.5)


def test_an_allowance_ends_when_others_get_to_probe(breaker):
    breaker.adopt(word(HALF_OPEN, 1), until=31.0, probes=2, now=30.0)
    probe = breaker.acquire(30.9)
    assert breaker.probing == 1
    assert breaker.acquire(31.0) is None
    breaker.settle(probe, SUCCESS, 31.5, 0.0)
    assert (breaker.probes_succeeded, breaker.probing) == (1, 0)


def test_counts_of_probes_are_of_the_present_word_alone(breaker):
    breaker.adopt(word(HALF_OPEN, 1), until=31.0, probes=2, now=30.0)
    call(breaker, SUCCESS, 30.0)
    call(breaker, FAILURE, 30.0)
    breaker.adopt(word(OPEN, 2), until=90.0, probes=0, now=30.5)
    assert (breaker.probes_succeeded, breaker.probes_failed) == (0, 0)


def test_a_closed_word_closes_and_clears(breaker):
    opened(breaker)
    assert breaker.adopt(word(CLOSED, 7), until=0.0, probes=0, now=1.0)
    assert breaker.state is CLOSED
    for _ in range(4):
        assert not call(breaker, FAILURE, 1.0)
    assert call(breaker, FAILURE, 1.0)
    assert breaker.open_until == pytest.approx(31), "as if for the first time"


@pytest.mark.parametrize("state", [OPEN, HALF_OPEN])
def test_a_word_that_is_overdue_is_void_and_it_probes_by_itself(breaker, state):
    breaker.adopt(word(state, 1), until=50.0, probes=0, now=20.0)
    late = 50.0 + VOID_AFTER_S
    assert not breaker.admits(late - 0.01)
    assert breaker.admits(late)
    probes = [breaker.acquire(late), breaker.acquire(late)]
    assert breaker.acquire(late) is None
    assert not breaker.settle(probes[0], SUCCESS, late, 0.0)
    assert breaker.settle(probes[1], SUCCESS, late, 0.0)
    assert breaker.state is CLOSED
    assert breaker.probes_succeeded == 0, "nobody allowed them"


def test_a_probe_of_its_own_that_fails_opens_it_although_a_void_word_was_heard(breaker):
    breaker.adopt(word(OPEN, 1), until=50.0, probes=0, now=20.0)
    assert call(breaker, FAILURE, 52.0)
    assert breaker.open_until == pytest.approx(82)
    assert breaker.admits(82.0), "no word is waited for"


def test_a_newer_word_ends_its_own_probing(breaker):
    opened(breaker)
    probe = breaker.acquire(30.0)
    breaker.adopt(word(OPEN, 1), until=90.0, probes=0, now=30.0)
    assert not breaker.settle(probe, SUCCESS, 30.1, 0.0)
    assert breaker.state is OPEN
    assert breaker.open_until == 90


def test_it_opens_by_itself_after_a_closed_word(breaker):
    breaker.adopt(word(CLOSED, 3), until=0.0, probes=0, now=0.0)
    opened(breaker, 1.0)
    assert breaker.turn == 3
    assert breaker.admits(31.0)


def test_retry_after_says_when_others_get_to_probe(breaker):
    breaker.adopt(word(HALF_OPEN, 1), until=31.0, probes=0, now=30.0)
    assert breaker.retry_after_s(30.25) == pytest.approx(0.75)
    assert breaker.retry_after_s(40) > 0


def test_one_that_is_switched_off_admits_always():
    breaker = Breaker(BreakerConfig(enabled=False))
    for _ in range(100):
        assert not call(breaker, FAILURE)
    assert not breaker.adopt(word(OPEN, 9), until=1e9, probes=0, now=0.0)
    assert breaker.admits(0.0)
    assert (breaker.state, breaker.turn) == (CLOSED, 9)


@pytest.mark.parametrize(
    ("had_ms", "usual_ms", "blamed"),
    [
        (5, 0, False),
        (249, 20, False),
        (250, 20, True),
        (399, 100, False),
        (400, 100, True),
        (749, 500, False),
        (750, 500, True),
    ],
)
def test_a_node_is_to_blame_once_it_had_its_time(had_ms, usual_ms, blamed):
    assert had_its_time(had_ms, usual_ms) is blamed
