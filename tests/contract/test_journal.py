"""What every `Journal` must do; above all: remember what it said it would."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from action_world import MemoryJournal

from mesh.adapters.sql.journal import SqlJournal
from mesh.errors import NotFoundError, StateError, UnavailableError
from mesh.ports import Journal
from mesh.types import ActionState
from mesh.wire.messages import ActionRequest, HistoryRecord

WRITER = """
import asyncio, sys
from pathlib import Path
from mesh.adapters.sql.journal import SqlJournal
from mesh.types import ActionState
from mesh.wire.messages import ActionRequest, HistoryRecord

async def main():
    journal = await SqlJournal.open(Path(sys.argv[1]))
    for number in range(1_000_000):
        request = ActionRequest(action="index", id=f"{number}")
        await journal.accept(request, caller="ops", digest="d", accepted_at=number)
        print("accepted", number, flush=True)
        await journal.settle(HistoryRecord(
            id=request.id, node="crm", action="index", state=ActionState.SUCCEEDED,
            caller="ops", at=number))
        print("settled", number, flush=True)

asyncio.run(main())
"""


def request(action_id: str = "1") -> ActionRequest:
    return ActionRequest(action="index", id=action_id, params={"documents": [{"id": "é"}]})


def outcome(action_id: str = "1", **fields: object) -> HistoryRecord:
    return HistoryRecord(
        **{"id": action_id, "node": "crm", "action": "index", "state": ActionState.SUCCEEDED}
        | {"caller": "ops", "at": 50, "result": {"indexed": 1}}
        | fields
    )


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
async def stored(path):
    journal = await SqlJournal.open(path)
    yield journal
    await journal.close()


@pytest.fixture(params=["sql", "memory"])
def journal(request) -> Journal:
    """The real one, and the fake that the executor's tests trust."""
    return request.getfixturevalue("stored") if request.param == "sql" else MemoryJournal()


async def accept(journal: Journal, action_id: str = "1", at: int = 10) -> None:
    await journal.accept(request(action_id), caller="ops", digest="d", accepted_at=at)


async def test_what_was_never_accepted_is_not_there(journal):
    assert await journal.find("1") is None
    assert await journal.unrecorded() == []
    assert await journal.unsettled() == []


async def test_an_accepted_action_is_unsettled_until_its_outcome(journal):
    await accept(journal)
    await journal.begin("1", 2)
    entry = await journal.find("1")
    assert entry is not None
    assert entry.request == request()
    assert (entry.caller, entry.digest, entry.accepted_at) == ("ops", "d", 10)
    assert (entry.state, entry.attempt, entry.outcome) == (ActionState.RUNNING, 2, None)
    assert not entry.recorded
    assert await journal.unsettled() == [entry]
    await journal.settle(outcome(attempt=2))
    settled = await journal.find("1")
    assert settled is not None
    assert (settled.state, settled.outcome) == (ActionState.SUCCEEDED, outcome(attempt=2))
    assert await journal.unsettled() == []
    assert await journal.unrecorded() == [outcome(attempt=2)]
    journal.recorded(outcome(attempt=1))
    assert await journal.unrecorded() == [outcome(attempt=2)], "that was another attempt"
    journal.recorded(outcome(attempt=2))
    assert await journal.unrecorded() == []
    found = await journal.find("1")
    assert found is not None
    assert found.recorded


async def test_after_a_crash_it_is_known_what_had_begun(stored, path):
    """An action that may have had its effect must not run a second time."""
    for action_id in ("accepted", "begun"):
        await accept(stored, action_id)
    await stored.begin("begun", 1)
    await stored.close()
    again = await SqlJournal.open(path)
    states = {entry.request.id: entry.state for entry in await again.unsettled()}
    await again.close()
    assert states == {"accepted": ActionState.ACCEPTED, "begun": ActionState.RUNNING}


async def test_an_id_is_accepted_once_and_who_comes_second_hears_what_is_known(journal):
    await accept(journal)
    first = await journal.find("1")
    other = ActionRequest(action="other", id="1")
    assert await journal.accept(other, caller="x", digest="x", accepted_at=99) == first
    assert await journal.find("1") == first


