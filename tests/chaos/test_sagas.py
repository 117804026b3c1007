"""Sagas while whoever runs them is killed: before and after every record, before, while and after
every request to a node, and at random. What counts is what the application itself wrote down.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest
from live_mesh import START_S, LiveMesh, clean_environment, health_of

from mesh.errors import MeshError

STEPS = 4
AT_ONCE = 40
SCRIPT = Path(__file__).parent.parent / "doomed_master.py"
APP = """
import os

from mesh import Node

node = Node("shop")
FILE = os.open({effects!r}, os.O_APPEND | os.O_CREAT | os.O_WRONLY)


def note(text):
    os.write(FILE, text.encode() + b"\\n")


@node.action("do", compensate="undo")
async def do(params: dict, ctx) -> dict:
    if params.get("fails"):
        raise ValueError("as the test wants it")
    note(ctx.id)
    return {{"of": ctx.id}}


@node.action("undo")
async def undo(params: dict, ctx) -> dict:
    note(ctx.id)
    return {{}}
"""


def saga(saga_id: str, fails_at: int | None) -> dict:
    """Each step needs the result of the one before."""
    steps = []
    for at in range(STEPS):
        params = {"before": f"${{s{at - 1}.of}}"} if at else {}
        steps.append(
            {"name": f"s{at}", "action": "do", "params": params | {"fails": at == fails_at}}
        )
    return {"id": saga_id, "name": "chaos", "steps": steps}


def points(fails_at: int | None) -> list[str]:
    """Every place of such a saga at which its runner may die."""
    asked = [f"s{at}" for at in range(STEPS if fails_at is None else fails_at + 1)]
    asked += [f"s{at}.undo" for at in reversed(range(fails_at or 0))]
    records = [f"{kind}:{p}" for p in ["begin", *asked, "end"]
               for kind in ("append-before", "append-after")]  # fmt: skip
    sends = [f"{kind}:{p}" for p in asked for kind in ("send-before", "send-after", "answered")]
    return records + sends


class Masters:
    """Two real masters beside a mesh whose own is gone; whoever dies is started again."""

    def __init__(self, mesh: LiveMesh, folder: Path, plan: dict[str, str]):
        self._mesh, self._folder = mesh, folder
        (folder / "killed").mkdir(exist_ok=True)
        (folder / "plan.json").write_text(json.dumps(plan))
        self._processes: dict[str, subprocess.Popen] = {}
        self.deaths = 0
        self._watching: asyncio.Task | None = None

    def _start(self, name: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-P", SCRIPT, self._mesh.state, self._folder, name],
                env=clean_environment(PYTHONPATH=str(SCRIPT.parent.parent)),
                stdout=log,
                stderr=log,
            )

    async def __aenter__(self):
        self._mesh.end_master()
        for name in ("one", "two"):
            self._start(name)
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_exc):
        self._watching.cancel()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        finally:
            for process in self._processes.values():
                process.kill()
                process.wait(timeout=30)

    async def _watch(self) -> None:
        while True:
            for name, process in list(self._processes.items()):
                if process.poll() is not None:
                    assert process.returncode == -signal.SIGKILL, self.log(name)
                    self.deaths += 1
                    self._start(name)
            await asyncio.sleep(0.05)

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()[-3000:]

    async def kill_leader(self, after_s: float) -> None:
        """Once there is one that was not killed yet, and has led for so long."""
        while (pid := self._leader()) not in {each.pid for each in self._processes.values()}:
            await asyncio.sleep(0.02)
        await asyncio.sleep(after_s)
        os.kill(pid, signal.SIGKILL)
        while pid in {each.pid for each in self._processes.values()}:
            self.check()
            await asyncio.sleep(0.02)

    def _leader(self) -> int:
        try:
            return int((self._folder / "leader").read_text())
        except (OSError, ValueError):
            return 0

    def check(self) -> None:
        assert self._watching is not None
        if self._watching.done():
            self._watching.result()


class SagaMesh(LiveMesh):
    """One node that writes down what it does."""

    def begin(self) -> None:
        self.effects = self.folder / "effects"
        self.effects.touch()
        (self.folder / "shop_app.py").write_text(
            textwrap.dedent(APP.format(effects=str(self.effects)))
        )
        self.start()
        self.add("shop", "--app", "shop_app:node")
        asyncio.run(self._ready())

    async def _ready(self) -> None:
        async with asyncio.timeout(START_S), self.connect() as client:
            while await health_of(client, "shop") != "healthy":
                await asyncio.sleep(0.05)

    def end_master(self) -> None:
        """For good: whoever would start it again is paused."""
        os.kill(self._up.pid, signal.SIGSTOP)
        os.kill(self.pid("master"), signal.SIGKILL)


@pytest.fixture
def mesh(tmp_path):
    live = SagaMesh(tmp_path)
    try:
        live.begin()
        yield live
    finally:
        live.stop()


async def settle(client, sagas: dict[str, int | None], masters: Masters, within_s: float):
    """Run them all, whatever dies meanwhile; what became of each."""
    places = asyncio.Semaphore(AT_ONCE)
    ended = {}

    async def one(saga_id: str, fails_at: int | None) -> None:
        async with places:
            while saga_id not in ended:
                masters.check()
                with contextlib.suppress(MeshError):
                    found = await client.sagas.run(saga(saga_id, fails_at), timeout_s=20)
                    if found.ended_at:
                        ended[saga_id] = found

    async with asyncio.timeout(within_s):
        async with asyncio.TaskGroup() as group:
            for saga_id, fails_at in sagas.items():
                group.create_task(one(saga_id, fails_at))
    return ended


def wrong_ones(ended, sagas: dict[str, int | None], effects: Path) -> list[str]:
    """Stuck, doubled or wrongly compensated."""
    written = Counter(effects.read_text().split())
    wrong = []
    for saga_id, fails_at in sagas.items():
        state = ended[saga_id].state.value if saga_id in ended else "stuck"
        done = {f"s{at}" for at in range(STEPS if fails_at is None else fails_at)}
        undone = set() if fails_at is None else {f"{name}.undo" for name in done}
        expected = Counter(f"{saga_id}.{name}" for name in done | undone)
        found = Counter(
            {text: times for text, times in written.items() if text.startswith(f"{saga_id}.")}
        )
        if state != ("succeeded" if fails_at is None else "compensated") or found != expected:
            wrong.append(f"{saga_id} (fails at {fails_at}): {state}, {dict(found)}")
    return wrong


def chosen(count: int, doomed: int) -> tuple[dict[str, int | None], dict[str, str]]:
    """Sagas, a third of which fails somewhere; and at which points of the first their runner dies,
    spread evenly over all points there are.
    """
    every = [(fails_at, point) for fails_at in (None, 3, 1) for point in points(fails_at)]
    doomed = min(doomed, len(every))
    picked = [every[at * len(every) // doomed] for at in range(doomed)]
    sagas = {f"d{at}": fails_at for at, (fails_at, _) in enumerate(picked)}
    plan = {f"d{at}": point for at, (_, point) in enumerate(picked)}
    for at in range(count - doomed):
        sagas[f"n{at}"] = at // 3 % STEPS if at % 3 == 0 else None
    return sagas, plan


async def run_doomed(mesh: SagaMesh, count: int, doomed: int, within_s: float) -> str:
    sagas, plan = chosen(count, doomed)
    async with mesh.connect() as client, Masters(mesh, mesh.folder, plan) as masters:
        began = time.monotonic()
        ended = await settle(client, sagas, masters, within_s)
        took_s = time.monotonic() - began
        killed = {each.name for each in (mesh.folder / "killed").iterdir()}
    assert not wrong_ones(ended, sagas, mesh.effects)
    missed = [plan[name] for name in set(plan) - killed]
    # Whoever dies for one saga in the moment when another's last record is stored, dies for both.
    assert set(missed) <= {"append-after:end"}, f"nobody died at {missed}"
    return f"{count} sagas, {masters.deaths} kills at {len(killed)} points, {took_s:.1f} s"


@pytest.mark.chaos
@pytest.mark.alone
async def test_sagas_survive_the_death_of_their_runner_before_and_after_every_step(mesh):
    await run_doomed(mesh, count=60, doomed=8, within_s=120)


@pytest.mark.chaos
@pytest.mark.long
@pytest.mark.alone
@pytest.mark.timeout(1800)
async def test_a_thousand_sagas_survive_a_death_at_every_point_there_is(mesh, record_property):
    told = await run_doomed(mesh, count=1000, doomed=1000, within_s=1500)
    record_property("sagas", told)
    sys.stderr.write(told + "\n")


async def run_under_fire(mesh: SagaMesh, count: int, kills: int, within_s: float) -> str:
    sagas, _ = chosen(count, 1)
    chance = random.Random(7)
    async with mesh.connect() as client, Masters(mesh, mesh.folder, {}) as masters:
        began = time.monotonic()
        work = asyncio.create_task(settle(client, sagas, masters, within_s))
        while masters.deaths < kills and not work.done():
            await masters.kill_leader(0.1 + chance.random())
        ended = await work
        took_s = time.monotonic() - began
    assert masters.deaths > 0
    assert not wrong_ones(ended, sagas, mesh.effects)
    return f"{count} sagas, {masters.deaths} kills at random, {took_s:.1f} s"


@pytest.mark.chaos
@pytest.mark.long
@pytest.mark.alone
@pytest.mark.timeout(1800)
async def test_a_thousand_sagas_survive_masters_that_die_all_the_time(mesh, record_property):
    told = await run_under_fire(mesh, count=1000, kills=1000, within_s=1500)
    record_property("sagas", told)
    sys.stderr.write(told + "\n")
