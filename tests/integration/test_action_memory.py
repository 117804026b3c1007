"""The masters' memory of actions over a real database: several masters, and what is forgotten."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from fakes import MemoryBroker, MemoryHistory, MemoryTrail
from stepped_clock import SteppedClock

from mesh.adapters.sql.registry import SqlRegistry
from mesh.config import ActionsConfig, MeshConfig
from mesh.errors import InvalidError, MeshError, NotFoundError, UnavailableError
from mesh.runtime.action_memory import ActionMemory
from mesh.runtime.background import Background
from mesh.runtime.parts import Surroundings
from mesh.types import ActionState
from mesh.wire.messages import ActionShow, HistoryPage, HistoryQuery, HistoryRecord

NOW = 1000.0 * 86_400
DAY_MS = 86_400_000
EVERYTHING = HistoryQuery(limit=1000)


def record(number: object, state: ActionState, **fields: Any) -> HistoryRecord:
    return HistoryRecord(
        **{"id": f"{number}", "node": "crm", "action": "index", "caller": "ops"}
        | {"state": state, "at": round(NOW * 1000)}
        | fields
    )


class Master:
    """The one part of it, on the database that it shares with others."""

    def __init__(self, world: World, registry: SqlRegistry) -> None:
        self.registry = registry
        self.background = Background(world.clock)
        self.leads = True
        around: Any = Surroundings(
            bus=world.broker.bus("master"),
            clock=world.clock,
            background=self.background,
            config=MeshConfig(actions=world.actions),
            registry=registry,
            membership=None,  # type: ignore[arg-type]
            audit=MemoryTrail(),
            leads=lambda: self.leads,
        )
        self.memory = ActionMemory(
            around, registry.actions, world.history, find_queued=world.find_queued
        )

    async def ask(self, request: Any) -> Any:
        (verb,) = (verb for kind, verb in self.memory.verbs.values() if kind is type(request))
        return await verb(request, "ops")

    async def end(self) -> None:
        await self.memory.stop()
        await self.background.stop()
        await self.registry.close()


class World:
    def __init__(self, url: str) -> None:
        self.url = url
        self.broker = MemoryBroker()
        self.clock = SteppedClock(NOW)
        self.history = MemoryHistory(self.broker.bus("historian"))
        self.actions = ActionsConfig(history_days=10, history_bytes=1024**2)
        self.queued: dict[str, HistoryRecord | MeshError] = {}
        self.masters: list[Master] = []

    async def master(self, url: str = "") -> Master:
        master = Master(self, await SqlRegistry.open(url or self.url))
        self.masters.append(master)
        await master.memory.start()
        return master

    async def find_queued(self, action_id: str, node: str) -> HistoryRecord | None:
        found = self.queued.get(action_id)
        if isinstance(found, MeshError):
            raise found
        return found if found is not None and node in ("", found.node) else None

    async def append(self, *records: HistoryRecord) -> None:
        for one in records:
            await self.history.append(one, timeout_s=1)


@pytest.fixture
async def world(tmp_path):
    world = World(f"sqlite+aiosqlite:///{tmp_path}/mesh.db")
    yield world
    for master in world.masters:
        await master.end()
        assert master.background.failures == 0


async def test_what_must_be_known_for_sure_is_not_guessed(world):
    """None is that nobody has begun it; whoever cannot tell says so."""
    master = await world.master()
    await world.append(record("a", ActionState.SUCCEEDED))
    known = await master.memory.known_now("a", "crm")
    assert known is not None
    assert known.state is ActionState.SUCCEEDED
    assert await master.memory.known_now("b", "crm") is None
    world.history.last_sequence = away
    with pytest.raises(UnavailableError):
        await master.memory.known_now("b", "crm")


async def away(**_: Any) -> int:
    raise UnavailableError("the stream is away")


# -- several masters -------------------------------------------------------------------------------


def lives(rng: random.Random, actions: int) -> list[HistoryRecord]:
    """What nodes append: each action in its order, all of them mixed, some of it twice."""
    waiting = []
    for number in range(actions):
        attempts = rng.randint(1, 3)
        steps = []
        for attempt in range(1, attempts + 1):
            steps.append(record(number, ActionState.ACCEPTED, attempt=attempt, at=number))
            last = attempt == attempts
            state = ActionState.SUCCEEDED if last else ActionState.FAILED
            steps.append(record(number, state, attempt=attempt, at=number + 1, final=last))
        waiting.append(steps)
    found: list[HistoryRecord] = []
    while waiting:
        steps = rng.choice(waiting)
        found.append(steps.pop(0))
        if not steps:
            waiting.remove(steps)
    return found


async def test_masters_that_read_one_stream_end_with_the_same_rows(world, tmp_path):
    """Whether they share a database or not, and though one of them is replaced all the time."""
    rng = random.Random(7)
    await world.master()
    await world.master()
    alone = await world.master(f"sqlite+aiosqlite:///{tmp_path}/other.db")
    stream = lives(rng, 300)
    for start in range(0, len(stream), 150):
        world.history.stored += stream[start : start + 150]
        world.broker.bus("x").publish("mesh.v1.history.crm.index.succeeded", b"")
        await asyncio.sleep(rng.random() / 50)
        crashed = world.masters.pop(rng.randrange(2))
        await crashed.end()
        world.masters.insert(0, await world.master())
        world.masters.pop()
    pages = [await master.ask(EVERYTHING) for master in world.masters]
    changes = [await master.ask(HistoryQuery(after=0, limit=1000)) for master in world.masters]
    assert pages[0] == pages[1] == pages[2]
    assert changes[0] == changes[1] == changes[2], "in the same order, too"
    assert pages[0].total == 300
    assert {row.state for row in pages[0].actions} == {ActionState.SUCCEEDED}
    assert pages[0].sequence == len(stream)
    for number in (0, 150, 299):
        told = [
            await one.ask(ActionShow(action_id=f"{number}")) for one in (world.masters[0], alone)
        ]
        assert told[0] == told[1]


async def test_who_follows_misses_nothing_while_masters_come_and_go(world):
    rng = random.Random(11)
    stream = lives(rng, 200)
    seen: list[HistoryRecord] = []
    after = 0
    await world.master()
    await world.master()
    while stream or len({one.id for one in seen if one.final}) < 200:
        world.history.stored += stream[:17]
        del stream[:17]
        if rng.random() < 0.3:
            await world.masters.pop(rng.randrange(2)).end()
            await world.master()
        page = await rng.choice(world.masters).ask(
            HistoryQuery(after=after, limit=rng.randint(1, 30))
        )
        assert page.sequence >= after
        seen += page.actions
        after = page.sequence
        if rng.random() < 0.02:
            world.history.stored.clear()  # somebody made the stream anew
    while (page := await world.masters[0].ask(HistoryQuery(after=after))).actions:
        seen += page.actions
        after = page.sequence
    steps = [(one.id, one.attempt, one.state) for one in seen]
    assert len(steps) == len(set(steps)), "nothing is told twice"
    ended = {one.id for one in seen if one.state is ActionState.SUCCEEDED}
    assert len(ended) == 200


# -- asking ----------------------------------------------------------------------------------------


async def test_what_was_queued_a_moment_ago_is_found(world):
    master = await world.master()
    queued = record("q", ActionState.QUEUED, attempt=0, mode="queue", digest="d")
    world.queued["q"] = queued
    page = await master.ask(HistoryQuery(action_id="q"))
    assert (page.actions, page.total) == ([queued], 1)
    assert (await master.ask(HistoryQuery(action_id="q", node="docs"))).actions == []
    assert (await master.ask(HistoryQuery(action_id="q", after=0))).actions == []
    [story] = (await master.ask(ActionShow(action_id="q"))).stories
    assert (story.action, story.attempts) == (queued, [])
    assert await master.memory.known("q", "crm") == queued
    assert await master.memory.known("q", "docs") is None
    await world.append(record("q", ActionState.ACCEPTED))
    [story] = (await master.ask(ActionShow(action_id="q"))).stories
    assert story.action.state is ActionState.ACCEPTED, "the index knows better"
    assert (await master.memory.known("q", "crm")).state is ActionState.ACCEPTED


async def test_what_nobody_knows_is_not_found(world):
    master = await world.master()
    world.queued["lost"] = UnavailableError("the queue cannot be read")
    for action_id in ("never", "lost"):
        with pytest.raises(NotFoundError, match=action_id):
            await master.ask(ActionShow(action_id=action_id))
    for action_id in ("", "x" * 201, "a\nb"):
        with pytest.raises(InvalidError):
            await master.ask(ActionShow(action_id=action_id))


async def test_stories_can_be_read_while_the_stream_is_away(world):
    master = await world.master()
    await world.append(record("1", ActionState.SUCCEEDED))
    assert (await master.ask(EVERYTHING)).total == 1
    world.history.available = False
    assert len((await master.ask(ActionShow(action_id="1"))).stories) == 1


# -- forgetting ------------------------------------------------------------------------------------


async def rows(master: Master) -> list[str]:
    page: HistoryPage = await master.ask(EVERYTHING)
    return sorted(row.id for row in page.actions)


async def pruned(world: World, *, left: int) -> None:
    """Once so many are left; what takes a transaction of its own takes its time."""
    await world.clock.step(600.0)
    async with asyncio.timeout(10):
        while True:
            await asyncio.sleep(0.01)
            await world.clock.step(0.1)
            if (await world.masters[0].ask(HistoryQuery(limit=1))).total == left:
                return


async def test_the_leader_forgets_what_is_too_old_and_nobody_else_does(world):
    leader, other = await world.master(), await world.master()
    other.leads = False
    old = round(NOW * 1000) - 11 * DAY_MS
    await world.append(
        *(record(number, ActionState.SUCCEEDED, at=old) for number in range(1200)),
        record("young", ActionState.SUCCEEDED),
        record("open", ActionState.RUNNING, at=old),
    )
    leader.leads = False
    assert len(await rows(other)) == 1000
    await pruned(world, left=1202)
    await asyncio.sleep(0.1)
    assert (await leader.ask(HistoryQuery())).total == 1202
    leader.leads = True
    await pruned(world, left=2)
    assert await rows(other) == ["open", "young"]


async def test_the_leader_forgets_what_is_too_much(world):
    leader = await world.master()
    await world.append(
        *(record(f"{number:03}", ActionState.SUCCEEDED, result="x" * 9800) for number in range(150))
    )
    assert len(await rows(leader)) == 150
    most = 1024**2 // 10_002  # 9,800 characters in quotes, and 200 bytes for the rest of the row
    await pruned(world, left=most)
    assert await rows(leader) == [f"{number:03}" for number in range(150 - most, 150)]


async def test_a_database_that_cannot_forget_is_tried_again(world, monkeypatch):
    leader = await world.master()
    await world.append(record("old", ActionState.SUCCEEDED, at=1))
    assert await rows(leader) == ["old"]

    async def refuse(**_limits: int) -> int:
        raise UnavailableError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(leader.registry.actions, "prune", refuse)
        await pruned(world, left=1)
    await pruned(world, left=0)
