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
from operator import attrgetter
from typing import Any, NamedTuple

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
    score: float = 0.0


def _name(entry: _Entry) -> tuple[str, str, str, str]:
    """Breaks ties the same way however the documents are split."""
    return entry.collection, entry.candidate.id, entry.shard, entry.node


_bm25 = attrgetter("bm25")
_nearness = attrgetter("similarity", "candidate.cosine")
"""Nodes cut by the cosine, also where it is negative and the similarity 0."""
_score = attrgetter("score")


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
    entries = sorted(_entries(parts), key=_name)  # what sorts them later keeps this order in ties
    _scale(entries)
    deep = depth(limit)
    near: list[_Entry] = []
    matching: list[_Entry] = []
    if mode != "text":
        found = [e for e in entries if e.candidate.vector_hit and e.candidate.cosine is not None]
        near = _best(found, _nearness)[:deep]
    if mode != "vector":
        # A hit without any of the terms: its node takes text apart in another way.
        found = [e for e in entries if e.candidate.text_hit and e.bm25 > 0]
        matching = _best(found, _bm25)[:deep]
    chosen = {id(entry) for entry in (*near, *matching)}
    competing = [entry for entry in entries if id(entry) in chosen]
    match mode:
        case "vector":
            for entry in competing:
                entry.score = entry.vector = entry.similarity
        case "text":
            for entry in competing:
                entry.score = entry.text = entry.bm25
        case "hybrid":
            _fuse(competing, vector_found=bool(near))
    return _best(competing, _score)


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
                    part.node,
                    shard.collection,
                    shard.shard,
                    shard.fingerprint,
                    found,
                    bm25.score(found.tf, weights, found.length, mean),
                )


def _scale(entries: Sequence[_Entry]) -> None:
    """Put the cosines of all fingerprints on one scale; with one fingerprint they stay."""
    best: dict[str, float] = {}
    for entry in entries:
        cosine = entry.candidate.cosine
        if (
            cosine is not None
            and entry.candidate.vector_hit
            and cosine > best.setdefault(entry.fingerprint, 0.0)
        ):
            best[entry.fingerprint] = cosine
    alone = len(best) == 1
    for entry in entries:
        top = best.get(entry.fingerprint, 0.0)
        cosine = entry.candidate.cosine
        if top > 0 and cosine is not None and cosine > 0:
            entry.similarity = min(cosine if alone else min(cosine, 1.0) / top, 1.0)


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
        entry.score = entry.text + entry.vector


def _best(entries: Sequence[_Entry], key: Callable[[_Entry], Any]) -> list[_Entry]:
    """Highest first; equal ones in the order they came."""
    return sorted(entries, key=key, reverse=True) if len(entries) > 1 else list(entries)


def _interleave(rankings: Sequence[Sequence[_Entry]]) -> Iterator[_Entry]:
    for turn in zip_longest(*rankings):
        yield from (entry for entry in turn if entry is not None)


def _distinct(entries: Iterable[_Entry]) -> Iterator[_Entry]:
    """The first of every group of equal documents."""
    ids: set[tuple[str, str]] = set()
    hashes: set[tuple[str, str]] = set()
    for entry in entries:
        by_id = (entry.collection, entry.candidate.id)
        by_hash = (entry.collection, entry.candidate.hash)
        if by_id in ids or by_hash in hashes:
            continue
        ids.add(by_id)
        if entry.candidate.hash:
            hashes.add(by_hash)
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
