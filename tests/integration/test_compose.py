"""docker-compose.yml without containers: exactly its commands, health checks, secrets and volumes,
as processes on loopback with their paths, hosts and ports put elsewhere.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.timeout(240)

TOP = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
HEALTHY_WITHIN_S = 90
HOME = "/var/lib/nodemesh"

COMPOSE: dict[str, Any] = yaml.safe_load((TOP / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
RUN = {name: service for name, service in SERVICES.items() if "profiles" not in service}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Machine:
    """What docker compose would do, on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secrets = folder / "secrets"
        self.ports = {"4222": free_port(), "8080": free_port()}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._healthy: set[str] = set()

    def volumes(self, name: str) -> dict[str, str]:
        """Where each path inside of the container lies on this machine."""
        places = {HOME: str(self.folder / name)}  # of a service without a volume it is lost
        for volume in SERVICES[name].get("volumes", []):
            source, target = volume.split(":")[:2]
            named = source in COMPOSE["volumes"]
            places[target] = str(self.folder / name if named else (TOP / source).resolve())
        return places

    def outside(self, name: str, text: str) -> str:
        """`text` of service `name` with paths, hosts and ports of this machine."""
        places = {**self.volumes(name), "/run/secrets": str(self.folder / "mounted" / name)}
        for inside in sorted(places, key=len, reverse=True):
            text = text.replace(inside, places[inside])
        text = re.sub(rf"\b({'|'.join(RUN)}):(?=\d)", "127.0.0.1:", text)
        text = text.replace("0.0.0.0", "127.0.0.1")
        return re.sub(r"\b(4222|8080)\b", lambda found: str(self.ports[found[0]]), text)

    def environment(self, name: str) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MESH_")}
        given = SERVICES[name].get("environment", {})
        image = {"MESH_STATE_DIR": HOME, "HOME": HOME}
        ours = {key: self.outside(name, value) for key, value in {**image, **given}.items()}
        quick = {"MESH_SEARCH__EMBEDDER": "hash"}  # loads in a second what the model takes ten for
        return clean | ours | quick | {"PATH": f"{BIN}:{os.environ['PATH']}"}

    def mount(self, name: str) -> None:
        """A folder with the secrets that the service names, and no others."""
        (self.folder / name).mkdir(exist_ok=True)
        mounted = self.folder / "mounted" / name
        mounted.mkdir(parents=True, exist_ok=True)
        for secret in SERVICES[name].get("secrets", []):
            source = COMPOSE["secrets"][secret]["file"].removeprefix("./secrets/")
            (mounted / secret).write_bytes((self.secrets / source).read_bytes())

    def start(self, name: str) -> None:
        self.mount(name)
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [self.outside(name, word) for word in SERVICES[name]["command"]],
                cwd=self.folder / name,
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def run(self, name: str, words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.outside(name, word) for word in words],
            cwd=self.folder / name,
            env=self.environment(name),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def wait_healthy(self, name: str) -> None:
        if name in self._healthy:
            return
        kind, *check = SERVICES[name]["healthcheck"]["test"]
        assert kind == "CMD"
        until = time.monotonic() + HEALTHY_WITHIN_S
        while (done := self.run(name, check)).returncode:
            log = (self.folder / f"{name}.log").read_text()[-3000:]
            assert self.processes[name].poll() is None, f"{name} ended\n{log}"
            assert time.monotonic() < until, f"{name}: {done}\n{log}"
            time.sleep(0.1)
        self._healthy.add(name)

    def stop(self) -> dict[str, int]:
        codes = {}
        for name, process in reversed(self.processes.items()):
            process.send_signal(signal.SIGTERM)
            try:
                codes[name] = process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = process.wait()
        self.processes.clear()
        return codes


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Iterator[Machine]:
    found = Machine(tmp_path_factory.mktemp("compose"))
    try:
        yield found
    finally:
        found.stop()


def order() -> list[str]:
    """Services, each after those it waits for."""
    return list(
        TopologicalSorter(
            {name: service.get("depends_on", {}) for name, service in RUN.items()}
        ).static_order()
    )


def test_the_documented_command_makes_the_secrets(machine):
    (line,) = re.findall(r"^#   (mesh-agent credentials .*?)  ", compose_text(), re.MULTILINE)
    words = shlex.split(line.replace(" secrets ", f" {machine.secrets} "))
    subprocess.run([BIN / words[0], *words[1:]], check=True, stdout=subprocess.DEVNULL)
    named = {secret["file"] for secret in COMPOSE["secrets"].values()}
    made = {str(file.relative_to(machine.folder)): file for file in machine.secrets.rglob("*.json")}
    assert {f"./{name}" for name in made} == named
    assert {stat.S_IMODE(file.stat().st_mode) for file in made.values()} == {0o444}
    assert stat.S_IMODE(machine.secrets.stat().st_mode) == 0o700