async def test_one_of_many_that_is_known_keeps_none_of_the_others_out(journal):
    await accept(journal, "5")
    found = await asyncio.gather(
        *(
            journal.accept(request(f"{n}"), caller="ops", digest="d", accepted_at=10)
            for n in range(10)
        )
    )
    assert [n for n in range(10) if found[n] is not None] == [5]
    assert len(await journal.unsettled()) == 10


async def test_what_has_ended_begins_anew_once(journal):
    """Two who ask for another attempt at the same time get one."""
    await accept(journal)
    await journal.begin("1", 1)
    await journal.settle(outcome(state=ActionState.FAILED))
    newer = msgspec.structs.replace(request(), deadline=77)

    async def again():
        return await journal.accept(
            newer, caller="b", digest="d", accepted_at=60, attempts=1, again=True
        )

    first, second = await asyncio.gather(again(), again())
    assert first is None
    assert second is not None
    assert (second.state, second.outcome, second.attempt) == (ActionState.ACCEPTED, None, 1)
    assert (second.request, second.caller, second.accepted_at) == (newer, "b", 60)
    assert not second.recorded
    journal.recorded(outcome(attempt=1, state=ActionState.FAILED))
    assert await journal.unsettled() == [second], "that was the earlier attempt"


async def test_nothing_begins_anew_that_has_not_ended_or_ended_otherwise(journal):
    async def again(attempts):
        return await journal.accept(
            request(), caller="b", digest="d", accepted_at=60, attempts=attempts, again=True
        )

    await accept(journal)
    await journal.begin("1", 2)
    known = await again(2)
    assert known is not None
    assert known.caller == "ops"
    await journal.settle(outcome(attempt=2))
    assert await again(1) is not None, "that attempt is not the last one"
    assert await again(3) is None, "one in between ended before it came here"
    known = await journal.find("1")
    assert known is not None
    assert (known.caller, known.attempt, known.outcome) == ("b", 3, None)


async def test_an_outcome_of_nothing_is_not_swallowed(journal):
    await accept(journal, "other")
    ended = await asyncio.gather(
        journal.settle(outcome()), journal.settle(outcome("other")), return_exceptions=True
    )
    assert [type(each) for each in ended] == [NotFoundError, type(None)]


async def test_leftovers_come_oldest_first(journal):
    for action_id, at in (("b", 20), ("a", 30), ("c", 10)):
        await accept(journal, action_id, at)
    assert [entry.request.id for entry in await journal.unsettled()] == ["c", "b", "a"]
    for action_id in "abc":
        await journal.settle(outcome(action_id))
    assert [record.id for record in await journal.unrecorded()] == ["c", "b", "a"]


async def test_only_recorded_outcomes_grow_old(journal):
    for action_id, at in (("old", 10), ("new", 90), ("unrecorded", 10)):
        await accept(journal, action_id, at)
        await journal.settle(outcome(action_id, at=at))
    await accept(journal, "unsettled", 10)
    for action_id in ("old", "new"):
        journal.recorded(outcome(action_id))
    assert await journal.prune(50) == 1
    assert await journal.find("old") is None
    for action_id in ("new", "unrecorded", "unsettled"):
        assert await journal.find(action_id) is not None


async def test_leftovers_come_a_few_at_a_time(journal):
    for number in range(5):
        await accept(journal, f"{number}", number)
        await journal.settle(outcome(f"{number}"))
    assert [record.id for record in await journal.unrecorded(2)] == ["0", "1"]


async def test_thousands_that_are_old_go_in_slices_and_others_have_their_turn(stored):
    """In one piece it would hold up every action, and lock the file for everybody else."""
    for start in range(0, 2500, 250):
        ids = [f"{number}" for number in range(start, start + 250)]
        await asyncio.gather(*(accept(stored, one, int(one)) for one in ids))
        await asyncio.gather(*(stored.settle(outcome(one, at=int(one))) for one in ids))
        for one in ids:
            stored.recorded(outcome(one))
    await accept(stored, "open", 2400)
    pruning = asyncio.create_task(stored.prune(2400))
    await asyncio.sleep(0)
    await accept(stored, "new", 2600)
    assert not pruning.done(), "there are slices left"
    assert await pruning == 2400
    assert await stored.find("2399") is None
    for one in ("2400", "2499", "open", "new"):
        assert await stored.find(one) is not None
    assert await stored.prune(2400) == 0


