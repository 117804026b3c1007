"""`meshctl keys`: the masters' keys that sign access tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.meshctl import session
from cli.meshctl.arguments import lifetime
from cli.meshctl.session import Session
from cli.output import NOTHING, Column, iso, now_ms

if TYPE_CHECKING:
    from mesh import messages

app = typer.Typer()

_COLUMNS = (
    Column("key"),
    Column("created"),
    Column("retires"),
    Column("state", styles={"signs": "green", "verifies": "cyan", "retired": "dim"}),
)


@app.command("list")
def list_keys(context: typer.Context) -> None:
    """The ring, newest first; never the keys themselves."""
    run = session.of(context)
    _show(run, run.ask(lambda client: client.access.signing_keys()))


@app.command("rotate")
def rotate(
    context: typer.Context,
    *,
    overlap: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="How long tokens of the old keys stay good: seconds, or 15m, 12h, 30d.",
        ),
    ] = "1d",
) -> None:
    """Sign with a new key from now on."""
    run = session.of(context)
    overlap_s = lifetime(overlap, "--overlap")
    _show(run, run.ask(lambda client: client.access.rotate_signing_keys(overlap_s=overlap_s)))


def _show(run: Session, answer: messages.SigningKeyList) -> None:
    if run.out.as_json:
        run.out.json(answer)
        return
    rows = [
        [
            key.kid,
            run.out.when(key.created_at),
            NOTHING if key.retires_at is None else iso(key.retires_at),
            _state(key),
        ]
        for key in answer.keys
    ]
    if rows:
        run.out.table(_COLUMNS, rows)
    else:
        run.out.warn("a secret of the settings signs (security.jwt_secret): there is no ring")


def _state(key: messages.SigningKey) -> str:
    if key.retires_at is None:
        return "signs"
    return "verifies" if key.retires_at > now_ms() else "retired"
