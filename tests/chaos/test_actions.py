"""Actions while node, master and broker are killed: none is lost, doubled or unrecorded.

Every effect is a line, synced to the disk before its action ends, so what took effect can be told
from what is said of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import textwrap
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest
from live_mesh import START_S, LiveMesh, health_of

from mesh.errors import ConflictError, MeshError
from mesh.types import ActionState

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

IN_FLIGHT = 16
LEAST_KILLS = 3
PATIENCE_S = 120.0
"""Who dies often is started again later each time."""
OUTCOMES = set(ActionState) - {ActionState.QUEUED, ActionState.ACCEPTED, ActionState.RUNNING}

APP = """
import asyncio, os
from pathlib import Path

from mesh import ActionContext, Node

node = Node("ledger")
EFFECTS = Path(os.environ["EFFECTS_FILE"])


def effect(kind: str, ctx: ActionContext) -> None:
    line = f"{kind} {ctx.id} {ctx.attempt}\\n".encode()
    with EFFECTS.open("ab", buffering=0) as file:
        file.write(line)
        os.fsync(file.fileno())


def done_before(ctx: ActionContext) -> bool:
    return EFFECTS.exists() and f" {ctx.id} " in EFFECTS.read_text()


@node.action("once")
async def once(params: dict, ctx: ActionContext) -> dict:
    effect("once", ctx)
    await asyncio.sleep(0.05)  # long enough to be killed in
    return {"n": params["n"]}


@node.action("again", idempotent=True, retries=2, backoff_s=0.01)
def again(params: dict, ctx: ActionContext) -> dict:
    if not done_before(ctx):
        effect("again", ctx)
    return {"n": params["n"]}
"""


@dataclass
class Told:
    """What callers heard."""

    answers: dict[str, tuple[str, object]] = field(default_factory=dict)
    """By id: how it ended, and its result or the kind of its error."""
    unknown: set[str] = field(default_factory=set)
    """Nobody answered in time."""


@pytest.fixture
def live(tmp_path):
    (tmp_path / "ledger_app.py").write_text(textwrap.dedent(APP))
    mesh = LiveMesh(tmp_path)
    try:
        mesh.start()
        mesh.add("ledger", "--app", "ledger_app:node", EFFECTS_FILE=str(tmp_path / "effects"))
        asyncio.run(healthy(mesh))
        yield mesh
    finally:
        mesh.stop()


@contextlib.asynccontextmanager
async def connected(live: LiveMesh):
    """As soon as there is a broker and a master again."""
    until = time.monotonic() + START_S
    while True:
        opened = live.connect()
        try:
            client = await opened.__aenter__()
            break
        except MeshError:
            assert time.monotonic() < until, "nobody lets anybody in"
            await asyncio.sleep(0.2)
    try:
        yield client
    finally:
        await opened.__aexit__(None, None, None)


async def healthy(live: LiveMesh) -> None:
    async with asyncio.timeout(START_S), connected(live) as client:
        while await health_of(client, "ledger") != "healthy":
            await asyncio.sleep(0.1)


def effects(live: LiveMesh) -> Counter[tuple[str, str]]:
    """By action and id, how often each took effect."""
    file = live.folder / "effects"
    lines = file.read_text().splitlines() if file.exists() else []
    return Counter((line.split()[0], line.split()[1]) for line in lines)


def request_of(number: int) -> tuple[str, dict]:
    """Every third one of each: a user's own, an idempotent one, a built-in one."""
    if number % 3 == 2:
        document = {"id": f"d{number}", "content": f"late invoice {number}"}
        return "index", {"collection": "ledger", "documents": [document]}
    return ("once", "again")[number % 3], {"n": number}


async def submit(client, number: int, told: Told) -> None:
    """As a careful caller does: the same id until somebody answers."""
    action, params = request_of(number)
    action_id = f"chaos-{number}"
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            done = await client.run_action(action, params, node="ledger", id=action_id, timeout_s=5)
        except MeshError as error:
            if error.kind in {"interrupted", "action_failed", "internal"}:
                told.answers[action_id] = (error.kind, None)
                return
            if "the node was down until it had expired" in str(error):
                told.answers[action_id] = ("expired", None)
                return
            await asyncio.sleep(0.1)
        else:
            told.answers[action_id] = (str(done.state), done.result)
            return
    told.unknown.add(action_id)


async def killing(live: LiveMesh, rng: random.Random, kills: Counter[str]) -> None:
    """Node, master or broker, at random moments, sometimes while another one is on its way back;
    `mesh-agent up` starts its own again, later each time, and we the node.
    """
    while True:
        await asyncio.sleep(rng.uniform(0.2, 1.2))
        victim = rng.choices(["node", "master", "broker"], weights=[8, 1, 1])[0]
        kills[victim] += 1
        if victim == "node":
            await asyncio.to_thread(live.nodes["ledger"].end, signal.SIGKILL)
            await asyncio.sleep(rng.uniform(0, 0.2))
            live.nodes["ledger"].start()
        else:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError, KeyError):
                os.kill(live.pid(victim), signal.SIGKILL)
        if rng.random() < 0.8:
            await working(live)


