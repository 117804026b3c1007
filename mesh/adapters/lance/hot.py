"""A collection's rows in memory, so that a search need not ask LanceDB.

Rows are only ever appended. A new version of a document is a new row, and the old one is marked
dead in a copy of the mask, so whoever holds a `Snapshot` reads on without a lock, in any thread,
while others write. What is dead goes when `compacted` makes a new copy.

`add`, `publish` and `compacted` are the writer's: one at a time. `add` may run in a thread, since
nobody sees its rows before `publish`, which runs on the loop together with statistics and version.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int32]

_MIN_DEAD = 256
_GROWTH = 1.125
_WORTH = 16
"""Compacting goes through all rows, so one of so many at least has to be dead."""
_ROW_BYTES = 180
"""Of a row besides vector, texts and postings: list slots, entry of the dict."""
_FLAGS_BYTES = 6
"""Of a row: its length and two marks."""
_POSTING_BYTES = 9
_TERM_BYTES = 300
"""A term that is new: its text, its array, its entry of the dict. Measured with tracemalloc."""


class HotRow(NamedTuple):
    """A document as it is kept."""

    id: str
    content: str
    hash: str
    metadata: str
    """Canonical JSON."""
    words: Sequence[str]


class Posting(NamedTuple):
    """Rows that hold a term, ascending, dead ones too; and how often each does."""

    rows: npt.NDArray[np.intp]
    counts: npt.NDArray[np.intp]


_NOWHERE = Posting(np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp))


class Snapshot(NamedTuple):
    """What is there at one moment; it does not change."""

    rows: int
    """Rows of all there are in the lists and arrays that count; later ones came afterwards."""
    living: Bools | None
    """`(rows,)`; None: all of them."""
    directed: Bools | None
    """`(rows,)`: those that live and have a vector; None: all of them."""
    vectors: Floats
    """`(rows, dim)`, unit length; zero where there is none."""
    lengths: Ints
    """`(rows,)`: terms in the document."""
    ids: list[str]
    contents: list[str]
    hashes: list[str]
    metadata: list[str]
    postings: dict[str, array[int]]

    def posting(self, term: str) -> Posting:
        """Where a term occurs."""
        pairs = self.postings.get(term)
        if pairs is None:
            return _NOWHERE
        # `tobytes` is one step for other threads; a view would keep the writer from appending. He
        # may have appended a row and not yet its count.
        words = np.frombuffer(pairs.tobytes(), dtype=np.uint32)
        both = words[: len(words) // 2 * 2].reshape(-1, 2)
        if not len(both):
            return _NOWHERE
        rows = both[:, 0].astype(np.intp)
        if rows[-1] < self.rows:
            return Posting(rows, both[:, 1].astype(np.intp))
        known = int(np.searchsorted(rows, self.rows))
        return Posting(rows[:known], both[:known, 1].astype(np.intp))


class HotCopy:
    """Empty at first."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._rows = 0
        """Those that are published."""
        self._dead = 0
        self._undirected = 0
        self._ids: list[str] = []
        self._contents: list[str] = []
        self._hashes: list[str] = []
        self._metadata: list[str] = []
        self._vectors: Floats = np.zeros((0, dim), dtype=np.float32)
        self._lengths: Ints = np.zeros(0, dtype=np.int32)
        self._living: Bools = np.ones(0, dtype=bool)
        self._directed: Bools = np.ones(0, dtype=bool)
        self._postings: dict[str, array[int]] = {}
        self._places: dict[str, int] = {}
        self._bytes = 0
        """Of everything but the arrays."""
        self._snapshot = self._taken()

    @property
    def snapshot(self) -> Snapshot:
        """What is published now."""
        return self._snapshot

    @property
    def bytes(self) -> int:
        """Estimate of all of it: dead rows, rows not published yet and room for others too."""
        return self._bytes + len(self._lengths) * (self.dim * 4 + _FLAGS_BYTES)

    @property
    def wasteful(self) -> bool:
        """Whether `compacted` is due."""
        return self._dead > max(_MIN_DEAD, (self._rows - self._dead) // 4)

    @property
    def compactable(self) -> bool:
        """Whether `compacted` gives back enough to be worth it where room is short."""
        return self._dead > self._rows // _WORTH

    def place(self, name: str) -> int | None:
        """Row of the document with this id."""
        return self._places.get(name)

    # -- the writer's ------------------------------------------------------------------------------

    def add(self, rows: Sequence[HotRow], vectors: Floats) -> None:
        """Append rows that nobody sees before `publish`.

        Args:
            rows: With ids distinct among them.
            vectors: `(n, dim)` float32, zero where there is none.
        """
        first = len(self._ids)
        self._make_room(first + len(rows))
        self._vectors[first : first + len(rows)] = vectors
        self._directed[first : first + len(rows)] = vectors.any(axis=1)
        self._living[first : first + len(rows)] = True
        postings = self._postings
        size = _ROW_BYTES * len(rows)
        for number, row in enumerate(rows, first):
            self._contents.append(row.content)
            self._hashes.append(row.hash)
            self._metadata.append(row.metadata)
            self._lengths[number] = len(row.words)
            counts = Counter(row.words)
            for term, count in counts.items():
                pairs = postings.get(term)
                if pairs is None:
                    pairs = postings[term] = array("I")
                    size += _TERM_BYTES
                pairs.append(number)
                pairs.append(count)
            size += len(counts) * _POSTING_BYTES + sum(map(sys.getsizeof, row[:4]))
            self._ids.append(row.id)
        self._bytes += size

    def publish(self, removed: Iterable[str] = ()) -> None:
        """Show what was added, in place of the rows with the same ids, and hide `removed`."""
        dead = [place for name in removed if (place := self._places.pop(name, None)) is not None]
        for place in range(self._rows, len(self._ids)):
            name = self._ids[place]
            old = self._places.get(name)
            if old is not None:
                dead.append(old)
            self._places[name] = place
        if dead:
            # Copied, since snapshots look at the masks that are there.
            self._living, self._directed = self._living.copy(), self._directed.copy()
            self._living[dead] = self._directed[dead] = False
        self._dead += len(dead)
        self._rows = len(self._ids)
        self._snapshot = self._taken()

    def compacted(self) -> HotCopy:
        """Another copy, without what is dead. Takes a while, so call it in a thread; nothing may be
        written meanwhile.
        """
        new = HotCopy(self.dim)
        living = self._living[: self._rows]
        kept = np.flatnonzero(living).tolist()
        for mine, its in (
            (self._ids, new._ids),
            (self._contents, new._contents),
            (self._hashes, new._hashes),
            (self._metadata, new._metadata),
        ):
            its.extend(mine[place] for place in kept)
        new._make_room(len(kept))
        for column in ("_vectors", "_lengths", "_directed"):
            getattr(new, column)[: len(kept)] = getattr(self, column)[kept]
        new._living[: len(kept)] = True
        numbers = np.cumsum(living, dtype=np.uint32) - np.uint32(1)
        postings = 0
        for term, pairs in self._postings.items():
            both = np.frombuffer(pairs.tobytes(), dtype=np.uint32).reshape(-1, 2)
            both = both[living[both[:, 0]]]
            if len(both):
                both[:, 0] = numbers[both[:, 0]]
                new._postings[term] = array("I", both.tobytes())
                postings += len(both)
        new._bytes = (
            _ROW_BYTES * len(kept)
            + sum(
                sum(map(sys.getsizeof, column))
                for column in (new._ids, new._contents, new._hashes, new._metadata)
            )
            + postings * _POSTING_BYTES
            + len(new._postings) * _TERM_BYTES
        )
        new.publish()
        return new

    def _make_room(self, rows: int) -> None:
        room = len(self._lengths)
        if rows <= room:
            return
        size = max(rows, round(room * _GROWTH), 64)
        # Snapshots keep the old arrays.
        self._vectors = _grown(self._vectors, size)
        self._lengths = _grown(self._lengths, size)
        self._living = _grown(self._living, size)
        self._directed = _grown(self._directed, size)

    def _taken(self) -> Snapshot:
        rows = self._rows
        living, directed = self._living[:rows], self._directed[:rows]
        return Snapshot(
            rows=rows,
            living=living if self._dead else None,
            directed=None if bool(directed.all()) else directed,
            vectors=self._vectors[:rows],
            lengths=self._lengths[:rows],
            ids=self._ids,
            contents=self._contents,
            hashes=self._hashes,
            metadata=self._metadata,
            postings=self._postings,
        )


def _grown(column: npt.NDArray, size: int) -> npt.NDArray:  # type: ignore[type-arg]
    grown = np.zeros((size, *column.shape[1:]), dtype=column.dtype)
    grown[: len(column)] = column
    return grown


def estimate_bytes(rows: int, tokens: int, dim: int) -> int:
    """What a hot copy would take, of what is known without reading the rows: 12 bytes a term for
    text and posting, and ids, hashes and metadata as they usually are.
    """
    return rows * (dim * 4 + _ROW_BYTES + 500) + tokens * 12
