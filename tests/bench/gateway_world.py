"""What the gateway's benchmarks share: a mesh with one instant node, wrk, Moleculer's gateway."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from live_mesh import LiveMesh, agent, clean_environment

from mesh.adapters.nats.broker import find_nats_server

PEERS = Path(__file__).with_name("peers")
SETTINGS = {
    "MESH_RATE_LIMIT__ENABLED": "false",
    "MESH_GATEWAY__REUSE_PORT": "true",
    "MESH_GATEWAY__ACCESS_LOG": "false",  # Moleculer's gateway does not log either
}
BODY = b'{"query":"hello world this is a query","limit":10,"options":{"cache":false}}'


class Load(NamedTuple):
    """What wrk measured."""

    per_second: float
    requests: int
    failed: int


class GatewayWorld:
    """A live mesh, its gateway without a rate limit, and a token."""

    def __init__(self, live: LiveMesh, node: subprocess.Popen[bytes], token: str) -> None:
        self.live = live
        self.node = node
        self.token = token
        self.url = live.file()["http_url"]
        self.search = f"{self.url}/api/ai-engine/search"

    def request(self) -> urllib.request.Request:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        return urllib.request.Request(self.search, data=BODY, headers=headers)


@contextlib.contextmanager
def gateway_world(folder: Path) -> Iterator[GatewayWorld]:
    live = LiveMesh(folder, **SETTINGS)
    node = None
    try:
        live.start()
        script = Path(__file__).with_name("instant_node.py")
        argv = [sys.executable, str(script), live.file()["nats_url"], str(live.state)]
        node = subprocess.Popen(argv, cwd=folder, env=clean_environment())
        world = GatewayWorld(live, node, issue_token(live))
        _until_found(world)
        yield world
    finally:
        if node is not None:
            node.terminate()
            node.wait(timeout=10)
        live.stop()


def issue_token(live: LiveMesh) -> str:
    argv = [str(Path(sys.executable).with_name("meshctl")), "--state-dir", str(live.state)]
    argv += ["tokens", "issue", "--scope", "search", "--subject", "bench", "--json"]
    made = subprocess.run(argv, env=clean_environment(), check=True, capture_output=True)
    return json.loads(made.stdout)["access_token"]


def _until_found(world: GatewayWorld) -> None:
    until = time.monotonic() + 60
    while True:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(world.request(), timeout=5) as answer,
        ):
            if json.load(answer)["count"] == 1:
                return
        assert time.monotonic() < until, "the instant node was not found"
        time.sleep(0.1)


@contextlib.contextmanager
def second_gateway(world: GatewayWorld) -> Iterator[None]:
    """Another gateway process on the same port: one per core of the machine."""
    port = urlsplit(world.url).port
    argv = agent("gateway", "--state-dir", world.live.state, "--port", port)
    with (world.live.folder / "second-gateway.log").open("wb") as log:
        running = subprocess.Popen(argv, env=clean_environment(**SETTINGS), stderr=log, stdout=log)
    try:
        until = time.monotonic() + 60
        while b"mesh.gateway.started" not in Path(log.name).read_bytes():
            assert time.monotonic() < until, Path(log.name).read_text()
            time.sleep(0.1)
        yield
    finally:
        running.terminate()
        running.wait(timeout=30)


@contextlib.contextmanager
def open_broker() -> Iterator[str]:
    """A nats-server that asks nobody who he is: Moleculer's subjects are not in our permissions."""
    port = free_port()
    argv = [str(find_nats_server()), "--addr=127.0.0.1", f"--port={port}"]
    running = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"nats://127.0.0.1:{port}"
    finally:
        running.kill()
        running.wait(timeout=10)


@contextlib.contextmanager
def moleculer(folder: Path, nats_url: str) -> Iterator[str]:
    """Moleculer's service and gateway on one broker; gives the URL of its search."""
    shutil.copytree(PEERS, folder, dirs_exist_ok=True)
    quiet = ["--no-progress", "--loglevel=error"]
    subprocess.run(["npm", "ci", *quiet], cwd=folder, check=True, timeout=300)
    port = free_port()
    environment = os.environ | {"NATS_URL": nats_url, "PORT": str(port)}
    running = [
        subprocess.Popen(["node", script], cwd=folder, env=environment)
        for script in ("moleculer_node.js", "moleculer_web.js")
    ]
    try:
        target = f"http://127.0.0.1:{port}/search"
        _until_answered(target)
        yield target
    finally:
        for process in running:
            process.kill()
            process.wait(timeout=10)


def _until_answered(url: str) -> None:
    until = time.monotonic() + 60
    while True:
        request = urllib.request.Request(
            url, data=BODY, headers={"Content-Type": "application/json"}
        )
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5):
            return
        assert time.monotonic() < until, f"{url} does not answer"
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wrk(url: str, *, connections: int, seconds: float, token: str = "") -> Load:
    """Load `url` with searches."""
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", str(PEERS / "search.lua")]
    environment = os.environ | ({"MESH_TOKEN": token} if token else {})
    ran = subprocess.run(
        [*argv, url], env=environment, check=True, capture_output=True, text=True, timeout=300
    )
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", ran.stdout)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+)", ran.stdout)
    return Load(
        per_second=float(re.search(r"Requests/sec:\s*([\d.]+)", ran.stdout).group(1)),
        requests=int(re.search(r"(\d+) requests in", ran.stdout).group(1)),
        failed=int(failed.group(1) if failed else 0)
        + (sum(map(int, broken.groups())) if broken else 0),
    )
