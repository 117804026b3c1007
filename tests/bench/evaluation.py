"""Is a search over many nodes as good as one over one index of the same documents?

`python tests/bench/evaluation.py FOLDER --nodes 8 --split field:section` starts real nodes on a
mesh of its own, one more that holds everything, asks both the same queries and prints, for every
mode and limit:

- nDCG@10 and recall@10 of the federated answer and of the one index, over the judged queries;
- overlap@10: how much of the one index's first 10 hits is in the first 10 federated ones;
- overlap: the same for the whole list of `limit` hits.

FOLDER holds a collection as `evaluation_rules` reads it. `--second-embedder hash` gives every
second node another embedder; the node that holds everything keeps the first one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from evaluation_rules import (
    Collection,
    mean,
    ndcg,
    overlap,
    read_collection,
    recall,
    split_by_field,
    split_by_topic,
    split_randomly,
)
from live_mesh import LiveMesh
from search_mesh import add_holder, until_indexed

from mesh import messages
from mesh.adapters.embedders.wordllama import WordLlamaEmbedder

MODES = ("hybrid", "vector", "text")
LIMITS = (10, 50, 100)
SPLITTED, WHOLE = "evaluation", "evaluation-whole"
IN_FLIGHT = 4
_TIMEOUT_MS = 30_000

Note = Callable[[str, int, int], None]
"""What is done, how far it is, and of how much."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to evaluate."""

    nodes: int = 8
    split: str = "random"
    """`random`, `field:NAME`, `clustered` or `clustered:unbalanced`."""
    embedder: str = "wordllama"
    second_embedder: str = ""
    """Of every second node; empty: the same."""
    modes: Sequence[str] = MODES
    limits: Sequence[int] = LIMITS


def split(collection: Collection, settings: Settings) -> list[list[str]]:
    """Ids by node.

    Raises:
        ValueError: No such split.
    """
    ids = list(collection.documents)
    kind, _, detail = settings.split.partition(":")
    match kind, detail:
        case "random", "":
            return split_randomly(ids, settings.nodes)
        case "field", name if name:
            return split_by_field(collection.documents, name, settings.nodes)
        case "clustered", "" | "unbalanced":
            texts = [_content(collection.documents[name]) for name in ids]
            vectors = WordLlamaEmbedder().embed_documents(texts)
            return split_by_topic(ids, vectors, settings.nodes, balanced=not detail)
    raise ValueError(f"no split {settings.split!r}: random, field:NAME, clustered[:unbalanced]")


def _content(document: dict) -> str:
    return "\n".join(filter(None, (document.get("title"), document["text"])))


async def evaluate(
    collection: Collection,
    settings: Settings,
    live: LiveMesh,
    note: Note = lambda _what, _done, _of: None,
) -> dict[str, Any]:
    """The figures, with nodes of their own on a mesh that runs."""
    parts = split(collection, settings)
    wanted = {}
    for place, part in enumerate(parts):
        second = settings.second_embedder if place % 2 else ""
        wanted[f"part-{place}"] = add_holder(
            live,
            f"part-{place}",
            SPLITTED,
            [collection.documents[name] for name in part],
            MESH_SEARCH__EMBEDDER=second or settings.embedder,
        )
    wanted["whole"] = add_holder(
        live, "whole", WHOLE, collection.documents.values(), MESH_SEARCH__EMBEDDER=settings.embedder
    )
    figures: dict[str, Any] = {}
    async with live.connect() as client:
        total = sum(wanted.values())
        await until_indexed(client, wanted, lambda done: note("indexing", done, total))
        rounds = len(settings.modes) * len(settings.limits) * len(collection.queries)
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            note("searching", done, rounds)

        for mode in settings.modes:
            for limit in settings.limits:
                figures.setdefault(mode, {})[str(limit)] = await _compared(
                    client, collection, mode, limit, count
                )
    return {
        "documents": len(collection.documents),
        "queries": len(collection.queries),
        "judged": len(collection.judgments),
        "nodes": {name: count for name, count in wanted.items() if name != "whole"},
        "split": settings.split,
        "embedder": settings.embedder,
        "second_embedder": settings.second_embedder,
        "modes": figures,
        "notes": collection.notes,
    }


