"""Real processes for tests: started, paused, killed, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from mesh import bootstrap
from mesh.adapters.nats.broker import EmbeddedBroker
from mesh.adapters.nats.keys import MasterCredentials
from mesh.adapters.state import read_credentials
from mesh.config import BrokerConfig
from mesh.ports import Login


def pause(pid: int) -> None:
    """Stop a process as a hang would; returns when it stands still."""
    os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + 5
    while _state(pid) not in "Tt":
        assert time.monotonic() < until, f"{pid} runs on"
        time.sleep(0.001)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class BrokerProcess:
    """A private nats-server with the product's own configuration, on a free port.

    No master runs, so nobody logs in by name: `login()` is the masters' own, which may speak as
    anybody; `login("gateway")` the gateway's. `credentials(role)` is the path of a file for
    `master`, `gateway` or `operator`; the operator's is good once a master answers logins.
    """

    def __init__(self, folder: Path, *, tls: BrokerConfig | None = None) -> None:
        self.folder = folder
        secrets = folder / "credentials"
        secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = bootstrap.make_credentials(secrets)
        self._files = made.files
        self._broker = EmbeddedBroker(store=folder / "broker", keys=made.broker, tls=tls)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self._broker.url

    @property
    def port(self) -> int:
        return self._broker.port

    @property
    def pid(self) -> int:
        assert self._process, "the broker does not run"
        return self._process.pid

    @property
    def log(self) -> Path:
        return self.folder / "broker.log"

    @property
    def keys(self) -> MasterCredentials:
        """What a master has."""
        return bootstrap.read_master_credentials(self._files["master"])

    def login(self, role: str = "master") -> Login:
        return read_credentials(self.credentials(role))

    def plain_login(self, role: str = "master") -> dict[str, str]:
        """As nats-py's `connect(**…)` wants it."""
        return {"nkeys_seed_str": self.login(role).nkey}

    def credentials(self, role: str) -> Path:
        return self._files[role]

    def start(self, *, within_s: float = 20) -> None:
        """Start it, on the same port and with the same data if it ran before; blocks ~0.1 s."""
        assert self._process is None, "the broker runs"
        self._broker.prepare()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._broker.command(),
                env=os.environ | self._broker.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + within_s
        while not self._broker.probe(self.pid):
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.01)

    def stop(self) -> None:
        """End it the polite way."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """It keeps its port and its connections, and says nothing any more."""
        pause(self.pid)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.send_signal(signal.SIGCONT)  # a paused one hears SIGTERM only then
        self._process.wait(timeout=20)
        self._process = None
