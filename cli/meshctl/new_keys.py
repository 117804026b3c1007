"""API keys that a command has just been given: shown once, or put into a credentials file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.output import Output, iso, plain
from mesh.errors import StateError

if TYPE_CHECKING:
    from mesh import messages

_ONCE = "keep the API key now: it is not shown again"

Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="Write a credentials file (for you alone to read) instead of showing the key.",
    ),
]
Overlap = Annotated[
    str,
    typer.Option(
        metavar="TIME", help="How long the old key stays good beside it: seconds, or 15m, 12h, 30d."
    ),
]


def check(file: Path | None) -> None:
    """See beforehand that the file, if any, can be written: a key that was given cannot be given
    again.

    Raises:
        typer.BadParameter
    """
    if file is None:
        return
    folder = file.absolute().parent
    if not folder.is_dir() or file.is_dir():
        raise typer.BadParameter(f"no such folder for {file}", param_hint="--out")
    if not os.access(folder, os.W_OK):
        raise typer.BadParameter(f"{folder} cannot be written", param_hint="--out")


def check_new(file: Path | None) -> None:
    """See that it is not there yet.

    Raises:
        typer.BadParameter
    """
    if file is not None and file.exists():
        raise typer.BadParameter(f"{file} is there already", param_hint="--out")


def check_owner(file: Path | None, user: str) -> None:
    """See that nothing but `user`'s own credentials will be replaced.

    Raises:
        typer.BadParameter
    """
    from mesh import bootstrap

    if file is None or not file.exists():
        return
    try:
        owner = bootstrap.read_credentials(file).user
    except StateError:
        owner = ""
    if owner != user:
        raise typer.BadParameter(
            f"{file} is there already, and not the credentials of {user!r}", param_hint="--out"
        )


def until(previous_until: int) -> list[tuple[str, str]]:
    """The line about the old key, where it has some time left (unix ms)."""
    return [("old key until", iso(previous_until))] if previous_until else []


def show(
    out: Output,
    answer: messages.NodeRegistered | messages.NodeKey | messages.UserKey,
    fields: Sequence[tuple[str, str]],
    *,
    user: str,
    file: Path | None,
) -> None:
    """Present an answer with an API key in it; with a file, the key goes there and nowhere else."""
    written = file is not None and _written(out, file, user, answer.api_key)
    if out.as_json:
        shown = plain(answer)
        if written:
            shown |= {"api_key": None, "file": str(file)}
        out.json(shown)
    else:
        key = ("credentials", str(file)) if written else ("API key", answer.api_key)
        out.fields([*fields, key])
    if not written:
        out.warn(_ONCE)


def _written(out: Output, file: Path, user: str, api_key: str) -> bool:
    """Whether it worked; where it did not, the key has to be shown after all."""
    from mesh import bootstrap

    try:
        bootstrap.write_json(file, {"user": user, "password": api_key})
    except StateError as error:
        out.warn(str(error))
        return False
    return True
