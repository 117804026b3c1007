"""What every `Journal` must do; above all: remember what it said it would."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from action_world import MemoryJournal

from mesh.adapters.sql.journal import SqlJournal
from mesh.errors import ConflictError, NotFoundError, StateError, UnavailableError
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
    await journal.recorded(outcome(attempt=1))
    assert await journal.unrecorded() == [outcome(attempt=2)], "that was another attempt"
    await journal.recorded(outcome(attempt=2))
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


async def test_an_id_is_accepted_once(stored):
    await accept(stored)
    with pytest.raises(ConflictError):
        await accept(stored)


async def test_a_refused_id_is_free_again(journal):
    await accept(journal)
    await journal.settle(outcome(state=ActionState.CANCELLED))
    await journal.forget("1")
    assert await journal.find("1") is None
    await accept(journal)


async def test_an_action_accepted_again_is_not_forgotten_with_its_refusal(journal):
    await accept(journal)
    await journal.forget("1")
    assert await journal.find("1") is not None
    await journal.begin("1", 2)
    await journal.recorded(outcome(attempt=1, state=ActionState.CANCELLED))
    entry = await journal.find("1")
    assert entry is not None
    assert not entry.recorded


async def test_an_outcome_of_nothing_is_not_swallowed(stored):
    with pytest.raises(NotFoundError):
        await stored.settle(outcome())


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
        await journal.recorded(outcome(action_id))
    assert await journal.prune(50) == 1
    assert await journal.find("old") is None
    for action_id in ("new", "unrecorded", "unsettled"):
        assert await journal.find(action_id) is not None


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
        await journal.recorded(outcome(action_id))

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
