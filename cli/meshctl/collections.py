"""`meshctl collections`: what there is to search, and how it gets there."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
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
    from cli.meshctl.importing import Import, Imported, Progress
    from mesh import MeshClient, messages

app = typer.Typer()


class Form(enum.StrEnum):
    """Formats by the suffix they usually have."""

    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"
    MD = "md"


_COLLECTION = Annotated[str, typer.Option("--collection", "-c", help="Its name.")]


@app.command("list")
def list_collections(
    context: typer.Context,
    *,
    hashes: Annotated[
        bool, typer.Option("--hashes", help="With a hash of the content of each copy.")
    ] = False,
) -> None:
    """Every collection, by shard and node."""
    run = session.of(context)
    answer = run.ask(lambda client: client.nodes())
    if hashes:
        _list_copies(run)
        return
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


def _list_copies(run: session.Session) -> None:
    """Of shards that several nodes hold: whether their copies are equal."""
    found = run.ask(lambda client: client.replicas())
    if run.out.as_json:
        run.out.json(found)
        return
    rows = [
        [collection.name, copy.shard, copy.node, str(collection.rows), collection.hash[:16],
         str(copy.sequence), "yes" if copy.following else "no"]
        for copy in found.copies
        for collection in copy.collections
    ]  # fmt: skip
    if rows:
        run.out.table(
            [
                Column("collection"),
                Column("shard"),
                Column("node"),
                Column("rows", align="right"),
                Column("content"),
                Column("last write", align="right"),
                Column("in step"),
            ],
            sorted(rows),
        )
    else:
        run.out.warn("no shard has several replicas that answer; see: meshctl collections list")
    for node, why in sorted(found.away.items()):
        run.out.warn(f"{node} does not answer: {why}")


@app.command("import")
def import_documents(
    context: typer.Context,
    *,
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="JSONL, CSV, TSV (also .gz, .zst), Parquet or Markdown files, folders of Markdown"
            " files, or - for standard input.",
            metavar="FILE|FOLDER...",
            exists=True,
            readable=True,
            allow_dash=True,
        ),
    ],
    collection: _COLLECTION,
    node: Annotated[
        str | None, typer.Option(help="Where; may be left out if only one node can take it.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=1000, help="Documents at a time.")] = 500,
    form: Annotated[
        Form | None, typer.Option("--format", help="Of the files, where their names do not say.")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="What holds a document's id.  [default: id]")
    ] = None,
    content_column: Annotated[
        str | None, typer.Option(help="What holds its text.  [default: content]")
    ] = None,
    rejects: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="Where bad lines go.  [default: FILE.COLLECTION@NODE.rejects.jsonl]",
        ),
    ] = None,
    max_rejects: Annotated[
        int | None, typer.Option(min=0, help="Stop when more lines than that are bad.")
    ] = None,
    restart: Annotated[
        bool, typer.Option(help="Begin at the start, whatever an earlier run did.")
    ] = False,
) -> None:
    """Read documents and index them; one that was cut off goes on where it ended."""
    from cli.meshctl.import_progress import progress
    from cli.meshctl.importing import Import, as_json

    if rejects and len(paths) > 1:
        raise typer.BadParameter("goes with one FILE", param_hint="--rejects")
    run = session.of(context)
    done = []
    for path in paths:
        job = Import(
            path=path,
            collection=collection,
            node=node,
            batch=batch,
            form=form.value if form else None,
            id_column=id_column,
            content_column=content_column,
            rejects=rejects,
            restart=restart,
            most_bad=max_rejects,
            state_dir=Path(run.options.state_dir),
        )
        done.append(_import(run, job, progress))
        if not run.out.as_json:
            run.out.line(done[-1].summary())
        _complain(done[-1])
        if done[-1].report.stopped:
            break
    if run.out.as_json:
        run.out.json(as_json(done))
    if any(imported.report.bad for imported in done):
        raise typer.Exit(ExitCode.FAILED)


def _import(
    run: session.Session, job: Import, shown: Callable[[], AbstractContextManager[Progress]]
) -> Imported:
    """One file; where that is cut off, say how it goes on."""
    with job.place() as place:
        try:
            with shown() as progress:
                return run.run(lambda client: job.run(client, place, progress, run.out.note))
        except (MeshError, KeyboardInterrupt):
            if place.begun:
                run.out.note(
                    f"cut off after line {place.line} of {printable(str(job.path))}; the same"
                    " command again goes on there"
                )
            raise


def _complain(done: Imported) -> None:
    shown = done.report.bad_lines
    for bad in shown:
        sys.stderr.write(f"{printable(bad.source)}:{bad.line}: {printable(bad.reason)}\n")
    if done.report.bad > len(shown):
        sys.stderr.write(f"… and {done.report.bad - len(shown)} more\n")
    if done.report.stopped:
        sys.stderr.write("stopped: more bad lines than --max-rejects allows\n")


@app.command("reembed")
def reembed(
    context: typer.Context,
    *,
    collection: Annotated[str, typer.Argument(help="Its name.", metavar="COLLECTION")],
    node: Annotated[
        str | None, typer.Option(help="Which; may be left out if only one node holds it.")
    ] = None,
    everywhere: Annotated[
        bool, typer.Option("--all", help="Every node that holds it, all at once.")
    ] = False,
) -> None:
    """Embed a collection anew, on a node that has another embedder than it had."""
    from cli.meshctl import reembedding

    if node and everywhere:
        raise typer.BadParameter("give only one of them", param_hint="--node / --all")
    reembedding.run(session.of(context), collection, node=node, everywhere=everywhere)


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
