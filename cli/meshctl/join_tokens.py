"""`meshctl nodes join-token`: tokens with which nodes register themselves over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.meshctl import session
from cli.meshctl.arguments import lifetime, words
from cli.output import Column, iso

app = typer.Typer()

_COLUMNS = (
    Column("ID"),
    Column("description"),
    Column("scopes"),
    Column("issued"),
    Column("expires"),
    Column("uses left", align="right"),
    Column("state", styles={"good": "green", "revoked": "red"}),
)


def _uses(left: int | None) -> str:
    return "unlimited" if left is None else str(left)


@app.command("create")
def create(
    context: typer.Context,
    *,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What the nodes may do: search, actions, actions:NAME, admin."
            " Default: search, actions."
        ),
    ] = None,
    ttl: Annotated[str, typer.Option(help="Seconds, or 15m, 12h, 30d.", metavar="TIME")] = "86400",
    uses: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Nodes. Default: 1.")
    ] = None,
    unlimited: Annotated[
        bool, typer.Option("--unlimited", help="As many nodes as come until it expires.")
    ] = False,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
) -> None:
    """Make a join token and show it, once."""
    if unlimited and uses is not None:
        raise typer.BadParameter("--uses or --unlimited, not both", param_hint="--uses")
    run = session.of(context)
    scopes, ttl_s = words(scope) or ["search", "actions"], lifetime(ttl)
    answer = run.ask(
        lambda client: client.access.create_join_token(
            scopes=scopes,
            ttl_s=ttl_s,
            uses=None if unlimited else uses or 1,
            description=description,
        )
    )
    if run.out.as_json:
        run.out.json(answer)
    else:
        run.out.fields(
            [
                ("ID", answer.id),
                ("scopes", ", ".join(answer.scopes)),
                ("expires", iso(answer.expires_at)),
                ("uses", _uses(answer.uses)),
                ("join token", answer.join_token),
            ]
        )
    run.out.warn("keep the join token now: it is not shown again")


@app.command("list")
def list_join_tokens(
    context: typer.Context,
    *,
    every: Annotated[bool, typer.Option("--all", help="Expired and revoked ones too.")] = False,
) -> None:
    """Join tokens, newest first; never the tokens themselves."""
    from cli.meshctl.tokens import state_of

    run = session.of(context)
    answer = run.ask(lambda client: client.access.tokens(all=every))
    found = [token for token in answer.tokens if token.kind == "join"]
    if run.out.as_json:
        run.out.json({"tokens": found})
        return
    rows = [
        [
            token.id,
            token.subject,
            ", ".join(token.scopes),
            run.out.when(token.issued_at),
            iso(token.expires_at),
            _uses(token.uses_left),
            state_of(token),
        ]
        for token in found
    ]
    if rows:
        run.out.table(_COLUMNS, rows)
    else:
        run.out.warn("there are no join tokens")


@app.command("revoke")
def revoke(
    context: typer.Context,
    token: Annotated[str, typer.Argument(help="Id of a join token.", metavar="ID")],
) -> None:
    """Let nobody join with it any more; who has joined stays."""
    run = session.of(context)
    answer = run.ask(lambda client: client.access.revoke(token))
    if run.out.as_json:
        run.out.json(answer)
    else:
        run.out.line(f"{answer.revoked} revoked")
    if not answer.revoked:
        run.out.warn("it was not good any more")
