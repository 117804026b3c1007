"""`meshctl breakers`: what keeps calls from nodes that fail them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cli.meshctl import session
from cli.meshctl.registration import NODE_ARGUMENT
from cli.output import BREAKER_STYLES, NOTHING, Column, Output, iso, now_ms
from mesh.types import BreakerState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesh import messages

app = typer.Typer()

_COLUMNS = (
    Column("node"),
    Column("verb"),
    Column("state", styles=BREAKER_STYLES),
    Column("calls", align="right"),
    Column("failures", align="right"),
    Column("callers", align="right"),
    Column("open at", align="right"),
    Column("probes begin", align="right"),
    Column("reason"),
)


@app.command("list")
def list_breakers(
    context: typer.Context,
    *,
    node: Annotated[str, typer.Option(help="Only of this node.")] = "",
) -> None:
    """Every breaker that calls went through lately, as all callers together see it."""
    run = session.of(context)
    answer = run.ask(lambda client: client.breakers(node or None))
    if run.out.as_json:
        run.out.json(answer)
    elif answer.breakers:
        table(run.out, answer.breakers)
    else:
        run.out.note("no calls were told of lately, so no breaker has anything to say")


@app.command("reset")
def reset(
    context: typer.Context,
    *,
    node: Annotated[str, NODE_ARGUMENT],
    verb: Annotated[
        str, typer.Option(help="Only this one: search, fetch, ping or act.ACTION.")
    ] = "",
) -> None:
    """Close a node's breakers, at every caller; they open again if calls go on to fail."""
    run = session.of(context)
    if verb:
        check_verb(verb)
    answer = run.ask(lambda client: client.reset_breakers(node, verb or None))
    if run.out.as_json:
        run.out.json(answer)
    elif found := [seen.verb for seen in answer.breakers if verb in {"", seen.verb}]:
        run.out.line(f"reset at {answer.breakers[0].node}: {', '.join(found)}")
    else:
        calls = f"calls of {verb}" if verb else "calls"
        run.out.line(f"reset; no {calls} to {node} were told of lately")


def check_verb(verb: str) -> None:
    """Refuse what no call could be of.

    Raises:
        typer.BadParameter
    """
    import msgspec

    from mesh import messages

    try:
        msgspec.convert(verb, messages.Verb)
    except msgspec.ValidationError as error:
        raise typer.BadParameter(
            f"{verb!r} is none of search, fetch, ping, act.ACTION", param_hint="--verb"
        ) from error


def table(out: Output, breakers: Sequence[messages.BreakerInfo]) -> None:
    """Breakers under headings."""
    out.table(
        _COLUMNS,
        [
            [
                found.node,
                found.verb,
                shown(found.state),
                str(found.calls),
                str(found.failures),
                str(found.callers),
                str(found.open_at),
                due(out, found.until),
                found.reason,
            ]
            for found in breakers
        ],
    )


def shown(state: BreakerState) -> str:
    """A state as a person reads it."""
    return state.value.replace("_", " ")


def due(out: Output, unix_ms: int) -> str:
    """A moment to come: relative on a terminal, ISO in a pipe."""
    if not unix_ms:
        return NOTHING
    if not out.terminal:
        return iso(unix_ms)
    left_s = (unix_ms - now_ms()) / 1000
    return f"in {left_s:.0f} s" if left_s > 0 else "now"


def summary(states: Mapping[str, BreakerState]) -> str:
    """Verbs whose breakers do not let everything through: `search open, fetch half open`."""
    return ", ".join(
        f"{verb} {shown(state)}"
        for verb, state in sorted(states.items())
        if state is not BreakerState.CLOSED
    )
