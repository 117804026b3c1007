"""`mesh-agent`: the processes of a mesh."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cli import broker_commands
from cli.agent_options import (
    DEFAULT_STATE_DIR,
    ConfigFile,
    Creds,
    Debug,
    NodeKey,
    StateDir,
    Url,
    logs,
    reachable,
    settings,
)
from cli.meshctl.failures import exit_code
from mesh.errors import MeshError

app = typer.Typer(
    name="mesh-agent",
    help="Run a mesh, or one of its processes.",
    epilog="Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 not reachable, 4 denied.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        import mesh

        typer.echo(f"mesh-agent {mesh.__version__}")
        raise typer.Exit


@app.callback()
def _everywhere(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show it and exit."),
    ] = False,
) -> None:
    pass


@app.command()
def up(
    *,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    nats_port: Annotated[
        int,
        typer.Option(min=0, max=65535, metavar="N", help="Of the broker; 0 takes a free one."),
    ] = 4222,
    nodes: Annotated[
        int,
        typer.Option(min=0, max=64, metavar="K", help="Sample nodes with text of this machine."),
    ] = 3,
    http_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            metavar="N",
            help="Of the HTTP gateway; 0 takes a free one. Default: 8080.",
        ),
    ] = None,
    config: ConfigFile = None,
    debug: Debug = False,  # noqa: ARG001 (main reads it from the environment or the arguments)
) -> None:
    """Run a whole mesh on this machine: broker, master, HTTP gateway and sample nodes.

    Ctrl-C ends it.
    """
    from agents.up.run import run as run_mesh
    from cli.up_view import UpView

    given = settings(config, {"gateway.port": http_port})
    meshctl = f"{_meshctl()} --state-dir {shlex.quote(str(state_dir))}"
    with UpView(meshctl=meshctl) as view:
        raise typer.Exit(
            run_mesh(
                given,
                config_file=config,
                state_dir=state_dir,
                nats_port=nats_port,
                nodes=nodes,
                view=view,
            )
        )


@app.command()
def run(
    *,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What the node is called; its slug on the bus."),
    ] = None,
    collection: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="A collection, and a JSONL, CSV or Markdown file or folder to load; repeatable.",
        ),
    ] = None,
    app_path: Annotated[
        str | None,
        typer.Option("--app", metavar="MODULE:ATTRIBUTE", help="A mesh.Node with your actions."),
    ] = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The node's data. Default: nodes/NAME in the state folder."
        ),
    ] = None,
    url: Url = None,
    creds: NodeKey = None,
    operator: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Credentials of an operator: a node without a key registers itself with them."
            " Default: the state folder's.",
        ),
    ] = None,
    request_approval: Annotated[
        bool,
        typer.Option(
            "--request-approval", help="Without a key: make one, and wait for an operator's yes."
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Hold a replica of this shard. Default: one of its own."),
    ] = None,
    weight: Annotated[
        float | None, typer.Option(metavar="X", help="Share of the work. Default: 1.")
    ] = None,
    node_type: Annotated[
        str | None, typer.Option("--type", metavar="WORD", help="Default: child.")
    ] = None,
    embedder: Annotated[
        str | None, typer.Option(metavar="WORD", help="Default: wordllama.")
    ] = None,
    config: ConfigFile = None,
    debug: Debug = False,
) -> None:
    """Run a node: its collections, its actions.

    A node logs in with a key of its own. One that has none gets it with MESH_NODE__JOIN_TOKEN, with
    an operator's credentials, or by --request-approval, and keeps it in its data folder.
    """
    from agents import node

    sources = [_collection(text) for text in collection or ()]
    flags = {
        "node.name": name,
        "node.shard": shard,
        "node.weight": weight,
        "node.type": node_type,
        "node.request_approval": request_approval or None,
        "search.embedder": embedder,
    }
    found = reachable(settings(config, flags), url, creds, state_dir, role=None)
    logs({"process": "node", "node": found.node.name or app_path or ""}, debug=debug)
    raise typer.Exit(
        node.run(
            found,
            state_dir=state_dir,
            data_dir=data_dir,
            collections=sources,
            app=app_path,
            operator=operator,
        )
    )


@app.command()
def master(
    *,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    url: Url = None,
    creds: Creds = None,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="SQLAlchemy URL, async driver. Default: SQLite in the state folder."
        ),
    ] = None,
    config: ConfigFile = None,
    debug: Debug = False,
) -> None:
    """Run a master: registry, health, routes."""
    from agents import master as agent

    given = settings(config, {"master.database": database})
    found = reachable(given, url, creds, state_dir, role="master")
    logs({"process": "master"}, debug=debug)
    raise typer.Exit(agent.run(found, state_dir=state_dir))


@app.command()
def gateway(
    *,
    host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Where it listens. Default: 127.0.0.1."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, metavar="N", help="0 takes a free one, which it logs. Default: 8080."
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Before every route. Default: /api/ai-engine."),
    ] = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    url: Url = None,
    creds: Creds = None,
    config: ConfigFile = None,
    debug: Debug = False,
) -> None:
    """Run an HTTP gateway: the mesh for clients outside of it."""
    from agents.gateway.run import run as run_gateway

    flags = {"gateway.host": host, "gateway.port": port, "gateway.prefix": prefix}
    found = reachable(settings(config, flags), url, creds, state_dir, role="gateway")
    logs({"process": "gateway"}, debug=debug)
    raise typer.Exit(run_gateway(found))


app.command()(broker_commands.broker)
app.command()(broker_commands.credentials)


# -- what the commands share -----------------------------------------------------------------------


def _collection(text: str) -> tuple[str, Path]:
    """`notes=notes.jsonl` → its parts."""
    name, _, file = text.partition("=")
    if not name or not file:
        raise typer.BadParameter(f"{text!r} is not NAME=FILE", param_hint="--collection")
    if not Path(file).exists():
        raise typer.BadParameter(f"there is no {file}", param_hint="--collection")
    return name, Path(file)


def _meshctl() -> str:
    """How to call meshctl from this shell: by name if it is on PATH."""
    beside = Path(sys.executable).with_name("meshctl")
    on_path = shutil.which("meshctl")
    if on_path and Path(on_path).resolve() == beside.resolve():
        return "meshctl"
    if beside.is_relative_to(Path.cwd()):
        beside = beside.relative_to(Path.cwd())
    return shlex.quote(str(beside)) if beside.exists() else "meshctl"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; every expected error is a line on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(arguments, prog_name="mesh-agent")
    except MeshError as error:
        if "--debug" in arguments or os.environ.get("MESH_DEBUG", "") not in {"", "0", "false"}:
            traceback.print_exc()
        typer.echo(f"error: {error}", err=True)
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
