"""A hybrid search over eight node processes beside one LanceDB hybrid query over the same documents
in one process: latency, throughput, and where the CPU time goes.

The documents are those of `EVALUATION_DATA` (see `evaluation_rules`), else packages of Debian.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import uvloop
from debian_packages import write_packages
from evaluation_rules import read_collection, split_by_field, split_randomly
from live_mesh import LiveMesh, clean_environment
from search_mesh import add_holder, until_indexed

from mesh import messages

pytestmark = [pytest.mark.bench, pytest.mark.alone, pytest.mark.timeout(1500)]

NODES = 8
DOCUMENTS = 8840
QUERIES = 260
ROUNDS = 5
ONE_BY_ONE = 100
AT_ONCE, IN_FLIGHT = 320, 16
COLLECTION = "packages"
LATENCY_AT_MOST = 1.0
RATE_AT_LEAST = 1.5


def debian(folder: Path) -> tuple[dict[str, dict], list[str]]:
    """As many packages as there are in the judged collection, and words of theirs to ask for."""
    file = folder / "packages.jsonl"
    write_packages(file, folder)
    with file.open() as lines:
        every = [json.loads(line) for line in lines]
    chosen = every[:: max(1, len(every) // DOCUMENTS)][:DOCUMENTS]
    documents = {
        raw["id"]: {"id": raw["id"], "text": raw["content"], "section": raw["section"]}
        for raw in chosen
    }
    queries = [
        " ".join(raw["content"].partition(": ")[2].split()[:3])
        for raw in chosen[:: len(chosen) // QUERIES]
    ]
    return documents, queries


@pytest.fixture(scope="module")
def documents_and_queries(tmp_path_factory):
    if given := os.environ.get("EVALUATION_DATA"):
        collection = read_collection(Path(given))
        return collection.documents, list(collection.queries.values())
    return debian(tmp_path_factory.mktemp("debian"))


class Lance:
    """The baseline's process."""

    def __init__(self, folder: Path, documents: dict[str, dict], queries: list[str]) -> None:
        rows = [
            {"id": name, "content": "\n".join(filter(None, (raw.get("title"), raw["text"])))}
            for name, raw in documents.items()
        ]
        files = []
        for name, content in (("documents", rows), ("queries", queries)):
            files.append(folder / f"lance-{name}.json")
            files[-1].write_text(json.dumps(content))
        self._process = subprocess.Popen(
            [
                *(sys.executable, str(Path(__file__).with_name("lance_baseline.py"))),
                *map(str, (folder / "lance", *files)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=clean_environment(),
            text=True,
        )
        self._answer()

    def ask(self, command: str):
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        assert line, "the baseline ended"
        return json.loads(line)

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


class Cpu:
    """CPU time by process since it was made, in milliseconds."""

    def __init__(self, live: LiveMesh) -> None:
        pids = {name: pid for name, pid in live.file()["pids"].items() if name != "up"}
        pids |= {name: node.pid for name, node in live.nodes.items()} | {"client": os.getpid()}
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._before = self._now()

    def _now(self) -> dict[str, float]:
        times = {name: process.cpu_times() for name, process in self._processes.items()}
        return {name: (of.user + of.system) * 1000 for name, of in times.items()}

    def since(self, searches: int) -> dict[str, float]:
        """A search's share; all nodes together."""
        found: dict[str, float] = {}
        for name, now in self._now().items():
            group = "nodes" if name.startswith("part-") else name
            found[group] = found.get(group, 0.0) + (now - self._before[name]) / searches
        return found


@pytest.fixture(scope="module")
def live(documents_and_queries, tmp_path_factory):
    documents, _ = documents_and_queries
    mesh = LiveMesh(tmp_path_factory.mktemp("mesh"))
    mesh.wanted = {}
    ids = list(documents)
    named = any("section" in raw for raw in documents.values())
    parts = split_by_field(documents, "section", NODES) if named else split_randomly(ids, NODES)
    try:
        mesh.start()
        for place, part in enumerate(parts):
            name = f"part-{place}"
            held = [documents[doc] for doc in part]
            mesh.wanted[name] = add_holder(
                mesh, name, COLLECTION, held, MESH_SEARCH__EMBEDDER="wordllama"
            )
        yield mesh
    finally:
        mesh.stop()


@pytest.fixture(scope="module")
def lance(documents_and_queries, tmp_path_factory):
    baseline = Lance(tmp_path_factory.mktemp("lance"), *documents_and_queries)
    yield baseline
    baseline.stop()


async def search(client, query: str) -> None:
    uncached = {"cache": False} if "cache" in messages.SearchOptions.__struct_fields__ else {}
    answer = await client.search(query, timeout_ms=10_000, require="all", **uncached)
    assert answer.results
    assert answer.nodes_searched == NODES


async def one_by_one(client, queries) -> list[float]:
    took = []
    for number in range(ONE_BY_ONE):
        began = time.perf_counter()
        await search(client, queries[number % len(queries)])
        took.append((time.perf_counter() - began) * 1000)
    return took


async def at_once(client, queries) -> float:
    turns = iter(range(AT_ONCE))

    async def work() -> None:
        for number in turns:
            await search(client, queries[number % len(queries)])

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    return AT_ONCE / (time.perf_counter() - began)


def shares(cpu: dict[str, float]) -> str:
    return ", ".join(f"{name} {ms:.2f}" for name, ms in sorted(cpu.items(), key=lambda at: -at[1]))


async def measured(live, lance, queries, ours, *, count: int, command: str):
    """Rounds of ours and of LanceDB in turns, and the CPU time of a search of ours."""
    found, cpu = [], {}
    async with live.connect() as client:
        await until_indexed(client, live.wanted)
        for number in range(ROUNDS + 1):
            before = Cpu(live)
            mine = await ours(client, queries)
            spent = before.since(count)
            theirs = await asyncio.to_thread(lance.ask, command)
            if number:  # the first one warms both up
                found.append((mine, theirs))
                cpu = {name: cpu.get(name, 0.0) + ms / ROUNDS for name, ms in spent.items()}
    return found, cpu


def test_a_federated_search_is_as_quick_as_one_query_of_lancedb(documents_and_queries, live, lance):
    documents, queries = documents_and_queries
    found, cpu = uvloop.run(
        measured(live, lance, queries, one_by_one, count=ONE_BY_ONE, command=f"one {ONE_BY_ONE}")
    )
    medians = [(statistics.median(mine), statistics.median(theirs)) for mine, theirs in found]
    ratio = statistics.median(mine / theirs for mine, theirs in medians)
    mine, theirs = (statistics.median(column) for column in zip(*medians, strict=True))
    sys.stdout.write(
        f"\nhybrid search over {NODES} nodes with {len(documents)} documents: p50 {mine:.1f} ms; "
        f"one LanceDB hybrid query {theirs:.1f} ms: {ratio:.2f} x "
        f"({min(a / b for a, b in medians):.2f} to {max(a / b for a, b in medians):.2f}); "
        f"CPU ms a search: {shares(cpu)}\n"
    )
    assert ratio <= LATENCY_AT_MOST


def test_many_federated_searches_beside_many_queries_of_lancedb(documents_and_queries, live, lance):
    _, queries = documents_and_queries
    found, cpu = uvloop.run(
        measured(
            live, lance, queries, at_once, count=AT_ONCE, command=f"many {AT_ONCE} {IN_FLIGHT}"
        )
    )
    ratio = statistics.median(mine / theirs for mine, theirs in found)
    mine, theirs = (statistics.median(column) for column in zip(*found, strict=True))
    sys.stdout.write(
        f"\n{IN_FLIGHT} hybrid searches in flight: {mine:.0f}/s; LanceDB {theirs:.0f}/s: "
        f"{ratio:.2f} x ({min(a / b for a, b in found):.2f} to {max(a / b for a, b in found):.2f});"
        f" CPU ms a search: {shares(cpu)}\n"
    )
    assert ratio >= RATE_AT_LEAST
