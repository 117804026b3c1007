"""`mesh-agent` as a user meets it: help, versions, and what bad input gets."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
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
    assert "HTTP gateway" in told.stdout


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "node 'crm' has no key yet"),
        (["run", "--creds", "other.json"], "the login of 'ops', and this node is 'crm'"),
        (["run", "--creds", "none.json"], "none.json cannot be read"),
        (["run", "--operator", "none.json"], "none.json cannot be read"),
        (["run", "--creds", "damaged.json"], "damaged.json holds no credentials"),
        (["gateway"], "no credentials for nats://127.0.0.1:1"),
        (["master"], "no credentials for nats://127.0.0.1:1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "words",
)
def test_what_to_log_in_with_is_looked_for_before_the_broker(tmp_path, arguments, words):
    (tmp_path / "other.json").write_text('{"user": "ops", "password": "secret"}')
    (tmp_path / "damaged.json").write_text("nmk_ half of it")
    named = ["--name", "crm"] if arguments[0] == "run" else []
    done = agent(*arguments, "--nats" if named else "--url", "nats://127.0.0.1:1", *named,
                 cwd=tmp_path, MESH_SEARCH__EMBEDDER="hash")  # fmt: skip
    refused(done, 1, words)
    assert "secret" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "given", "words"),
    [
        ("gateway", "operator", "login of 'operator': gateways run with the mesh's gateway.json"),
        ("gateway", "master", "login of 'master'"),
        ("master", "operator", "is another file: masters run with the mesh's master.json"),
        ("master", "gateway", "is another file"),
    ],
    ids=lambda value: value.split(" ")[0],
)
def test_nobody_serves_under_another_s_name(tmp_path, command, given, words):
    agent("credentials", "--out", "made", cwd=tmp_path)
    file = f"made/{given}.json"
    done = agent(command, "--url", "nats://127.0.0.1:1", "--creds", file, cwd=tmp_path)
    refused(done, 2, f"{file} is ", words)


@pytest.mark.parametrize("command", ["master", "run", "gateway"])
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
        (["up", "--http-port", "-1"], "--http-port"),
        (["gateway", "--port", "65536"], "--port"),
        (["gateway", "--prefix", "no-slash"], "flag gateway.prefix"),
        (["gateway", "--url", "127.0.0.1:4222"], "--url/MESH_URL: a broker's address is nats://"),
        (
            ["run", "--url", "nats://ann:geheim@a:4222"],
            "--url/MESH_URL: a broker's address is nats://",
        ),
        (["broker", "--listen", "4222"], "--listen"),
        (["broker", "--listen", "127.0.0.1:65536"], "--listen"),
        (["credentials"], "--out"),
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
    done = agent(
        "up", "--state-dir", tmp_path / "file", "--nats-port", "0", "--http-port", "0", cwd=tmp_path
    )
    refused(done, 1, "cannot be used", "--state-dir")


def modes(folder: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


def test_credentials_are_made_once_and_private(tmp_path):
    done = agent("credentials", "--out", "secrets", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "secrets"
    files = {"master.json", "gateway.json", "operator.json", "broker.json"}
    assert modes(folder) == dict.fromkeys(files, 0o600)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {Path(line).name for line in done.stdout.splitlines()} == files
    before = {file: file.read_bytes() for file in folder.iterdir()}
    secrets = set(re.findall(rb'"(S[UAX][A-Z0-9]{56}|nmk_[^"]{43})"', b"".join(before.values())))
    assert len(secrets) == 7
    assert not [secret for secret in secrets if secret in (folder / "broker.json").read_bytes()]

    assert agent("credentials", "--out", "secrets", "--containers", cwd=tmp_path).returncode == 0
    assert {file: file.read_bytes() for file in folder.iterdir()} == before
    assert modes(folder) == dict.fromkeys(files, 0o444)


def test_files_for_containers_are_never_in_a_folder_that_others_may_enter(tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    done = agent("credentials", "--out", "open", "--containers", cwd=tmp_path)
    refused(done, 1, "others may enter open", "chmod 700 open")
    assert modes(tmp_path / "open") == {}


def test_the_broker_becomes_nats_server_and_holds_its_folder(tmp_path):
    command = [sys.executable, "-P", "-m", "cli.mesh_agent", "broker", "--listen", "127.0.0.1:0"]
    clean = {name: text for name, text in os.environ.items() if not name.startswith("MESH_")}
    running = subprocess.Popen(command, cwd=tmp_path, env=clean, stderr=subprocess.PIPE, text=True)
    try:
        for line in running.stderr:
            if "Server is ready" in line:
                break
        assert "nats-server" in Path(f"/proc/{running.pid}/cmdline").read_text()
        assert modes(tmp_path / ".mesh" / "credentials")["gateway.json"] == 0o600
        refused(agent("broker", cwd=tmp_path), 1, f"in use by pid {running.pid}")
    finally:
        running.terminate()
        running.stderr.read()
        running.stderr.close()
        assert running.wait(timeout=20) == 0
    (tmp_path / "none").mkdir()
    again = agent("broker", "--secrets", "none", cwd=tmp_path)
    refused(again, 1, "none/broker.json cannot be read")


def test_a_broker_port_that_is_taken_names_the_option(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        refused(agent("broker", "--listen", listen, cwd=tmp_path), 1, "is taken", "--listen")
    refused(
        agent("broker", "--listen", "192.0.2.1:4222", cwd=tmp_path),
        1,
        "'192.0.2.1' is no address of this machine",
    )


def test_without_a_broker_binary_it_says_how_to_get_one(tmp_path):
    """The interpreter is linked into a folder where no nats-server lies beside it."""
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "nats-server").write_text("#!/bin/sh\necho 'nats-server: v2.9.0'\n")
    (bare / "nats-server").chmod(0o755)
    code = (
        "import sys; sys.executable = sys.argv[1]; import mesh.adapters.nats.broker as b\n"
        "b._packaged = list\nfrom cli.mesh_agent import main\n"
        "main(['up', '--state-dir', sys.argv[2], '--nats-port', '0', '--http-port', '0'])"
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
