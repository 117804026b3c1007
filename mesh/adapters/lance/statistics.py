"""What BM25 needs to know of a collection, kept exact in memory.

LanceDB tells nobody its document frequencies, so they are counted here: with every write, and by
one scan when a collection is opened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


class Statistics:
    """Documents, their lengths together, and in how many documents each term occurs."""

    def __init__(self) -> None:
        self.rows = 0
        self.tokens = 0
        self._df: Counter[str] = Counter()

    def df(self, terms: Iterable[str]) -> list[int]:
        """Document frequencies, in order of `terms`."""
        return [self._df.get(term, 0) for term in terms]

    def terms(self) -> dict[str, int]:
        """All document frequencies."""
        return dict(self._df)

    def add(self, words: Sequence[str]) -> None:
        """Count a document in, by its terms with repetitions."""
        self.rows += 1
        self.tokens += len(words)
        self._df.update(set(words))

    def remove(self, words: Sequence[str]) -> None:
        """Count a document out; what it left at zero goes with the next `apply`."""
        self.rows -= 1
        self.tokens -= len(words)
        self._df.subtract(set(words))

    def apply(self, change: Statistics) -> None:
        """Add the sum of what `change` was told."""
        self.rows += change.rows
        self.tokens += change.tokens
        for term, count in change._df.items():
            total = self._df[term] + count
            if total:
                self._df[term] = total
            else:
                self._df.pop(term, None)
