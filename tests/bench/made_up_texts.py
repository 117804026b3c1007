"""Texts with words as frequent as those of a language, for benches that need no meaning."""

from __future__ import annotations

import random

_SYLLABLES = ["ka", "lo", "mi", "ne", "ra", "su", "ti", "vo", "en", "ar", "is", "um"]


def vocabulary(count: int) -> list[str]:
    rng = random.Random(5)
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4)))] = None
    return list(words)


def made_up_texts(count: int, *, words: int = 60, seed: int = 1) -> list[str]:
    """Zipf's law: the n-th word is as frequent as 1/n."""
    known = vocabulary(5000)
    weights = [1 / (place + 1) for place in range(len(known))]
    rng = random.Random(seed)
    return [
        " ".join(rng.choices(known, weights, k=rng.randint(words // 2, words * 3 // 2)))
        for _ in range(count)
    ]
