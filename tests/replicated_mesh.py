"""A whole mesh whose collection has three replicas, and an even load on it that counts failures."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import textwrap
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from live_mesh import START_S, LiveMesh, health_of

from mesh.errors import MeshError

SHARD = "handbook"
COLLECTION = "handbook"
REPLICAS = ("one", "two", "three")
ROWS = 20

APP = '''
import asyncio, os, time
from pathlib import Path

import mesh

node = mesh.Node(os.environ["REPLICA"])
MODE, RUNS = Path(os.environ["MODE_FILE"]), Path(os.environ["RUNS_FILE"])
running = 0


@node.search("answers")
async def answers(request):
    """Says when it began, and of what request; then does what the file says."""
    global running
    running += 1
    try:
        with RUNS.open("a") as runs:
            runs.write(f"{time.time() * 1000:.0f} {request.deadline} {running}\\n")
        mode, _, seconds = MODE.read_text().partition(" ")
        if seconds:
            await asyncio.sleep(float(seconds))
        if mode == "fail":
            raise RuntimeError("as the test wants it")
        return [{"id": "1", "content": "an answer from " + node.name}]
    finally:
        running -= 1


@node.action("block")
async def block(params: dict) -> str:
    time.sleep(params["seconds"])
    return "awake"
'''


class ReplicatedMesh(LiveMesh):
    """Replicas `one`, `two` and `three` of a shard. With `app`, each offers the collection
    `answers` too, a function that does what `mode(…)` says.
    """

    def __init__(self, folder: Path, *, app: bool = False, **environment: str):
        super().__init__(folder, **environment)
        self._app = app
        self._environment = environment

    def begin(self, replicas=REPLICAS) -> None:
        """Start everything, and return when all of it answers."""
        lines = [
            {"id": f"{number}", "content": f"late invoice {number} of the handbook"}
            for number in range(ROWS)
        ]
        (self.folder / "handbook.jsonl").write_text("\n".join(map(json.dumps, lines)))
        (self.folder / "replica_app.py").write_text(textwrap.dedent(APP))
        self.start()
        for name in replicas:
            self.mode("ok", of=name)
            more = ("--app", "replica_app:node") if self._app else ()
            self.add(
                name,
                *("--collection", f"{COLLECTION}={self.folder / 'handbook.jsonl'}"),
                *more,
                MESH_NODE__SHARD=SHARD,
                REPLICA=name,
                MODE_FILE=str(self._mode_file(name)),
                RUNS_FILE=str(self._runs_file(name)),
                **self._environment,
            )
        asyncio.run(self.all_ready())

    async def all_ready(self) -> None:
        async with asyncio.timeout(START_S), self.connect() as client:
            while not await self._ready(client):
                await asyncio.sleep(0.1)

    async def _ready(self, client) -> bool:
        health = [await health_of(client, name) for name in self.nodes]
        rows = [
            info.rows
            for node in client.routes.nodes.values()
            for info in node.collections
            if info.name == COLLECTION
        ]
        return set(health) == {"healthy"} and rows == [ROWS] * len(self.nodes)

    def mode(self, mode: str, *, of: str) -> None:
        """`ok`, `fail`; with seconds after it: only after those."""
        self._mode_file(of).write_text(mode)

    def runs(self, of: str) -> list[tuple[int, int, int]]:
        """Of the searches of `answers`: unix ms of the start, deadline, how many ran then."""
        file = self._runs_file(of)
        lines = file.read_text().splitlines() if file.exists() else []
        return [tuple(map(int, line.split())) for line in lines]

    def _mode_file(self, name: str) -> Path:
        return self.folder / f"{name}.mode"

    def _runs_file(self, name: str) -> Path:
        return self.folder / f"{name}.runs"

    def end_master(self) -> None:
        """Kill the master for good: whoever would start it again is paused."""
        os.kill(self._up.pid, signal.SIGSTOP)
        os.kill(self.pid("master"), signal.SIGKILL)

    def let_master_return(self) -> None:
        os.kill(self._up.pid, signal.SIGCONT)


@dataclass(frozen=True)
class Call:
    """One that has ended: when it began, seconds both."""

    kind: str
    at: float
    took_s: float
    error: str = ""


@dataclass
class Load:
    """Calls at an even rate, whether or not earlier ones have ended, so that a slow mesh is not
    asked less. `async with` it; what it counted stays.
    """

    client: object
    searches_per_s: float = 50
    pings_per_s: float = 500
    collection: str = COLLECTION
    calls: list[Call] = field(default_factory=list)
    _tasks: set = field(default_factory=set)
    _running: list = field(default_factory=list)

    async def __aenter__(self):
        for kind, rate, work in (
            ("search", self.searches_per_s, self._search),
            ("ping", self.pings_per_s, self._ping),
        ):
            if rate:
                self._running.append(asyncio.create_task(self._offer(kind, rate, work)))
        return self

    async def __aexit__(self, *_exc):
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await asyncio.gather(*self._tasks)

    async def _offer(self, kind, rate, work):
        began, sent = time.monotonic(), 0
        while True:
            due = int((time.monotonic() - began) * rate) - sent
            for _ in range(due):
                task = asyncio.create_task(self._call(kind, work))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            sent += due
            await asyncio.sleep(0.005)

    async def _call(self, kind, work):
        began = time.monotonic()
        error = ""
        try:
            await work()
        except MeshError as failure:
            error = f"{failure.kind}: {failure}"
        self.calls.append(Call(kind, began, time.monotonic() - began, error))

    async def _search(self):
        answer = await self.client.search(
            "late invoice", collections=[self.collection], cache=False
        )
        if answer.partial:
            missing = [report for report in answer.shards.details if report.status != "ok"]
            raise MeshError(f"a partial answer: {missing}")

    async def _ping(self):
        await self.client.ping_shard(SHARD)

    # -- what came of it ---------------------------------------------------------------------------

    @property
    def failed(self) -> list[Call]:
        return [call for call in self.calls if call.error]

    def errors(self) -> dict[str, int]:
        return dict(Counter(f"{call.kind}: {call.error[:120]}" for call in self.failed))

    def slow(self, beyond_s: float = 0.3) -> int:
        return sum(call.took_s > beyond_s for call in self.calls)

    def quantile_ms(
        self, share: float, *, since: float = 0.0, until: float = float("inf"), kind: str = ""
    ) -> float:
        """Of the calls that began in between, monotonic seconds."""
        took = sorted(
            call.took_s
            for call in self.calls
            if since <= call.at < until and kind in {"", call.kind}
        )
        return took[min(len(took) - 1, int(len(took) * share))] * 1000


async def until_routed(client, slug: str, *, away: bool, within_s: float) -> float:
    """Seconds until callers' routes say so; monotonic."""
    began = time.monotonic()
    async with asyncio.timeout(within_s):
        while (client.routes.nodes[slug].health == "healthy") is away:
            await asyncio.sleep(0.002)
    return time.monotonic() - began
