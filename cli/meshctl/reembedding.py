"""`meshctl collections reembed`: the work is the nodes'; here it is asked for and watched."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from cli import connection
from cli.meshctl.action_watch import progress_text
from cli.meshctl.collections import holding
from cli.meshctl.failures import ExitCode, exit_code
from cli.output import Output, printable
from mesh.errors import BadRequestError, MeshError

if TYPE_CHECKING:
    from cli.meshctl.session import Session
    from mesh import MeshClient, messages

_LONGEST_S = 24 * 3600.0
_EVERY_S = 10.0

Told = Callable[[str, "messages.ActionProgress"], None]
"""Given a node's slug, and what it told."""


class Outcome(NamedTuple):
    """What became of it on one node."""

    node: str
    result: dict[str, Any]
    """Of the action: `reembedded`, `from`, `to`, `data_version`; empty if it failed."""
    error: MeshError | None = None

    def words(self) -> str:
        """For people."""
        if self.error is not None:
            return str(self.error)
        if not self.result["reembedded"] and self.result["from"] == self.result["to"]:
            return f"nothing to do, it is embedded by {self.result['to']}"
        if self.result["from"] == self.result["to"]:
            return f"the words of {self.result['reembedded']} documents taken apart anew"
        return f"{self.result['reembedded']} documents embedded by {self.result['to']}"


def run(session: Session, collection: str, *, node: str | None, everywhere: bool) -> None:
    """Have it done, and show how it went.

    Raises:
        NotFoundError: No node holds the collection.
        BadRequestError: Several do, and it was not said which.
    """
    out = session.out

    async def work(client: MeshClient) -> list[Outcome]:
        if node is not None:
            nodes = [await connection.slug_of(client, node)]
        else:
            nodes = holding(await connection.ask_master(client.nodes()), collection)
        if len(nodes) > 1 and not everywhere:
            listed = ", ".join(sorted(nodes))
            raise BadRequestError(
                f"collection {collection!r} is on {listed}; say which with --node, or --all"
            )
        with _shown(out, nodes) as told:
            return await _everywhere(client, collection, nodes, told)

    try:
        outcomes = session.run(work)
    except KeyboardInterrupt:
        out.note("\nnobody waits any more, but it goes on; the same command waits for it again")
        raise
    _show(out, collection, outcomes)
    codes = [exit_code(outcome.error) for outcome in outcomes if outcome.error is not None]
    if codes:
        raise typer.Exit(codes[0] if len(outcomes) == 1 else ExitCode.FAILED)


async def _everywhere(
    client: MeshClient, collection: str, nodes: Sequence[str], told: Told
) -> list[Outcome]:
    from uuid_utils import uuid7

    from mesh import bootstrap

    ids = {str(uuid7()): node for node in nodes}

    def heard(_node: str, progress: messages.ActionProgress) -> None:
        if progress.id in ids:
            told(ids[progress.id], progress)

    async def one(id_: str, node: str) -> Outcome:
        """Its failure must not keep the others from being waited for."""
        try:
            done = await client.run_action(
                "reembed", {"collection": collection}, node=node, id=id_, timeout_s=_LONGEST_S
            )
        except MeshError as error:
            if len(nodes) == 1 and exit_code(error) in {ExitCode.NOT_REACHABLE, ExitCode.DENIED}:
                raise
            return Outcome(node, {}, error)
        return Outcome(node, dict(done.result))

    async with bootstrap.hear_progress(client, heard):
        return list(await asyncio.gather(*(one(id_, node) for id_, node in ids.items())))


def _show(out: Output, collection: str, outcomes: Sequence[Outcome]) -> None:
    if out.as_json:
        rows = [
            {
                "node": outcome.node,
                "reembedded": outcome.result.get("reembedded", 0),
                "from": outcome.result.get("from", ""),
                "to": outcome.result.get("to", ""),
                "data_version": outcome.result.get("data_version", 0),
                "message": str(outcome.error or ""),
            }
            for outcome in outcomes
        ]
        out.json({"collection": collection, "nodes": rows})
        return
    for outcome in outcomes:
        out.line(f"{outcome.node}: {printable(outcome.words())}")


@contextmanager
def _shown(out: Output, nodes: Sequence[str]) -> Iterator[Told]:
    """How far it is, on stderr: a bar for each node on a terminal, a line now and then elsewhere;
    nothing beside JSON.
    """
    if out.as_json:
        yield lambda _node, _progress: None
        return
    if not sys.stderr.isatty():
        yield _Lines(out)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks = {node: bars.add_task(printable(node), total=None, note="") for node in nodes}

        def told(node: str, progress: messages.ActionProgress) -> None:
            known = progress.fraction is not None
            bars.update(
                tasks[node],
                total=1.0 if known else None,
                completed=progress.fraction or 0.0,
                note=printable(progress.note),
            )

        yield told


class _Lines:
    """For a pipe or a log."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._told: dict[str, float] = {}

    def __call__(self, node: str, progress: messages.ActionProgress) -> None:
        now = time.perf_counter()
        if now - self._told.get(node, -_EVERY_S) >= _EVERY_S:
            self._told[node] = now
            self._out.note(printable(f"{node}: {progress_text(progress)}"))
