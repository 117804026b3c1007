"""`meshctl audit`: who let whom in, and who changed what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cli import connection
from cli.meshctl import arguments, session
from cli.meshctl.session import Session
from cli.output import NOTHING, Column, Output, iso, now_ms, plain, printable
from mesh.errors import DisconnectedError, NoMasterError

if TYPE_CHECKING:
    from mesh import MeshClient, messages

POLL_S = 1.0
_OVERLAP_MS = 10_000
"""A master may write an entry this much later than another one wrote a newer: what `--follow` asks
for begins that far back, and what was shown is not shown again.
"""
_PAGE = 1000
_COLUMNS = (
    Column("time"),
    Column("kind"),
    Column("actor"),
    Column("subject"),
    Column("from"),
    Column("details"),
)
_WIDTHS = (20, 20, 24, 24, 15, 0)


def audit(
    context: typer.Context,
    *,
    kind: Annotated[str, typer.Option(help="Only these: node-joined, login-refused ….")] = "",
    actor: Annotated[str, typer.Option(help="Only what this one did.")] = "",
    subject: Annotated[
        str, typer.Option(help="Only what was done to this node, user or token.")
    ] = "",
    since: Annotated[
        str | None, typer.Option(help="Not older than 90s, 5m, 1h, 2d, or an ISO date or time.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most to show.")] = 50,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what happens, until Ctrl-C.")
    ] = False,
) -> None:
    """Joins, logins, keys, tokens and what operators changed, newest first."""
    run = session.of(context)
    start = 0 if since is None else arguments.since(since, now_ms())
    wanted = _Wanted(kind=kind, actor=actor, subject=subject, since=start)
    if follow:
        _follow(run, wanted, limit)
        return
    page = run.ask(lambda client: wanted.ask(client, limit=limit))
    if run.out.as_json:
        run.out.json(page)
    elif page.entries:
        run.out.table(_COLUMNS, [_cells(entry) for entry in page.entries])
        if page.total > len(page.entries):
            run.out.note(f"{len(page.entries)} of {page.total}; --limit shows more")
    else:
        run.out.note("no entries match")


class _Wanted:
    """Which entries."""

    def __init__(self, *, kind: str, actor: str, subject: str, since: int) -> None:
        self._kind = kind
        self._actor = actor
        self._subject = subject
        self._since = since

    async def ask(self, client: MeshClient, *, limit: int, after: str = "") -> messages.AuditPage:
        return await client.access.audit(
            kind=self._kind,
            actor=self._actor,
            subject=self._subject,
            since=self._since,
            after=after,
            limit=limit,
        )


def _follow(run: Session, wanted: _Wanted, limit: int) -> None:
    try:
        run.run(lambda client: _rounds(client, run.out, wanted, limit))
    except KeyboardInterrupt:
        return  # the way a person ends it


async def _rounds(client: MeshClient, out: Output, wanted: _Wanted, limit: int) -> None:
    import asyncio

    first = await connection.ask_master(wanted.ask(client, limit=limit))
    shown = _Shown()
    if not out.as_json:
        out.line(_line([column.title.upper() for column in _COLUMNS]))
    _show(out, shown.fresh(first.entries))
    while True:
        await asyncio.sleep(POLL_S)
        try:
            await _catch_up(client, out, wanted, shown)
        except (DisconnectedError, NoMasterError) as error:
            out.warn(f"{error}; trying again")  # who follows waits for the mesh


async def _catch_up(client: MeshClient, out: Output, wanted: _Wanted, shown: _Shown) -> None:
    after = shown.after
    while True:
        page = await connection.ask_master(wanted.ask(client, limit=_PAGE, after=after))
        _show(out, shown.fresh(page.entries))
        if not after or len(page.entries) < _PAGE:
            return
        after = page.entries[-1].id


class _Shown:
    """What was shown lately."""

    def __init__(self) -> None:
        self._times: dict[str, int] = {}
        """By id."""

    @property
    def after(self) -> str:
        """The entry after which to ask for more; empty: nothing was shown yet."""
        return min(self._times, default="")

    def fresh(self, entries: Sequence[messages.AuditRecord]) -> list[messages.AuditRecord]:
        """Those that were not shown yet, oldest first; they are now."""
        new = sorted(
            (entry for entry in entries if entry.id not in self._times), key=lambda entry: entry.id
        )
        self._times |= {entry.id: entry.at for entry in new}
        horizon = max(self._times.values(), default=0) - _OVERLAP_MS
        settled = sorted(id_ for id_, at in self._times.items() if at <= horizon)
        for id_ in settled[:-1]:
            del self._times[id_]
        return new


def _show(out: Output, entries: Sequence[messages.AuditRecord]) -> None:
    import msgspec

    for entry in entries:
        if out.as_json:
            out.line(msgspec.json.encode(plain(entry)).decode())
        else:
            out.line(_line(_cells(entry)))
    out.stdout.flush()


def _line(cells: Sequence[str]) -> str:
    texts = (printable(cell) or NOTHING for cell in cells)
    padded = (text.ljust(width) for text, width in zip(texts, _WIDTHS, strict=True))
    return "  ".join(padded).rstrip()


def _cells(entry: messages.AuditRecord) -> list[str]:
    return [
        iso(entry.at),
        entry.kind,
        entry.actor,
        entry.subject,
        entry.origin,
        " ".join(f"{name}={_detail(value)}" for name, value in entry.details.items()),
    ]


def _detail(value: str | int | list[str]) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)
