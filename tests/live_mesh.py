"""A whole mesh in processes of its own: broker and master under `mesh-agent up`, nodes by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mesh
from mesh.errors import MeshError

START_S = 90
"""Of a test machine that does other things meanwhile; the figures to hold are in tests/bench."""


def agent(*arguments: object) -> list[str]:
    return [sys.executable, "-P", "-m", "cli.mesh_agent", *map(str, arguments)]


def clean_environment(**more: str) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("MESH_")}
    return kept | more


class LiveNode:
    """One `mesh-agent run`, which can be killed, paused and started again on its folder."""

    def __init__(self, name: str, argv: list[str], folder: Path, environment: dict[str, str]):
        self.name = name
        self._argv, self._folder, self._environment = argv, folder, environment
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process, f"{self.name} does not run"
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self, within_s: float) -> int:
        """Until it ends by itself; its exit code."""
        assert self._process, f"{self.name} does not run"
        code = self._process.wait(timeout=within_s)
        self._process = None
        return code

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv, cwd=self._folder, env=self._environment, stdout=log, stderr=log
            )

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code; a paused one is let go on, or it would never hear the signal."""
        if self._process is None:
            return 0
        self._process.send_signal(number)
        self._process.send_signal(signal.SIGCONT)
        code = self._process.wait(timeout=30)
        self._process = None
        return code


class LiveMesh:
    """Start it, add nodes, break it, stop it."""

    def __init__(self, folder: Path, **environment: str):
        self.folder = folder
        self.state = folder / ".mesh"
        self.nodes: dict[str, LiveNode] = {}
        self._up = LiveNode(
            "up",
            agent(
                "up", "--state-dir", self.state, "--nats-port", 0, "--http-port", 0, "--nodes", 0
            ),
            folder,
            clean_environment(**environment),
        )

    def start(self) -> None:
        self._up.start()
        until = time.monotonic() + START_S
        while not (self.state / "mesh.json").exists():
            assert time.monotonic() < until, self._up.log.read_text()
            time.sleep(0.05)

    def file(self) -> dict:
        return json.loads((self.state / "mesh.json").read_bytes())

    def pid(self, process: str) -> int:
        return self.file()["pids"][process]

    def add(self, name: str, *arguments: object, **environment: str) -> LiveNode:
        """Start a node; embedder `hash` unless told otherwise: quick to load."""
        argv = agent("run", "--state-dir", self.state, "--name", name, *arguments)
        node = LiveNode(
            name,
            argv,
            self.folder,
            clean_environment(**({"MESH_SEARCH__EMBEDDER": "hash"} | environment)),
        )
        self.nodes[name] = node
        node.start()
        return node

    def stop(self) -> None:
        for node in self.nodes.values():
            node.end()
        self._up.end()

    def connect(self, **options):
        return mesh.connect(state_dir=self.state, **options)


async def health_of(client, slug: str) -> str:
    """As the registry has it; empty while no master answers or it knows no such node."""
    with contextlib.suppress(MeshError):
        (record,) = (await client.nodes(node=slug)).nodes
        return str(record.health)
    return ""


async def incarnation_of(client, slug: str) -> int:
    """Of the life the registry knows; 0 while no master answers."""
    with contextlib.suppress(MeshError):
        (record,) = (await client.nodes(node=slug)).nodes
        return record.incarnation
    return 0


async def until_reborn(client, slug: str, *, after: int) -> None:
    """Until a later life of the node than `after` is healthy: right after a kill the registry still
    shows the old one, in good health.
    """
    async with asyncio.timeout(START_S):
        while await incarnation_of(client, slug) <= after:
            await asyncio.sleep(0.05)
        while await health_of(client, slug) != "healthy":
            await asyncio.sleep(0.05)
