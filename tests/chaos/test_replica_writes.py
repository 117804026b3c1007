"""Writes to a shard that several nodes hold, while these are killed: all copies end up equal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

import pytest
from live_mesh import START_S, LiveMesh, health_of

from mesh.errors import MeshError
from mesh.wire.messages import CopyState, ReplicaList, ReplicasQuery

pytestmark = [pytest.mark.chaos, pytest.mark.alone, pytest.mark.timeout(600)]

SHARD = "notes"
WITHIN_S = 10.0


def tell(line):
    sys.stdout.write(f"\n{line}\n")


@pytest.fixture
def live(tmp_path):
    world = LiveMesh(tmp_path)
    try:
        world.start()
        yield world
    finally:
        for node in world.nodes.values():
            if node.is_alive():
                os.kill(node.pid, signal.SIGCONT)
        world.stop()
        for node in world.nodes.values():  # shown where the test fails
            sys.stdout.write(f"\n-- {node.name}\n{node.log.read_text()[-3000:]}")


async def until_healthy(client, names):
    async with asyncio.timeout(START_S):
        while [await health_of(client, name) for name in names] != ["healthy"] * len(names):
            await asyncio.sleep(0.1)


async def copies(client) -> list[CopyState]:
    """As the masters hear it from the nodes; empty while they do not answer."""
    query = ReplicasQuery(shard=SHARD)
    try:
        return (await client._caller.master("replicas", query, ReplicaList, 15)).copies
    except MeshError:
        return []


async def until_equal(client, count, *, rows, within_s=WITHIN_S) -> float:
    """Seconds until that many copies have every row and one content hash."""
    began = time.monotonic()
    found = []
    while True:
        found = await copies(client)
        states = {
            (one.sequence, tuple((each.name, each.rows, each.hash) for each in one.collections))
            for one in found
        }
        sizes = [each.rows for one in found for each in one.collections]
        if len(found) == count and len(states) == 1 and sizes == [rows] * count:
            return time.monotonic() - began
        assert time.monotonic() - began < within_s, found
        await asyncio.sleep(0.1)


async def write(client, node, number, *, writer=0):
    """Until it is acknowledged, under one id, as anybody should."""
    name = f"{writer}-{number}"
    params = {
        "collection": "notes",
        "documents": [{"id": name, "content": f"note {number} of writer {writer}"}],
    }
    async with asyncio.timeout(60):
        for attempt in range(1000):
            try:
                target = node[attempt % len(node)]
                return await client.run_action("index", params, node=target, id=name)
            except MeshError as error:
                if not error.retryable:
                    raise
                await asyncio.sleep(0.2)
    raise AssertionError(name)


async def writing(client, count, writers, nodes):
    """`count` writes in all; writer 0 also removes and changes what it wrote."""

    async def one(writer):
        for number in range(count // writers):
            await write(client, nodes[writer % len(nodes) :] + nodes, number, writer=writer)

    await asyncio.gather(*(one(writer) for writer in range(writers)))


@pytest.mark.parametrize(
    "count", [150, pytest.param(1000, marks=pytest.mark.long)], ids=["short", "long"]
)
async def test_a_replica_killed_during_writes_is_equal_soon_after_its_return(live, count):
    for name in ("one", "two", "three"):
        live.add(name, MESH_NODE__SHARD=SHARD)
    async with live.connect() as client:
        await until_healthy(client, live.nodes)
        await write(client, ["one"], 0, writer=9)
        await until_equal(client, 3, rows=1, within_s=30)
        began = time.monotonic()
        load = asyncio.create_task(writing(client, count, 5, ["one", "two"]))
        await asyncio.sleep(0.5)
        live.nodes["three"].end(signal.SIGKILL)
        await load
        took = time.monotonic() - began
        [behind] = [
            info.rows for info in client.routes.nodes["three"].collections if info.name == "notes"
        ]
        live.nodes["three"].start()
        began = time.monotonic()
        while await health_of(client, "three") != "healthy":
            await asyncio.sleep(0.02)
            assert time.monotonic() - began < START_S
        back = time.monotonic() - began
        equal = await until_equal(client, 3, rows=count + 1)
        tell(
            f"{count} writes in {took:.1f} s by two replicas; the third had {behind} rows, was "
            f"back after {back:.1f} s and equal {equal:.1f} s later"
        )
        assert equal <= WITHIN_S


async def test_a_third_replica_joins_from_nothing_while_writes_go_on(live):
    for name in ("one", "two"):
        live.add(name, MESH_NODE__SHARD=SHARD)
    async with live.connect() as client:
        await until_healthy(client, live.nodes)
        await writing(client, 40, 4, ["one", "two"])
        load = asyncio.create_task(writing(client, 120, 4, ["two", "one"]))
        live.add("three", MESH_NODE__SHARD=SHARD)
        await load
        await until_healthy(client, live.nodes)
        equal = await until_equal(client, 3, rows=120, within_s=30)
        tell(f"joined while 120 writes went on; equal {equal:.1f} s after the last of them")
        # What it copied, it also knows to have been done.
        again = await write(client, ["three"], 3, writer=2)
        assert again.result["indexed"] == 1
        await until_equal(client, 3, rows=120)


async def test_a_copy_cut_off_by_kill_9_goes_on_where_it_was(live):
    source = live.folder / "many.jsonl"
    source.write_text(
        "\n".join(f'{{"id": "{number:06}", "content": "text {number}"}}' for number in range(6000))
    )
    live.add("one", "--collection", f"notes={source}")
    async with live.connect() as client:
        await until_healthy(client, live.nodes)
        async with asyncio.timeout(60):
            while [i.rows for i in client.routes.nodes["one"].collections] != [6000]:
                await asyncio.sleep(0.1)
        two = live.add("two", MESH_NODE__SHARD="one")  # a lone node gets its first replica
        async with asyncio.timeout(60):
            while not 0 < sum(_rows(client, "two")) < 6000:
                await asyncio.sleep(0.005)
        two.end(signal.SIGKILL)
        had = sum(_rows(client, "two"))
        two.start()
        await until_healthy(client, live.nodes)
        async with asyncio.timeout(60):
            while True:
                query = ReplicasQuery(shard="one")
                found = (await client._caller.master("replicas", query, ReplicaList, 15)).copies
                if len(found) == 2 and all(one.following for one in found):
                    break
                await asyncio.sleep(0.1)
        hashes = {each.hash for one in found for each in one.collections}
        assert len(hashes) == 1
        assert [each.rows for one in found for each in one.collections] == [6000, 6000]
        log = two.log.read_text()
        fetched = [line for line in log.splitlines() if "mesh.sync.begun" in line]
        tell(f"killed with {had} of 6000 rows; copies begun: {len(fetched)}")
        assert len(fetched) == 2
        assert "mesh.sync.resumed" in log


def _rows(client, slug):
    node = client.routes.nodes.get(slug)
    return [] if node is None else [info.rows for info in node.collections]
