"""From a ranking and the shards' reports to the answer of the search contract."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mesh.core.merge import Ranked, Ranking
from mesh.types import MergeStrategy, SearchMode
from mesh.wire.messages import Hit, SearchResult, ShardHits, ShardReport, Shards, metadata_of

TextKey = tuple[str, str, str]
"""(node, collection, document id)."""


def missing_texts(ranking: Ranking) -> dict[tuple[str, str], list[str]]:
    """Ids by (node, collection) of hits whose text did not come along."""
    missing: dict[tuple[str, str], list[str]] = {}
    for hit in ranking.hits:
        if hit.candidate.content is None:
            missing.setdefault((hit.node, hit.collection), []).append(hit.candidate.id)
    return missing


def search_result(
    ranking: Ranking,
    *,
    texts: Mapping[TextKey, str],
    shards: Shards,
    strategy: MergeStrategy,
    duration_ms: float,
    one_leg: bool = False,
    id: str = "",  # noqa: A002
) -> SearchResult:
    """The answer; `partial` if any shard that was to be asked did not answer, or with one of its
    legs alone (`one_leg`).
    """
    hits = [_hit(ranked, texts) for ranked in ranking.hits]
    return SearchResult(
        results=hits,
        count=len(hits),
        total_results=ranking.total,
        duration_ms=round(duration_ms, 3),
        nodes_searched=len({report.node for report in shards.details if report.status == "ok"}),
        node_breakdown=_counted(hit.node for hit in hits),
        type_breakdown=_counted(hit.model_type for hit in hits),
        merge_strategy=strategy,
        avg_score=round(sum(hit.score for hit in hits) / len(hits), 6) if hits else 0.0,
        partial=bool(shards.failed or shards.timed_out) or one_leg,
        shards=shards,
        id=id,
    )


def how_it_went(hits: ShardHits, mode: SearchMode) -> tuple[str, str]:
    """Status and reason of a shard that answered. One that lacks its vector leg has its text leg to
    offer, unless vectors were all that was asked.
    """
    return ("failed" if hits.no_vectors and mode == "vector" else "ok"), hits.no_vectors


def lacks_a_leg(reports: Iterable[ShardReport]) -> bool:
    """Whether any of those that answered did so with one leg alone; see `how_it_went`."""
    return any(report.status == "ok" and report.reason for report in reports)


def coverage(reports: Sequence[ShardReport]) -> Shards:
    """Reports counted by status."""
    counted = _counted(report.status for report in reports)
    return Shards(
        total=len(reports),
        ok=counted.get("ok", 0),
        failed=counted.get("failed", 0),
        skipped=counted.get("skipped", 0),
        timed_out=counted.get("timed_out", 0),
        details=list(reports),
    )


def _counted(names: Iterable[str]) -> dict[str, int]:
    """How often each occurs, in order; for a few names a Counter costs several times as much."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts


def _hit(ranked: Ranked, texts: Mapping[TextKey, str]) -> Hit:
    candidate = ranked.candidate
    content = candidate.content
    if content is None:
        content = texts.get((ranked.node, ranked.collection, candidate.id), "")
    return Hit(
        id=candidate.id,
        content=content,
        score=round(ranked.score, 6),
        model_class=ranked.collection,
        model_type=ranked.collection.rpartition(".")[2],
        metadata=metadata_of(candidate),
        node=ranked.node,
        collection=ranked.collection,
        shard=ranked.shard,
        explain=ranked.explain,
    )
