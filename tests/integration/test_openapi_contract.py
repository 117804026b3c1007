"""A run of schemathesis over the description that a running gateway gives of itself."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from live_mesh import LiveMesh, clean_environment, health_of

SETTINGS = """
[checks.not_a_server_error]
# What the contract answers a deadline of a millisecond with; 500 and 502 are never right.
expected-statuses = ["2xx", "4xx", "503", "504"]

[checks.positive_data_acceptance]
# Which collections, columns, actions and parameters there are is known to the mesh alone, not to
# the description: what fits it may be refused.
expected-statuses = ["2xx", "400", "401", "403", "404", "409", "422", "503", "504"]
"""
FEW, MANY = 15, 100
"""Examples of each operation. A limit of time would end some halfway, which is seen as a fault."""


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    running = LiveMesh(tmp_path_factory.mktemp("contract"), MESH_RATE_LIMIT__ENABLED="false")
    try:
        running.start()
        documents = running.folder / "notes.jsonl"
        lines = [{"id": str(n), "content": f"late invoice {n}", "year": 2000 + n} for n in range(9)]
        documents.write_text("\n".join(map(json.dumps, lines)))
        running.add("notes", "--collection", f"notes={documents}")
        asyncio.run(until_healthy(running, "notes"))
        yield running
    finally:
        running.stop()


async def until_healthy(live: LiveMesh, slug: str) -> None:
    async with live.connect() as client, asyncio.timeout(60):
        while await health_of(client, slug) != "healthy":
            await asyncio.sleep(0.1)


def token(live: LiveMesh) -> str:
    argv = [str(Path(sys.executable).with_name("meshctl")), "--state-dir", str(live.state)]
    argv += ["tokens", "issue", "--scope", "search,actions,admin", "--json"]
    made = subprocess.run(argv, env=clean_environment(), check=True, capture_output=True)
    return json.loads(made.stdout)["access_token"]


def fuzz(live: LiveMesh, examples: int) -> None:
    (live.folder / "schemathesis.toml").write_text(SETTINGS)
    url = f"{live.file()['http_url']}/api/ai-engine"
    argv = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{url}/openapi.json",
        f"--header=Authorization: Bearer {token(live)}",
        f"--max-examples={examples}",
        "--generation-deterministic",
        "--no-color",
        "--continue-on-failure",
        "--workers=2",
        "--request-timeout=40",
    ]
    ran = subprocess.run(
        argv,
        cwd=live.folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, findings(ran.stdout) + ran.stderr[-2000:]
    with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
        assert json.load(answer)["status"] == "healthy"


def findings(printed: str) -> str:
    """Errors and failures; warnings, which may be long, follow them."""
    for heading in (" ERRORS ", " FAILURES "):
        if heading in printed:
            return printed[printed.index(heading) :].partition(" WARNINGS ")[0][:8000]
    return printed[-8000:]


@pytest.mark.timeout(300)
def test_answers_are_as_described(live):
    fuzz(live, FEW)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_answers_are_as_described_for_long(live):
    fuzz(live, MANY)
