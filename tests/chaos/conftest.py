"""One mesh for all that breaks it: two nodes with a few documents, and an app of its own."""

from __future__ import annotations

import asyncio
import json
import textwrap

import pytest
import pytest_asyncio
from live_mesh import START_S, LiveMesh, health_of

APP = """
import time

from mesh import Node

node = Node("gamma")
RUNS = {runs!r}


@node.action("note")
def note(params: dict) -> dict:
    with open(RUNS, "a") as runs:
        runs.write(params["key"] + "\\n")
    return {{"noted": params["key"]}}


@node.action("block")
async def block(params: dict) -> str:
    time.sleep(params["seconds"])
    return "awake"
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chaos")
    mesh = LiveMesh(folder)
    for name in ("alpha", "beta"):
        lines = [
            {"id": f"{name}-{number}", "content": f"late invoice {number} of {name}"}
            for number in range(20)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "chaos_app.py").write_text(textwrap.dedent(APP.format(runs=str(folder / "runs"))))
    try:
        mesh.start()
        for name in ("alpha", "beta"):
            mesh.add(name, "--collection", f"{name}={folder / name}.jsonl")
        mesh.add("gamma", "--app", "chaos_app:node")
        asyncio.run(all_ready(mesh))
        yield mesh
    finally:
        mesh.stop()


async def all_ready(mesh):
    async with asyncio.timeout(START_S), mesh.connect() as client:
        while True:
            health = [await health_of(client, name) for name in mesh.nodes]
            rows = {
                info.name: info.rows
                for node in client.routes.nodes.values()
                for info in node.collections
            }
            if set(health) == {"healthy"} and rows == {"alpha": 20, "beta": 20}:
                return
            await asyncio.sleep(0.1)


@pytest_asyncio.fixture
async def client(live):
    async with live.connect() as opened:
        yield opened
