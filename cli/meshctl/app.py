"""The command tree of `meshctl`."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from typer.main import get_command
from typer.models import CommandInfo

from cli.connection import DEFAULT_STATE_DIR, Options
from cli.meshctl import audit, explain, rag, routes, search
from cli.meshctl.arguments import hoist
from cli.meshctl.failures import guard
from cli.meshctl.session import Session
from cli.output import Output

GROUPS = {
    "nodes": "Register, watch and change the nodes of the mesh.",
    "collections": "List, fill and drop collections.",
    "cache": "Answers that the gateways keep: how many, how often of use, and forget them.",
    "breakers": "What keeps calls from nodes that fail them: list and reset.",
    "actions": "List and run actions, and see what was run.",
    "sagas": "Several actions, or none of them: run, see, resume and abort.",
    "tokens": "Issue, list and revoke access tokens of the HTTP gateway.",
    "users": "Operators and applications: add them, give them keys, remove them.",
    "keys": "The keys that sign access tokens: list and rotate them.",
}
"""Modules of this package, each with a typer `app`."""

_EVERYWHERE = (
    "Before or after any command: --json, --url, --state-dir, --creds, --debug"
    " (see meshctl --help)."
)


def tree(only: str | None = None) -> typer.Typer:
    """All commands; with `only`, the other groups by name and help alone, which makes `--help`
    and every command start faster.
    """
    app = typer.Typer(
        name="meshctl",
        help="Search, run actions and look after the nodes of a mesh.",
        epilog="Options stand before or after the command alike. Exit codes: 0 ok, 1 failed,"
        " 2 usage, 3 not reachable, 4 denied.",
        pretty_exceptions_enable=False,
    )
    app.callback()(_session)
    app.command("search", epilog=_EVERYWHERE)(search.search)
    app.command("rag", epilog=_EVERYWHERE)(rag.rag)
    app.command("explain", epilog=_EVERYWHERE)(explain.explain)
    app.command("routes", epilog=_EVERYWHERE)(routes.routes)
    app.command("audit", epilog=_EVERYWHERE)(audit.audit)
    for name, purpose in GROUPS.items():
        group = typer.Typer()
        if only in {None, name}:
            group = importlib.import_module(f"cli.meshctl.{name}").app
            for command in _commands(group):
                command.epilog = _EVERYWHERE
        app.add_typer(group, name=name, help=purpose, epilog=_EVERYWHERE)
    return app


def _commands(group: typer.Typer) -> Iterator[CommandInfo]:
    yield from group.registered_commands
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            yield from _commands(inner.typer_instance)


def _show_version(wanted: bool) -> None:
    if wanted:
        import mesh

        typer.echo(f"meshctl {mesh.__version__}")
        raise typer.Exit


def _session(
    context: typer.Context,
    *,
    url: Annotated[
        str | None,
        typer.Option(envvar="MESH_URL", help="The broker, nats://host:port.", metavar="URL"),
    ] = None,
    state_dir: Annotated[
        str,
        typer.Option(envvar="MESH_STATE_DIR", help="Folder with mesh.json.", metavar="DIR"),
    ] = DEFAULT_STATE_DIR,
    creds: Annotated[
        str | None,
        typer.Option(envvar="MESH_CREDS", help="Your credentials file.", metavar="FILE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="MESH_DEBUG", help="Show tracebacks.")
    ] = False,
    version: Annotated[  # noqa: ARG001 - its callback answers
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show it and exit."),
    ] = False,
) -> None:
    options = Options(url=url, state_dir=state_dir, credentials=creds, as_json=as_json, debug=debug)
    context.obj = Session(options=options, out=Output(as_json=as_json))


@functools.cache
def _command(only: str | None) -> Any:
    return get_command(tree(only))


def run(argv: Sequence[str]) -> int:
    """Run one command line (without the program's name) and give its exit code."""
    common, rest = hoist(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show it
    if not common and not rest:
        rest = ["--help"]
    completing = "_MESHCTL_COMPLETE" in os.environ
    only = None if completing or rest[:1] == ["--"] else next(iter(rest), "")

    def command() -> object:
        return _command(only)([*common, *rest], prog_name="meshctl", standalone_mode=False)

    debug = "--debug" in common or os.environ.get("MESH_DEBUG", "") not in {"", "0", "false"}
    return guard(command, as_json="--json" in common, debug=debug)
