"""`meshctl nodes`: the registry."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import connection
from cli.meshctl import approval, join_tokens, monitor, ping, registration, session
from cli.meshctl.session import Session
from cli.output import (
    HEALTH_STYLES,
    NOTHING,
    STATUS_STYLES,
    Column,
    Output,
    Show,
    number,
    plain,
)
from mesh.errors import NotFoundError
from mesh.types import Status

if TYPE_CHECKING:
    from mesh import MeshClient, messages

app = typer.Typer()
app.command("ping")(ping.ping)
app.command("monitor")(monitor.monitor)
app.command("register")(registration.register)
app.command("update")(registration.update)
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
    warn_if_blind(run.out, answer)


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


def warn_if_blind(out: Output, answer: messages.NodeList) -> None:
    """Say so where health is only what it was."""
    if answer.blind:
        out.warn("the master cannot see the broker right now: health is what it last was")


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


@app.command("stats")
def stats(context: typer.Context) -> None:
    """How many nodes there are, and how they are."""
    run = session.of(context)
    answer = run.ask(lambda client: client.stats())
    if run.out.as_json:
        run.out.json(answer)
        return
    run.out.fields(
        [
            ("total", str(answer.total)),
            ("active", str(answer.active)),
            ("inactive", str(answer.inactive)),
            ("error", str(answer.error)),
            ("healthy", str(answer.healthy)),
            ("avg response ms", number(answer.avg_response_time_ms)),
            ("collections", str(answer.collections)),
            ("documents", str(answer.documents)),
            ("by type", _counts(answer.by_type)),
            ("by health", _counts(answer.by_health)),
        ]
    )
    if not answer.total:
        run.out.warn("no nodes are registered yet")
    if answer.blind:
        run.out.warn("the master cannot see the broker right now: health is what it last was")


def _counts(by: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(by.items()))


@app.command("show")
def show(context: typer.Context, node: Annotated[str, registration.NODE_ARGUMENT]) -> None:
    """One node's health report."""
    run = session.of(context)
    answer = run.ask(lambda client: client.nodes(node=node))
    if not answer.nodes:
        raise NotFoundError(f"no node {node!r} is registered; `meshctl nodes list` shows them")
    record = answer.nodes[0]
    if run.out.as_json:
        run.out.json({"node": record})
        return
    _report(run.out, record)
    warn_if_blind(run.out, answer)


def _report(out: Output, node: messages.NodeRecord) -> None:
    out.fields(
        [
            ("ID", node.id),
            ("name", node.name),
            ("slug", node.slug),
            ("URL", node.url or NOTHING),
            ("type", node.type),
            ("status", node.status.value),
            (
                "health",
                f"{node.health.value} ({node.reason})" if node.reason else node.health.value,
            ),
            ("response ms", number(node.response_time_ms)),
            ("last ping", out.when(node.last_ping_at)),
            ("failures", str(node.failures)),
            ("in flight", str(node.in_flight)),
            ("queued", str(node.queued)),
            ("loop lag ms", number(node.lag_ms)),
            ("weight", f"{node.weight:g}"),
            ("version", node.version),
            ("started", out.when(node.incarnation)),
            ("registered", out.when(node.created_at)),
            ("capabilities", ", ".join(node.capabilities)),
            ("description", node.description),
            ("domains", ", ".join(node.domains)),
            ("keywords", ", ".join(node.keywords)),
            ("metadata", _compact(node.metadata)),
        ]
    )
    _section(
        out,
        [
            Column("verb"),
            *(Column(name, align="right") for name in ("calls", "errors", "EWMA ms", "p99 ms")),
        ],
        [
            [verb, str(seen.count), str(seen.errors), number(seen.ewma_ms), number(seen.p99_ms)]
            for verb, seen in sorted(node.verbs.items())
        ],
    )
    _section(
        out,
        [
            Column("collection"),
            Column("shard"),
            Column("rows", align="right"),
            Column("data version", align="right"),
            Column("embedder"),
        ],
        [
            [held.name, held.shard, str(held.rows), str(held.data_version), held.fingerprint]
            for held in node.collections
        ],
    )
    _section(
        out,
        [Column("action"), Column("built in"), Column("idempotent"), Column("description")],
        [
            [
                action.name,
                "yes" if action.builtin else "no",
                "yes" if action.idempotent else "no",
                action.description,
            ]
            for action in node.actions
        ],
    )


def _section(out: Output, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    if rows:
        out.line()
        out.table(columns, rows)


def _compact(metadata: Mapping[str, Any]) -> str:
    import msgspec

    return msgspec.json.encode(plain(metadata)).decode() if metadata else ""
