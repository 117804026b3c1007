"""`mesh-agent` as a user meets it: help, versions, and what bad input gets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mesh


def agent(*arguments, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("MESH_")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "cli.mesh_agent", *map(str, arguments)],
        cwd=cwd,
        env=clean | environ | {"COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert [word for word in words if word not in done.stderr] == []


def test_version_and_help(tmp_path):
    assert agent("--version", cwd=tmp_path).stdout == f"mesh-agent {mesh.__version__}\n"
    told = agent("up", "--help", cwd=tmp_path)
    assert told.returncode == 0
    assert "later release" in told.stdout


def test_the_installed_command_is_there():
    command = Path(sys.executable).with_name("mesh-agent")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert mesh.__version__ in done.stdout


def test_help_loads_no_driver(tmp_path):
    code = (
        "import sys; from cli.mesh_agent import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "drivers = 'nats lancedb sqlalchemy pyarrow numpy structlog asyncio'.split()\n"
        "print([name for name in drivers if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("command", ["master", "run"])
def test_no_mesh_is_exit_3_and_what_to_do(tmp_path, command):
    done = agent(command, cwd=tmp_path)
    refused(done, 3, "no mesh.json in .mesh", "`mesh-agent up`", "MESH_URL")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--weight", "0"], "flag node.weight: expected float > 0.0"),
        (["run", "--type", "Not A Word"], "flag node.type"),
        (["run", "--config", "none.toml"], "none.toml: cannot be read"),
        (["run", "--collection", "=x.jsonl"], "--collection"),
        (["run", "--collection", "notes=none.jsonl"], "there is no none.jsonl"),
        (["up", "--nodes", "-1"], "--nodes"),
        (["up", "--nats-port", "65536"], "--nats-port"),
        (["fly"], "No such command"),
    ],
)
def test_usage_and_settings_are_exit_2(tmp_path, arguments, words):
    refused(agent(*arguments, cwd=tmp_path), 2, words)
    assert list(tmp_path.iterdir()) == []


def test_settings_come_from_mesh_toml_here_and_the_environment(tmp_path):
    (tmp_path / "mesh.toml").write_text("[node]\nmax_paralel = 1\n")
    refused(agent("master", cwd=tmp_path), 2, "mesh.toml: node.max_paralel: unknown key")
    (tmp_path / "mesh.toml").unlink()
    done = agent("master", cwd=tmp_path, MESH_NODE__WEIGHT="much")
    refused(done, 2, "MESH_NODE__WEIGHT: expected float")


def test_debug_shows_where_an_expected_error_came_from(tmp_path):
    done = agent("master", cwd=tmp_path, MESH_DEBUG="true")
    assert done.returncode == 3
    assert "Traceback" in done.stderr


def test_a_state_folder_that_cannot_be_is_exit_1(tmp_path):
    (tmp_path / "file").write_text("")
    done = agent("up", "--state-dir", tmp_path / "file", "--nats-port", "0", cwd=tmp_path)
    refused(done, 1, "cannot be used", "--state-dir")


def test_without_a_broker_binary_it_says_how_to_get_one(tmp_path):
    """The interpreter is linked into a folder where no nats-server lies beside it."""
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "nats-server").write_text("#!/bin/sh\necho 'nats-server: v2.9.0'\n")
    (bare / "nats-server").chmod(0o755)
    code = (
        "import sys; sys.executable = sys.argv[1]; import mesh.adapters.nats.broker as b\n"
        "b._packaged = list\nfrom cli.mesh_agent import main\n"
        "main(['up', '--state-dir', sys.argv[2], '--nats-port', '0'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, bare / "python", tmp_path / "state"],
        env=os.environ | {"PATH": f"{bare}:{Path(shutil.which('sh')).parent}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    refused(done, 1, "no nats-server of version 2.12", "2.9.0", "pip install")
