"""Both legs of a search over a hot copy: exact arithmetic, and the same candidates as LanceDB's.

A product in float32 chooses the rows that can be among the nearest, with its greatest possible
error to spare; those few are computed as `candidates.cosines` does it. BM25 does in numpy what
`mesh.core.bm25` does, operation by operation, so that its sums are equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mesh.adapters.lance import candidates
from mesh.adapters.lance.candidates import Query, Weights
from mesh.adapters.lance.hot import Posting, Snapshot
from mesh.core import bm25
from mesh.wire.messages import Candidate

_UNIT_ROUNDOFF = 2.0**-24
_COSINE_ERROR = 1e-7
"""Of rounding a cosine for the wire."""

_QUICK_VALUES = 3_000_000
"""Numbers of vectors and postings that are gone through in less than about 2 ms."""

Rows = npt.NDArray[np.intp]
Postings = list[Posting]


def is_quick(snapshot: Snapshot, query: Query) -> bool:
    """Whether the loop can do it itself: a thread costs more than it frees."""
    values = 0 if query.vector is None else snapshot.vectors.size
    for term in query.terms:
        values += 8 * len(snapshot.postings.get(term, ()))
    return values <= _QUICK_VALUES


def found(query: Query, weights: Weights, snapshot: Snapshot) -> list[Candidate]:
    """Candidates of one collection, each leg's best first; as `candidates.found`."""
    postings = [snapshot.posting(term) for term in query.terms]
    near, nearness = _near(query, snapshot)
    scores = _scores(weights, snapshot, postings) if query.text else None
    matching = [] if scores is None else _matching(query, snapshot, scores)
    hits = set(near)
    rest = [row for row in matching if row not in hits]
    rows = near + rest
    if not rows:
        return []
    texts = set(matching)
    cosines: list[float | None] = list(nearness)
    if rest:
        cosines += _cosines(query, snapshot, rest)
    tf = _frequencies(postings, np.array(rows))
    lengths = snapshot.lengths[rows].tolist()
    bm25s = [0.0] * len(rows) if scores is None else scores[rows].tolist()
    brings = candidates.best(bm25s, cosines, len(rows) if query.texts is None else query.texts)
    return [
        Candidate(
            id=snapshot.ids[row],
            cosine=cosine,
            vector_hit=row in hits,
            text_hit=row in texts,
            length=length,
            tf=counts,
            hash=snapshot.hashes[row],
            content=candidates.inline(snapshot.contents[row]) if place in brings else None,
            metadata=candidates.read_metadata(snapshot.metadata[row]),
        )
        for place, (row, cosine, length, counts) in enumerate(
            zip(rows, cosines, lengths, tf, strict=True)
        )
    ]


def _near(query: Query, snapshot: Snapshot) -> tuple[list[int], list[float]]:
    """The vector leg's rows, best first, and their cosines."""
    if query.vector is None or not snapshot.rows:
        return [], []
    error = len(query.vector) * _UNIT_ROUNDOFF + _COSINE_ERROR
    # Not `@`: that wakes BLAS's other threads, which many nodes on few cores only wait for.
    products = np.vecdot(snapshot.vectors, query.vector)
    if snapshot.directed is not None:
        products[~snapshot.directed] = -np.inf
    chosen = np.flatnonzero(products >= query.threshold - error)
    if len(chosen) > query.depth:
        values = products[chosen]
        last = np.partition(values, len(values) - query.depth)[len(values) - query.depth]
        chosen = chosen[values >= last - 2 * error]
    if not len(chosen):
        return [], []
    cosines = candidates.cosines(snapshot.vectors[chosen], query.vector)
    ids = snapshot.ids
    best = sorted(
        (-cosine, ids[row], row)
        for row, cosine in zip(chosen.tolist(), cosines, strict=True)
        if cosine >= query.threshold
    )[: query.depth]
    return [row for _, _, row in best], [-cosine for cosine, _, _ in best]


def _scores(weights: Weights, snapshot: Snapshot, postings: Postings) -> npt.NDArray[np.float64]:
    """`(rows,)`: BM25 of every row; 0 where no term occurs, or the row is dead."""
    scores = np.zeros(snapshot.rows)
    norms = _norms(snapshot.lengths, weights.mean_length)
    for (rows, counts), df in zip(postings, weights.df, strict=True):
        weight = bm25.idf(weights.rows, df)
        scores[rows] += weight * counts * (bm25.K1 + 1) / (counts + norms[rows])
    if snapshot.living is not None:
        scores[~snapshot.living] = 0
    return scores


def _matching(query: Query, snapshot: Snapshot, scores: npt.NDArray[np.float64]) -> list[int]:
    """The text leg's rows, best first."""
    chosen = np.flatnonzero(scores)
    values = scores[chosen]
    if len(chosen) > query.depth:
        last = np.partition(values, len(values) - query.depth)[len(values) - query.depth]
        keep = values >= last
        chosen, values = chosen[keep], values[keep]
    ids = snapshot.ids
    best = sorted(
        (-value, ids[row], row) for row, value in zip(chosen.tolist(), values.tolist(), strict=True)
    )
    return [row for _, _, row in best[: query.depth]]


def _norms(lengths: npt.NDArray[np.int32], mean_length: float) -> npt.NDArray[np.float64]:
    """What `bm25.score` divides by, but for the count."""
    relative = lengths / mean_length if mean_length > 0 else np.ones(len(lengths))
    norms: npt.NDArray[np.float64] = bm25.K1 * (1 - bm25.B + bm25.B * relative)
    return norms


def _cosines(query: Query, snapshot: Snapshot, rows: Sequence[int]) -> list[float | None]:
    if query.vector is None:
        return [None] * len(rows)
    found = candidates.cosines(snapshot.vectors[rows], query.vector)
    if snapshot.directed is None:
        return list(found)
    there = snapshot.directed[rows].tolist()
    return [cosine if has else None for cosine, has in zip(found, there, strict=True)]


def _frequencies(postings: Postings, wanted: Rows) -> list[list[int]]:
    """`(len(wanted), terms)`: how often each term occurs in each row."""
    counts = np.zeros((len(wanted), len(postings)), dtype=np.intp)
    for column, (rows, found) in enumerate(postings):
        if len(rows):
            places = rows.searchsorted(wanted)
            places[places == len(rows)] = 0
            counts[:, column] = found[places] * (rows[places] == wanted)
    listed: list[list[int]] = counts.tolist()
    return listed