async def test_one_that_began_anew_stays_though_it_stands_among_the_old(journal):
    for number in range(3):
        await accept(journal, f"{number}", number)
        await journal.settle(outcome(f"{number}", state=ActionState.FAILED, at=number))
        journal.recorded(outcome(f"{number}"))
    await journal.accept(
        request("1"), caller="b", digest="d", accepted_at=60, attempts=1, again=True
    )
    assert await journal.prune(50) == 2
    assert await journal.find("1") is not None


async def test_the_next_process_finds_it_all(stored, path):
    await accept(stored)
    await stored.close()
    again = await SqlJournal.open(path)
    assert [entry.request for entry in await again.unsettled()] == [request()]
    await again.close()


async def test_many_at_once(journal):
    async def live(action_id: str) -> None:
        await accept(journal, action_id)
        await journal.settle(outcome(action_id))
        journal.recorded(outcome(action_id))

    await asyncio.gather(*(live(f"{n}") for n in range(50)))
    assert await journal.unrecorded() == []
    assert await journal.prune(10**9) == 50


def killed_while_writing(path: Path) -> list[list[str]]:
    """What a writer had said by the time it was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        told = [writer.stdout.readline().split() for _ in range(120)]
        os.kill(writer.pid, signal.SIGKILL)
        return told + [line.split() for line in writer.stdout.read().splitlines()]


async def test_a_killed_process_loses_nothing_it_was_told_is_stored(path):
    told = await asyncio.to_thread(killed_while_writing, path)
    journal = await SqlJournal.open(path)
    for said, action_id in told:
        entry = await journal.find(action_id)
        assert entry is not None, f"accepted {action_id} is lost"
        if said == "settled":
            assert entry.state is ActionState.SUCCEEDED, f"outcome of {action_id} is lost"
    await journal.close()


async def test_a_batch_holds_every_kind_of_write_at_once(journal):
    """Group commit: what arrives together is written together, and no one's place is lost."""
    for action_id in ("begins", "ends", "told"):
        await accept(journal, action_id)
    await journal.settle(outcome("told"))
    journal.recorded(outcome("told"))
    results = await asyncio.gather(
        journal.begin("begins", 3),
        journal.accept(request("new"), caller="ops", digest="d", accepted_at=5),
        journal.settle(outcome("ends", attempt=2)),
        journal.accept(request("begins"), caller="ops", digest="d", accepted_at=5),
        journal.settle(outcome("ends", attempt=4)),
    )
    assert results[1] is None
    assert results[3] is not None
    assert results[3].attempt == 3, "it was begun before"
    assert [entry.request.id for entry in await journal.unsettled()] == ["new", "begins"]
    assert [record.attempt for record in await journal.unrecorded()] == [4]


async def test_a_write_that_fails_fails_for_all_that_came_with_it(stored, path):
    """Who is told that it is stored must be right: nothing of a transaction that was rolled back
    may count.
    """
    await accept(stored, "before")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute(
        "CREATE TRIGGER full BEFORE UPDATE ON entries BEGIN SELECT RAISE(ROLLBACK, 'full'); END"
    )
    failed = await asyncio.gather(
        accept(stored, "new"), stored.begin("before", 1), return_exceptions=True
    )
    assert [type(each) for each in failed] == [UnavailableError] * 2
    assert await stored.find("new") is None
    other.execute("DROP TRIGGER full")
    other.close()
    await accept(stored, "new")
    assert await stored.find("new") is not None


async def test_the_file_is_its_owners_alone(stored, path):
    await accept(stored)
    for file in path.parent.glob("journal.db*"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


async def test_a_closed_journal_says_so(stored):
    await stored.close()
    await stored.close()
    with pytest.raises(UnavailableError, match="closed"):
        await stored.find("1")


async def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="file"):
        await SqlJournal.open(tmp_path / "file" / "journal.db")
