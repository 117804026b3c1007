"""What every `ReplicaState` must remember, also after the process was gone."""

from __future__ import annotations

import msgspec
import pytest
import pytest_asyncio
from replica_world import MemoryReplicaState

from mesh.adapters.sql.journal import SqlJournal
from mesh.adapters.sql.replica import SqlReplicaState
from mesh.core.replication import Position
from mesh.errors import UnavailableError
from mesh.wire.messages import AppliedWrite, CopyPlace


@pytest_asyncio.fixture(params=["memory", "sql"])
async def state(request, tmp_path):
    if request.param == "memory":
        yield MemoryReplicaState()
        return
    found = await SqlReplicaState.open(tmp_path / "journal.db")
    yield found
    await found.close()


def write(name, sequence=1, at=5):
    result = msgspec.Raw(b'{"indexed":1}')
    return AppliedWrite(id=name, sequence=sequence, digest="d", result=result, at=at)


async def test_a_place_and_what_was_answered_are_kept_together(state):
    await state.advance("crm", Position("log", 7), [write("é 1", 6), write("2", 7)])
    assert (await state.load("crm"))[1] == Position("log", 7)
    found = await state.applied("é 1")
    assert (found.sequence, found.digest, bytes(found.result)) == (6, "d", b'{"indexed":1}')
    assert await state.applied("3") is None
    await state.advance("crm", Position("log", 6), [write("2", 6)])  # replayed
    assert (await state.load("crm"))[1] == Position("log", 6)
    assert (await state.applied("2")).sequence == 6


async def test_answers_are_listed_by_id_for_another_replica(state):
    await state.remember([write(name) for name in "dbca"])
    assert [each.id for each in await state.applied_after("", 3)] == ["a", "b", "c"]
    assert [each.id for each in await state.applied_after("c", 3)] == ["d"]


async def test_the_place_of_a_copy_comes_and_goes(state):
    assert await state.place("crm") is None
    place = CopyPlace(source="b", log="log", sequence=3, done=["x"], collection="y", after="z")
    await state.keep_place("crm", place)
    assert await state.place("crm") == place
    await state.keep_place("crm", None)
    assert await state.place("crm") is None


async def test_what_is_copied_is_done_and_in_its_place_in_one_step(state):
    await state.keep_place("crm", CopyPlace(source="b", log="log", sequence=3))
    await state.advance("crm", Position("log", 2))
    assert await state.place("crm") is not None
    await state.advance("crm", Position("log", 3), copied=True)
    assert await state.place("crm") is None
    assert (await state.load("crm"))[1] == Position("log", 3)


async def test_all_of_it_outlives_the_process_beside_the_journal(tmp_path):
    path = tmp_path / "journal.db"
    journal = await SqlJournal.open(path)
    state = await SqlReplicaState.open(path)
    assert await state.load("crm") == (False, Position())
    await state.set_logged("crm")
    await state.advance("crm", Position("log", 9), [write("1")])
    await state.close()
    await state.close()
    with pytest.raises(UnavailableError):
        await state.applied("1")
    again = await SqlReplicaState.open(path)
    assert await again.load("crm") == (True, Position("log", 9))
    assert await again.load("other") == (False, Position())
    # It held another shard since: what it had of the first one is not what it has now.
    assert await again.load("crm") == (False, Position())
    assert await again.prune(5) == 0
    assert await again.prune(6) == 1
    assert await again.applied("1") is None
    await again.close()
    await journal.close()
