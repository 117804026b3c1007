"""A broker, masters on one database and a node, as processes of their own, for what is queued."""

from __future__ import annotations

import asyncio
import signal
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

from live_mesh import START_S, LiveNode, agent, clean_environment
from processes import BrokerProcess

import mesh
from mesh import bootstrap
from mesh.config import BreakerConfig, MeshConfig
from mesh.types import Health

NODE = "crm"
BREAKER = BreakerConfig(retry_timeout_s=1.0)
"""So that tests need not wait for half a minute."""
APP = '''
import os

from mesh import Node

node = Node("crm")
RUNS = {runs!r}


@node.action("note")
def note(params: dict) -> dict:
    """Its effect is a line in a file, and on the disk."""
    with open(RUNS, "a") as runs:
        runs.write(params["key"] + "\\n")
        runs.flush()
        os.fsync(runs.fileno())
    return {{"noted": params["key"]}}


@node.action("fill")
async def fill(params: dict, ctx) -> str:
    """Runs until the file is there."""
    import asyncio

    while not os.path.exists(params["until"]):
        await asyncio.sleep(0.02)
    with open(RUNS, "a") as runs:
        runs.write("filled\\n")
    return "x" * params.get("bytes", 1)
'''


class QueueMesh:
    """Start masters and the node, break them, see what ran."""

    def __init__(self, broker: BrokerProcess, masters: int = 2) -> None:
        self.broker = broker
        self.folder: Path = broker.folder
        files = bootstrap.make_credentials(self.folder / "credentials", nodes=[NODE]).files
        self.operator = files["operator"]
        database = f"sqlite+aiosqlite:///{self.folder / 'mesh.db'}"
        self.masters = [
            self._agent(f"master{at}", "master", "--database", database, creds=files["master"])
            for at in range(masters)
        ]
        (self.folder / "queue_app.py").write_text(textwrap.dedent(APP.format(runs=str(self._runs))))
        self.node = self._agent(
            NODE, "run", "--name", NODE, "--app", "queue_app:node", creds=files[f"nodes/{NODE}"]
        )

    def _agent(self, name: str, *arguments: str, creds: Path) -> LiveNode:
        argv = agent(*arguments, "--state-dir", self.folder / name, "--url", self.broker.url)
        environment = clean_environment(
            MESH_CREDS=str(creds),
            MESH_SEARCH__EMBEDDER="hash",
            MESH_MASTER__LEASE_TTL_S="1",
            MESH_BREAKER__RETRY_TIMEOUT_S=f"{BREAKER.retry_timeout_s}",
        )
        return LiveNode(name, argv, self.folder, environment)

    @property
    def _runs(self) -> Path:
        return self.folder / "runs.txt"

    @property
    def runs(self) -> list[str]:
        return self._runs.read_text().split() if self._runs.exists() else []

    async def start(self) -> None:
        self.node.start()
        for master in self.masters:
            master.start()
        for master in self.masters:
            await until(
                lambda log=master.log: "mesh.master.started" in _text(log),
                START_S,
                lambda log=master.log: _text(log),
            )

    async def connect(self) -> mesh.MeshClient:
        config = MeshConfig(breaker=BREAKER)
        client = await mesh.connect(self.broker.url, credentials=self.operator, config=config)
        await self.healthy(client)
        return client

    async def healthy(self, client: mesh.MeshClient, health: Health = Health.HEALTHY) -> None:
        def is_so() -> bool:
            route = client.routes.node(NODE)
            return route is not None and route.health is health

        await until(is_so, START_S, lambda: _text(self.node.log)[-3000:])

    def leader(self) -> LiveNode:
        """Whichever began to lead last."""

        def led_at(master: LiveNode) -> str:
            lines = [line for line in _text(master.log).splitlines() if "queue.delivering" in line]
            return lines[-1] if lines else ""

        return max(self.masters, key=led_at)

    def stop(self) -> None:
        self.node.end(signal.SIGKILL)
        for master in self.masters:
            master.end(signal.SIGKILL)


def _text(log: Path) -> str:
    return log.read_text() if log.exists() else ""


async def until(true: Callable[[], bool], within_s: float, why: Callable[[], str]) -> float:
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < within_s, why()
        await asyncio.sleep(0.01)
    return time.monotonic() - began