def compose_text() -> str:
    return (TOP / "docker-compose.yml").read_text()


def test_every_command_runs_and_becomes_healthy(machine):
    for name in order():
        for needed, how in SERVICES[name].get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            machine.wait_healthy(needed)
        machine.start(name)
    for name in RUN:
        machine.wait_healthy(name)


def ask(machine: Machine, token: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{machine.ports['8080']}/api/ai-engine/search",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


def test_a_token_of_the_documented_command_searches_both_nodes(machine):
    machine.mount("meshctl")
    (line,) = re.findall(
        r"^#   docker compose run --rm meshctl (.*)$", compose_text(), re.MULTILINE
    )
    words = [*SERVICES["meshctl"]["entrypoint"], *shlex.split(line), "--json"]
    issued = machine.run("meshctl", words)
    assert issued.returncode == 0, issued
    token = json.loads(issued.stdout)["access_token"]

    for node, query in (("handbook", "backup of a mesh"), ("project", "first ten minutes")):
        body = {"query": query, "options": {"nodes": [node], "timeout_ms": 5000}}
        until = time.monotonic() + 60  # a node serves from the first moment, and loads meanwhile
        while not (found := ask(machine, token, body))["results"]:
            assert time.monotonic() < until, found
            time.sleep(2)
        assert {hit["node"] for hit in found["results"]} == {node}
        assert not found["partial"]


def test_no_secret_is_in_an_argument_or_a_log(machine):
    secrets = set()
    for file in machine.secrets.rglob("*.json"):
        if file.name != "broker.json":  # public keys
            names = ("password", "xkey", "nkey", "auth_nkey", "sys_nkey", "issuer_nkey")
            content = json.loads(file.read_bytes())
            secrets |= {content[name] for name in names if name in content}
    assert len(secrets) == 9  # five of the master's, gateway, operator, two nodes
    seen = "".join(file.read_text() for file in machine.folder.glob("*.log"))
    for process in machine.processes.values():
        seen += Path(f"/proc/{process.pid}/cmdline").read_text()
        seen += Path(f"/proc/{process.pid}/environ").read_text()
    assert not [secret for secret in secrets if secret in seen]


def test_all_end_well_at_a_sigterm(machine):
    """Exit code 0, or docker would count the stop as a failure."""
    names = set(machine.processes)
    codes = machine.stop()
    assert codes == dict.fromkeys(names, 0)


def test_only_the_gateway_has_a_published_port_and_nobody_is_root():
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["gateway"]
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert "user" not in service, "the image's own user is right"
        assert "privileged" not in service
    assert {name for name, service in RUN.items() if service["restart"] == "unless-stopped"} == set(
        RUN
    )
    image = (TOP / "Dockerfile").read_text()
    assert re.findall(r"^USER (\w+)$", image, re.MULTILINE) == ["nodemesh"]


def test_whoever_keeps_something_has_a_volume():
    keeps = {
        name
        for name in RUN
        if any(volume.endswith(f":{HOME}") for volume in SERVICES[name].get("volumes", []))
    }
    assert keeps == set(RUN) - {"gateway"}
    named = {volume.split(":")[0] for name in keeps for volume in SERVICES[name]["volumes"]}
    assert {name for name in named if "/" not in name} == set(COMPOSE["volumes"])


def test_nobody_has_secrets_but_those_it_needs():
    assert {name: set(service["secrets"]) for name, service in SERVICES.items()} == {
        "broker": {"broker.json"},
        "master": {"master.json", "operator.json"},  # the second for its health check
        "gateway": {"gateway.json"},
        "handbook": {"handbook.json"},
        "project": {"project.json"},
        "meshctl": {"operator.json"},
    }
    for name, service in SERVICES.items():
        if credentials := service.get("environment", {}).get("MESH_CREDS"):
            assert Path(credentials).name in service["secrets"], name


def test_the_image_has_what_the_wheel_is_made_of():
    """.dockerignore lets through what pyproject.toml and the Dockerfile name, and no secret."""
    lines = (TOP / ".dockerignore").read_text().splitlines()
    passing = [line[1:] for line in lines if line.startswith("!")]
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], project["project"]["readme"]}
    needed |= set(project["project"]["license-files"])
    assert needed | {"pyproject.toml", "requirements.lock"} == set(passing)
    assert "*" in lines
    for name in ("secrets", ".mesh", ".env", ".venv"):
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in passing)
