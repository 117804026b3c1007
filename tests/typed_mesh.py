"""A broker, a master and nodes of their own, with `meshctl` as a person types it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from processes import BrokerProcess

from cli.meshctl import app

BIN = Path(sys.executable).parent
READY_WITHIN_S = 60
PATIENTLY = ("--timeout-ms", "5000")
"""For searches whose speed is not the subject: the machine may be busy."""


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Mesh:
    """The processes, and `meshctl` pointed at them."""

    def __init__(self, folder: Path, *nodes: str, **settings: str) -> None:
        self.folder = folder
        self.nodes = nodes or ("crm", "kb")
        self.settings = settings
        self.broker = BrokerProcess(folder)
        self.agents: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self, role: str = "") -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
        login = {"MESH_CREDS": str(self.broker.credentials(role))} if role else {}
        return clean | {
            "MESH_URL": self.broker.url,
            **login,
            "MESH_STATE_DIR": str(self.folder / "state"),
            "MESH_SEARCH__EMBEDDER": "hash",
            **self.settings,
        }

    def start(self) -> None:
        self.broker.start()
        self.agent("master", "master", "master")
        for name in self.nodes:
            self.node(name)
        self.until_healthy(*self.nodes)

    def node(self, name: str) -> None:
        operator = str(self.broker.credentials("operator"))
        more = ("--app", "app:node", "--shard", "eu") if (self.folder / "app.py").exists() else ()
        self.agent(name, "", "run", "--name", name, "--operator", operator, *more)

    def agent(self, name: str, role: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.agents[name] = subprocess.Popen(
                [BIN / "mesh-agent", *arguments],
                env=self.environment(role),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def until_healthy(self, *names: str) -> None:
        until = time.monotonic() + READY_WITHIN_S
        while True:
            seen = self("nodes", "list", "--json")
            if seen.code == 0:
                health = {node["slug"]: node["health"] for node in seen.json["nodes"]}
                if all(health.get(name) == "healthy" for name in names):
                    return
            logs = "".join(log.read_text()[-3000:] for log in self.folder.glob("*.log"))
            assert time.monotonic() < until, f"{seen}\n{logs}"
            time.sleep(0.05)

    def __call__(self, *arguments: str, stdin: str = "") -> Answer:
        """In this process: most of what a command takes is the start of Python."""
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, self.environment("operator"), clear=True),
            mock.patch.object(sys, "stdin", io.StringIO(stdin)),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = app.run(arguments)
        return Answer(code, out.getvalue(), err.getvalue())

    def typed(self, *arguments: str, stdin: str = "") -> Answer:
        """The same as a process of its own, as a shell would start it."""
        done = subprocess.run(
            [BIN / "meshctl", *arguments],
            env=self.environment("operator"),
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def end(self) -> None:
        for agent in self.agents.values():
            agent.send_signal(signal.SIGCONT)
            agent.terminate()
        for agent in self.agents.values():
            try:
                agent.wait(timeout=15)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()
        self.broker.kill()


def eventually(check: Any, *, within_s: float = 20.0) -> Any:
    """What is told by heartbeats or indexed by masters is there a moment later."""
    until = time.monotonic() + within_s
    while not (seen := check()):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)
    return seen
