"""The supervisor with children that live and die at a word, in a time of their own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agents.up.child import Program
from agents.up.supervisor import MAX_DEATHS, Supervisor
from mesh.errors import StateError


class FakeChild:
    def __init__(self, world: World, program: Program, pid: int) -> None:
        self._world = world
        self._exit = asyncio.get_running_loop().create_future()
        self.program = program
        self.pid = pid

    async def wait(self) -> int:
        return await asyncio.shield(self._exit)

    def dies(self, code: int) -> None:
        if not self._exit.done():
            self._exit.set_result(code)

    async def stop(self, grace_s: float) -> None:
        self._world.told.append(("stop", self.program.name, grace_s))
        await asyncio.sleep(0)
        await self._world.stops_allowed.wait()
        self.dies(0)
        self._world.told.append(("stopped", self.program.name))

    def kill(self) -> None:
        self.dies(-9)

    @property
    def alive(self) -> bool:
        return not self._exit.done()


class World:
    """Starts children, keeps the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.children: list[FakeChild] = []
        self.told: list[tuple] = []
        self.slept: list[float] = []
        self.started: list[tuple[str, int]] = []
        self.notices: list[str] = []
        self.refusals: list[Exception] = []
        self.lives: list[tuple[float, int]] = []
        """Of children that die by themselves: seconds and exit code."""
        self.starts_allowed = asyncio.Event()
        self.starts_allowed.set()
        self.stops_allowed = asyncio.Event()
        self.stops_allowed.set()
        self.wakes = asyncio.Event()
        self.wakes.set()

    async def start(self, program: Program) -> FakeChild:
        await self.starts_allowed.wait()
        if self.refusals:
            raise self.refusals.pop(0)
        child = FakeChild(self, program, 100 + len(self.children))
        self.children.append(child)
        if self.lives:
            seconds, code = self.lives.pop(0)
            self.now += seconds
            child.dies(code)
        return child

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await self.wakes.wait()
        await asyncio.sleep(0)

    def supervisor(self, on_start=None) -> Supervisor:
        return Supervisor(
            start=self.start,
            now=lambda: self.now,
            sleep=self.sleep,
            on_start=on_start or (lambda name, pid: self.started.append((name, pid))),
            on_death=lambda name, words: self.notices.append(f"{name}: {words}"),
        )

    async def settle(self) -> None:
        for _ in range(200):
            await asyncio.sleep(0)

    def alive(self) -> list[str]:
        return [child.program.name for child in self.children if child.alive]


@pytest.fixture
async def world():
    return World()


def program(name: str, stage: int = 0, log: Path = Path("/nowhere.log")) -> Program:
    return Program(name=name, argv=[name], log=log, stage=stage, grace_s=stage + 1.0)


async def test_what_dies_is_started_again_after_growing_whiles(world):
    world.lives = [(0.5, 1), (0.5, -9), (0.5, 0), (61, 1), (0.5, 1)]
    async with world.supervisor() as supervisor:
        supervisor.settled = True
        supervisor.keep(program("node-a"))
        await world.settle()
        assert world.slept == [1, 2, 4, 1, 2]
        assert world.alive() == ["node-a"]
        assert supervisor.pid("node-a") == 105
        assert world.started == [("node-a", pid) for pid in range(100, 106)]
        assert world.notices[:2] == [
            "node-a: exit code 1; starts again in 1 s",
            "node-a: signal 9; starts again in 2 s",
        ]
    assert world.alive() == []


async def test_a_start_that_fails_again_and_again_ends_with_the_log(world, tmp_path):
    log = tmp_path / "node-a.log"
    log.write_text("\n".join(f"line {number}" for number in range(100)))
    world.lives = [(0.1, 3)] * MAX_DEATHS
    async with world.supervisor() as supervisor:
        supervisor.keep(program("broker"))
        supervisor.keep(program("node-a", log=log))
        world.lives, lives = [], world.lives
        await world.settle()
        world.lives = lives[1:]
        world.children[1].dies(3)
        with pytest.raises(StateError, match=r"node-a died 3 times before.*exit code 3") as failed:
            await supervisor.failed
        assert "line 99" in str(failed.value)
        assert "line 10\n" not in str(failed.value)
        assert world.slept == [1, 2]
        assert world.alive() == ["broker"]
    assert world.alive() == []


async def test_what_is_not_vital_keeps_nobody_from_starting(world):
    world.lives = [(0, 4)] * MAX_DEATHS
    async with world.supervisor() as supervisor:
        supervisor.keep(Program(name="node-a", argv=[], log=Path("/a.log"), vital=False))
        await world.settle()
        assert not supervisor.failed.done()
        assert supervisor.given_up == {"node-a"}
        assert world.notices[-1] == "node-a: exit code 4, /a.log says why; starts again in 4 s"
        assert world.alive() == ["node-a"], "it is tried again all the same"


async def test_once_settled_nothing_gives_up(world):
    async with world.supervisor() as supervisor:
        supervisor.settled = True
        world.lives = [(0, 1)] * 20
        supervisor.keep(program("master"))
        await world.settle()
        assert not supervisor.failed.done()
        assert world.slept[-1] == 30
        assert world.alive() == ["master"]


