"""`meshctl search`: one question to all nodes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from cli import connection
from cli.meshctl import session
from cli.meshctl.arguments import filters
from cli.meshctl.search_options import (
    Collections,
    Filters,
    Mode,
    NoCache,
    Nodes,
    Require,
    Strategy,
    Threshold,
    TimeoutMs,
)
from cli.output import Output, counted, printable

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
    collection: Collections = None,
    mode: Mode = "hybrid",
    threshold: Threshold = None,
    node: Nodes = None,
    filter_: Filters = None,
    strategy: Strategy = None,
    require: Require = "any",
    timeout_ms: TimeoutMs = None,
    no_deduplicate: Annotated[
        bool, typer.Option("--no-deduplicate", help="Keep equal documents of several nodes.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what each score is made of.")
    ] = False,
    no_cache: NoCache = False,
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
        f"{counted(answer.count, 'result')} of {counted(answer.total_results, 'candidate')}"
        f" in {answer.duration_ms:.0f} ms from {counted(answer.nodes_searched, 'node')}"
    )
    if answer.partial:
        for line in missing(answer):
            out.line(line)
    if answer.id and not answer.cached:
        out.hint(f"why these nodes: meshctl explain {answer.id}")


def missing(answer: messages.SearchResult | messages.RagResult) -> list[str]:
    """What a partial answer lacks, by shard and node, with the reason of each."""
    shards = answer.shards
    lines = [f"PARTIAL: {shards.total - shards.ok} of {counted(shards.total, 'shard')} missing"]
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
