"""`meshctl actions list` and `describe`: what nodes offer, and what it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli import connection
from cli.meshctl import session
from cli.meshctl.schema_rows import Field, rows_of
from cli.output import NOTHING, Column, Output
from mesh.errors import BadRequestError

if TYPE_CHECKING:
    from mesh import MeshClient, messages

_OF_NODE = Annotated[str, typer.Option(help="Only of this node.")]


def list_actions(context: typer.Context, *, node: _OF_NODE = "") -> None:
    """Every action that a registered node offers."""
    run = session.of(context)
    offered = run.ask(lambda client: client.actions(node)).actions
    if run.out.as_json:
        run.out.json({"actions": [_as_json(each) for each in offered]})
        return
    if not offered:
        run.out.warn("no node offers an action")
        return
    run.out.table(
        [
            Column("action"),
            Column("nodes"),
            Column("built in"),
            Column("idempotent"),
            Column("timeout s", align="right"),
            Column("undone by"),
            Column("description"),
        ],
        [
            [
                each.action.name,
                ", ".join(each.nodes),
                _yes(each.action.builtin),
                _yes(each.action.idempotent),
                _seconds(each.action.timeout_s),
                each.action.compensate,
                each.action.description,
            ]
            for each in offered
        ],
    )
    run.out.hint("what one takes: meshctl actions describe ACTION")


def describe(
    context: typer.Context,
    *,
    action: Annotated[str, typer.Argument(help="Its name.", metavar="ACTION")],
    node: _OF_NODE = "",
) -> None:
    """What an action takes and gives: with --json as JSON Schema."""
    run = session.of(context)
    offered = run.run(lambda client: _described(client, action, node))
    if run.out.as_json:
        run.out.json({"actions": offered})
        return
    for number, each in enumerate(offered):
        if number:
            run.out.line()
        _show(run.out, each)


async def _described(client: MeshClient, action: str, node: str) -> list[messages.OfferedAction]:
    """Raises: BadRequestError: Nobody offers it."""
    if found := (await connection.ask_master(client.actions(node, action))).actions:
        return found
    others = (await connection.ask_master(client.actions(node))).actions
    names = ", ".join(dict.fromkeys(each.action.name for each in others)) or "none"
    where = f"on {node}" if node else "on any node"
    raise BadRequestError(f"there is no action {action!r} {where}; there are: {names}")


def _as_json(each: messages.OfferedAction) -> dict[str, object]:
    action = each.action
    return {
        "name": action.name,
        "nodes": each.nodes,
        "builtin": action.builtin,
        "idempotent": action.idempotent,
        "description": action.description,
        "timeout_s": action.timeout_s,
        "compensate": action.compensate,
        "retries": action.retries,
        "concurrency": action.concurrency,
    }


def _show(out: Output, each: messages.OfferedAction) -> None:
    action = each.action
    out.fields(
        [
            ("action", action.name),
            ("nodes", ", ".join(each.nodes)),
            ("description", action.description),
            ("built in", _yes(action.builtin)),
            ("idempotent", _yes(action.idempotent)),
            ("undone by", action.compensate),
            ("timeout s", _seconds(action.timeout_s)),
            ("retries", str(action.retries)),
            ("at once", str(action.concurrency) if action.concurrency else "no limit of its own"),
        ]
    )
    out.line()
    _table(out, "parameter", rows_of(action.params))
    if action.result is not None:
        out.line()
        _table(out, "result", rows_of(action.result))


def _table(out: Output, title: str, fields: list[Field]) -> None:
    if not fields:
        out.line(f"{title}s: any JSON object" if title == "parameter" else f"{title}: any JSON")
        return
    out.table(
        [
            Column(title),
            Column("type"),
            Column("required"),
            Column("default"),
            Column("bounds"),
            Column("what"),
        ],
        [
            [
                field.name,
                field.type,
                _yes(field.required),
                field.default,
                field.bounds,
                field.what,
            ]
            for field in fields
        ],
    )


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


def _seconds(value: float | None) -> str:
    return NOTHING if value is None else f"{value:g}"
