"""`meshctl nodes`: the registry."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import connection
from cli.meshctl import (
    approval,
    draining,
    join_tokens,
    monitor,
    node_report,
    node_stats,
    ping,
    registration,
    session,
)
from cli.meshctl.session import Session
from cli.output import (
    HEALTH_STYLES,
    NOTHING,
    STATUS_STYLES,
    Column,
    Output,
    Show,
    number,
)
from mesh.types import Status

if TYPE_CHECKING:
    from mesh import MeshClient, messages

app = typer.Typer()
app.command("stats")(node_stats.stats)
app.command("show")(node_report.show)
app.command("ping")(ping.ping)
app.command("monitor")(monitor.monitor)
app.command("register")(registration.register)
app.command("update")(registration.update)
app.command("drain")(draining.drain)
app.command("undrain")(draining.undrain)
app.command("remove")(registration.remove)
app.command("rotate-key")(registration.rotate_key)
app.command("pending")(approval.pending)
app.command("approve")(approval.approve)
app.command("reject")(approval.reject)
app.add_typer(
    join_tokens.app, name="join-token", help="Tokens with which nodes register themselves."
)

_WATCH_S = 2.0
_COLUMNS = (
    Column("ID"),
    Column("name"),
    Column("type"),
    Column("status", styles=STATUS_STYLES),
    Column("health", styles=HEALTH_STYLES),
    Column("response ms", align="right"),
    Column("last ping", align="right"),
    Column("failures", align="right"),
)


class SortKey(enum.StrEnum):
    """What `nodes list` may be ordered by."""

    NAME = "name"
    TYPE = "type"
    STATUS = "status"
    HEALTH = "health"
    RESPONSE = "response"
    PING = "ping"
    FAILURES = "failures"


_SORT_KEYS: Mapping[SortKey, Callable[[messages.NodeRecord], Any]] = {
    SortKey.NAME: lambda node: node.name.casefold(),
    SortKey.TYPE: lambda node: node.type,
    SortKey.STATUS: lambda node: node.status,
    SortKey.HEALTH: lambda node: node.health,
    SortKey.RESPONSE: lambda node: (
        float("inf") if node.response_time_ms is None else node.response_time_ms
    ),
    SortKey.PING: lambda node: -(node.last_ping_at or 0),
    SortKey.FAILURES: lambda node: -node.failures,
}


@app.command("list")
def list_nodes(
    context: typer.Context,
    *,
    status: Annotated[Status | None, typer.Option(help="Only nodes with this status.")] = None,
    type_: Annotated[str, typer.Option("--type", help="Only nodes of this type.")] = "",
    sort: Annotated[SortKey, typer.Option(help="Order.")] = SortKey.NAME,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until Ctrl-C.")] = False,
) -> None:
    """Every registered node with its health."""
    run = session.of(context)

    async def nodes(client: MeshClient) -> messages.NodeList:
        return await connection.ask_master(client.nodes(status=status, type=type_))

    if watch:
        _watch(run, nodes, sort)
        return
    answer = run.run(nodes)
    if run.out.as_json:
        run.out.json(_as_json(answer, sort))
        return
    if answer.nodes:
        run.out.table(_columns(answer), _rows(run.out, _sorted(answer, sort)))
    else:
        run.out.warn("no nodes match" if status or type_ else "no nodes are registered yet")
    run.out.warn_if_blind(blind=answer.blind)


def _watch(run: Session, nodes: Callable[[MeshClient], Any], sort: SortKey) -> None:
    import asyncio

    async def rounds(client: MeshClient, show: Show) -> None:
        while True:
            answer = await nodes(client)
            if run.out.as_json:
                run.out.json(_as_json(answer, sort))
            else:
                rows = _rows(run.out, _sorted(answer, sort))
                show(_columns(answer), rows, [] if rows else ["no nodes match"])
            await asyncio.sleep(_WATCH_S)

    try:
        with run.out.live() as show:
            run.run(lambda client: rounds(client, show))
    except KeyboardInterrupt:
        return  # the only way to end it is a good end


def _sorted(answer: messages.NodeList, sort: SortKey) -> list[messages.NodeRecord]:
    return sorted(answer.nodes, key=_SORT_KEYS[sort])


def _as_json(answer: messages.NodeList, sort: SortKey) -> dict[str, Any]:
    return {"nodes": _sorted(answer, sort), "blind": answer.blind}


def _columns(answer: messages.NodeList) -> Sequence[Column]:
    return _COLUMNS if any(node.failures for node in answer.nodes) else _COLUMNS[:-1]


def _rows(out: Output, nodes: Sequence[messages.NodeRecord]) -> list[list[str]]:
    with_failures = any(node.failures for node in nodes)
    return [
        [
            node.id,
            node.name,
            node.type,
            node.status.value,
            node.health.value,
            number(node.response_time_ms),
            out.when(node.last_ping_at),
            *([str(node.failures or NOTHING)] if with_failures else []),
        ]
        for node in nodes
    ]
