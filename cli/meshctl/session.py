"""What a command gets to work with: the mesh and somewhere to put its answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import typer

from cli import connection
from cli.connection import Options
from cli.output import Output

if TYPE_CHECKING:
    from mesh import MeshClient

T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """One command's run."""

    options: Options
    out: Output

    def run(self, work: Callable[[MeshClient], Awaitable[T]]) -> T:
        """Connect, do `work`, hang up."""
        return connection.run(self.options, work)

    def ask(self, question: Callable[[MeshClient], Awaitable[T]]) -> T:
        """Connect, ask a master one thing, hang up."""
        return connection.run(self.options, lambda client: connection.ask_master(question(client)))


def of(context: typer.Context) -> Session:
    """The session that the options before the command made."""
    return cast("Session", context.obj)
