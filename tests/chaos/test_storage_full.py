"""JetStream full, or away: actions are refused, nothing runs unrecorded, nothing is lost, and all
goes on by itself once there is room again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
import pytest_asyncio
from processes import BrokerProcess
from queue_mesh import NODE, QueueMesh, until

from mesh.errors import ConflictError, DeadlineExceededError, MeshError, UnavailableError
from mesh.types import ActionState

pytestmark = [pytest.mark.chaos, pytest.mark.alone, pytest.mark.timeout(240)]

FULL = "jetstream: { max_memory: 1MB, max_file: 1KB }"
"""Of the mesh's account: less than what is stored already."""


KEYS = 3
"""Of each kind; a refusal takes as long as its caller waits for JetStream."""


class SmallBroker(BrokerProcess):
    """One whose room for the mesh's streams can be changed while it runs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._plain = self._broker._conf.read_text()
        self._conf = folder / "broker.conf"
        self._conf.write_text(self._plain)
        self._broker._conf = self._conf

    def jetstream(self, what: str) -> None:
        head, mesh, tail = self._plain.partition("  MESH {\n")
        assert mesh
        assert "    jetstream: enabled\n" in tail
        self._conf.write_text(
            head + mesh + tail.replace("    jetstream: enabled\n", f"    {what}\n", 1)
        )
        os.kill(self.pid, signal.SIGHUP)


@pytest_asyncio.fixture
async def running(tmp_path):
    broker = SmallBroker(tmp_path)
    broker.start()
    mesh = QueueMesh(broker, masters=1)
    try:
        await mesh.start()
        yield mesh
    finally:
        mesh.stop()
        broker.kill()


async def refused(step, within_s=20.0) -> None:
    """The next one is, or one of those that follow at once: the broker needs a moment.

    What it takes in that moment has its outcome recorded when there is room again.
    """
    give_up = time.monotonic() + within_s
    while True:
        try:
            await step()
        except UnavailableError as error:
            assert error.code == 503
            assert error.retryable
            return
        except (ConflictError, DeadlineExceededError):
            pass
        assert time.monotonic() < give_up, "it was never refused"
        await asyncio.sleep(0.05)


async def goes_on(step, within_s=70.0):
    """By itself, that is, though a breaker may have opened."""
    give_up = time.monotonic() + within_s
    while True:
        try:
            return await step()
        except MeshError as error:
            assert time.monotonic() < give_up, error
            await asyncio.sleep(0.1)


def note(client, key):
    return lambda: client.run_action("note", {"key": key}, node=NODE, id=key, timeout_s=5)


def queue(client, key):
    return lambda: client.queue_action("note", {"key": key}, node=NODE, id=key)


@pytest.mark.parametrize("what", [FULL, "jetstream: disabled"], ids=["full", "away"])
async def test_without_room_nothing_runs_and_nothing_is_lost(running, what):
    client = await running.connect()
    try:
        await client.run_action("note", {"key": "before"}, node=NODE, id="before")
        running.broker.jetstream(what)
        await refused(lambda: client.run_action("note", {"key": "probe"}, node=NODE, timeout_s=5))
        ran = running.runs
        for number in range(KEYS):
            with pytest.raises(UnavailableError) as error:
                await note(client, f"now{number}")()
            assert error.value.code == 503
            with pytest.raises(UnavailableError) as error:
                await queue(client, f"later{number}")()
            assert (error.value.code, error.value.retry_after_ms) == (503, 1000)
        assert running.runs == ran, "nothing ran unrecorded"
        running.broker.jetstream("jetstream: enabled")
        for number in range(KEYS):
            await goes_on(note(client, f"now{number}"))
            await goes_on(queue(client, f"later{number}"))
        done = [each for at in range(KEYS) for each in (f"now{at}", f"later{at}")]
        all_of_them = len(ran) + 2 * KEYS
        await until(lambda: len(running.runs) == all_of_them, 30, lambda: repr(running.runs))
        assert sorted(running.runs[len(ran) :]) == sorted(done)
        async with asyncio.timeout(30):
            while (await client.queue()).total:
                await asyncio.sleep(0.1)
        page = await client.history(state=ActionState.SUCCEEDED, limit=1000)
        assert {each.id for each in page.actions} >= {"before", *done}
    finally:
        await client.close()


@pytest.mark.parametrize(
    "what",
    [FULL, pytest.param("jetstream: disabled", marks=pytest.mark.long)],
    ids=["full", "away"],
)
async def test_an_outcome_waits_for_room(running, what):
    """It has happened: its node keeps that until the history takes it, and says so only then."""
    client = await running.connect()
    gate = running.folder / "gate"

    def fill():
        return client.run_action("fill", {"until": str(gate)}, node=NODE, id="fill", timeout_s=9)

    try:
        acting = asyncio.create_task(fill())
        async with asyncio.timeout(20):
            while not (await client.history(action_id="fill")).total:
                await asyncio.sleep(0.05)
        running.broker.jetstream(what)
        await refused(lambda: client.run_action("note", {"key": "probe"}, node=NODE, timeout_s=5))
        gate.touch()
        await until(lambda: "filled" in running.runs, 20, lambda: repr(running.runs))
        # Nobody hears of what is not recorded, neither who waits nor who asks again.
        with pytest.raises(MeshError):
            await acting
        running.broker.jetstream("jetstream: enabled")
        done = await goes_on(fill)
        assert done.state is ActionState.SUCCEEDED
        async with asyncio.timeout(30):  # the masters read it when they reach JetStream again
            while True:
                [record] = (await goes_on(lambda: client.history(action_id="fill"))).actions
                if record.state is ActionState.SUCCEEDED:
                    break
                assert record.state is ActionState.ACCEPTED
                await asyncio.sleep(0.05)
        assert record.attempt == 1
        assert running.runs.count("filled") == 1
    finally:
        await client.close()


async def test_what_waits_in_the_queue_outlives_a_time_without_room(running):
    """Delivered half-way when the room goes: the rest follows, once, in order."""
    client = await running.connect()
    try:
        for number in range(60):
            await queue(client, f"k{number}")()
            if number == 30:
                await until(lambda: len(running.runs) > 3, 30, lambda: repr(running.runs))
        running.broker.jetstream(FULL)
        await asyncio.sleep(3.0)
        running.broker.jetstream("jetstream: enabled")
        await until(lambda: len(running.runs) >= 60, 40, lambda: repr(running.runs))
        await asyncio.sleep(1.0)
        assert running.runs == [f"k{number}" for number in range(60)]
        async with asyncio.timeout(30):
            while (await client.queue()).total:
                await asyncio.sleep(0.1)
        assert not (await client.dead_letters()).total
    finally:
        await client.close()
