"""`meshctl rag`: what to put before a language model that is to answer a question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli import connection
from cli.meshctl import session
from cli.meshctl.arguments import filters
from cli.meshctl.search import missing, query_words
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

_INDENT = "    "


def rag(
    context: typer.Context,
    *,
    query: Annotated[str, typer.Argument(help="The question.")],
    budget: Annotated[
        int, typer.Option(min=100, max=100_000, help="Tokens of the whole prompt, estimated.")
    ] = 1500,
    passages: Annotated[int, typer.Option(min=1, max=100, help="Most passages.")] = 20,
    limit: Annotated[
        int, typer.Option(min=1, max=100, help="Most documents to take them from.")
    ] = 20,
    collection: Collections = None,
    mode: Mode = "hybrid",
    threshold: Threshold = None,
    node: Nodes = None,
    filter_: Filters = None,
    strategy: Strategy = None,
    require: Require = "any",
    timeout_ms: TimeoutMs = None,
    no_deduplicate: Annotated[
        bool,
        typer.Option("--no-deduplicate", help="Search without dropping equal documents first."),
    ] = False,
    no_cache: NoCache = False,
) -> None:
    """The best passages for a question, with sources, ready for a prompt; no model is called."""
    run = session.of(context)
    wanted = filters(filter_ or [])

    async def work(client: MeshClient) -> messages.RagResult:
        slugs = [await connection.slug_of(client, name) for name in node or []]
        return await client.rag(
            query,
            budget=budget,
            passages=passages,
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
            cache=not no_cache,
        )

    answer = run.run(work)
    if run.out.as_json:
        run.out.json(answer)
    elif run.out.terminal:
        _show(run.out, answer, query)
    else:
        _pipe(run.out, answer)


def _pipe(out: Output, answer: messages.RagResult) -> None:
    """The prompt and nothing else: the next program reads it. The rest is for the person."""
    if answer.prompt:
        out.line("\n".join(_harmless(line) for line in answer.prompt.split("\n")))
    for line in _summary(answer):
        out.note(line)


def _show(out: Output, answer: messages.RagResult, query: str) -> None:
    from rich.padding import Padding
    from rich.text import Text

    console = out.console()
    words = query_words(query)
    for passage in answer.passages:
        source = passage.source
        title = f" {printable(source.title)}" if source.title else ""
        console.print(Text(f"[{passage.number}]{title}  {passage.score:.4f}", style="bold"))
        body = Text("\n".join(_harmless(line) for line in passage.text.split("\n")))
        if words:
            body.highlight_regex(words, style="bold yellow")
        console.print(Padding(body, (0, 0, 0, len(_INDENT))))
        console.print(Padding(Text(_where(source), style="dim"), (0, 0, 1, len(_INDENT))))
    for line in _summary(answer):
        out.line(line)
    if answer.id and not answer.cached:
        out.hint(f"why these nodes: meshctl explain {answer.id}")


def _where(source: messages.Source) -> str:
    part = f", part {source.part} of {source.parts}" if source.parts > 1 else ""
    url = f", {source.url}" if source.url else ""
    return printable(f"{source.node}/{source.collection}/{source.id}{part}{url}")


def _summary(answer: messages.RagResult) -> list[str]:
    if answer.documents:
        more = "; there is more" if answer.truncated else ""
        first = (
            f"{counted(answer.count, 'passage')} from {counted(answer.documents, 'document')},"
            f" {answer.tokens} of {answer.budget} tokens, in {answer.duration_ms:.0f} ms from"
            f" {counted(answer.nodes_searched, 'node')}{more}"
        )
    else:
        first = "nothing found"
    lines = [first]
    if answer.shards.skipped:
        lines.append(f"{counted(answer.shards.skipped, 'shard')} skipped (--json has the reasons)")
    return [*lines, *(missing(answer) if answer.partial else [])]


def _harmless(line: str) -> str:
    """A line of a document as it is, without what could steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in line)
