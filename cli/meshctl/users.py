"""`meshctl users`: operators and applications, who log in with a name and an API key."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.meshctl import new_keys, registration, session
from cli.meshctl.arguments import lifetime, words
from cli.output import Column

app = typer.Typer()

_COLUMNS = (Column("name"), Column("scopes"), Column("description"), Column("created"))
_USER = typer.Argument(help="Its name.", metavar="USER")


@app.command("create")
def create(
    context: typer.Context,
    *,
    user: Annotated[str, _USER],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="search, search:COLLECTION (over HTTP only), actions, actions:NAME, admin; with"
            " commas, or repeat it. Default: search, actions."
        ),
    ] = None,
    description: Annotated[str, typer.Option(help="Who or what it is.")] = "",
    out: new_keys.Out = None,
) -> None:
    """Add an operator or an application and show its API key, once."""
    run = session.of(context)
    scopes = words(scope) or ["search", "actions"]
    new_keys.check(out)
    new_keys.check_new(out)
    answer = run.ask(
        lambda client: client.access.create_user(user, scopes, description=description)
    )
    fields = [("user", answer.user.name), ("scopes", ", ".join(answer.user.scopes))]
    new_keys.show(run.out, answer, fields, user=answer.user.name, file=out)


@app.command("list")
def list_users(context: typer.Context) -> None:
    """All of them, by name; never their keys."""
    run = session.of(context)
    answer = run.ask(lambda client: client.access.users())
    if run.out.as_json:
        run.out.json(answer)
        return
    rows = [
        [user.name, ", ".join(user.scopes), user.description, run.out.when(user.created_at)]
        for user in answer.users
    ]
    if rows:
        run.out.table(_COLUMNS, rows)
    else:
        run.out.warn("there are no users")


@app.command("remove")
def remove(
    context: typer.Context,
    *,
    user: Annotated[str, _USER],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Shut a user out: off the broker and refused over HTTP within a second."""
    run = session.of(context)
    registration.confirm(f"Remove user {user!r} from the mesh?", yes=yes)
    gone = run.ask(lambda client: client.access.remove_user(user))
    if run.out.as_json:
        run.out.json({"user": gone})
    else:
        run.out.line(f"{gone.name} is removed")


@app.command("rotate-key")
def rotate_key(
    context: typer.Context,
    *,
    user: Annotated[str, _USER],
    overlap: new_keys.Overlap = "0",
    out: new_keys.Out = None,
) -> None:
    """Give a user a new API key and show it, once; the old one is refused from then on."""
    run = session.of(context)
    overlap_s = lifetime(overlap, "--overlap")
    new_keys.check(out)
    new_keys.check_owner(out, user)
    answer = run.ask(lambda client: client.access.rotate_user_key(user, overlap_s=overlap_s))
    fields = [("user", answer.user.name), *new_keys.until(answer.previous_until)]
    new_keys.show(run.out, answer, fields, user=answer.user.name, file=out)
