"""`meshctl tokens`: who may use the mesh over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cli.meshctl import session
from cli.meshctl.arguments import lifetime, words
from cli.output import NOTHING, Column, Output, iso, now_ms

if TYPE_CHECKING:
    from mesh import messages

app = typer.Typer()

TTL_HELP = "Seconds, or 15m, 12h, 30d."
_STATES = {"good": "green", "revoked": "red", "expired": "dim", "used up": "dim"}
_COLUMNS = (
    Column("ID"),
    Column("kind"),
    Column("subject"),
    Column("scopes"),
    Column("issued"),
    Column("expires"),
    Column("state", styles=_STATES),
)


@app.command("issue")
def issue(
    context: typer.Context,
    *,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="search, actions, actions:NAME, admin; with commas, or repeat it."
            " Default: search, actions."
        ),
    ] = None,
    ttl: Annotated[str, typer.Option(help=TTL_HELP, metavar="TIME")] = "3600",
    subject: Annotated[
        str, typer.Option(help="Who it is for: shown as the caller in the history.")
    ] = "operator",
    refresh: Annotated[bool, typer.Option("--refresh", help="A refresh token as well.")] = False,
) -> None:
    """Make an access token and show it, once."""
    run = session.of(context)
    scopes, ttl_s = words(scope) or ["search", "actions"], lifetime(ttl)
    grant = run.ask(
        lambda client: client.access.issue(subject, scopes, ttl_s=ttl_s, refresh=refresh)
    )
    if run.out.as_json:
        run.out.json(grant)
    else:
        run.out.fields(_granted(grant))
    run.out.warn("keep the token now: it is not shown again")


def _granted(grant: messages.Grant) -> list[tuple[str, str]]:
    now = now_ms()
    pairs = [
        ("ID", grant.id),
        ("subject", grant.subject),
        ("scopes", ", ".join(grant.scopes)),
        ("expires", iso(now + grant.expires_in * 1000)),
        ("access token", grant.access_token),
    ]
    if grant.refresh_token:
        until = iso(now + grant.refresh_expires_in * 1000) if grant.refresh_expires_in else NOTHING
        pairs += [("refresh expires", until), ("refresh token", grant.refresh_token)]
    return pairs


@app.command("list")
def list_tokens(
    context: typer.Context,
    *,
    subject: Annotated[str, typer.Option(help="Only this one's.")] = "",
    every: Annotated[bool, typer.Option("--all", help="Expired and revoked ones too.")] = False,
) -> None:
    """Tokens that were issued, newest first; never the tokens themselves."""
    run = session.of(context)
    answer = run.ask(lambda client: client.access.tokens(subject=subject, all=every))
    if run.out.as_json:
        run.out.json(answer)
    elif answer.tokens:
        run.out.table(_COLUMNS, _rows(run.out, answer.tokens))
    else:
        run.out.warn("no tokens match" if subject else "no tokens are good right now")


def _rows(out: Output, tokens: Sequence[messages.TokenInfo]) -> list[list[str]]:
    return [
        [
            token.id,
            token.kind,
            token.subject,
            ", ".join(token.scopes),
            out.when(token.issued_at),
            iso(token.expires_at),
            state_of(token),
        ]
        for token in tokens
    ]


def state_of(token: messages.TokenInfo) -> str:
    """One word: what it is worth now."""
    if token.revoked_at is not None:
        return "revoked"
    if token.expires_at <= now_ms():
        return "expired"
    return "used up" if token.uses_left == 0 else "good"


@app.command("revoke")
def revoke(
    context: typer.Context,
    *,
    token: Annotated[
        str | None, typer.Argument(help="Id of a token, as `list` shows it.", metavar="[ID]")
    ] = None,
    subject: Annotated[
        str | None, typer.Option(help="Every token of this one instead.", metavar="NAME")
    ] = None,
) -> None:
    """Make a token worth nothing, everywhere, within a second; a refresh token with its family."""
    if bool(token) == bool(subject):
        raise typer.BadParameter("give the id of a token, or --subject", param_hint="ID")
    run = session.of(context)
    answer = run.ask(lambda client: client.access.revoke(token or "", subject=subject or ""))
    if run.out.as_json:
        run.out.json(answer)
    else:
        run.out.line(f"{answer.revoked} revoked")
    if not answer.revoked:
        run.out.warn("nothing of it was good any more")
