"""Options that several commands of `mesh-agent` have, and what they lead to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mesh.config import MeshConfig

DEFAULT_STATE_DIR = Path(".mesh")
_MESH_TOML = Path("mesh.toml")

StateDir = Annotated[
    Path,
    typer.Option(
        "--state-dir", envvar="MESH_STATE_DIR", metavar="DIR", help="Folder of the mesh's state."
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        "--nats",
        envvar="MESH_URL",
        metavar="URL",
        help="The broker, nats://host:port or tls://host:port."
        " Default: what mesh.json in the state folder says.",
    ),
]
Creds = Annotated[
    Path | None,
    typer.Option(
        "--creds",
        envvar="MESH_CREDS",
        metavar="FILE",
        help="Credentials file. Default: the state folder's.",
    ),
]
NodeKey = Annotated[
    Path | None,
    typer.Option(
        "--creds",
        envvar="MESH_CREDS",
        metavar="FILE",
        help="The node's credentials file, or a file with nothing but its API key."
        " Default: MESH_NODE__API_KEY, or key.json in its data folder.",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Settings. Default: mesh.toml here, if there is one."
    ),
]
Debug = Annotated[
    bool, typer.Option("--debug", envvar="MESH_DEBUG", help="Debug lines in logs, tracebacks.")
]


def settings(file: Path | None, flags: Mapping[str, Any]) -> MeshConfig:
    """Of `mesh.toml`, the environment and flags by their keys.

    Raises:
        ConfigError
    """
    from mesh import bootstrap

    if file is None and _MESH_TOML.is_file():
        file = _MESH_TOML
    return bootstrap.load_settings(toml=file, environ=os.environ, flags=flags)


def reachable(
    given: MeshConfig, url: str | None, creds: Path | None, state_dir: Path, *, role: str | None
) -> MeshConfig:
    """Settings that say where the broker is and how to log in; `role` None: as a node.

    Raises:
        MeshError: Nothing leads to a mesh.
    """
    import msgspec

    from mesh import bootstrap

    nats = bootstrap.resolve_nats(
        given.nats,
        url=url,
        state_dir=state_dir,
        credentials=str(creds) if creds else None,
        role=role,
    )
    return msgspec.structs.replace(given, nats=nats)


def logs(ids: Mapping[str, str], *, debug: bool) -> None:
    """Lines of this process carry `ids`."""
    from mesh import bootstrap

    bootstrap.configure_logs(ids=ids, debug=debug)
