"""`meshctl nodes monitor`: look at every node again and again, and help those that are not well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import connection
from cli.meshctl import session
from cli.meshctl.ping import Pinged, ping_all
from cli.meshctl.session import Session
from cli.output import (
    HEALTH_STYLES,
    NOTHING,
    STATUS_STYLES,
    Column,
    Output,
    Show,
    iso,
    now_ms,
    number,
)
from mesh.errors import DisconnectedError, MeshError
from mesh.types import Health, Status

if TYPE_CHECKING:
    from mesh import MeshClient, messages

RECOVERY_WAIT_S = 5.0
"""What a node gets to come back by itself before it is tried again."""

_PING_TIMEOUT_S = 1.0
_COLUMNS = (
    Column("node"),
    Column("type"),
    Column("status", styles=STATUS_STYLES),
    Column("health", styles=HEALTH_STYLES),
    Column("check", styles={"ok": "green"}),
    Column("round trip ms", align="right"),
    Column("failures", align="right"),
    Column("last ping", align="right"),
)


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """One attempt to bring a node back."""

    node: str
    recovered: bool
    message: str


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one look at the mesh showed."""

    at: int
    nodes: Sequence[messages.NodeRecord]
    checks: Mapping[str, Pinged]
    blind: bool = False
    recoveries: list[Recovery] = field(default_factory=list)

    def ailing(self) -> list[messages.NodeRecord]:
        """Active nodes that are not healthy, or did not answer."""
        return [
            node
            for node in self.nodes
            if node.slug in self.checks
            and not (node.health is Health.HEALTHY and self.checks[node.slug].ok)
        ]


def monitor(
    context: typer.Context,
    *,
    interval: Annotated[
        float, typer.Option(min=0.1, max=86_400, help="Seconds between two rounds.")
    ] = 60.0,
    auto_recover: Annotated[
        bool, typer.Option("--auto-recover", help="Try to bring back nodes that are not well.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="One round, then exit 0.")] = False,
) -> None:
    """Check every active node each interval, until Ctrl-C."""
    import asyncio

    run = session.of(context)

    async def rounds(client: MeshClient, show: Show) -> None:
        while True:
            try:
                await _round(client, run, show, auto_recover=auto_recover)
            except DisconnectedError as error:
                if once:
                    raise
                run.out.warn(f"{error}; trying again")  # a monitor outlives what it watches
            if once:
                return
            await asyncio.sleep(interval)

    try:
        with run.out.live() as show:
            run.run(lambda client: rounds(client, show))
    except KeyboardInterrupt:
        return  # the way a person ends it


async def _round(client: MeshClient, run: Session, show: Show, *, auto_recover: bool) -> None:
    import asyncio

    seen = await look(client)
    if not seen.nodes:
        run.out.warn("no nodes are registered yet")
    ailing = seen.ailing() if auto_recover else []
    if ailing:
        if not run.out.as_json:
            names = ", ".join(node.slug for node in ailing)
            waiting = f"trying to recover in {RECOVERY_WAIT_S:g} s: {names}"
            show(_COLUMNS, _rows(run.out, seen), [*_notes(seen), waiting])
        await asyncio.sleep(RECOVERY_WAIT_S)
        seen.recoveries.extend(await asyncio.gather(*(recover(client, node) for node in ailing)))
    if run.out.as_json:
        run.out.json(_as_json(seen))
    elif not ailing or run.out.terminal:
        show(_COLUMNS, _rows(run.out, seen), _notes(seen))
    else:
        show((), (), _outcomes(seen))


async def look(client: MeshClient) -> Round:
    """List all nodes and ping the active ones."""
    listed = await connection.ask_master(client.nodes())
    active = {node.slug: node.status.value for node in listed.nodes if node.status is Status.ACTIVE}
    checks = await ping_all(client, active, active, timeout_s=_PING_TIMEOUT_S)
    return Round(
        at=now_ms(),
        nodes=listed.nodes,
        checks={check.node: check for check in checks},
        blind=listed.blind,
    )


async def recover(client: MeshClient, node: messages.NodeRecord) -> Recovery:
    """Ping a node again and have the master probe it, so that it is routed to as soon as it is
    well.
    """
    (again,) = await ping_all(
        client, [node.slug], {node.slug: node.status.value}, timeout_s=_PING_TIMEOUT_S
    )
    try:
        probed = await connection.ask_master(client.probe_node(node.slug))
    except MeshError as error:
        return Recovery(node=node.slug, recovered=False, message=f"the probe failed: {error}")
    if again.ok and probed.health is Health.HEALTHY:
        return Recovery(node=node.slug, recovered=True, message="healthy again")
    reason = f": {probed.reason}" if probed.reason else ""
    answered = "answers" if again.ok else "does not answer"
    return Recovery(
        node=node.slug, recovered=False, message=f"{answered}, {probed.health.value}{reason}"
    )


def _rows(out: Output, seen: Round) -> list[list[str]]:
    rows = []
    for node in seen.nodes:
        check = seen.checks.get(node.slug)
        rows.append(
            [
                node.slug,
                node.type,
                node.status.value,
                node.health.value,
                check.result if check else NOTHING,
                number(check.round_trip_ms if check else None, 2),
                str(node.failures),
                out.when(node.last_ping_at),
            ]
        )
    return rows


def _notes(seen: Round) -> list[str]:
    healthy = sum(node.health is Health.HEALTHY for node in seen.nodes)
    notes = [f"{iso(seen.at)}: {len(seen.nodes)} nodes, {healthy} healthy"]
    if seen.blind:
        notes.append("the master cannot see the broker right now: health is what it last was")
    return notes + _outcomes(seen)


def _outcomes(seen: Round) -> list[str]:
    return [
        f"{attempt.node}: {'recovered' if attempt.recovered else 'not recovered'}"
        f" ({attempt.message})"
        for attempt in seen.recoveries
    ]


def _as_json(seen: Round) -> dict[str, Any]:
    return {
        "at": seen.at,
        "blind": seen.blind,
        "nodes": [
            {
                "node": node.slug,
                "id": node.id,
                "type": node.type,
                "status": node.status,
                "health": node.health,
                "ok": check.ok if (check := seen.checks.get(node.slug)) else None,
                "result": check.result if check else None,
                "round_trip_ms": check.round_trip_ms if check else None,
                "failures": node.failures,
                "last_ping_at": node.last_ping_at,
            }
            for node in seen.nodes
        ],
        "recoveries": [vars(attempt) for attempt in seen.recoveries],
    }
