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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, zip_longest
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import msgspec

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


class _Place(NamedTuple):
    """Where candidates are from, and what ranking them takes."""

    node: str
    collection: str
    shard: str
    fingerprint: str
    weights: list[float]
    """Of the part's terms."""


class _Entry(msgspec.Struct, gc=False, eq=False):
    """A candidate that competes."""

    place: _Place
    candidate: Candidate
    bm25: float
    similarity: float
    """Cosine on the scale of all fingerprints; never negative."""
    text: float = 0.0
    vector: float = 0.0
    score: float = 0.0


_Found = tuple[Any, Candidate, _Place]
"""What one leg found; first what it is ordered by."""


def _named(candidate: Candidate, place: _Place) -> tuple[str, str, str, str]:
    """Breaks ties the same way however the documents are split."""
    return place.collection, candidate.id, place.shard, place.node


_worth = itemgetter(0)
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
    """The candidates that one index would have ranked, best first. Of the hundreds that came only
    those few are looked at closely: this runs for every search.
    """
    near, matching, mean, tops = _legs(parts, mode)
    deep = depth(limit)
    if len(tops) > 1:
        near = [
            ((_similarity(cosine, tops, place), cosine), found, place)
            for cosine, found, place in near
        ]
    near, matching = _best(near, deep), _best(matching, deep)
    scores = {id(found): score for score, found, _ in matching}
    chosen = {id(found): (found, place) for _, found, place in (*near, *matching)}
    competing = [
        _Entry(
            place,
            found,
            scores[key]
            if key in scores
            else bm25.score(found.tf, place.weights, found.length, mean),
            _similarity(found.cosine, tops, place),
        )
        for key, (found, place) in chosen.items()
    ]
    match mode:
        case "vector":
            for entry in competing:
                entry.score = entry.vector = entry.similarity
        case "text":
            for entry in competing:
                entry.score = entry.text = entry.bm25
        case "hybrid":
            _fuse(competing, vector_found=bool(near))
    competing.sort(key=lambda entry: _named(entry.candidate, entry.place))
    competing.sort(key=_score, reverse=True)  # equal ones stay in the order of their names
    return competing


def _legs(
    parts: Sequence[Candidates], mode: SearchMode
) -> tuple[list[_Found], list[_Found], float, dict[str, float]]:
    """What each leg found, by cosine and by the BM25 of all shards' statistics together; the mean
    length; the best cosine by fingerprint.
    """
    weight, mean = _statistics(parts)
    near: list[_Found] = []
    matching: list[_Found] = []
    tops: dict[str, float] = {}
    wants_near, wants_text, score_of = mode != "text", mode != "vector", bm25.score
    for part in parts:
        weights = [weight.get(term, 0.0) for term in part.terms]
        for shard in part.shards:
            place = _Place(part.node, shard.collection, shard.shard, shard.fingerprint, weights)
            top = 0.0
            hits = len(near)
            for found in shard.candidates:
                if wants_near and found.vector_hit and (cosine := found.cosine) is not None:
                    near.append((cosine, found, place))
                    if cosine > top:  # noqa: PLR1730 (a call costs more)
                        top = cosine
                if wants_text and found.text_hit:
                    score = score_of(found.tf, weights, found.length, mean)
                    if score > 0:  # else its node takes text apart in another way
                        matching.append((score, found, place))
            if len(near) > hits:
                tops[place.fingerprint] = max(tops.get(place.fingerprint, 0.0), top)
    return near, matching, mean, tops


def _statistics(parts: Sequence[Candidates]) -> tuple[dict[str, float], float]:
    """The weight of each term, and the mean length, over all shards together."""
    rows = tokens = 0
    df: dict[str, int] = {}
    for part in parts:
        for shard in part.shards:
            rows += max(shard.rows, 0)
            tokens += max(shard.tokens, 0)
            for term, count in zip(part.terms, shard.df, strict=False):
                df[term] = df.get(term, 0) + max(count, 0)
    mean = tokens / rows if rows else 0.0
    return {term: bm25.idf(rows, count) for term, count in df.items()}, mean


def _similarity(cosine: float | None, tops: Mapping[str, float], place: _Place) -> float:
    """The cosine on one scale for all fingerprints; with one fingerprint it stays."""
    top = tops.get(place.fingerprint, 0.0)
    if cosine is None or cosine <= 0 or top <= 0:
        return 0.0
    return min(cosine if len(tops) == 1 else min(cosine, 1.0) / top, 1.0)


def _best(found: list[_Found], most: int) -> list[_Found]:
    """The highest, in order; equal ones in the order of their names, which are seldom looked at."""
    found.sort(key=_worth, reverse=True)
    if any(one[0] == next_[0] for one, next_ in pairwise(found[: most + 1])):
        found.sort(key=lambda one: _named(one[1], one[2]))
        found.sort(key=_worth, reverse=True)
    return found[:most]


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


def _interleave(rankings: Sequence[Sequence[_Entry]]) -> Iterator[_Entry]:
    for turn in zip_longest(*rankings):
        yield from (entry for entry in turn if entry is not None)


def _distinct(entries: Iterable[_Entry]) -> Iterator[_Entry]:
    """The first of every group of equal documents."""
    ids: set[tuple[str, str]] = set()
    hashes: set[tuple[str, str]] = set()
    for entry in entries:
        collection = entry.place.collection
        by_id = (collection, entry.candidate.id)
        by_hash = (collection, entry.candidate.hash)
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
        node=entry.place.node,
        collection=entry.place.collection,
        shard=entry.place.shard,
        candidate=entry.candidate,
        score=entry.score,
        explain=parts,
    )
