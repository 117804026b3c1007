"""Where a mesh is, and the files with which one gets in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mesh.adapters.state import (
    MeshFile,
    keep_private,
    read_bytes,
    read_credentials,
    read_json,
    read_mesh,
    write_json,
)
from mesh.config import NatsConfig
from mesh.errors import ConfigError, MeshError, StateError
from mesh.ports import Login

if TYPE_CHECKING:
    from mesh.adapters.nats.credentials import CredentialFiles
    from mesh.adapters.nats.keys import BrokerKeys, MasterCredentials


DEFAULT_STATE_DIR = ".mesh"
_BROKER_URL = re.compile(
    r"(?:nats|tls)://(?:\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::([0-9]{1,5}))?/?", re.ASCII
)
_MAX_PORT = 65_535


def resolve_nats(
    config: NatsConfig,
    *,
    url: str | None,
    state_dir: str | Path | None,
    credentials: str | None,
    role: str | None,
) -> NatsConfig:
    """Where the broker is and how to log in.

    An address given (`url`, or `nats.servers` set) is used as it is; otherwise the state folder's
    mesh.json says. Its credentials are for its own mesh alone: nobody else is shown them.

    Args:
        config: Settings so far.
        url: Address from a flag or `MESH_URL`.
        state_dir: Folder with a mesh.json.
        credentials: Credentials file from a flag or `MESH_CREDS`.
        role: Which of the folder's credentials to use: `operator`, `master` or `gateway`; None:
            none of them, a node has a key of its own.

    Raises:
        ConfigError: That is no address of a broker.
        MeshError: Neither leads to a mesh; says what to do.
    """
    login = credentials or config.credentials
    servers = [url] if url else config.servers
    for server in servers:
        _check_address(server, "--url/MESH_URL" if url else "nats.servers")
    folder = Path(state_dir or DEFAULT_STATE_DIR)
    found = _mesh_at(folder, servers) if servers else read_mesh(folder)
    if found is not None:
        servers = servers or [found.nats_url]
        login = login or found.credentials.get(role or "", "")
        if config.tls_ca == config.tls_cert == "":
            config = msgspec.structs.replace(
                config, tls_ca=found.tls_ca, tls_cert=found.tls_cert, tls_key=found.tls_key
            )
    if role is not None and not login:
        whose = "" if found is None else f" of its {role!r}"
        raise StateError(
            f"no credentials{whose} for {', '.join(servers)}: give a file with --creds/MESH_CREDS"
            + ("" if found is None else f", or start the mesh in {folder} again")
        )
    return msgspec.structs.replace(config, servers=servers, credentials=login)


def _check_address(server: str, source: str) -> None:
    """Raises: ConfigError, which does not show what may hold a password."""
    found = _BROKER_URL.fullmatch(server)
    if found is None or not 0 < int(found[1] or 1) <= _MAX_PORT:
        login = ", without a login: --creds/MESH_CREDS is for that" if "@" in server else ""
        raise ConfigError(
            f"{source}: a broker's address is nats://host:port or tls://host:port{login}"
        )


def _mesh_at(folder: Path, servers: Sequence[str]) -> MeshFile | None:
    """The state folder's mesh, if that is the one at this address."""
    try:
        found = read_mesh(folder)
    except MeshError:
        return None
    return found if found.nats_url in servers else None


def find_operator(servers: Sequence[str], state_dir: str | Path) -> Path | None:
    """The operator's credentials file of the state folder's mesh, if that is at `servers`."""
    found = _mesh_at(Path(state_dir), servers)
    file = found.credentials.get("operator") if found else None
    return Path(file) if file else None


def login_of(config: NatsConfig) -> Login:
    """Raises: StateError, if there is none or its file cannot be read."""
    if not config.credentials:
        raise StateError("no credentials: give a file with --creds/MESH_CREDS")
    return read_credentials(Path(config.credentials))


def make_credentials(
    folder: Path, *, nodes: Sequence[str] = (), shared: bool = False
) -> CredentialFiles:
    """See that a folder has everybody's credentials: what is missing is made, the rest stays.

    Args:
        folder: Exists, and nobody else may enter it.
        nodes: Slugs of nodes that get a file of their own.
        shared: Whoever is given one of the files may read it.

    Raises:
        StateError: A file that cannot be read or written.
        InvalidError: Not the name of a node.
    """
    from mesh.adapters.nats.credentials import make

    mode = 0o444 if shared else 0o600
    return make(folder, nodes=nodes, mode=mode, save=write_json, read=read_bytes)


def read_master_credentials(file: Path) -> MasterCredentials:
    """Everything in `master.json`.

    Raises:
        StateError: It cannot be read.
        ConfigError: It is another file.
    """
    from mesh.adapters.nats.keys import MasterCredentials

    keep_private(file)
    try:
        return read_json(file, MasterCredentials, advice="give the master.json of the mesh")
    except StateError as error:
        if isinstance(error.__cause__, msgspec.ValidationError):
            raise ConfigError(
                f"{file} is another file: masters run with the mesh's master.json"
            ) from error
        raise


def read_broker_keys(file: Path) -> BrokerKeys:
    """The public keys in `broker.json`.

    Raises:
        StateError: It cannot be read, or is another file.
    """
    from mesh.adapters.nats.keys import BrokerKeys

    return read_json(file, BrokerKeys, advice="make it again with `mesh-agent credentials`")
