"""`meshctl collections`: what there is to search, and how it gets there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import connection
from cli.meshctl import session
from cli.meshctl.failures import ExitCode, exit_code
from cli.meshctl.registration import confirm
from cli.output import HEALTH_STYLES, Column, printable
from mesh.errors import MeshError, NotFoundError

if TYPE_CHECKING:
    from cli.meshctl.importing import Imported, Progress
    from mesh import MeshClient, messages

app = typer.Typer()

_COLLECTION = Annotated[str, typer.Option("--collection", "-c", help="Its name.")]


@app.command("list")
def list_collections(context: typer.Context) -> None:
    """Every collection, by shard and node."""
    run = session.of(context)
    answer = run.ask(lambda client: client.nodes())
    held = sorted(
        ((shard, node) for node in answer.nodes for shard in node.collections),
        key=lambda pair: (pair[0].name, pair[0].shard, pair[1].slug),
    )
    if run.out.as_json:
        rows = [
            {
                "collection": shard.name,
                "shard": shard.shard,
                "node": node.slug,
                "rows": shard.rows,
                "data_version": shard.data_version,
                "embedder": shard.fingerprint,
                "health": node.health,
            }
            for shard, node in held
        ]
        run.out.json({"collections": rows})
        return
    if held:
        run.out.table(
            [
                Column("collection"),
                Column("shard"),
                Column("node"),
                Column("rows", align="right"),
                Column("data version", align="right"),
                Column("embedder"),
                Column("health", styles=HEALTH_STYLES),
            ],
            [
                [
                    shard.name,
                    shard.shard,
                    node.slug,
                    str(shard.rows),
                    str(shard.data_version),
                    shard.fingerprint,
                    node.health.value,
                ]
                for shard, node in held
            ],
        )
    else:
        run.out.warn("no node holds a collection yet")
    run.out.warn_if_blind(blind=answer.blind)


@app.command("import")
def import_documents(
    context: typer.Context,
    *,
    path: Annotated[
        Path,
        typer.Argument(
            help="A .jsonl, .csv, .tsv or Markdown file, or a folder of Markdown files.",
            metavar="FILE|FOLDER",
            exists=True,
            readable=True,
        ),
    ],
    collection: _COLLECTION,
    node: Annotated[
        str | None, typer.Option(help="Where; may be left out if only one node can take it.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=1000, help="Documents at a time.")] = 500,
    id_column: Annotated[
        str | None, typer.Option(help="What holds a document's id.  [default: id]")
    ] = None,
    content_column: Annotated[
        str | None, typer.Option(help="What holds its text.  [default: content]")
    ] = None,
) -> None:
    """Read documents and index them; an interrupted import is taken up where it ended."""
    from cli.meshctl.importing import Import

    run = session.of(context)
    job = Import(
        path=path,
        collection=collection,
        node=node,
        batch=batch,
        id_column=id_column,
        content_column=content_column,
    )
    with _progress() as progress:
        done = run.run(lambda client: job.run(client, progress))
    if run.out.as_json:
        run.out.json(done.as_json())
    else:
        run.out.line(done.summary())
    _complain(done)
    if done.report.bad:
        raise typer.Exit(ExitCode.FAILED)


def _complain(done: Imported) -> None:
    shown = done.report.bad_lines
    for bad in shown:
        sys.stderr.write(f"{printable(bad.source)}:{bad.line}: {printable(bad.reason)}\n")
    if done.report.bad > len(shown):
        sys.stderr.write(f"… and {done.report.bad - len(shown)} more\n")


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on stderr where that is a terminal; elsewhere silence."""
    if not sys.stderr.isatty():
        yield lambda _position, _total, _documents: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[documents]} documents"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("import", total=None, documents=0)
        yield lambda position, total, documents: bar.update(
            task, completed=position, total=total, documents=documents
        )


@app.command("drop")
def drop(
    context: typer.Context,
    *,
    collection: Annotated[str, typer.Argument(help="Its name.", metavar="COLLECTION")],
    node: Annotated[str | None, typer.Option(help="Only on this node.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a collection with all its documents, on every node that holds it."""
    run = session.of(context)
    confirm(f"Drop collection {collection!r} on {node or 'every node that holds it'}?", yes=yes)

    async def work(client: MeshClient) -> list[tuple[str, MeshError | None]]:
        if node is None:
            holders = holding(await connection.ask_master(client.nodes()), collection)
        else:
            holders = [await connection.slug_of(client, node)]
        return [(holder, await _drop(client, collection, holder)) for holder in holders]

    results = run.run(work)
    if run.out.as_json:
        run.out.json(
            {
                "collection": collection,
                "nodes": [
                    {"node": holder, "dropped": error is None, "message": str(error or "")}
                    for holder, error in results
                ],
            }
        )
    else:
        for holder, error in results:
            run.out.line(f"{holder}: {'dropped' if error is None else printable(str(error))}")
    codes = [exit_code(error) for _, error in results if error is not None]
    if codes:
        raise typer.Exit(codes[0] if len(results) == 1 else ExitCode.FAILED)


def holding(answer: messages.NodeList, collection: str) -> list[str]:
    """Slugs of the nodes that hold `collection`.

    Raises:
        NotFoundError: None does.
    """
    holders = [
        node.slug
        for node in answer.nodes
        if any(shard.name == collection for shard in node.collections)
    ]
    if not holders:
        message = f"no node holds collection {collection!r}; `meshctl collections list` shows them"
        raise NotFoundError(message)
    return holders


async def _drop(client: MeshClient, collection: str, holder: str) -> MeshError | None:
    """Drop on one node; its failure must not keep the others from being told."""
    try:
        await client.run_action("drop", {"collection": collection}, node=holder)
    except MeshError as error:
        if exit_code(error) in {ExitCode.NOT_REACHABLE, ExitCode.DENIED}:
            raise
        return error
    return None
