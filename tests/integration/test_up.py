"""`mesh-agent up`, whole: real broker, master and nodes with real text."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import mesh

pytestmark = pytest.mark.timeout(300)

FIRST_START_S = 150
RESTART_S = 120
"""Of a test machine that does other things meanwhile; the figures to hold are in tests/bench."""

PROCESSES = {"broker", "master", "gateway", "node-stdlib", "node-packages", "node-handbook"}


def command(state: Path, *more: str) -> list[str]:
    up = [sys.executable, "-P", "-m", "cli.mesh_agent", "up", "--state-dir", str(state)]
    return [*up, "--nats-port", "0", "--http-port", "0", *more]


def environment() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if not name.startswith("MESH_")}


class Up:
    """A mesh in a process of its own."""

    def __init__(self, state: Path, *more: str) -> None:
        self.state = state
        with (
            (state.parent / "up.stdout").open("w") as out,
            (state.parent / "up.stderr").open("w") as errors,
        ):
            self.process = subprocess.Popen(
                command(state, *more),
                cwd=state.parent,
                env=environment(),
                stdout=out,
                stderr=errors,
            )

    @property
    def said(self) -> str:
        return (self.state.parent / "up.stdout").read_text()

    def wait_ready(self, within_s: float) -> None:
        until = time.monotonic() + within_s
        while "Ctrl-C ends it" not in self.said:
            assert self.process.poll() is None, self.told()
            assert time.monotonic() < until, self.told()
            time.sleep(0.05)

    def told(self) -> str:
        return (self.state.parent / "up.stderr").read_text()

    def file(self) -> dict:
        return json.loads((self.state / "mesh.json").read_bytes())

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


def run_up(state: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(state, *more),
        cwd=state.parent,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def gone(pids: list[int]) -> bool:
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return psutil.wait_procs(processes, timeout=10)[1] == []


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("up") / "state")
    try:
        up.wait_ready(FIRST_START_S)
        yield up
    finally:
        up.process.kill()
        up.process.wait()


def test_ready_says_where_and_how_to_go_on(running):
    told = running.file()
    assert f"mesh ready  {told['http_url']}/api/ai-engine" in running.said
    assert told["nats_url"] in running.said
    assert f"--state-dir {running.state} nodes stats" in running.said
    assert "search 'parse a date from a string'" in running.said
    assert running.told().count("no token") == 0


def curl_line(running) -> str:
    (line,) = [line for line in running.said.splitlines() if line.startswith("curl ")]
    return line


def test_the_curl_line_works_as_pasted(running):
    done = subprocess.run(curl_line(running), shell=True, capture_output=True, check=True)
    found = json.loads(done.stdout)
    assert [hit for hit in found["results"] if hit["id"].startswith(("datetime.", "time."))]
    assert {hit["collection"] for hit in found["results"]} == {"python"}


def test_the_token_is_on_the_terminal_alone(running):
    (token,) = re.findall(r"Bearer (\S+)'", curl_line(running))
    for path in running.state.rglob("*"):
        if path.is_file():
            assert token.encode() not in path.read_bytes(), path
    assert token not in running.told()
    assert stat.S_IMODE((running.state / "logs" / "up.log").stat().st_mode) == 0o600


def test_mesh_json_is_complete_and_private(running):
    told = running.file()
    assert told.keys() == {
        "http_url", "nats_url", "pids", "credentials", "started_at", "version",
        "tls_ca", "tls_cert", "tls_key",
    }  # fmt: skip
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", told["http_url"])
    assert told["version"] == mesh.__version__
    assert told["pids"].keys() == PROCESSES
    assert all(psutil.pid_exists(pid) for pid in told["pids"].values())
    assert told["credentials"].keys() == {"operator", "master", "gateway"}
    for path in told["credentials"].values():
        assert Path(path).is_absolute()
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert stat.S_IMODE((running.state / "mesh.json").stat().st_mode) == 0o600


def test_every_process_has_its_log(running):
    logs = {path.stem for path in (running.state / "logs").glob("*.log")}
    assert logs >= PROCESSES | {"up"}


async def test_all_nodes_are_healthy_and_hold_their_text(running):
    async with mesh.connect(state_dir=running.state) as client:
        records = {record.slug: record for record in (await client.nodes()).nodes}
    assert records.keys() == {"stdlib", "packages", "handbook"}
    assert {record.health for record in records.values()} == {"healthy"}
    rows = {held.name: held.rows for r in records.values() for held in r.collections}
    assert rows["python"] > 3000
    assert rows["packages"] > 100


async def test_the_first_results_for_a_date_are_about_dates(running):
    async with mesh.connect(state_dir=running.state) as client:
        found = await client.search("parse a date from a string", limit=5)
    assert [hit.id for hit in found.results if hit.id.startswith(("datetime.", "time."))]


def test_no_secret_on_a_command_line_in_an_environment_or_a_log(running):
    files = [
        *(running.state / "credentials").glob("*.json"),
        *(running.state / "nodes").glob("*/key.json"),
    ]
    held = "".join(path.read_text() for path in files)
    secrets = set(re.findall(r'"(S[UAX][A-Z0-9]{56}|nmk_[^"]{43})"', held))
    assert len(secrets) == 7 + 3, "master 5, gateway, operator, and each node its own"
    seen = [path.read_bytes() for path in (running.state / "logs").glob("*.log")]
    for pid in [running.process.pid, *running.file()["pids"].values()]:
        seen += [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    seen += [(running.state / "mesh.json").read_bytes(), (running.told() + running.said).encode()]
    assert not [secret for secret in secrets for text in seen if secret.encode() in text]


def test_a_second_start_on_the_folder_is_refused(running):
    done = run_up(running.state)
    assert done.returncode == 1
    assert f"in use by pid {running.process.pid}" in done.stderr


@pytest.mark.parametrize("option", ["--nats-port", "--http-port"])
def test_a_taken_port_is_refused_by_its_number(tmp_path, option):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_up(tmp_path / "state", option, str(port))
    assert done.returncode == 1
    assert f"port {port} is taken" in done.stderr
    assert option in done.stderr
    assert not (tmp_path / "state" / "logs" / "master.log").exists()
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "state" / "mesh.json").exists()


def new_pid(up: Up, name: str, old: int, within_s: float = 30) -> int:
    until = time.monotonic() + within_s
    while (pid := up.file()["pids"][name]) == old:
        assert time.monotonic() < until, up.told()
        time.sleep(0.05)
    return pid


async def healthy(up: Up, slug: str, incarnation: int, within_s: float = 60) -> None:
    """Return when `slug` is healthy in a later life than `incarnation`."""
    until = time.monotonic() + within_s
    async with mesh.connect(state_dir=up.state) as client:
        while True:
            (record,) = (await client.nodes(node=slug)).nodes
            if record.health == "healthy" and record.incarnation > incarnation:
                return
            assert time.monotonic() < until, up.told()


async def test_a_killed_node_is_started_again(running):
    async with mesh.connect(state_dir=running.state) as client:
        (before,) = (await client.nodes(node="packages")).nodes
    old = running.file()["pids"]["node-packages"]
    os.kill(old, signal.SIGKILL)
    pid = new_pid(running, "node-packages", old)
    assert psutil.pid_exists(pid)
    assert "node-packages died (signal 9; starts again in 1 s)" in running.told()
    await healthy(running, "packages", before.incarnation)


def test_a_killed_gateway_comes_back_on_its_port(running):
    before = running.file()
    os.kill(before["pids"]["gateway"], signal.SIGKILL)
    new_pid(running, "gateway", before["pids"]["gateway"])
    assert running.file()["http_url"] == before["http_url"]
    until = time.monotonic() + 60
    curl = ["sh", "-c", curl_line(running)]
    while (done := subprocess.run(curl, capture_output=True, check=False)).returncode:
        assert time.monotonic() < until, done
        time.sleep(0.2)
    assert "results" in json.loads(done.stdout)


async def test_a_killed_broker_comes_back_on_its_port(running):
    before = running.file()
    os.kill(before["pids"]["broker"], signal.SIGKILL)
    new_pid(running, "broker", before["pids"]["broker"])
    assert running.file()["nats_url"] == before["nats_url"]
    until = time.monotonic() + 60
    while True:
        try:
            async with mesh.connect(state_dir=running.state) as client:
                nodes = (await client.nodes()).nodes
        except mesh.MeshError:
            nodes = []
        if [node.health for node in nodes] == ["healthy"] * 3:
            break
        assert time.monotonic() < until, nodes
    others = set(PROCESSES) - {"broker"}
    after = running.file()["pids"]
    assert {name: after[name] for name in others} == {name: before["pids"][name] for name in others}


def test_stop_ends_every_process(running):
    """From here on the mesh of all the others is gone; the tests below start it again."""
    before = running.file()
    running.process.send_signal(signal.SIGTERM)  # `make` and `timeout` pass it on twice
    assert running.stop() == 0
    assert "died" not in running.told().partition("stopping")[2]
    assert gone(list(before["pids"].values()))
    assert not (running.state / "mesh.json").exists()


def test_a_second_start_finds_the_data_and_killed_with_9_leaves_nothing_behind(running):
    samples = {
        path: path.stat().st_mtime_ns for path in (running.state / "samples").glob("*.jsonl")
    }
    assert samples
    with started(running.state) as again:
        assert again.file()["pids"].keys() == PROCESSES
        assert {path: path.stat().st_mtime_ns for path in samples} == samples
        pids = list(again.file()["pids"].values())
        again.stop(signal.SIGKILL)
        assert gone(pids)


def test_after_kill_9_it_starts_again_and_ctrl_c_ends_every_process(running):
    with started(running.state) as third:
        pids = list(third.file()["pids"].values())
        assert third.stop(signal.SIGINT) == 0
        assert gone(pids)


@contextmanager
def started(state: Path) -> Iterator[Up]:
    up = Up(state)
    try:
        up.wait_ready(RESTART_S)
        yield up
    finally:
        up.process.kill()
        up.process.wait()
