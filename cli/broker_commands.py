"""`mesh-agent broker` and `credentials`: for whoever runs the processes of a mesh by himself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.agent_options import DEFAULT_STATE_DIR, ConfigFile, Debug, StateDir, settings

_MAX_PORT = 65_535


def broker(
    *,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    listen: Annotated[
        str,
        typer.Option(
            "--listen", metavar="HOST:PORT", help="Where it listens; port 0 takes a free one."
        ),
    ] = "127.0.0.1:4222",
    secrets: Annotated[
        Path | None,
        typer.Option(
            "--secrets",
            metavar="DIR",
            help="Folder with broker.json (mesh-agent credentials): public keys, all it needs."
            " Default: the state folder's, made when needed.",
        ),
    ] = None,
    config: ConfigFile = None,
    debug: Debug = False,  # noqa: ARG001 (main reads it from the environment or the arguments)
) -> None:
    """Run the broker alone: nats-server with the configuration of a mesh, in the foreground."""
    from agents import broker as agent

    host, port = _address(listen)
    agent.run(settings(config, {}), state_dir=state_dir, host=host, port=port, secrets=secrets)


def credentials(
    *,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the files; made when needed.")
    ],
    node: Annotated[
        list[str] | None,
        typer.Option(
            "--node",
            metavar="NAME",
            help="Also nodes/NAME.json, for a node that nobody registers; may be repeated.",
        ),
    ] = None,
    containers: Annotated[
        bool,
        typer.Option(
            "--containers",
            help="Readable by any user to whom a file is mounted; the folder by you alone.",
        ),
    ] = False,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Make everybody's credentials, a JSON file each; those that are there stay as they are."""
    from agents import broker as agent

    for file in agent.make_credentials(out, nodes=node or [], shared=containers):
        typer.echo(file)


def _address(text: str) -> tuple[str, int]:
    """`0.0.0.0:4222` or `[::]:4222` → its parts."""
    host, found, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (found and host and port.isascii() and port.isdigit() and int(port) <= _MAX_PORT):
        raise typer.BadParameter(f"{text!r} is not HOST:PORT", param_hint="--listen")
    return host, int(port)
