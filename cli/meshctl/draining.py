"""`meshctl nodes drain`, `nodes undrain`: take a node out of the rotation, and put it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from cli import connection
from cli.meshctl import session
from cli.meshctl.failures import ExitCode
from cli.meshctl.registration import NODE_ARGUMENT
from cli.output import Output
from mesh.errors import NotFoundError
from mesh.types import Health

if TYPE_CHECKING:
    from mesh import MeshClient, messages

LOOK_S = 0.25
SETTLED_S = 1.5
"""A node tells how much it does once a second: what is older was told before it began to drain."""


def drain(
    context: typer.Context,
    *,
    node: Annotated[str, NODE_ARGUMENT],
    wait: Annotated[
        float | None,
        typer.Option(min=0.1, max=86_400, help="Seconds to wait until nothing runs on it."),
    ] = None,
) -> None:
    """Give a node no new work, until it is undrained or started again; what runs goes on."""
    run = session.of(context)

    async def work(client: MeshClient) -> tuple[messages.NodeRecord, bool | None]:
        record = await connection.ask_master(client.drain_node(node))
        if not run.out.as_json:
            run.out.line(f"{record.slug} takes no new work any more")
            run.out.stdout.flush()
        if wait is None:
            return record, None
        with run.out.progress() as tell:
            return await _emptied(client, record, wait, tell)

    try:
        record, idle = run.run(work)
    except KeyboardInterrupt:
        run.out.note(f"not waited for any longer; it stays drained: `meshctl nodes undrain {node}`")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    if run.out.as_json:
        run.out.json({"node": record, "idle": idle})
    else:
        _say(run.out, record, idle)
    if idle is False:
        raise typer.Exit(ExitCode.FAILED)


async def _emptied(
    client: MeshClient,
    record: messages.NodeRecord,
    wait_s: float,
    tell: Callable[[str], None],
) -> tuple[messages.NodeRecord, bool]:
    """The node as it was seen last, and whether nothing runs on it."""
    import asyncio

    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        tell(f"{record.slug}: {_running(record)}")
        waited_s = loop.time() - began
        if _stopped(record):
            return record, True
        if waited_s >= SETTLED_S:
            if record.health is not Health.DRAINING:
                return record, False
            if not record.in_flight + record.queued:
                return record, True
        if waited_s >= wait_s:
            return record, False
        await asyncio.sleep(LOOK_S)
        found = await connection.ask_master(client.nodes(node=record.slug))
        if not found.nodes:
            raise NotFoundError(f"node {record.slug!r} was removed meanwhile")
        record = found.nodes[0]


def _say(out: Output, record: messages.NodeRecord, idle: bool | None) -> None:
    if idle is None:
        out.line(f"{_running(record)}; see `meshctl nodes show {record.slug}`, or --wait SECONDS")
    elif _stopped(record):
        out.line("it has stopped, with nothing running on it any more")
    elif record.health is Health.UNREACHABLE:
        why = record.reason or "unreachable"
        out.warn(f"it is gone ({why}): nobody can say whether anything still runs on it")
    elif idle:
        out.line("nothing runs on it: it can be stopped")
    elif record.health is not Health.DRAINING:
        out.warn(f"it is {record.health.value} again: somebody undrained or restarted it")
    else:
        out.warn(f"{_running(record)}; it stays drained")


def _stopped(record: messages.NodeRecord) -> bool:
    """Whether it has said goodbye, which it does when nothing runs any more."""
    return record.health is Health.UNREACHABLE and record.reason == "stopped"


def _running(record: messages.NodeRecord) -> str:
    waiting = f", {record.queued} waiting" if record.queued else ""
    return f"{record.in_flight} running{waiting}"


def undrain(context: typer.Context, *, node: Annotated[str, NODE_ARGUMENT]) -> None:
    """Let a drained node take work again."""
    run = session.of(context)
    record = run.ask(lambda client: client.undrain_node(node))
    if run.out.as_json:
        run.out.json({"node": record})
    else:
        run.out.line(f"{record.slug} takes work again; it is {record.health.value}")
