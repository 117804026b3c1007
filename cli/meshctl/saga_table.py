"""How a saga is shown: a line above its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.output import NOTHING, Column, Output, number, printable

if TYPE_CHECKING:
    from mesh import messages

STATES = {
    "running": "cyan",
    "waiting": "dim",
    "compensating": "yellow",
    "paused": "yellow",
    "undoing": "yellow",
    "uncertain": "yellow",
    "succeeded": "green",
    "compensated": "yellow",
    "undone": "yellow",
    "failed": "red",
    "not_undone": "red",
}
STEPS = (
    Column("step"),
    Column("action"),
    Column("node"),
    Column("state", styles=STATES),
    Column("attempt", align="right"),
    Column("seconds", align="right"),
    Column("undone by"),
    Column("error"),
)


def rows(saga: messages.Saga) -> list[list[str]]:
    """One for each step."""
    return [
        [
            step.name + (" (final)" if step.final else ""),
            step.call.action,
            step.call.node,
            step.state.value,
            str(step.attempt or NOTHING),
            _took(step),
            step.undo.action if step.undo else NOTHING,
            _error(step),
        ]
        for step in saga.steps
    ]


def summary(saga: messages.Saga) -> list[str]:
    """What is to be said below the steps."""
    lines = [f"saga {saga.id}: {saga.state.value}"]
    if saga.reason:
        lines.append(saga.reason)
    if saga.state.value == "paused":
        lines.append(
            f"whether it took effect is not known: meshctl sagas resume {saga.id} does it again,"
            f" meshctl sagas abort {saga.id} undoes all"
        )
    return lines


def show(out: Output, saga: messages.Saga) -> None:
    """All of it."""
    out.fields(
        [
            ("id", saga.id),
            ("name", saga.name),
            ("state", saga.state.value),
            ("caller", saga.caller),
            ("started", out.when(saga.started_at)),
            ("ended", out.when(saga.ended_at)),
            ("reason", saga.reason),
        ]
    )
    out.line()
    out.table(STEPS, rows(saga))
    for step in saga.steps:
        if step.result is not None:
            import msgspec

            out.line(f"result of {step.name}  {msgspec.json.encode(step.result).decode()}")
    if saga.state.value == "paused":
        out.note(summary(saga)[-1])


def _took(step: messages.SagaStep) -> str:
    if not step.began_at or not step.ended_at:
        return NOTHING
    return number((step.ended_at - step.began_at) / 1000, 2)


def _error(step: messages.SagaStep) -> str:
    error = step.undo_error or step.error
    return NOTHING if error is None else printable(error.message)
