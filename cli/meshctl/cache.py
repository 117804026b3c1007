"""`meshctl cache`: answers that the gateways keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cli.meshctl import session
from cli.output import NOTHING, Column

if TYPE_CHECKING:
    from mesh import messages

app = typer.Typer()

_COLUMNS = (
    Column("gateway"),
    Column("answers", align="right"),
    Column("MB", align="right"),
    Column("of", align="right"),
    Column("hits", align="right"),
    Column("misses", align="right"),
    Column("hit rate", align="right"),
    Column("shared", align="right"),
    Column("evicted", align="right"),
)
_MB = 1024 * 1024


@app.command("stats")
def stats(context: typer.Context) -> None:
    """What each gateway keeps of answers, and how often that was of use since it started."""
    run = session.of(context)
    answer = run.run(lambda client: client.caches())
    if run.out.as_json:
        run.out.json(answer)
    elif answer.gateways:
        run.out.table(_COLUMNS, [_row(report) for report in answer.gateways])
    else:
        run.out.note("no gateway answers")


@app.command("clear")
def clear(context: typer.Context) -> None:
    """Have every gateway forget the answers it keeps."""
    run = session.of(context)
    answer = run.run(lambda client: client.caches(clear=True))
    if run.out.as_json:
        run.out.json(answer)
    elif not answer.gateways:
        run.out.note("no gateway answers")
    for report in () if run.out.as_json else answer.gateways:
        run.out.line(f"{report.gateway}: {report.cleared} forgotten")


def _row(report: messages.CacheReport) -> list[str]:
    seen = report.stats
    rate = NOTHING if seen.hit_rate is None else f"{seen.hit_rate:.1%}"
    return [
        report.gateway,
        str(seen.entries),
        f"{seen.bytes / _MB:.1f}",
        f"{seen.max_bytes / _MB:.0f}" if seen.max_bytes else "off",
        str(seen.hits),
        str(seen.misses),
        rate,
        str(seen.shared),
        str(seen.evictions),
    ]
