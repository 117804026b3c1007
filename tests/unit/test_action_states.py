from __future__ import annotations

import functools
import itertools
import random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.action_states import join, rank
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


def test_ranks():
    assert [rank(state) for state in ActionState] == [0, 1, 2, 3, 3, 3, 3, 3]
