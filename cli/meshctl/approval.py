"""`meshctl nodes pending`, `approve` and `reject`: nodes that nobody announced."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.meshctl import registration, session
from cli.meshctl.arguments import words
from cli.output import Column

_COLUMNS = (
    Column("ID"),
    Column("name"),
    Column("fingerprint"),
    Column("address"),
    Column("first seen", align="right"),
    Column("last seen", align="right"),
)
_WAITING = typer.Argument(
    help="Name, or id where several wait under it, as `pending` shows them.", metavar="NODE"
)


def pending(context: typer.Context) -> None:
    """Nodes that wait to be let in; the log of each shows the same fingerprint."""
    run = session.of(context)
    answer = run.ask(lambda client: client.access.pending())
    if run.out.as_json:
        run.out.json(answer)
        return
    rows = [
        [
            node.id,
            node.name,
            node.fingerprint,
            node.address,
            run.out.when(node.first_seen),
            run.out.when(node.last_seen),
        ]
        for node in answer.nodes
    ]
    if rows:
        run.out.table(_COLUMNS, rows)
    else:
        run.out.warn("no node waits")


def approve(
    context: typer.Context,
    *,
    node: Annotated[str, _WAITING],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What it may do over HTTP: search, actions, actions:NAME, admin."
            " Default: search, actions."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Let a node in that waits; it comes by itself within seconds."""
    run = session.of(context)
    registration.confirm(
        f"Let {node!r} in? Its log and `pending` must show the same fingerprint.", yes=yes
    )
    scopes = words(scope) or ["search", "actions"]
    record = run.ask(lambda client: client.access.approve(node, scopes=scopes))
    if run.out.as_json:
        run.out.json({"node": record})
    else:
        run.out.line(f"{record.slug} is approved")


def reject(
    context: typer.Context,
    *,
    node: Annotated[str, _WAITING],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Turn a node away that waits; it may not ask again for a day."""
    run = session.of(context)
    registration.confirm(f"Turn {node!r} away?", yes=yes)
    turned_away = run.ask(lambda client: client.access.reject(node))
    if run.out.as_json:
        run.out.json({"node": turned_away})
    else:
        run.out.line(f"{turned_away.name} is rejected")
