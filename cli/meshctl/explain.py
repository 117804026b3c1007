"""`meshctl explain`: why a request went where it went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from cli import connection
from cli.meshctl import session
from cli.output import Column, Output, now_ms, number, printable
from mesh.errors import MeshError, NotFoundError

if TYPE_CHECKING:
    from mesh import MeshClient, messages

LOOK_AGAIN_S = 0.3
_TRIES = 6
_TOLD_WITHIN_MS = 1000
"""Callers tell of their calls twice a second; other parts of the same request may be on the way."""

_COLUMNS = (
    Column("ms", align="right"),
    Column("node"),
    Column(
        "what",
        styles={
            "answered": "green",
            "failed": "red",
            "refused": "red",
            "skipped": "yellow",
            "retried": "yellow",
            "hedged": "cyan",
            "cancelled": "dim",
        },
    ),
    Column("why"),
)


class NotTracedError(MeshError):
    """The masters keep no trace of that request."""

    code: ClassVar[int] = 404
    kind: ClassVar[str] = "not_traced"


def explain(
    context: typer.Context,
    *,
    request: Annotated[
        str, typer.Argument(help="Id of a search or action.", metavar="ID", show_default=False)
    ],
) -> None:
    """Why each node was chosen, skipped, retried or hedged for one request."""
    run = session.of(context)
    answer = run.run(lambda client: _found(client, request))
    if run.out.as_json:
        run.out.json(answer)
        return
    for number_, call in enumerate(answer.calls):
        if number_:
            run.out.line()
        _show(run.out, call)


async def _found(client: MeshClient, request: str) -> messages.Explanation:
    """What the masters know, once what may still be on the way has had time to come.

    Raises:
        NotTracedError
    """
    import asyncio

    for tries_left in reversed(range(_TRIES)):
        try:
            answer = await connection.ask_master(client.explain(request))
        except NotFoundError:
            answer = None
        if answer is not None and answer.calls:
            ended = max(call.at + call.took_ms for call in answer.calls)
            if not tries_left or now_ms() - ended > _TOLD_WITHIN_MS:
                return answer
        if tries_left:
            await asyncio.sleep(LOOK_AGAIN_S)
    raise NotTracedError(
        f"nothing is known of a request {request[:80]!r}: callers tell of their calls within a"
        " second, and masters keep the last 10,000 since they started; under load only what was"
        " retried, hedged, refused or failed is told"
    )


def _show(out: Output, call: messages.CallTrace) -> None:
    outcome = "answered" if call.outcome == "ok" else call.outcome.replace("_", " ")
    by = f" for {call.caller}" if call.caller else ""
    out.line(
        printable(f"{call.id}: {call.verb}{by}, {out.when(call.at)}: {outcome}")
        + f" after {number(call.took_ms)} ms"
    )
    if call.steps:
        steps = sorted(call.steps, key=lambda step: step.at_ms)
        out.table(
            _COLUMNS, [[number(step.at_ms), step.node, step.what, step.why] for step in steps]
        )
