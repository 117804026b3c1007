"""`meshctl nodes monitor`: look at every node again and again, and help those that are not well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import connection
from cli.meshctl import recovery, session
from cli.meshctl.breakers import summary
from cli.meshctl.ping import Pinged, ping_all
from cli.meshctl.recovery import Recovery
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
from mesh.errors import MeshError
from mesh.types import BreakerState, Health, Status

if TYPE_CHECKING:
    from mesh import MeshClient, messages

_COLUMNS = (
    Column("node"),
    Column("type"),
    Column("status", styles=STATUS_STYLES),
    Column("health", styles=HEALTH_STYLES),
    Column("check", styles={"ok": "green"}),
    Column("round trip ms", align="right"),
    Column("failures", align="right"),
    Column("last ping", align="right"),
    Column("breakers"),
)


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one look at the mesh showed."""

    at: int
    nodes: Sequence[messages.NodeRecord]
    checks: Mapping[str, Pinged]
    breakers: Mapping[str, Mapping[str, BreakerState]]
    """By node and verb; those that are not closed."""
    blind: bool = False
    recoveries: list[Recovery] = field(default_factory=list)

    def ailing(self) -> list[messages.NodeRecord]:
        """Active nodes that are not healthy, did not answer, or that calls are kept from. One
        that an operator drains is left alone.
        """
        return [
            node
            for node in self.nodes
            if node.slug in self.checks
            and node.health is not Health.DRAINING
            and not (
                node.health is Health.HEALTHY
                and self.checks[node.slug].ok
                and BreakerState.OPEN not in self.breakers.get(node.slug, {}).values()
            )
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
            except MeshError as error:
                if once or not error.retryable:
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
            waiting = f"trying to recover in {recovery.WAIT_S:g} s: {names}"
            show(_COLUMNS, _rows(run.out, seen), [*_notes(seen), waiting])
        await asyncio.sleep(recovery.WAIT_S)
        attempts = (recovery.recover(client, node) for node in ailing)
        seen.recoveries.extend(await asyncio.gather(*attempts))
    if run.out.as_json:
        run.out.json(_as_json(seen))
    elif not ailing or run.out.terminal:
        show(_COLUMNS, _rows(run.out, seen), _notes(seen))
    else:
        show((), (), _outcomes(seen))


async def look(client: MeshClient) -> Round:
    """List all nodes with their breakers and ping the active ones."""
    listed = await connection.ask_master(client.nodes())
    found = await connection.ask_master(client.breakers())
    active = {node.slug: node.status.value for node in listed.nodes if node.status is Status.ACTIVE}
    checks = await ping_all(client, active, active, timeout_s=recovery.PING_TIMEOUT_S)
    return Round(
        at=now_ms(),
        nodes=listed.nodes,
        checks={check.node: check for check in checks},
        breakers=recovery.states(found),
        blind=listed.blind,
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
                summary(seen.breakers.get(node.slug, {})) or NOTHING,
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
                "breakers": seen.breakers.get(node.slug, {}),
            }
            for node in seen.nodes
        ],
        "recoveries": [vars(attempt) for attempt in seen.recoveries],
    }