@pytest.mark.parametrize("error", [StateError("port 4222 is taken"), OSError(2, "no such file")])
async def test_a_refused_first_start_ends_it_at_once_and_as_it_is(world, error):
    world.refusals = [error]
    async with world.supervisor() as supervisor:
        supervisor.keep(program("broker"))
        with pytest.raises(type(error)) as raised:
            await supervisor.failed
        assert raised.value is error
    assert world.slept == []


async def test_a_refused_later_start_counts_as_a_death(world):
    async with world.supervisor() as supervisor:
        supervisor.keep(program("broker"))
        await world.settle()
        supervisor.settled = True
        world.refusals = [StateError("port 4222 is taken"), StateError("port 4222 is taken")]
        world.children[0].dies(-9)
        await world.settle()
        assert world.slept == [1, 2, 4]
        assert "cannot start: port 4222 is taken" in world.notices[1]
        assert world.alive() == ["broker"]


async def test_once_settled_what_cannot_be_announced_runs_all_the_same(world):
    full = []

    def on_start(_name, _pid):
        if full:
            raise StateError("mesh.json cannot be written: No space left on device")

    async with world.supervisor(on_start=on_start) as supervisor:
        supervisor.keep(program("node-a"))
        await world.settle()
        supervisor.settled = True
        full.append(True)
        world.children[0].dies(1)
        await world.settle()
        assert not supervisor.failed.done()
        assert supervisor.pid("node-a") == 101
    assert world.told == [("stop", "node-a", 1.0), ("stopped", "node-a")]
    assert world.alive() == []


async def test_before_that_it_is_stopped_and_the_start_has_failed(world):
    def on_start(_name, _pid):
        raise StateError("mesh.json cannot be written: No space left on device")

    async with world.supervisor(on_start=on_start) as supervisor:
        supervisor.keep(program("node-a"))
        with pytest.raises(StateError, match="No space left"):
            await supervisor.failed
        assert world.told == [("stop", "node-a", 1.0), ("stopped", "node-a")]
        assert supervisor.pid("node-a") is None


async def test_stages_stop_from_the_highest_and_wait_for_each_other(world):
    async with world.supervisor() as supervisor:
        for name, stage in (("broker", 0), ("node-a", 2), ("master", 1), ("node-b", 2)):
            supervisor.keep(program(name, stage))
        await world.settle()
    assert world.told == [
        ("stop", "node-a", 3.0),
        ("stop", "node-b", 3.0),
        ("stopped", "node-a"),
        ("stopped", "node-b"),
        ("stop", "master", 2.0),
        ("stopped", "master"),
        ("stop", "broker", 1.0),
        ("stopped", "broker"),
    ]


async def test_what_waits_to_be_started_again_is_not_after_the_stop(world):
    world.wakes.clear()
    async with world.supervisor() as supervisor:
        supervisor.keep(program("node-a"))
        await world.settle()
        world.children[0].dies(1)
        await world.settle()
        assert world.slept == [1]
        assert supervisor.pid("node-a") is None
    world.wakes.set()
    await world.settle()
    assert len(world.children) == 1


async def test_what_is_being_started_is_not_after_the_stop(world):
    world.starts_allowed.clear()
    async with world.supervisor() as supervisor:
        supervisor.keep(program("node-a"))
        await world.settle()
    world.starts_allowed.set()
    await world.settle()
    assert world.children == []


async def test_a_kill_during_the_stop_ends_all_and_starts_nothing_again(world):
    supervisor = world.supervisor()
    supervisor.settled = True
    world.stops_allowed.clear()
    for name, stage in (("broker", 0), ("node-a", 2)):
        supervisor.keep(program(name, stage))
    await world.settle()
    stopping = asyncio.create_task(supervisor.stop())
    await world.settle()
    assert world.alive() == ["broker", "node-a"]

    supervisor.kill()
    world.stops_allowed.set()
    await stopping
    await world.settle()

    assert world.alive() == []
    assert len(world.children) == 2
    assert (world.slept, world.notices) == ([], [])
    assert not supervisor.failed.done()


async def test_what_dies_during_the_stop_is_not_started_again(world):
    supervisor = world.supervisor()
    world.stops_allowed.clear()
    for name, stage in (("master", 1), ("node-a", 2)):
        supervisor.keep(program(name, stage))
    await world.settle()
    stopping = asyncio.create_task(supervisor.stop())
    await world.settle()
    world.children[0].dies(1)
    await world.settle()
    world.stops_allowed.set()
    await stopping
    assert len(world.children) == 2


async def test_a_program_that_ends_by_itself(world, tmp_path):
    log = tmp_path / "samples.log"
    log.write_text("disk full")
    async with world.supervisor() as supervisor:
        world.lives = [(1, 0), (1, 1)]
        await supervisor.once(program("samples"))
        with pytest.raises(StateError, match=r"samples failed \(exit code 1\)(?s:.*)disk full"):
            await supervisor.once(program("samples", log=log))
        assert world.slept == []


async def test_a_program_that_ends_by_itself_is_stopped_with_its_caller(world):
    async with world.supervisor() as supervisor:
        running = asyncio.create_task(supervisor.once(program("samples")))
        await world.settle()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert world.told[0][:2] == ("stop", "samples")
        assert world.alive() == []
