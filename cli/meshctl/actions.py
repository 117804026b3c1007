"""`meshctl actions`: what nodes can do, doing it, and what was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from cli import connection
from cli.meshctl import arguments, session
from cli.output import NOTHING, STATE_STYLES, Column, now_ms, number, plain, printable
from mesh.types import ActionState

if TYPE_CHECKING:
    from mesh import MeshClient, messages

app = typer.Typer()


@dataclass(kw_only=True)
class Offered:
    """One action and the nodes that offer it alike."""

    name: str
    nodes: list[str] = field(default_factory=list)
    builtin: bool
    idempotent: bool
    description: str


@app.command("list")
def list_actions(
    context: typer.Context,
    *,
    node: Annotated[str, typer.Option(help="Only of this node.")] = "",
) -> None:
    """Every action that a registered node offers."""
    run = session.of(context)
    answer = run.ask(lambda client: client.nodes(node=node))
    offered = offers(answer.nodes)
    if run.out.as_json:
        run.out.json({"actions": [vars(offer) for offer in offered]})
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
            Column("description"),
        ],
        [
            [
                offer.name,
                ", ".join(offer.nodes),
                "yes" if offer.builtin else "no",
                "yes" if offer.idempotent else "no",
                offer.description,
            ]
            for offer in offered
        ],
    )


def offers(nodes: Sequence[messages.NodeRecord]) -> list[Offered]:
    """Actions by name; nodes whose actions share a name but not a meaning stand apart."""
    found: dict[tuple[str, bool, bool, str], Offered] = {}
    for node in nodes:
        for action in node.actions:
            found.setdefault(_key(action), _offered(action)).nodes.append(node.slug)
    return sorted(found.values(), key=lambda offer: (not offer.builtin, offer.name, offer.nodes))


def _key(action: messages.ActionInfo) -> tuple[str, bool, bool, str]:
    return action.name, action.builtin, action.idempotent, action.description


def _offered(action: messages.ActionInfo) -> Offered:
    return Offered(
        name=action.name,
        builtin=action.builtin,
        idempotent=action.idempotent,
        description=action.description,
    )


@app.command("run")
def run_action(
    context: typer.Context,
    *,
    action: Annotated[str, typer.Argument(help="Its name.", metavar="ACTION")],
    node: Annotated[
        str | None, typer.Option(help="Where; may be left out if only one node offers it.")
    ] = None,
    params: Annotated[
        str, typer.Option(help="JSON object, @FILE, or @- for standard input.")
    ] = "{}",
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: the same key runs once.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.01, max=86_400, help="Seconds to wait.")
    ] = None,
) -> None:
    """Run an action and show how it ended."""
    run = session.of(context)
    given = arguments.parameters(params)

    async def work(client: MeshClient) -> messages.ActionResult:
        target = None if node is None else await connection.slug_of(client, node)
        return await client.run_action(action, given, node=target, id=key, timeout_s=timeout)

    answer = run.run(work)
    if run.out.as_json:
        run.out.json(answer)
    else:
        run.out.fields(
            [
                ("state", answer.state.value),
                ("id", answer.id),
                ("node", answer.node),
                ("duration ms", number(answer.duration_ms)),
            ]
        )
        run.out.json_value(answer.result)
        run.out.hint(f"why this node: meshctl explain {answer.id}")
    if answer.state is not ActionState.SUCCEEDED:
        raise typer.Exit(1)


@app.command("history")
def history(
    context: typer.Context,
    *,
    node: Annotated[str, typer.Option(help="Only on this node.")] = "",
    action: Annotated[str, typer.Option(help="Only this action.")] = "",
    caller: Annotated[str, typer.Option(help="Only of this caller.")] = "",
    state: Annotated[ActionState | None, typer.Option(help="Only in this state.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Not older than 90s, 5m, 1h, 2d, or an ISO date or time.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most to show.")] = 50,
    offset: Annotated[int, typer.Option(min=0, help="Pass over the newest this many.")] = 0,
    id_: Annotated[str, typer.Option("--id", help="This one action.")] = "",
) -> None:
    """What was run, newest first."""
    run = session.of(context)
    start = 0 if since is None else arguments.since(since, now_ms())
    page = run.ask(
        lambda client: client.history(
            action_id=id_,
            node=node,
            action=action,
            caller=caller,
            state=state,
            since=start,
            limit=limit,
            offset=offset,
        )
    )
    if run.out.as_json:
        run.out.json(page)
        return
    if not page.actions:
        run.out.note("no actions match")
        return
    run.out.table(
        [
            Column("time"),
            Column("id"),
            Column("node"),
            Column("action"),
            Column("state", styles=STATE_STYLES),
            Column("caller"),
            Column("duration ms", align="right"),
        ],
        [
            [
                run.out.when(record.at),
                record.id,
                record.node,
                record.action,
                record.state.value,
                record.caller,
                number(record.duration_ms),
            ]
            for record in page.actions
        ],
    )
    if id_:
        for record in page.actions:
            run.out.line(f"params  {NOTHING if record.params is None else _json(record.params)}")
            if record.result is not None:
                run.out.line(f"result  {_json(record.result)}")
            if record.error is not None:
                run.out.line(f"error   {record.error.kind}: {printable(record.error.message)}")
    elif page.total > offset + len(page.actions):
        run.out.note(f"{len(page.actions)} of {page.total}; --offset shows more")


def _json(value: object) -> str:
    import msgspec

    return msgspec.json.encode(plain(value)).decode()
