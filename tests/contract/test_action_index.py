"""What every `ActionIndex` must do."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.adapters.sql import action_rows
from mesh.adapters.sql.registry import SqlRegistry
from mesh.core.action_states import enter, join
from mesh.errors import InvalidError
from mesh.ports import Place
from mesh.types import ActionState
from mesh.wire.messages import ErrorReply, HistoryQuery, HistoryRecord

EVERYTHING = HistoryQuery(limit=1000)
NO = ErrorReply(code=400, kind="action_failed", message="no", fields={"a": ["b"]})


def record(action_id: str, state: ActionState, **fields: object) -> HistoryRecord:
    return HistoryRecord(
        **{"id": action_id, "node": "crm", "action": "index", "caller": "ops", "at": 1}
        | {"state": state}
        | fields
    )


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path / 'mesh.db'}"


@pytest.fixture
async def registry(url):
    registry = await SqlRegistry.open(url)
    yield registry
    await registry.close()


@pytest.fixture
def index(registry):
    return registry.actions


async def fill(index, *records: HistoryRecord) -> None:
    """As if they came next in the stream."""
    place = await index.place()
    numbered = list(enumerate(records, start=place.cursor + 1))
    await index.save(numbered, upto=Place(place.base, place.cursor + len(records)))


def ids(page) -> list[str]:
    return [row.id for row in page.actions]


async def test_a_new_index_is_empty(index):
    assert await index.place() == Place(0, 0)
    page = await index.page(EVERYTHING)
    assert (page.actions, page.total, page.sequence) == ([], 0, 0)
    assert await index.stories("1") == []


# -- rows ------------------------------------------------------------------------------------------


async def test_a_row_holds_the_latest_state_with_all_its_fields(index):
    accepted = record("1", ActionState.ACCEPTED, at=10, params={"x": [1]}, digest="d", trace="t")
    failed = record("1", ActionState.FAILED, at=12, duration_ms=1.5, error=NO)
    await fill(index, accepted, failed)
    page = await index.page(EVERYTHING)
    assert (page.total, page.sequence) == (1, 2)
    [row] = page.actions
    assert row == join(accepted, failed)
    assert (row.params, row.accepted_at, row.at) == ({"x": [1]}, 10, 12)
    assert row.error == NO


async def test_results_come_back_as_they_were(index):
    results = [{"ids": ["a", "b"]}, [], 0, "text", False]
    for number, result in enumerate(results):
        await fill(index, record(f"{number}", ActionState.SUCCEEDED, result=result))
        page = await index.page(HistoryQuery(action_id=f"{number}"))
        assert page.actions[0].result == result


async def test_how_it_came_and_whether_it_is_over_come_back(index):
    queued = record("1", ActionState.QUEUED, attempt=0, mode="queue")
    await fill(index, queued, record("1", ActionState.FAILED, final=False, error=NO))
    [row] = (await index.page(EVERYTHING)).actions
    assert (row.mode, row.final, row.attempt) == ("queue", False, 1)


states = st.sampled_from(ActionState)
histories = st.lists(
    st.builds(
        record,
        st.sampled_from(["1", "2"]),
        states,
        node=st.sampled_from(["crm", "docs"]),
        at=st.integers(1, 9),
        attempt=st.integers(0, 3),
        duration_ms=st.none() | st.just(1.5),
        params=st.none() | st.just({"x": 1}),
        digest=st.sampled_from(["", "d"]),
        result=st.none() | st.sampled_from([7, {"n": [None]}]),
        error=st.none() | st.just(NO),
        accepted_at=st.integers(0, 5),
        final=st.booleans(),
        mode=st.sampled_from(["sync", "queue"]),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(histories, st.randoms(use_true_random=False))
async def test_the_rows_are_what_the_rules_say_in_whatever_order_and_batches(
    tmp_path_factory, found, rng: random.Random
):
    """And the sequence of a row is that of the last record that changed it."""
    known, sequences = {}, {}
    registry = await SqlRegistry.open(
        f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('index') / 'mesh.db'}"
    )
    try:
        found = found + rng.choices(found, k=3)
        for sequence, one in enumerate(found, start=1):
            key = (one.id, one.node)
            after = enter(known.get(key), one)
            if key not in known or after.row != known[key].row:
                sequences[key] = sequence
            known[key] = after
        at = 0
        while at < len(found):
            size = rng.randint(1, 5)
            batch = list(enumerate(found[at : at + size], start=at + 1))
            at += len(batch)
            await registry.actions.save(batch, upto=Place(0, at))
        rows = (await registry.actions.page(EVERYTHING)).actions
        assert {(row.id, row.node): row for row in rows} == {
            key: story.row for key, story in known.items()
        }
        for action_id in ("1", "2"):
            for story in await registry.actions.stories(action_id):
                key = (story.action.id, story.action.node)
                expected = known[key]
                assert [
                    (one.attempt, one.state, one.at, one.accepted_at, one.result, one.error)
                    for one in story.attempts
                ] == [
                    (one.attempt, one.state, one.at, one.accepted_at, one.result, one.error)
                    for number, one in sorted(expected.attempts.items())
                    if number
                ]
        changed = (await registry.actions.page(HistoryQuery(after=0, limit=1000))).actions
        by_change = sorted(sequences, key=sequences.__getitem__)
        assert [(row.id, row.node) for row in changed] == by_change
    finally:
        await registry.close()


async def test_replays_and_reorderings_end_with_the_same_rows(index):
    steps = [ActionState.ACCEPTED, ActionState.RUNNING, ActionState.SUCCEEDED]
    stream = [
        (10 * number + step, record(f"{number}", state, at=100 * number + step))
        for number in range(5)
        for step, state in enumerate(steps, start=1)
    ]
    await index.save(stream, upto=Place(0, 0))
    expected = await index.page(EVERYTHING)
    assert [row.state for row in expected.actions] == [ActionState.SUCCEEDED] * 5
    rng = random.Random(7)
    for _ in range(3):
        rng.shuffle(stream)
        for start in range(0, len(stream), 4):
            await index.save(stream[start : start + 4], upto=Place(0, 0))
    assert await index.page(EVERYTHING) == expected


async def test_what_another_master_has_saved_is_passed_over(index, url):
    stream = [
        (number, record(f"{number}", ActionState.ACCEPTED, at=number)) for number in range(1, 9)
    ]
    other = await SqlRegistry.open(url)
    assert await index.save(stream[:6], upto=Place(0, 6)) == Place(0, 6)
    assert await other.actions.save(stream[:4], upto=Place(0, 4)) == Place(0, 6), "read on here"
    assert await other.actions.save(stream[4:], upto=Place(0, 8)) == Place(0, 8)
    await other.close()
    assert (await index.page(EVERYTHING)).total == 8


async def test_an_id_on_two_nodes_is_two_rows(index):
    await fill(index, *(record("1", ActionState.ACCEPTED, node=slug) for slug in "ab"))
    page = await index.page(HistoryQuery(action_id="1"))
    assert (sorted(row.node for row in page.actions), page.total) == (["a", "b"], 2)


async def test_a_batch_is_saved_whole_or_not_at_all(index):
    good = record("1", ActionState.ACCEPTED)
    impossible = record("2", ActionState.ACCEPTED, at=2**80)
    with pytest.raises(InvalidError):
        await index.save([(1, good), (2, impossible)], upto=Place(0, 2))
    assert await index.place() == Place(0, 0)
    assert (await index.page(EVERYTHING)).total == 0


async def test_the_place_moves_without_records_too_and_never_back(index):
    assert await index.save([], upto=Place(0, 41)) == Place(0, 41)
    assert await index.save([], upto=Place(0, 7)) == Place(0, 41)
    assert await index.place() == Place(0, 41)


# -- asking ----------------------------------------------------------------------------------------


async def test_ids_that_begin_alike_are_found_together_and_no_pattern_counts(index):
    names = ["a%.x", "a%.y", "A%.x", "a%", "ab.x", "a%/x", "a%-x"]
    await fill(index, *(record(one, ActionState.ACCEPTED) for one in names))
    page = await index.page(HistoryQuery(id_prefix="a%."))
    assert (sorted(ids(page)), page.total) == (["a%.x", "a%.y"], 2)
    assert (await index.page(HistoryQuery(id_prefix="a_."))).total == 0


@pytest.fixture
async def filled(index):
    rows = [
        record(
            f"{number}",
            ActionState.SUCCEEDED if number % 2 else ActionState.FAILED,
            node="crm" if number < 6 else "docs",
            action="index" if number % 3 else "delete",
            caller="ops" if number < 8 else "app",
            at=1000 + number,
        )
        for number in range(10)
    ]
    await fill(index, *rows)
    return index


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (HistoryQuery(), "9876543210"),
        (HistoryQuery(node="docs"), "9876"),
        (HistoryQuery(action="delete"), "9630"),
        (HistoryQuery(caller="app"), "98"),
        (HistoryQuery(state=ActionState.FAILED), "86420"),
        (HistoryQuery(since=1007), "987"),
        (HistoryQuery(until=1003), "210"),
        (HistoryQuery(since=1003, until=1006), "543"),
        (HistoryQuery(action_id="4"), "4"),
        (HistoryQuery(node="crm", state=ActionState.SUCCEEDED, since=1002), "53"),
        (HistoryQuery(node="nobody"), ""),
        (HistoryQuery(after=7), "789"),
        (HistoryQuery(after=0, state=ActionState.FAILED), "02468"),
        (HistoryQuery(after=10), ""),
    ],
)
async def test_a_query_matches_all_that_is_asked(filled, query, found):
    page = await filled.page(query)
    assert "".join(ids(page)) == found
    assert (page.total, page.sequence) == (len(found), 10)


async def test_pages_are_cut_from_the_whole(filled):
    page = await filled.page(HistoryQuery(limit=3, offset=2))
    assert ("".join(ids(page)), page.total) == ("765", 10)
    page = await filled.page(HistoryQuery(limit=3, offset=9))
    assert ("".join(ids(page)), page.total) == ("0", 10)


async def test_who_asks_for_changes_goes_on_where_the_page_ended(filled):
    after, seen = 0, ""
    while (page := await filled.page(HistoryQuery(after=after, limit=3))).actions:
        after, seen = page.sequence, seen + "".join(ids(page))
    assert (seen, after) == ("0123456789", 10)
    page = await filled.page(HistoryQuery(after=3, node="nobody", limit=3))
    assert (page.actions, page.sequence) == ([], 10), "nothing in between has to be read again"


async def test_only_what_changed_a_row_moves_it_to_the_end(filled):
    newest = (await filled.page(HistoryQuery())).sequence
    await fill(
        filled,
        record("3", ActionState.SUCCEEDED, action="delete", at=1003),  # again
        record("4", ActionState.ACCEPTED, at=900),  # late: it tells when it was accepted
        record("5", ActionState.ACCEPTED, attempt=2, at=1100),
        record("6", ActionState.ACCEPTED, attempt=0, node="docs", at=1006),  # an earlier attempt
    )
    page = await filled.page(HistoryQuery(after=newest))
    assert ids(page) == ["4", "5"]
    assert page.sequence == newest + 4


# -- attempts --------------------------------------------------------------------------------------


async def test_a_story_has_every_attempt_oldest_first(index):
    await fill(
        index,
        record("1", ActionState.QUEUED, attempt=0, at=1, mode="queue", params={"x": 1}, digest="d"),
        record("1", ActionState.ACCEPTED, attempt=1, at=5),
        record("1", ActionState.FAILED, attempt=1, at=6, accepted_at=5, error=NO, final=False),
        record("1", ActionState.ACCEPTED, attempt=2, at=8),
        record("1", ActionState.INTERRUPTED, attempt=2, at=9, accepted_at=8),
        record("1", ActionState.ACCEPTED, attempt=3, at=11),
        record("1", ActionState.SUCCEEDED, attempt=3, at=12, accepted_at=11, result=[7]),
    )
    [story] = await index.stories("1")
    assert [
        (one.attempt, one.state.value, one.accepted_at, one.at, one.final) for one in story.attempts
    ] == [
        (1, "failed", 5, 6, False),
        (2, "interrupted", 8, 9, True),
        (3, "succeeded", 11, 12, True),
    ]
    assert (story.attempts[0].error, story.attempts[2].result) == (NO, [7])
    assert (story.action.state, story.action.accepted_at) == (ActionState.SUCCEEDED, 1)
    assert {one.params["x"] for one in story.attempts} == {1}


async def test_attempts_that_are_told_of_in_any_order_are_all_there(index):
    steps = [
        record("1", state, attempt=attempt, at=10 * attempt + rank, accepted_at=10 * attempt)
        for attempt in (1, 2, 3)
        for rank, state in enumerate([ActionState.ACCEPTED, ActionState.FAILED])
    ]
    await fill(index, *reversed(steps))
    [story] = await index.stories("1")
    assert [one.attempt for one in story.attempts] == [1, 2, 3]
    assert {one.state for one in story.attempts} == {ActionState.FAILED}
    assert (story.action.attempt, story.action.accepted_at) == (3, 10)


async def test_the_stories_of_a_fan_out_are_those_of_its_parts_alone(index):
    await fill(
        index,
        record("f.crm", ActionState.SUCCEEDED),
        record("f.docs", ActionState.FAILED, node="docs"),
        record("f.docs", ActionState.SUCCEEDED),  # not its part: on another node
        record("f.x", ActionState.SUCCEEDED),
        record("f", ActionState.SUCCEEDED, node="own"),
    )
    told = [(story.action.node, story.action.id) for story in await index.stories("f")]
    assert told == [("crm", "f.crm"), ("docs", "f.docs"), ("own", "f")]
    assert len(await index.stories("f.docs")) == 2


async def test_of_very_many_attempts_the_last_hundred_are_kept(index):
    for number in range(1, 131):
        await fill(index, record("1", ActionState.FAILED, attempt=number, at=number))
    [story] = await index.stories("1")
    assert [one.attempt for one in story.attempts] == list(range(31, 131))
    assert story.action.accepted_at == 1


# -- a stream that was made anew -------------------------------------------------------------------


async def test_sequences_grow_though_the_stream_begins_again(index, url):
    await fill(index, *(record(f"{number}", ActionState.ACCEPTED) for number in range(5)))
    other = await SqlRegistry.open(url)
    seen = await index.place()
    assert await index.restart(seen) == Place(5, 0)
    assert await other.actions.restart(seen) == Place(5, 0), "another master said so before"
    stale = await other.actions.save([(6, record("x", ActionState.ACCEPTED))], upto=Place(0, 6))
    assert stale == Place(5, 0), "what was read of the old stream is not saved"
    await other.close()
    await fill(index, record("new", ActionState.ACCEPTED))
    page = await index.page(HistoryQuery(after=5))
    assert (ids(page), page.sequence) == (["new"], 6)


# -- forgetting ------------------------------------------------------------------------------------


async def test_what_ended_long_ago_is_forgotten_with_its_attempts(index, registry):
    await fill(
        index,
        record("old", ActionState.FAILED, attempt=1, at=10, result="x" * 10),
        record("old", ActionState.SUCCEEDED, attempt=2, at=20),
        record("young", ActionState.SUCCEEDED, at=30),
        *(
            record(state.value, state, at=5)
            for state in (ActionState.QUEUED, ActionState.ACCEPTED, ActionState.RUNNING)
        ),
        record("retried", ActionState.FAILED, at=5, final=False),
    )
    assert await index.prune(before=30, most_bytes=10**9, limit=100) == 1
    left = ids(await index.page(EVERYTHING))
    assert sorted(left) == ["accepted", "queued", "retried", "running", "young"]
    async with registry._engine.connect() as connection:
        rows = await connection.exec_driver_sql("SELECT COUNT(*) FROM attempts")
        assert rows.scalar_one() == 0


async def test_what_is_too_much_is_forgotten_oldest_change_first(index):
    open_one = record("open", ActionState.RUNNING, params={"x": "y" * 5000})
    rows = [record(f"{n}", ActionState.SUCCEEDED, at=n, result="x" * 800) for n in range(10)]
    await fill(index, open_one, *rows)
    assert await index.prune(before=0, most_bytes=9000, limit=2) == 2
    assert await index.prune(before=0, most_bytes=9000, limit=100) == 5
    assert await index.prune(before=0, most_bytes=9000, limit=100) == 0
    assert ids(await index.page(EVERYTHING)) == ["9", "8", "7", "open"]
    assert await index.prune(before=0, most_bytes=1, limit=100) == 3
    assert ids(await index.page(EVERYTHING)) == ["open"], "what is under way is never forgotten"


async def test_a_forgotten_action_that_is_told_of_again_is_back(index):
    await fill(index, record("1", ActionState.SUCCEEDED, at=1))
    await index.prune(before=2, most_bytes=10**9, limit=10)
    await fill(index, record("1", ActionState.SUCCEEDED, at=1))
    page = await index.page(HistoryQuery(after=1))
    assert ids(page) == ["1"]
    assert msgspec.structs.asdict(page.actions[0])["state"] is ActionState.SUCCEEDED


@pytest.mark.parametrize("after", [None, 0])
async def test_what_is_saved_while_a_page_is_read_is_told_once(index, monkeypatch, after):
    """Each statement may see what was committed before it, not only what the first one saw."""
    await fill(index, record("old", ActionState.SUCCEEDED))
    place = await index.place()
    await fill(index, record("new", ActionState.SUCCEEDED))

    async def seen_before(_connection):
        return place

    with monkeypatch.context() as patched:
        patched.setattr(action_rows, "_place", seen_before)
        page = await index.page(HistoryQuery(after=after))
    assert sorted(ids(page)) == ["new", "old"]
    assert ids(await index.page(HistoryQuery(after=page.sequence))) == []
