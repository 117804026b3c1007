"""What is loaded by whom: a driver that a process does not need costs it seconds and memory."""

from __future__ import annotations

import subprocess
import sys

SEARCH_STACK = {"lancedb", "pyarrow", "wordllama", "numpy"}


def loaded_by(code: str, *arguments: str) -> set[str]:
    """The modules a fresh interpreter has after `code`, which must say nothing unasked."""
    ending = "\nimport sys\nprint('\\nMODULES', *sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code + ending, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    said, _, modules = ran.stdout.rpartition("\nMODULES ")
    return {*modules.split(), *(f"said:{line}" for line in said.splitlines())}


def test_import_mesh_loads_no_driver_and_says_nothing():
    loaded = loaded_by("import mesh\nassert mesh.__version__")
    assert "mesh" in loaded
    assert not loaded & (SEARCH_STACK | {"nats", "sqlalchemy", "structlog", "asyncio"})
    assert not [line for line in loaded if line.startswith("said:")]


def test_help_loads_no_driver():
    loaded = loaded_by("from cli.meshctl.app import run\nassert run(['--help']) == 0")
    assert any("said:" in line and "Usage" in line for line in loaded)
    assert not loaded & (SEARCH_STACK | {"nats", "sqlalchemy", "structlog", "mesh.bootstrap"})


def test_the_master_loads_nothing_of_search():
    loaded = loaded_by(
        "import mesh.bootstrap, mesh.adapters.sql.registry, mesh.runtime.master\n"
        "import mesh.adapters.nats.history, agents.master"
    )
    assert {"sqlalchemy", "nats", "mesh.runtime.master"} <= loaded
    assert not loaded & SEARCH_STACK


def test_a_client_loads_neither_lance_nor_sql():
    loaded = loaded_by("import mesh.runtime.client, mesh.adapters.nats.bus")
    assert "nats" in loaded
    assert not loaded & {"lancedb", "pyarrow", "wordllama", "sqlalchemy", "aiosqlite", "alembic"}


def test_a_client_that_searched_has_loaded_neither_lance_nor_sql(shared_broker):
    """What is imported late counts as well."""
    code = (
        "import asyncio, sys, mesh\n"
        "async def main(url, credentials):\n"
        "    async with mesh.connect(url, credentials=credentials) as client:\n"
        "        return await client.search('late invoice')\n"
        "result = asyncio.run(main(*sys.argv[1:]))\n"
        "assert (result.count, result.nodes_searched) == (0, 0), result"
    )
    loaded = loaded_by(code, shared_broker.url, str(shared_broker.credentials("master")))
    assert {"nats", "mesh.runtime.federation"} <= loaded
    assert not loaded & {"lancedb", "pyarrow", "wordllama", "sqlalchemy", "aiosqlite", "alembic"}
