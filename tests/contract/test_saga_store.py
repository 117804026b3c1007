"""What every `SagaStore` must do."""

from __future__ import annotations

import pytest
import pytest_asyncio
from saga_fakes import MemorySagaStore, brief, saga

from mesh.adapters.sql.registry import SqlRegistry
from mesh.types import SagaState
from mesh.wire.messages import SagaCall, SagasQuery, SagaStep


@pytest_asyncio.fixture(params=["memory", "sql"])
async def store(request, tmp_path):
    if request.param == "memory":
        yield MemorySagaStore()
        return
    registry = await SqlRegistry.open(f"sqlite+aiosqlite:///{tmp_path / 'mesh.db'}")
    yield registry.sagas
    await registry.close()


async def found(store, **query):
    sagas, total = await store.select(SagasQuery(**query))
    return [each.id for each in sagas], total


async def test_the_newer_record_stays_whatever_the_order(store):
    assert (await store.cursor(), await store.find("x")) == (0, None)
    await store.save([saga(version=3), saga(version=2)], cursor=7)
    await store.save([saga(version=1)], cursor=8)
    assert (await store.find("x")).version == 3
    await store.save([saga(version=4, reason="why")], cursor=9)
    assert await store.find("x") == saga(version=4, reason="why")
    await store.save([], cursor=10)
    assert await store.cursor() == 10


async def test_what_is_open_is_found_oldest_first(store):
    sagas = [
        saga("late", started_at=3),
        saga("early", started_at=1),
        saga("paused", state=SagaState.PAUSED, started_at=2, changed_at=2),
        saga("back", state=SagaState.COMPENSATING, started_at=2),
        saga("done", state=SagaState.SUCCEEDED, ended_at=5),
        saga("undone", state=SagaState.COMPENSATED, ended_at=50),
    ]
    await store.save(sagas, cursor=6)
    assert await store.open() == ["early", "back", "late"]
    assert await store.stale(before=1000) == ["paused"]
    assert await store.prune(ended_before=50) == 1
    assert await store.find("done") is None
    assert await store.find("undone") is not None
    assert await store.prune(ended_before=10**15) == 1
    assert await store.open() == ["early", "back", "late"]


async def test_a_page_is_newest_first_and_brief(store):
    await store.save([saga(f"s{n}", started_at=n) for n in range(5)], cursor=1)
    page, total = await store.select(SagasQuery(limit=2, offset=1))
    assert ([each.id for each in page], total) == (["s3", "s2"], 5)
    assert page[0] == brief(saga("s3", started_at=3))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"state": SagaState.PAUSED}, ["b"]),
        ({"name": "order"}, ["a"]),
        ({"caller": "ann"}, ["b"]),
        ({"since": 2}, ["c", "b"]),
        ({"allowed": ["do", "undo"]}, ["b", "a"]),
        ({"allowed": ["do"]}, []),
        ({"allowed": []}, []),
        ({"allowed": ["do", "undo", "other"], "since": 3}, ["c"]),
        ({}, ["c", "b", "a"]),
    ],
)
async def test_filters(store, query, expected):
    other = [SagaStep(name="a", call=SagaCall(action="other", node="shop"), final=True)]
    await store.save(
        [
            saga("a", started_at=1, name="order"),
            saga("b", started_at=2, caller="ann", state=SagaState.PAUSED),
            saga("c", started_at=3, steps=other),
        ],
        cursor=1,
    )
    assert await found(store, **query) == (expected, len(expected))
