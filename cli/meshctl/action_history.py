"""`meshctl actions history` and `show`: what was run, and all about one of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from cli import connection
from cli.meshctl import arguments, session
from cli.meshctl.action_outcome import compact, error_text, is_under_way
from cli.meshctl.session import Session
from cli.output import NOTHING, STATE_STYLES, Column, Output, iso, now_ms, number, plain, printable
from mesh.types import ActionState

if TYPE_CHECKING:
    from mesh import MeshClient, messages

_COLUMNS = (
    Column("time"),
    Column("id"),
    Column("node"),
    Column("action"),
    Column("state", styles=STATE_STYLES),
    Column("caller"),
    Column("duration ms", align="right"),
)
_WIDTHS = (20, 36, 12, 12, 11, 12, 0)
"""Of lines that come one by one."""
_ATTEMPTS = (
    Column("attempt", align="right"),
    Column("state", styles=STATE_STYLES),
    Column("accepted"),
    Column("ended"),
    Column("duration ms", align="right"),
    Column("error"),
)


class _Filters(TypedDict):
    """Which actions."""

    action_id: str
    node: str
    action: str
    caller: str
    state: ActionState | None
    since: int
    until: int


def history(
    context: typer.Context,
    *,
    node: Annotated[str, typer.Option(help="Only on this node.")] = "",
    action: Annotated[str, typer.Option(help="Only this action.")] = "",
    caller: Annotated[str, typer.Option(help="Only of this caller.")] = "",
    state: Annotated[ActionState | None, typer.Option(help="Only in this state.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Not older than 90s, 5m, 1h, 2d, or an ISO date or time.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Older than that; written alike.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most to show.")] = 50,
    offset: Annotated[int, typer.Option(min=0, help="Pass over the newest this many.")] = 0,
    id_: Annotated[str, typer.Option("--id", help="This one action.")] = "",
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what happens, until Ctrl-C.")
    ] = False,
) -> None:
    """What was run, newest first."""
    run = session.of(context)
    now = now_ms()
    start = 0 if since is None else arguments.since(since, now)
    end = 0 if until is None else arguments.since(until, now, "--until")
    if end and end <= start:
        raise typer.BadParameter("ends before --since begins", param_hint="--until")
    if follow and (offset or until is not None):
        name = "--offset" if offset else "--until"
        raise typer.BadParameter("not together with --follow", param_hint=name)
    wanted = _Filters(
        action_id=id_,
        node=node,
        action=action,
        caller=caller,
        state=state,
        since=start,
        until=end,
    )
    if follow:
        _follow(run, wanted, limit)
        return
    page = run.ask(lambda client: client.history(**wanted, limit=limit, offset=offset))
    if run.out.as_json:
        run.out.json(page)
        return
    if not page.actions:
        run.out.note("no actions match")
        return
    run.out.table(_COLUMNS, [_cells(record, run.out.when(record.at)) for record in page.actions])
    if id_:
        for record in page.actions:
            _what_went_in_and_came_out(run.out, record)
    elif page.total > offset + len(page.actions):
        run.out.note(f"{len(page.actions)} of {page.total}; --offset shows more")


def _cells(record: messages.HistoryRecord, when: str) -> list[str]:
    return [
        when,
        record.id,
        record.node,
        record.action,
        record.state.value,
        record.caller,
        number(record.duration_ms),
    ]


# -- following -------------------------------------------------------------------------------------


def _follow(run: Session, wanted: _Filters, limit: int) -> None:
    try:
        run.run(lambda client: _lines(client, run.out, wanted, limit))
    except KeyboardInterrupt:
        return  # the way a person ends it


async def _lines(client: MeshClient, out: Output, wanted: _Filters, limit: int) -> None:
    page = await connection.ask_master(client.history(**wanted, limit=limit))
    if not out.as_json:
        out.line(_line([column.title.upper() for column in _COLUMNS]))
    for record in reversed(page.actions):
        _say(out, record)
    async for record in client.follow_actions(**wanted, after=page.sequence):
        _say(out, record)


def _say(out: Output, record: messages.HistoryRecord) -> None:
    import msgspec

    if out.as_json:
        out.line(msgspec.json.encode(plain(record)).decode())
    else:
        out.line(_line(_cells(record, iso(record.at))))
    out.stdout.flush()


def _line(cells: Sequence[str]) -> str:
    texts = (printable(cell) or NOTHING for cell in cells)
    return "  ".join(text.ljust(width) for text, width in zip(texts, _WIDTHS, strict=True)).rstrip()


# -- one action ------------------------------------------------------------------------------------


def show(
    context: typer.Context,
    *,
    id_: Annotated[str, typer.Argument(help="Of an action or a fan-out.", metavar="ID")],
) -> None:
    """All about an action: parameters, result or error, and every attempt, on each of its nodes."""
    run = session.of(context)
    told = run.ask(lambda client: client.action(id_))
    if run.out.as_json:
        run.out.json(told)
        return
    if len(told.stories) > 1:
        records = [story.action for story in told.stories]
        run.out.table(_COLUMNS, [_cells(record, run.out.when(record.at)) for record in records])
    for number_, story in enumerate(told.stories):
        if number_ or len(told.stories) > 1:
            run.out.line()
        _show(run.out, story)


def _show(out: Output, story: messages.ActionStory) -> None:
    record = story.action
    over = not is_under_way(record)
    out.fields(
        [
            ("id", record.id),
            ("action", record.action),
            ("node", record.node),
            ("caller", record.caller),
            ("state", record.state.value),
            ("mode", record.mode),
            ("accepted", iso(record.accepted_at) if record.accepted_at else NOTHING),
            ("ended", iso(record.at) if over else NOTHING),
            ("duration ms", number(record.duration_ms)),
        ]
    )
    _what_went_in_and_came_out(out, record)
    if story.attempts:
        out.line()
        out.table(_ATTEMPTS, [_attempt(attempt) for attempt in story.attempts])


def _attempt(record: messages.HistoryRecord) -> list[str]:
    over = not is_under_way(record)
    return [
        str(record.attempt),
        record.state.value,
        iso(record.accepted_at) if record.accepted_at else NOTHING,
        iso(record.at) if over else NOTHING,
        number(record.duration_ms),
        error_text(record.error),
    ]


def _what_went_in_and_came_out(out: Output, record: messages.HistoryRecord) -> None:
    out.line(f"params  {NOTHING if record.params is None else compact(record.params)}")
    if record.result is not None:
        out.line(f"result  {compact(record.result)}")
    if record.error is not None:
        out.line(f"error   {error_text(record.error)}")
