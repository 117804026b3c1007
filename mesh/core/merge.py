"""One ranking out of many nodes' candidates, identical to that of one index over all documents.

Each node sends the best `depth(limit)` candidates of each leg with what BM25 needs: document
length, term frequencies, and its shard's part of N, tokens and document frequencies. The parts are
summed, BM25 is computed anew, and only the globally best `depth(limit)` of each leg compete, as
they would on one index.

Scores: `vector` is the cosine, `text` is BM25, `hybrid` is the mean of BM25 and cosine, each
divided by its maximum over the competing candidates, so it lies in 0..1.

Cosines of different embedders do not compare. Where fingerprints differ each one's cosines are
divided by the maximum that a vector hit of that fingerprint reached, in every mode: no embedder
starves another, though the order between them is a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

from mesh.core import bm25
from mesh.types import MergeStrategy, SearchMode
from mesh.wire.messages import Candidate, Candidates

MIN_DEPTH = 30


def depth(limit: int) -> int:
    """How many candidates of each leg compete for `limit` hits; fewer than 30 lose recall, and
    fewer than the limit cannot fill it.
    """
    return max(MIN_DEPTH, limit)


class Ranked(NamedTuple):
    """One hit and where it is from."""

    node: str
    collection: str
    shard: str
    candidate: Candidate
    score: float
    explain: dict[str, float] | None
    """`bm25`, `cosine` (raw; absent without vectors) and their shares `text` and `vector` of the
    score."""


class Ranking(NamedTuple):
    """The answer: at most `limit` hits, of `total` distinct candidates that competed."""

    hits: list[Ranked]
    total: int


@dataclass(slots=True)
class _Entry:
    """A candidate on its way through the ranking."""

    node: str
    collection: str
    shard: str
    fingerprint: str
    candidate: Candidate
    bm25: float
    similarity: float = 0.0
    """Cosine on the scale of all fingerprints; never negative."""
    text: float = 0.0
    vector: float = 0.0

    @property
    def score(self) -> float:
        return self.text + self.vector

    @property
    def name(self) -> tuple[str, str, str, str]:
        """Breaks ties the same way however the documents are split."""
        return self.collection, self.candidate.id, self.shard, self.node


def rank(
    parts: Sequence[Candidates],
    *,
    mode: SearchMode,
    limit: int,
    strategy: MergeStrategy = "score",
    deduplicate: bool = True,
    explain: bool = False,
) -> Ranking:
    """Merge the nodes' candidates, best first; ties by collection, then id.

    Args:
        parts: One per node, in any order. Terms are matched by their text, so nodes whose
            tokenizers differ still merge.
        mode: `vector` ranks what the vector leg found, `text` what the text leg found.
        limit: Hits wanted.
        strategy: `score` is the ranking of one index; `round_robin` takes the nodes' own rankings
            in turn, in order of their names, with the scores they have there.
        deduplicate: Of equal documents of a collection (same content hash, or same id), keep the
            best.
        explain: Fill `Ranked.explain`.
    """
    if strategy == "round_robin":
        rankings = [
            _compete([part], mode, limit) for part in sorted(parts, key=lambda part: part.node)
        ]
        ordered: Iterable[_Entry] = _interleave(rankings)
    else:
        ordered = _compete(parts, mode, limit)
    distinct = list(_distinct(ordered)) if deduplicate else list(ordered)
    return Ranking([_ranked(entry, explain) for entry in distinct[:limit]], len(distinct))


def _compete(parts: Sequence[Candidates], mode: SearchMode, limit: int) -> list[_Entry]:
    """The candidates that one index would have ranked, best first."""
    entries = list(_entries(parts))
    _scale(entries)
    deep = depth(limit)
    legs: list[list[_Entry]] = []
    if mode != "text":
        found = (e for e in entries if e.candidate.vector_hit and e.candidate.cosine is not None)
        legs.append(_best(found, lambda entry: entry.similarity, deep))
    if mode != "vector":
        # A hit without any of the terms: its node takes text apart in another way.
        found = (e for e in entries if e.candidate.text_hit and e.bm25 > 0)
        legs.append(_best(found, lambda entry: entry.bm25, deep))
    competing = list({id(entry): entry for leg in legs for entry in leg}.values())
    match mode:
        case "vector":
            for entry in competing:
                entry.vector = entry.similarity
        case "text":
            for entry in competing:
                entry.text = entry.bm25
        case "hybrid":
            _fuse(competing, vector_found=bool(legs[0]))
    return _best(competing, lambda entry: entry.score, len(competing))


def _entries(parts: Sequence[Candidates]) -> Iterator[_Entry]:
    """Every candidate with its BM25 by the statistics of all shards together."""
    rows = tokens = 0
    df: dict[str, int] = {}
    for part in parts:
        for shard in part.shards:
            rows += max(shard.rows, 0)
            tokens += max(shard.tokens, 0)
            for term, count in zip(part.terms, shard.df, strict=False):
                df[term] = df.get(term, 0) + max(count, 0)
    mean = tokens / rows if rows else 0.0
    weight = {term: bm25.idf(rows, count) for term, count in df.items()}
    for part in parts:
        weights = [weight.get(term, 0.0) for term in part.terms]
        for shard in part.shards:
            for found in shard.candidates:
                yield _Entry(
                    node=part.node,
                    collection=shard.collection,
                    shard=shard.shard,
                    fingerprint=shard.fingerprint,
                    candidate=found,
                    bm25=bm25.score(found.tf, weights, found.length, mean),
                )


def _scale(entries: Sequence[_Entry]) -> None:
    """Put the cosines of all fingerprints on one scale; with one fingerprint they stay."""
    best: dict[str, float] = {}
    for entry in entries:
        cosine = entry.candidate.cosine
        if cosine is not None and entry.candidate.vector_hit:
            best[entry.fingerprint] = max(best.get(entry.fingerprint, 0.0), cosine)
    for entry in entries:
        top = best.get(entry.fingerprint, 0.0)
        if top > 0 and len(best) == 1:
            top = 1.0
        cosine = min(max(entry.candidate.cosine or 0.0, 0.0), 1.0)
        entry.similarity = min(cosine / top, 1.0) if top > 0 else 0.0


def _fuse(competing: Sequence[_Entry], *, vector_found: bool) -> None:
    """Max-norm both legs. A vector leg that found nothing has only noise to say about what the
    text leg found, so then it says nothing.
    """
    top_bm25 = max((entry.bm25 for entry in competing), default=0.0)
    top_similarity = max((entry.similarity for entry in competing), default=0.0)
    for entry in competing:
        if top_bm25 > 0:
            entry.text = entry.bm25 / top_bm25 / 2
        if vector_found and top_similarity > 0:
            entry.vector = entry.similarity / top_similarity / 2


def _best(entries: Iterable[_Entry], key: Callable[[_Entry], float], count: int) -> list[_Entry]:
    return sorted(entries, key=lambda entry: (-key(entry), entry.name))[:count]


def _interleave(rankings: Sequence[Sequence[_Entry]]) -> Iterator[_Entry]:
    for turn in zip_longest(*rankings):
        yield from (entry for entry in turn if entry is not None)


def _distinct(entries: Iterable[_Entry]) -> Iterator[_Entry]:
    """The first of every group of equal documents."""
    seen: set[tuple[str, str, str]] = set()
    for entry in entries:
        names = {("id", entry.collection, entry.candidate.id)}
        if entry.candidate.hash:
            names.add(("hash", entry.collection, entry.candidate.hash))
        if names.isdisjoint(seen):
            seen |= names
            yield entry


def _ranked(entry: _Entry, explain: bool) -> Ranked:
    parts: dict[str, float] | None = None
    if explain:
        parts = {"bm25": entry.bm25, "text": entry.text, "vector": entry.vector}
        if entry.candidate.cosine is not None:
            parts["cosine"] = entry.candidate.cosine
    return Ranked(
        node=entry.node,
        collection=entry.collection,
        shard=entry.shard,
        candidate=entry.candidate,
        score=entry.score,
        explain=parts,
    )
