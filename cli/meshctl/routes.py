"""`meshctl routes`: whom callers ask now, and whom not, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.meshctl import breakers, session
from cli.output import HEALTH_STYLES, NOTHING, STATUS_STYLES, Column, Show, number, plain

if TYPE_CHECKING:
    from mesh import MeshClient, messages
    from mesh.types import BreakerState

_LOOK_S = 0.5
"""Between two looks at the table in memory: they cost nobody else anything."""

_COLUMNS = (
    Column("node"),
    Column("status", styles=STATUS_STYLES),
    Column("health", styles=HEALTH_STYLES),
    Column("asked", styles={"yes": "green"}),
    Column("weight", align="right"),
    Column("busy", align="right"),
    Column("search ms", align="right"),
    Column("shards"),
    Column("breakers"),
)


def routes(
    context: typer.Context,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C.")] = False,
) -> None:
    """The route table that callers go by: who is asked now, and who is not, and why."""
    import asyncio

    run = session.of(context)

    async def rounds(client: MeshClient, show: Show) -> None:
        seen = None
        while True:
            table = client.routes
            if table.order != seen or run.out.terminal:
                seen = table.order
                if run.out.as_json:
                    run.out.json(_as_json(table))
                else:
                    show(_COLUMNS, _rows(table), _notes(table))
            if not watch:
                return
            await asyncio.sleep(_LOOK_S)

    try:
        with run.out.live() as show:
            run.run(lambda client: rounds(client, show))
    except KeyboardInterrupt:
        return  # the only way to end it is a good end


def _rows(table: Any) -> list[list[str]]:
    return [
        [
            node.slug,
            node.status.value,
            node.health.value,
            f"no: {why}" if (why := table.refusal(node.slug)) else "yes",
            f"{node.weight:g}",
            str(node.load.busy),
            number(node.load.search_ms or None),
            ", ".join(_shards(node)) or NOTHING,
            breakers.summary(_states(node)) or NOTHING,
        ]
        for node in table.nodes.values()
    ]


def _notes(table: Any) -> list[str]:
    if not table.epoch:
        words = "no master answered: this is what the nodes say of themselves"
    else:
        words = f"route table {table.epoch}.{table.version}"
    asked = sum(not table.refusal(slug) for slug in table.nodes)
    notes = [f"{words}: {len(table.nodes)} nodes, {asked} asked"]
    if table.blind:
        notes.append("the master cannot see the broker right now: health is what it last was")
    return notes


def _as_json(table: Any) -> dict[str, Any]:
    return {
        "epoch": table.epoch,
        "version": table.version,
        "blind": table.blind,
        "nodes": [
            {
                **plain(node),
                "shards": _shards(node),
                "asked": not (why := table.refusal(node.slug)),
                "why_not": why,
            }
            for node in table.nodes.values()
        ],
    }


def _shards(node: messages.RouteNode) -> list[str]:
    return sorted({held.shard for held in node.collections})


def _states(node: messages.RouteNode) -> dict[str, BreakerState]:
    return {verb: word.state for verb, word in node.breakers.items()}
