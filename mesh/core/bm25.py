"""BM25 with an idf that is never negative.

Source: Robertson & Zaragoza, *The Probabilistic Relevance Framework: BM25 and Beyond* (2009); the
idf is Lucene's (`BM25Similarity`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

K1 = 1.2
B = 0.75
_GAIN = K1 + 1
_FLAT = 1 - B


@functools.lru_cache(maxsize=16_384)
def idf(rows: int, df: int) -> float:
    """Weight of a term that `df` of `rows` documents hold; more documents than rows count as all,
    so that no statistics from the network can break the logarithm.
    """
    held = max(df, 0)
    return math.log(1 + (max(rows, held) - held + 0.5) / (held + 0.5))


def score(tf: Sequence[int], weights: Sequence[float], length: int, mean_length: float) -> float:
    """Score of one document.

    Args:
        tf: How often each query term occurs in it.
        weights: The terms' `idf`, same order; a term without a counterpart counts nothing.
        length: Tokens in the document.
        mean_length: Tokens in a document of the index; 0 or less: lengths do not matter.
    """
    if mean_length > 0:
        known = length if length > 0 else 0  # noqa: FURB136 (a call costs more)
        norm = K1 * (_FLAT + B * (known / mean_length))
    else:
        norm = K1 * (_FLAT + B)
    total = 0.0
    for count, weight in zip(tf, weights):  # noqa: B905 (a keyword costs a tenth of this)
        if count > 0:
            total += weight * count * _GAIN / (count + norm)
    return total
