"""`meshctl nodes stats`: how many nodes there are, and how the calls to them go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

from cli.meshctl import session
from cli.output import Column, Output, number

if TYPE_CHECKING:
    from mesh import messages

_FIGURES = (
    "calls",
    "failures",
    "per s",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "retried",
    "hedged",
)


def stats(context: typer.Context) -> None:
    """How many nodes there are, how they are, and how all calls of the last minute went."""
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
            ("breakers", _breakers(answer.breakers)),
            ("callers", str(answer.callers)),
        ]
    )
    if answer.verbs:
        run.out.line()
        _show_verbs(run.out, answer.verbs)
    if not answer.total:
        run.out.warn("no nodes are registered yet")
    run.out.warn_if_blind(blind=answer.blind)


def _show_verbs(out: Output, verbs: Mapping[str, messages.VerbFigures]) -> None:
    out.table(
        [Column("verb"), *(Column(name, align="right") for name in _FIGURES)],
        [
            [
                verb,
                str(seen.calls),
                str(seen.failures),
                number(seen.per_s),
                number(seen.p50_ms or None),
                number(seen.p95_ms or None),
                number(seen.p99_ms or None),
                str(seen.retried),
                str(seen.hedged),
            ]
            for verb, seen in sorted(verbs.items())
        ],
    )


def _counts(by: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(by.items()))


def _breakers(by: Mapping[str, int]) -> str:
    return f"open {by.get('open', 0)}, half open {by.get('half_open', 0)}"
