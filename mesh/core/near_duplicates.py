"""Texts that say again what another one says: they share nearly all runs of four words.

Source: Broder, *On the resemblance and containment of documents* (1997).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

ALIKE = 0.8
"""Share of a text's runs that another text has, from which on it says nothing new."""

_RUN_WORDS = 4


def runs(words: Sequence[str]) -> set[str]:
    """Every run of four words; a shorter text is one run."""
    last = max(1, len(words) - _RUN_WORDS + 1)
    return {" ".join(words[start : start + _RUN_WORDS]) for start in range(last)}


def repeats(words: Sequence[str], others: Sequence[str]) -> bool:
    """Whether the text of these words says nothing that the other does not say."""
    if len(words) < _RUN_WORDS:
        return f" {' '.join(words)} " in f" {' '.join(others)} "
    own = runs(words)
    return len(own & runs(others)) >= ALIKE * len(own)


class DistinctTexts:
    """Texts by number, none of which repeats another; looked up by their runs."""

    def __init__(self) -> None:
        self._words: dict[int, Sequence[str]] = {}
        self._runs: dict[int, set[str]] = {}
        self._holders: dict[str, set[int]] = {}
        self._short: set[int] = set()
        """Those without a whole run."""

    def holds(self, words: Sequence[str]) -> bool:
        """Whether one of them says all of it already."""
        if len(words) < _RUN_WORDS:
            return any(repeats(words, others) for others in self._words.values())
        own = runs(words)
        return any(count >= ALIKE * len(own) for count in self._shared(own).values())

    def held_by(self, words: Sequence[str]) -> list[int]:
        """Those that say nothing which this text does not say."""
        shared = self._shared(runs(words))
        held = {n for n, count in shared.items() if count >= ALIKE * len(self._runs[n])}
        held |= {n for n in self._short if repeats(self._words[n], words)}
        return sorted(held)

    def add(self, number: int, words: Sequence[str]) -> None:
        """Take one in."""
        self._words[number] = words
        self._runs[number] = runs(words)
        if len(words) < _RUN_WORDS:
            self._short.add(number)
        for run in self._runs[number]:
            self._holders.setdefault(run, set()).add(number)

    def remove(self, number: int) -> None:
        """Take one out."""
        del self._words[number]
        self._short.discard(number)
        for run in self._runs.pop(number):
            self._holders[run].discard(number)

    def _shared(self, own: Iterable[str]) -> Counter[int]:
        return Counter(number for run in own for number in self._holders.get(run, ()))
