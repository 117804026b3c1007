"""`meshctl nodes ping`: is it there, and how far away?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cli import connection
from cli.meshctl import session
from cli.meshctl.failures import ExitCode, exit_code
from cli.output import HEALTH_STYLES, NOTHING, STATUS_STYLES, Column, number, printable
from mesh.errors import InvalidError, MeshError, NotFoundError

if TYPE_CHECKING:
    from mesh import MeshClient

_AT_ONCE = 32
_COLUMNS = (
    Column("node"),
    Column("status", styles=STATUS_STYLES | HEALTH_STYLES),
    Column("result", styles={"ok": "green"}),
    Column("round trip ms", align="right"),
)


@dataclass(frozen=True, kw_only=True)
class Pinged:
    """How one node's ping went; `round_trip_ms` is None where no answer came."""

    node: str
    status: str
    ok: bool
    result: str
    round_trip_ms: float | None
    shard: str | None = None
    """Where a shard was asked for, not a node: `node` is then who answered."""


def ping(
    context: typer.Context,
    *,
    nodes: Annotated[
        list[str] | None, typer.Argument(help="Slugs or ids.", metavar="[NODE]...")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every registered node.")] = False,
    shard: Annotated[
        list[str] | None,
        typer.Option(help="Whichever replica of this shard is chosen; repeat it."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.01, max=60, help="Seconds to wait for an answer.")
    ] = 1.0,
) -> None:
    """Ping nodes over the bus; exit code 1 if any of them does not answer."""
    if bool(nodes) + every + bool(shard) != 1:
        raise typer.BadParameter("name nodes, or say --all, or --shard", param_hint="NODE")
    run = session.of(context)

    async def work(client: MeshClient) -> list[Pinged]:
        if shard:
            return [await _ping_shard(client, name, timeout) for name in dict.fromkeys(shard)]
        if every:
            listed = await connection.ask_master(client.nodes())
            known = {node.slug: node.status.value for node in listed.nodes}
            return await ping_all(client, known, known, timeout_s=timeout)
        named = [await connection.slug_of(client, node) for node in nodes or []]
        known = {slug: route.status.value for slug, route in client.routes.nodes.items()}
        return await ping_all(client, named, known, timeout_s=timeout)

    results = run.run(work)
    if run.out.as_json:
        run.out.json({"nodes": [vars(result) for result in results]})
    elif results:
        columns = (Column("shard"), *_COLUMNS) if shard else _COLUMNS
        run.out.table(columns, [_row(result) for result in results])
    else:
        run.out.warn("no nodes are registered yet")
    if not all(result.ok for result in results):
        raise typer.Exit(ExitCode.FAILED)


async def ping_all(
    client: MeshClient, nodes: Iterable[str], statuses: dict[str, str], *, timeout_s: float
) -> list[Pinged]:
    """Ping many at once, in the order given.

    Raises:
        MeshError: What concerns us and not one node: denied, broker away, a name that is none.
    """
    import asyncio

    places = asyncio.Semaphore(_AT_ONCE)

    async def one(node: str) -> Pinged:
        async with places:
            return await _ping(client, node, statuses.get(node, NOTHING), timeout_s)

    return list(await asyncio.gather(*(one(node) for node in dict.fromkeys(nodes))))


async def _ping(client: MeshClient, node: str, status: str, timeout_s: float) -> Pinged:
    try:
        _, round_trip_ms = await client.ping(node, timeout_s=timeout_s)
    except InvalidError:
        raise
    except MeshError as error:
        if exit_code(error) in {ExitCode.NOT_REACHABLE, ExitCode.DENIED}:
            raise
        reason = printable(str(error))
        return Pinged(node=node, status=status, ok=False, result=reason, round_trip_ms=None)
    return Pinged(
        node=node, status=status, ok=True, result="ok", round_trip_ms=round(round_trip_ms, 3)
    )


async def _ping_shard(client: MeshClient, shard: str, timeout_s: float) -> Pinged:
    """Raises:
    MeshError: What concerns us and no replica; a shard that there is not.
    """
    try:
        answer, round_trip_ms = await client.ping_shard(shard, timeout_s=timeout_s)
    except (InvalidError, NotFoundError):
        raise
    except MeshError as error:
        if exit_code(error) in {ExitCode.NOT_REACHABLE, ExitCode.DENIED}:
            raise
        reason = printable(str(error))
        return Pinged(
            node="", status=NOTHING, ok=False, result=reason, round_trip_ms=None, shard=shard
        )
    route = client.routes.nodes.get(answer.node)
    return Pinged(
        node=answer.node,
        status=route.status.value if route else NOTHING,
        ok=True,
        result="ok",
        round_trip_ms=round(round_trip_ms, 3),
        shard=shard,
    )


def _row(result: Pinged) -> Sequence[str]:
    cells = [result.node, result.status, result.result, number(result.round_trip_ms, 2)]
    return cells if result.shard is None else [result.shard, *cells]