async def _compared(
    client, collection: Collection, mode: str, limit: int, count: Callable[[], None]
) -> dict[str, Any]:
    turns = asyncio.Semaphore(IN_FLIGHT)

    async def both(query: str) -> tuple[list[str], list[str]]:
        async with turns:
            found = [await _found(client, query, mode, limit, name) for name in (SPLITTED, WHOLE)]
        count()
        return found[0], found[1]

    queries = collection.queries
    answers = dict(zip(queries, await asyncio.gather(*map(both, queries.values())), strict=True))
    figures: dict[str, Any] = {}
    for place, name in enumerate(("federated", "whole")):
        judged = [(answers[query][place], of) for query, of in collection.judgments.items()]
        figures[name] = {
            "ndcg@10": round(mean([ndcg(found, of) for found, of in judged]), 4),
            "recall@10": round(mean([recall(found, of) for found, of in judged]), 4),
        }
    for name, cut in (("overlap@10", 10), ("overlap", limit)):
        shares = [overlap(found, whole, cut) for found, whole in answers.values()]
        figures[name] = round(mean([share for share in shares if share is not None]), 4)
    return figures


async def _found(client, query: str, mode: str, limit: int, collection: str) -> list[str]:
    """Ids, best first. A part that is missing is no answer at all."""
    uncached = {"cache": False} if "cache" in messages.SearchOptions.__struct_fields__ else {}
    answer = await client.search(
        query,
        limit=limit,
        mode=mode,
        collections=[collection],
        require="all",
        timeout_ms=_TIMEOUT_MS,
        **uncached,
    )
    assert not answer.partial, answer.shards
    return [hit.id for hit in answer.results]


# -- what people see -------------------------------------------------------------------------------


def table(report: dict[str, Any]) -> str:
    """The figures, one line for each mode and limit."""
    sizes = report["nodes"].values()
    second = f", every second node {report['second_embedder']}" if report["second_embedder"] else ""
    first = (
        f"{report['documents']} documents on {len(sizes)} nodes ({min(sizes)} to {max(sizes)} each,"
        f" split {report['split']}), {report['queries']} queries, {report['judged']} judged,"
        f" embedder {report['embedder']}{second}"
    )
    heads = "mode    limit  nDCG@10 one index  recall@10 one index  overlap@10  overlap@limit"
    lines = [first, *(f"note: {text}" for text in report["notes"]), heads]
    for mode, limits in report["modes"].items():
        for limit, row in limits.items():
            fed, whole = row["federated"], row["whole"]
            lines.append(
                f"{mode:<7} {limit:>5}  {fed['ndcg@10']:>7.4f} {whole['ndcg@10']:>9.4f}"
                f"  {fed['recall@10']:>9.4f} {whole['recall@10']:>9.4f}"
                f"  {row['overlap@10']:>10.4f}  {row['overlap']:>13.4f}"
            )
    return "\n".join(lines)


@contextlib.contextmanager
def _bar(*, quiet: bool):
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn  # noqa: PLC0415

    if quiet:
        yield lambda _what, _done, _of: None
        return
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}

        def note(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=of)
            progress.update(tasks[what], completed=done)

        yield note


def run(
    collection: Collection, settings: Settings, folder: Path, note: Note = lambda *_: None
) -> dict[str, Any]:
    """Start a mesh in `folder`, evaluate, stop it."""
    live = LiveMesh(folder)
    try:
        live.start()
        return asyncio.run(evaluate(collection, settings, live, note))
    finally:
        live.stop()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="docs.jsonl, queries.jsonl, qrels.tsv")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument(
        "--split", default="random", help="random, field:NAME, clustered, clustered:unbalanced"
    )
    parser.add_argument("--embedder", default="wordllama")
    parser.add_argument("--second-embedder", default="", help="of every second node")
    parser.add_argument("--mode", action="append", choices=MODES, help="default: all")
    parser.add_argument("--limit", action="append", type=int, help="default: 10, 50, 100")
    parser.add_argument("--queries", type=int, default=0, help="only the first so many")
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    given = parser.parse_args(argv)
    try:
        collection = read_collection(given.folder)
        if given.queries:
            collection.queries = dict(list(collection.queries.items())[: given.queries])
            collection.judgments = {
                query: relevant
                for query, relevant in collection.judgments.items()
                if query in collection.queries
            }
        settings = Settings(
            nodes=given.nodes,
            split=given.split,
            embedder=given.embedder,
            second_embedder=given.second_embedder,
            modes=given.mode or MODES,
            limits=given.limit or LIMITS,
        )
        with tempfile.TemporaryDirectory() as folder, _bar(quiet=given.json) as note:
            report = run(collection, settings, Path(folder), note)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    sys.stdout.write((json.dumps(report) if given.json else table(report)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
