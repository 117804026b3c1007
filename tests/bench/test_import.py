"""Every package of Debian, long descriptions and all, into one node: how fast, in how much memory,
and whole although importer and node are killed half-way.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from pathlib import Path

import pytest
import pytest_asyncio
from debian_packages import write_packages
from importer import Importer, stored
from live_mesh import START_S, LiveMesh, health_of, until_reborn

pytestmark = [pytest.mark.bench, pytest.mark.alone, pytest.mark.timeout(900)]

PACKAGES_AT_LEAST = 60_000
RSS_AT_MOST_MB = 600
WITHIN_S = 600


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("debian")
    file = folder / "packages.jsonl"
    count = write_packages(file, folder)
    assert count >= PACKAGES_AT_LEAST, "apt knows fewer packages: run `apt-get update`"
    return file


@pytest_asyncio.fixture
async def live(tmp_path):
    """With the embedder that meshes have unless told otherwise: the bigger one."""
    mesh = LiveMesh(tmp_path)
    try:
        mesh.start()
        mesh.add("debian", MESH_SEARCH__EMBEDDER="wordllama")
        async with mesh.connect() as client, asyncio.timeout(START_S):
            while await health_of(client, "debian") != "healthy":
                await asyncio.sleep(0.05)
        yield mesh
    finally:
        mesh.stop()


def rss_mb(pid: int) -> float:
    """0 for a process that has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    kb = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    return int(kb[0]) / 1024 if kb else 0


def wanted(packages):
    found = {}
    with packages.open() as lines:
        for line in lines:
            read = json.loads(line)
            content, name = read.pop("content"), read.pop("id")
            found[name] = (content, read)
    return found


class Peaks:
    """The most memory that node and importer had at any time."""

    def __init__(self, live, importer) -> None:
        self._processes = {"node": live.nodes["debian"], "importer": importer}
        self.mb = dict.fromkeys(self._processes, 0.0)

    async def watch(self) -> None:
        while True:
            for name, process in self._processes.items():
                self.mb[name] = max(self.mb[name], rss_mb(process.pid))
            await asyncio.sleep(0.1)


async def test_every_package_of_debian_in_bounded_memory(live, packages):
    importer = Importer(live, packages, "packages", "debian")
    importer.start()
    peaks = Peaks(live, importer)
    watching = asyncio.create_task(peaks.watch())
    code, answer = await importer.outcome(within_s=WITHIN_S)
    watching.cancel()

    sys.stdout.write(
        f"\n{answer['documents']} packages in {answer['seconds']} s:"
        f" {answer['documents_per_s']} documents a second,"
        f" RSS at most {peaks.mb['node']:.0f} MB (node), {peaks.mb['importer']:.0f} MB (importer)\n"
    )
    assert (code, answer["bad"]) == (0, 0)
    assert answer["documents"] >= PACKAGES_AT_LEAST
    live.nodes["debian"].end()
    assert await stored(live, "debian", "packages") == wanted(packages)
    assert max(peaks.mb.values()) < RSS_AT_MOST_MB


async def test_every_package_of_debian_although_killed_half_way(live, packages):
    node = live.nodes["debian"]
    first = Importer(live, packages, "packages", "debian")
    first.start()
    await first.until(PACKAGES_AT_LEAST // 3, within_s=WITHIN_S)
    first.end(signal.SIGKILL)
    known = first.done()

    second = Importer(live, packages, "packages", "debian")
    began = time.monotonic()
    second.start()
    await second.until(2 * PACKAGES_AT_LEAST // 3, within_s=WITHIN_S)
    async with live.connect() as client:
        (record,) = (await client.nodes(node="debian")).nodes
        node.end(signal.SIGKILL)
        node.start()
        await until_reborn(client, "debian", after=record.incarnation)
    code, answer = await second.outcome(within_s=WITHIN_S)

    took_s = time.monotonic() - began
    sys.stdout.write(f"\nresumed at {known} documents, whole {took_s:.0f} s later\n")
    assert (code, answer["bad"], answer["resumed"]) == (0, 0, True)
    node.end()
    found = await stored(live, "debian", "packages")
    assert len(found) == answer["documents"]
    assert found == wanted(packages)
