"""What a search found in one collection, with what ranking it anywhere takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mesh.adapters.lance.schema import split, strings, vectors_of
from mesh.core import bm25
from mesh.wire.messages import Candidate, ShardHits

COLUMNS = ["id", "content", "words", "vector", "hash", "metadata"]
"""What `found` reads of each row."""

MAX_INLINE_BYTES = 16_384
"""Longer texts are fetched if they make it into the answer."""
MAX_INLINE_TOTAL_BYTES = 524_288
_MOST_BYTES_PER_CHAR = 4
_COSINE_DIGITS = 7

read_metadata = msgspec.json.Decoder(dict[str, Any]).decode


class Query(NamedTuple):
    """A search, the same for every collection."""

    terms: tuple[str, ...]
    text: bool
    """Whether the text leg is asked."""
    vector: npt.NDArray[np.float32] | None
    """`(dim,)` unit vector; None: the vector leg is not asked, or the query has no direction."""
    depth: int
    threshold: float
    near: bool = False
    """Whether the vector leg is asked."""
    no_vectors: str = ""
    """Why it cannot be answered all the same."""
    texts: int | None = None
    """How many candidates bring their texts along; None: all."""


class Weights(NamedTuple):
    """A shard's own statistics: good enough to choose what the caller ranks by everybody's."""

    rows: int
    df: list[int]
    mean_length: float


def found(
    query: Query, weights: Weights, near: pa.Table | None, matching: pa.Table | None
) -> list[Candidate]:
    """Candidates of one collection, each leg's best first.

    Args:
        query: What was asked.
        weights: Statistics of the collection.
        near: Rows of the vector leg, None if it was not asked.
        matching: Rows of the text leg. Both more than wanted, since the best are chosen anew: among
            equal cosines LanceDB takes any, and its scores differ a little for rows it has not
            indexed yet.
    """
    rows: dict[str, _Found] = {}
    if near is not None:
        hits = [row for row in _read(near, query) if _at_least(row.cosine, query.threshold)]
        hits.sort(key=_nearest)
        rows = {row.id: row._replace(vector_hit=True) for row in hits[: query.depth]}
    if matching is not None:
        idf = [bm25.idf(weights.rows, df) for df in weights.df]
        scored = [
            (-bm25.score(row.tf, idf, row.length, weights.mean_length), row.id, row)
            for row in _read(matching, query)
        ]
        for _, name, row in sorted(scored)[: query.depth]:
            rows[name] = rows.get(name, row)._replace(text_hit=True)
    brings = _bringing(list(rows.values()), query, weights)
    return [
        Candidate(
            id=row.id,
            cosine=row.cosine,
            vector_hit=row.vector_hit,
            text_hit=row.text_hit,
            length=row.length,
            tf=row.tf,
            hash=row.hash,
            content=inline(row.content) if place in brings else None,
            metadata=read_metadata(row.metadata),
        )
        for place, row in enumerate(rows.values())
    ]


def best(bm25s: Sequence[float], cosines: Sequence[float | None], most: int) -> Container[int]:
    """Places of the candidates that rank highest here: most of those that the caller will want.

    Args:
        bm25s: Of each candidate, by the shard's own statistics.
        cosines: Likewise.
        most: How many.
    """
    if most >= len(bm25s):
        return range(len(bm25s))
    top_bm25 = max(bm25s) or 1.0
    near = [cosine if cosine is not None and cosine > 0 else 0.0 for cosine in cosines]
    top_cosine = max(near) or 1.0
    scores = [
        text / top_bm25 + cosine / top_cosine for text, cosine in zip(bm25s, near, strict=True)
    ]
    return frozenset(sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:most])


def inline(content: str) -> str | None:
    """A text that comes along with its candidate; None: it is too long for that."""
    if len(content) * _MOST_BYTES_PER_CHAR <= MAX_INLINE_BYTES:
        return content
    return content if len(content.encode()) <= MAX_INLINE_BYTES else None


def cosines(vectors: npt.NDArray[np.float32], vector: npt.NDArray[np.float32]) -> list[float]:
    """One per row of `(n, dim)`. Computed here for both legs and for hot copies, so that a document
    has the same cosine whichever leg and whichever node finds it.
    """
    products = (vectors.astype(np.float64) * vector).sum(axis=1)
    rounded: list[float] = products.round(_COSINE_DIGITS).tolist()
    return rounded


def within_budget(shards: Sequence[ShardHits]) -> tuple[ShardHits, ...]:
    """Leave texts out, of each shard's last candidates first, until the rest fits a reply."""
    chars = sum(len(found.content or "") for hits in shards for found in hits.candidates)
    if chars * _MOST_BYTES_PER_CHAR <= MAX_INLINE_TOTAL_BYTES:
        return tuple(shards)
    left = MAX_INLINE_TOTAL_BYTES
    dropped: set[tuple[int, int]] = set()
    for shard, place, candidate in _in_turn(shards):
        size = len((candidate.content or "").encode())
        if size > left:
            dropped.add((shard, place))
        else:
            left -= size
    if not dropped:
        return tuple(shards)
    return tuple(
        msgspec.structs.replace(
            hits,
            candidates=[
                msgspec.structs.replace(candidate, content=None)
                if (shard, place) in dropped
                else candidate
                for place, candidate in enumerate(hits.candidates)
            ],
        )
        for shard, hits in enumerate(shards)
    )


class _Found(NamedTuple):
    id: str
    content: str
    hash: str
    metadata: str
    length: int
    tf: list[int]
    cosine: float | None
    vector_hit: bool = False
    text_hit: bool = False


def _read(table: pa.Table, query: Query) -> Iterator[_Found]:
    nearness = _cosines(table, query.vector)
    columns = (strings(table, name) for name in ("id", "content", "hash", "metadata", "words"))
    for name, content, digest, metadata, words, cosine in zip(*columns, nearness, strict=True):
        terms = split(words)
        counts = Counter(terms)
        tf = [counts[term] for term in query.terms]
        yield _Found(name, content, digest, metadata, len(terms), tf, cosine)


def _bringing(rows: Sequence[_Found], query: Query, weights: Weights) -> Container[int]:
    """Places of the rows that bring their texts along."""
    if query.texts is None:
        return range(len(rows))
    idf = [bm25.idf(weights.rows, df) for df in weights.df]
    mean = weights.mean_length
    scores = [bm25.score(row.tf, idf, row.length, mean) if query.text else 0.0 for row in rows]
    return best(scores, [row.cosine for row in rows], query.texts)


def _cosines(table: pa.Table, vector: npt.NDArray[np.float32] | None) -> list[float | None]:
    if vector is None:
        return [None] * table.num_rows
    vectors, present = vectors_of(table, len(vector))
    return [
        cosine if there else None
        for cosine, there in zip(cosines(vectors, vector), present, strict=True)
    ]


def _nearest(row: _Found) -> tuple[float, str]:
    return -(row.cosine or 0.0), row.id


def _at_least(cosine: float | None, threshold: float) -> bool:
    return cosine is not None and cosine >= threshold


def _in_turn(shards: Sequence[ShardHits]) -> Iterator[tuple[int, int, Candidate]]:
    """Every candidate, the shards' best ones first."""
    for place, turn in enumerate(zip_longest(*(hits.candidates for hits in shards))):
        for shard, candidate in enumerate(turn):
            if candidate is not None:
                yield shard, place, candidate
