"""`meshctl nodes show`: everything about one node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import connection
from cli.meshctl import breakers, registration, session
from cli.output import NOTHING, Column, Output, number, plain
from mesh.errors import NotFoundError

if TYPE_CHECKING:
    from mesh import MeshClient, messages


def show(context: typer.Context, node: Annotated[str, registration.NODE_ARGUMENT]) -> None:
    """One node's health report."""
    run = session.of(context)

    async def work(client: MeshClient) -> tuple[messages.NodeList, messages.BreakerList]:
        listed = await connection.ask_master(client.nodes(node=node))
        if not listed.nodes:
            raise NotFoundError(f"no node {node!r} is registered; `meshctl nodes list` shows them")
        return listed, await connection.ask_master(client.breakers(listed.nodes[0].slug))

    listed, found = run.run(work)
    record = listed.nodes[0]
    if run.out.as_json:
        run.out.json({"node": record, "breakers": found.breakers})
        return
    _report(run.out, record)
    if found.breakers:
        run.out.line()
        breakers.table(run.out, found.breakers)
    run.out.warn_if_blind(blind=listed.blind)


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
            *(
                Column(name, align="right")
                for name in ("calls", "errors", "EWMA ms", "p50 ms", "p95 ms", "p99 ms")
            ),
        ],
        [
            [
                verb,
                str(seen.count),
                str(seen.errors),
                number(seen.ewma_ms),
                number(seen.p50_ms),
                number(seen.p95_ms),
                number(seen.p99_ms),
            ]
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
