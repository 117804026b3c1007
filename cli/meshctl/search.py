"""`meshctl search`: one question to all nodes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli import connection
from cli.meshctl import session
from cli.meshctl.arguments import filters
from cli.output import Output, printable

if TYPE_CHECKING:
    from mesh import MeshClient, messages

_EXCERPT_CHARS = 200
_INDENT = "   "
_SHORTEST_WORD = 2


def search(
    context: typer.Context,
    *,
    query: Annotated[str, typer.Argument(help="What to look for.")],
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most results.")] = 10,
    collection: Annotated[
        list[str] | None, typer.Option(help="Only in this collection; repeat it.")
    ] = None,
    mode: Annotated[
        Literal["hybrid", "vector", "text"], typer.Option(help="By meaning, by words, or both.")
    ] = "hybrid",
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least cosine of a hit by meaning.")
    ] = None,
    node: Annotated[list[str] | None, typer.Option(help="Only on this node; repeat it.")] = None,
    filter_: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="COLUMN=VALUE",
            help='Also column=a,b,c and column>=value (< <= >); "1" in quotes is text. Repeat it.',
        ),
    ] = None,
    strategy: Annotated[
        Literal["score", "round_robin"] | None, typer.Option(help="How nodes' results are merged.")
    ] = None,
    require: Annotated[
        Literal["any", "quorum", "all"], typer.Option(help="How many shards must have answered.")
    ] = "any",
    timeout_ms: Annotated[
        int | None, typer.Option(min=1, max=60_000, help="How long to wait for slow nodes.")
    ] = None,
    no_deduplicate: Annotated[
        bool, typer.Option("--no-deduplicate", help="Keep equal documents of several nodes.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what each score is made of.")
    ] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Ask the nodes, whatever is kept.")
    ] = False,
) -> None:
    """Search all nodes as if they were one index."""
    run = session.of(context)
    wanted = filters(filter_ or [])

    async def work(client: MeshClient) -> messages.SearchResult:
        slugs = [await connection.slug_of(client, name) for name in node or []]
        return await client.search(
            query,
            limit=limit,
            collections=collection or None,
            mode=mode,
            threshold=threshold,
            filters=wanted or None,
            nodes=slugs or None,
            strategy=strategy,
            require=require,
            timeout_ms=timeout_ms,
            deduplicate=False if no_deduplicate else None,
            explain=explain,
            cache=not no_cache,
        )

    answer = run.run(work)
    if run.out.as_json:
        run.out.json(answer)
    else:
        _show(run.out, answer, query)


def _show(out: Output, answer: messages.SearchResult, query: str) -> None:
    for rank, hit in enumerate(answer.results, start=1):
        _show_hit(out, rank, hit, query)
    if not answer.results:
        out.line("nothing found")
    out.line(
        f"{_counted(answer.count, 'result')} of {_counted(answer.total_results, 'candidate')}"
        f" in {answer.duration_ms:.0f} ms from {_counted(answer.nodes_searched, 'node')}"
    )
    if answer.partial:
        for line in missing(answer):
            out.line(line)
    if answer.id and not answer.cached:
        out.hint(f"why these nodes: meshctl explain {answer.id}")


def missing(answer: messages.SearchResult | messages.RagResult) -> list[str]:
    """What a partial answer lacks, by shard and node, with the reason of each."""
    shards = answer.shards
    lines = [f"PARTIAL: {shards.total - shards.ok} of {_counted(shards.total, 'shard')} missing"]
    if not (shards.failed or shards.timed_out):
        lines = ["PARTIAL: some of it by words alone"]
    for report in shards.details:
        if report.status != "ok" or report.reason:
            shard = "" if report.shard == report.node else f", shard {report.shard}"
            reason = f": {report.reason}" if report.reason else ""
            what = f"{report.collection} on {report.node}{shard} {report.status}{reason}"
            lines.append(printable(f"  {what.replace('timed_out', 'timed out')}"))
    return [lines[0], *(_INDENT + line for line in lines[1:])]


def excerpt(content: str) -> str:
    """The beginning of a document, cut at a word."""
    head = printable(content[: 4 * _EXCERPT_CHARS])
    if len(head) <= _EXCERPT_CHARS:
        return head
    cut = head[:_EXCERPT_CHARS]
    return cut[: cut.rfind(" ") if " " in cut else None] + " …"


def query_words(query: str) -> re.Pattern[str] | None:
    """What to highlight: the words of the query, whole or as the beginning of a longer one."""
    words = sorted({word for word in re.findall(r"\w+", query) if len(word) >= _SHORTEST_WORD})
    if not words:
        return None
    return re.compile(r"\b(?:" + "|".join(map(re.escape, words)) + r")\w*", re.IGNORECASE)


def _show_hit(out: Output, rank: int, hit: messages.Hit, query: str) -> None:
    place = hit.node if hit.shard == hit.node else f"{hit.node} (shard {hit.shard})"
    where = printable(f"{place}/{hit.collection}")
    heading = f"{rank:>2}. {hit.score:.4f}  {printable(hit.id)}  {where}"
    text = excerpt(hit.content)
    parts = [f"{name} {value:.4g}" for name, value in (hit.explain or {}).items()]
    if not out.terminal:
        out.line(heading)
        out.line(_INDENT + text)
        if parts:
            out.line(_INDENT + ", ".join(parts))
        return
    from rich.padding import Padding
    from rich.text import Text

    console = out.console()
    body = Text(text)
    if words := query_words(query):
        body.highlight_regex(words, style="bold yellow")
    console.print(Text(heading, style="bold"))
    console.print(Padding(body, (0, 0, 0, len(_INDENT))))
    if parts:
        console.print(Padding(Text(", ".join(parts), style="dim"), (0, 0, 0, len(_INDENT))))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