async def working(live: LiveMesh) -> None:
    """Until a node answers an action again."""
    async with connected(live) as client:
        while True:
            try:
                await client.run_action("again", {"n": -1}, node="ledger", id="up", timeout_s=2)
            except MeshError:
                await asyncio.sleep(0.1)
            else:
                return


async def everything(live: LiveMesh, count: int, seed: int) -> tuple[Told, Counter[str]]:
    told, kills, rng = Told(), Counter(), random.Random(seed)
    numbers = iter(range(count))
    async with connected(live) as client:

        async def work():
            for number in numbers:
                while number >= count * 9 // 10 and kills.total() < LEAST_KILLS:
                    await asyncio.sleep(0.05)  # the rest comes while things are killed, too
                await submit(client, number, told)
                await asyncio.sleep(rng.uniform(0, 0.02))

        killer = asyncio.create_task(killing(live, rng, kills))
        try:
            await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
        finally:
            killer.cancel()
            await asyncio.gather(killer, return_exceptions=True)
    return told, kills


async def all_ended(live: LiveMesh, count: int) -> dict[str, object]:
    """By id, the record of every action once none of them is under way any more."""
    if not live.nodes["ledger"].is_alive():
        live.nodes["ledger"].start()
    await healthy(live)
    async with connected(live) as client, asyncio.timeout(60):
        while True:
            rows: dict[str, object] = {}
            with contextlib.suppress(MeshError):
                for offset in range(0, count, 500):
                    page = await client.history(id_prefix="chaos-", limit=500, offset=offset)
                    rows |= {row.id: row for row in page.actions}
                if rows and all(row.state in OUTCOMES and row.final for row in rows.values()):
                    return rows
            await asyncio.sleep(0.3)


async def documents(live: LiveMesh, wanted: int) -> int:
    """How many the collection has; returns as soon as that is as wanted, or does not change."""
    rows = -1
    async with connected(live) as client:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                while rows != wanted:
                    infos = client.routes.nodes["ledger"].collections
                    rows = next((info.rows for info in infos if info.name == "ledger"), 0)
                    await asyncio.sleep(0.2)
    return rows


def check(live: LiveMesh, count: int, told: Told, rows: dict) -> None:
    happened = effects(live)
    lost = {action_id for action_id in told.answers if action_id not in rows}
    assert not lost, f"answered, and not in the history: {sorted(lost)[:5]}"
    for action_id, (ended, _) in told.answers.items():
        row = rows[action_id]
        known = str(row.state) if ended != "action_failed" else "failed"
        assert ended in {known, "internal"}, (action_id, ended, row)
    doubled = [key for key, times in happened.items() if times > 1]
    assert not doubled, f"took effect twice: {doubled[:5]}"
    unrecorded = [one for _, one in happened if one not in rows and one != "up"]
    assert not unrecorded, f"took effect unrecorded: {unrecorded[:5]}"
    for row in rows.values():
        kind = row.action
        assert kind == "once" or row.state is not ActionState.INTERRUPTED, row
        if row.state is ActionState.SUCCEEDED and kind != "index":
            assert happened[kind, row.id] == 1, f"{row.id} succeeded without an effect"
        if row.state not in {ActionState.SUCCEEDED, ActionState.INTERRUPTED} and kind == "once":
            assert not happened[kind, row.id], f"{row.id} took effect and is {row.state}"
    assert len(told.answers) + len(told.unknown) == count


@pytest.mark.parametrize(
    ("count", "seed"),
    [pytest.param(300, 1), pytest.param(2000, 2, marks=pytest.mark.long)],
)
def test_no_action_is_lost_doubled_or_unrecorded_whatever_is_killed(live, count, seed):
    told, kills = asyncio.run(everything(live, count, seed))
    rows = asyncio.run(all_ended(live, count))
    states = Counter(str(row.state) for row in rows.values())
    ends, unknown = dict(states), len(told.unknown)
    sys.stdout.write(f"\n{count} actions, kills {dict(kills)}, ends {ends}, unknown {unknown}\n")
    assert kills.total() >= LEAST_KILLS, "nothing was broken: nothing was shown"
    check(live, count, told, rows)
    assert not told.unknown, "a careful caller hears in the end"
    written = sum(row.action == "index" and row.state == "succeeded" for row in rows.values())

    assert asyncio.run(documents(live, written)) == written, "documents doubled or lost"


def test_a_hundred_submissions_of_one_id_from_many_connections_are_one_effect(live):
    async def submissions():
        async with contextlib.AsyncExitStack() as opened:
            clients = [await opened.enter_async_context(connected(live)) for _ in range(5)]
            answers = await asyncio.gather(
                *(
                    clients[number % 5].run_action("once", {"n": 7}, node="ledger", id="one")
                    for number in range(100)
                )
            )
            with pytest.raises(ConflictError):
                await clients[0].run_action("once", {"n": 8}, node="ledger", id="one")
            with pytest.raises(ConflictError):
                await clients[1].run_action("again", {"n": 7}, node="ledger", id="one")
            return answers

    answers = asyncio.run(submissions())
    assert len(answers) == 100
    assert all(answer == answers[0] for answer in answers)
    assert answers[0].result == {"n": 7}
    assert effects(live) == {("once", "one"): 1}
