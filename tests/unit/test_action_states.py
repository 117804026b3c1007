from __future__ import annotations

import functools
import itertools
import random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.action_states import enter, join, rank
from mesh.types import ActionState
from mesh.wire.messages import ErrorReply, HistoryRecord

records = st.builds(
    HistoryRecord,
    id=st.just("a1"),
    node=st.just("crm"),
    action=st.just("index"),
    state=st.sampled_from(ActionState),
    caller=st.sampled_from(["ops", "app"]),
    at=st.integers(1, 5),
    attempt=st.integers(1, 3),
    duration_ms=st.none() | st.floats(0, 3),
    params=st.none() | st.dictionaries(st.sampled_from("xy"), st.integers(0, 2), max_size=2),
    digest=st.sampled_from(["", "d", "e"]),
    result=st.none() | st.sampled_from([msgspec.Raw(b"1"), msgspec.Raw(b'{"n":2}')]),
    error=st.none()
    | st.builds(ErrorReply, code=st.just(500), kind=st.just("x"), message=st.text()),
    accepted_at=st.integers(0, 5),
    trace=st.sampled_from(["", "t"]),
    final=st.booleans(),
    mode=st.sampled_from(["sync", "queue"]),
)


def all_of(found: list[HistoryRecord]) -> HistoryRecord:
    merged = functools.reduce(join, found, None)
    assert merged is not None
    return merged


def record(state: ActionState, **fields: object) -> HistoryRecord:
    return HistoryRecord(
        **{"id": "a1", "node": "crm", "action": "index", "caller": "ops", "at": 1}
        | {"state": state}
        | fields
    )


@given(st.lists(records, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_any_order_and_any_repetition_end_with_the_same_row(found, rng: random.Random):
    replayed = found + rng.choices(found, k=3)
    rng.shuffle(replayed)
    assert all_of(replayed) == all_of(found)


@given(records, records, records)
def test_it_is_associative(a, b, c):
    assert join(join(a, b), c) == join(a, join(b, c))


def test_an_outcome_wins_over_what_came_before_it_in_every_order():
    steps = [
        record(ActionState.ACCEPTED, at=10, params={"x": 1}),
        record(ActionState.RUNNING, at=11),
        record(ActionState.SUCCEEDED, at=9, result=msgspec.Raw(b"7"), duration_ms=2.0),
    ]
    for order in itertools.permutations(steps):
        row = all_of(list(order))
        assert row.state is ActionState.SUCCEEDED
        assert row.result == msgspec.Raw(b"7")
        assert row.params == {"x": 1}, "the outcome did not repeat the parameters"


def test_a_later_attempt_says_more_than_an_earlier_outcome():
    refused = record(ActionState.CANCELLED, attempt=1, at=5)
    again = record(ActionState.ACCEPTED, attempt=2, at=6)
    assert all_of([again, refused]).state is ActionState.ACCEPTED


def test_the_time_of_acceptance_is_that_of_the_first_record():
    row = all_of([record(ActionState.SUCCEEDED, at=20), record(ActionState.ACCEPTED, at=10)])
    assert (row.accepted_at, row.at) == (10, 20)


@given(st.lists(records, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_a_story_is_the_same_in_any_order_and_its_row_is_the_join(found, rng: random.Random):
    replayed = found + rng.choices(found, k=3)
    rng.shuffle(replayed)
    story = functools.reduce(enter, replayed, None)
    assert story == functools.reduce(enter, found, None)
    assert story.row == all_of(found)
    assert story.attempts == {
        number: all_of([one for one in found if one.attempt == number])
        for number in {one.attempt for one in found}
    }


def test_of_one_attempt_an_end_that_another_one_follows_is_not_the_last_word():
    passing = record(ActionState.FAILED, at=9, final=False)
    stopped = record(ActionState.CANCELLED, at=5)
    assert all_of([stopped, passing]).state is ActionState.CANCELLED
    again = record(ActionState.ACCEPTED, at=6, attempt=2)
    assert all_of([again, passing]).state is ActionState.ACCEPTED


def test_whoever_says_queue_is_right_about_how_it_came():
    rows = [record(ActionState.QUEUED, attempt=0, mode="queue"), record(ActionState.SUCCEEDED)]
    assert {all_of(order).mode for order in (rows, rows[::-1])} == {"queue"}


def test_ranks():
    assert [rank(state) for state in ActionState] == [0, 1, 2, 3, 3, 3, 3, 3]
