"""Candidates of nodes with different embedders, put on the scale of one.

Cosines of two embedders say nothing about each other. So the texts of all candidates whose vectors
are another embedder's are embedded anew, by the caller's; with these cosines they are ranked as one
index. A candidate whose text did not come along, or for which no time was left, gets an estimate:
its own cosine times what the others of its embedder were multiplied by, by least squares through
the origin.

Source: measured with four collections, a clustered split and two embedders; see the decision record
on global ranking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from mesh.wire.messages import Candidate, Candidates, ShardHits

_FEWEST = 5
"""So many of an embedder's candidates must have been embedded anew before others are estimated."""


def fingerprints(parts: Sequence[Candidates]) -> set[str]:
    """Of the embedders whose cosines came."""
    return {
        shard.fingerprint
        for part in parts
        for shard in part.shards
        if any(found.cosine is not None for found in shard.candidates)
    }


def foreign(parts: Sequence[Candidates], fingerprint: str) -> list[Candidate]:
    """Candidates whose cosine is another embedder's, in order."""
    return [found for shard in _foreign(parts, fingerprint) for found in shard.candidates]


def rescaled(
    parts: Sequence[Candidates],
    fingerprint: str,
    cosines: Sequence[float | None],
    threshold: float,
) -> list[Candidates] | None:
    """The parts, as if all vectors were of one embedder; None: too few texts were embedded.

    Args:
        parts: One per node.
        fingerprint: Of that embedder.
        cosines: Of the `foreign` candidates, same order; None: it was not embedded.
        threshold: Least cosine of the vector leg, for the candidates that are judged anew.
    """
    factors = _factors(parts, fingerprint, cosines)
    given = iter(cosines)
    made: list[Candidates] = []
    for part in parts:
        shards: list[ShardHits] = []
        for shard in part.shards:
            if shard.fingerprint == fingerprint:
                shards.append(shard)
                continue
            judged: list[Candidate] = []
            for found in shard.candidates:
                cosine, hit = next(given), True
                if cosine is None:
                    factor = factors.get(shard.fingerprint)
                    if factor is None:
                        return None
                    cosine = None if found.cosine is None else found.cosine * factor
                    hit = found.vector_hit
                judged.append(_judged(found, cosine, hit=hit, threshold=threshold))
            shards.append(
                msgspec.structs.replace(shard, fingerprint=fingerprint, candidates=judged)
            )
        made.append(msgspec.structs.replace(part, shards=shards))
    return made


def cut(parts: Sequence[Candidates], threshold: float) -> list[Candidates]:
    """The parts, where nodes were asked without a threshold: each embedder's own cosines count."""
    return [
        msgspec.structs.replace(
            part,
            shards=[
                msgspec.structs.replace(
                    shard,
                    candidates=[
                        _judged(found, found.cosine, hit=found.vector_hit, threshold=threshold)
                        for found in shard.candidates
                    ],
                )
                for shard in part.shards
            ],
        )
        for part in parts
    ]


def _judged(found: Candidate, cosine: float | None, *, hit: bool, threshold: float) -> Candidate:
    hit = hit and cosine is not None and cosine >= threshold
    return msgspec.structs.replace(found, cosine=cosine, vector_hit=hit)


def _foreign(parts: Sequence[Candidates], fingerprint: str) -> Iterator[ShardHits]:
    for part in parts:
        for shard in part.shards:
            if shard.fingerprint != fingerprint:
                yield shard


def _factors(
    parts: Sequence[Candidates], fingerprint: str, cosines: Sequence[float | None]
) -> dict[str, float]:
    """By fingerprint, what makes an own cosine one of the common scale."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    given = iter(cosines)
    for shard in _foreign(parts, fingerprint):
        for found in shard.candidates:
            cosine = next(given)
            if cosine is not None and found.cosine is not None:
                pairs.setdefault(shard.fingerprint, []).append((found.cosine, cosine))
    factors: dict[str, float] = {}
    for name, both in pairs.items():
        squares = sum(own * own for own, _ in both)
        if len(both) >= _FEWEST and squares > 0:
            factors[name] = sum(own * common for own, common in both) / squares
    return factors
