"""Real processes for tests: started, paused, killed, and never left behind."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from pathlib import Path

from mesh.adapters.nats.broker import EmbeddedBroker


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

    `url` carries no login: `broker.login("node")` gives user and password as nats-py's
    `connect(**…)` wants them, `broker.credentials("node")` the path of a credentials file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.passwords = {user: secrets.token_urlsafe(24) for user in EmbeddedBroker.USERS}
        self._broker = EmbeddedBroker(store=folder / "broker", passwords=self.passwords)
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

    def login(self, user: str) -> dict[str, str]:
        return {"user": user, "password": self.passwords[user]}

    def credentials(self, user: str) -> Path:
        path = self.folder / f"{user}.json"
        path.write_text(f'{{"user": "{user}", "password": "{self.passwords[user]}"}}')
        path.chmod(0o600)
        return path

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
