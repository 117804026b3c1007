"""`mesh-agent`: the processes of a mesh."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.meshctl.failures import exit_code
from mesh.errors import MeshError

if TYPE_CHECKING:
    from mesh.config import MeshConfig

_MESH_TOML = Path("mesh.toml")

app = typer.Typer(
    name="mesh-agent",
    help="Run a mesh, or one of its processes.",
    epilog="Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 not reachable, 4 denied.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

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
        envvar="MESH_URL",
        metavar="URL",
        help="The broker, nats://host:port. Default: what mesh.json in the state folder says.",
    ),
]
Creds = Annotated[
    Path | None,
    typer.Option(
        "--creds",
        envvar="MESH_CREDS",
        metavar="FILE",
        help="JSON file with user and password. Default: the state folder's.",
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
DEFAULT_STATE_DIR = Path(".mesh")


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
            help="Of the HTTP gateway, which comes with a later release: unused until then.",
        ),
    ] = None,
    config: ConfigFile = None,
    debug: Debug = False,  # noqa: ARG001 (main reads it from the environment or the arguments)
) -> None:
    """Run a whole mesh on this machine: broker, master and sample nodes. Ctrl-C ends it."""
    from agents.up.run import run as run_mesh
    from cli.up_view import UpView

    settings = _settings(config, {})
    meshctl = f"{_meshctl()} --state-dir {shlex.quote(str(state_dir))}"
    with UpView(meshctl=meshctl) as view:
        if http_port is not None:
            view.notice("--http-port: this release has no HTTP gateway yet; nothing listens there")
        raise typer.Exit(
            run_mesh(settings, state_dir=state_dir, nats_port=nats_port, nodes=nodes, view=view)
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
    creds: Creds = None,
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
    """Run a node: its collections, its actions."""
    from agents import node

    sources = [_collection(text) for text in collection or ()]
    flags = {
        "node.name": name,
        "node.shard": shard,
        "node.weight": weight,
        "node.type": node_type,
        "search.embedder": embedder,
    }
    settings = _reachable(_settings(config, flags), url, creds, state_dir, role="node")
    _logs({"process": "node", "node": settings.node.name or app_path or ""}, debug=debug)
    raise typer.Exit(
        node.run(
            settings, state_dir=state_dir, data_dir=data_dir, collections=sources, app=app_path
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

    settings = _settings(config, {"master.database": database})
    settings = _reachable(settings, url, creds, state_dir, role="master")
    _logs({"process": "master"}, debug=debug)
    raise typer.Exit(agent.run(settings, state_dir=state_dir))


# -- what the commands share -----------------------------------------------------------------------


def _settings(file: Path | None, flags: Mapping[str, Any]) -> MeshConfig:
    from mesh import bootstrap

    if file is None and _MESH_TOML.is_file():
        file = _MESH_TOML
    return bootstrap.load_settings(toml=file, environ=os.environ, flags=flags)


def _reachable(
    settings: MeshConfig, url: str | None, creds: Path | None, state_dir: Path, *, role: str
) -> MeshConfig:
    """Settings that say where the broker is and how to log in."""
    import msgspec

    from mesh import bootstrap

    nats = bootstrap.resolve_nats(
        settings.nats,
        url=url,
        state_dir=state_dir,
        credentials=str(creds) if creds else None,
        role=role,
    )
    return msgspec.structs.replace(settings, nats=nats)


def _logs(ids: Mapping[str, str], *, debug: bool) -> None:
    from mesh import bootstrap

    bootstrap.configure_logs(ids=ids, debug=debug)


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
