"""`mesh.ports.Census`: ids and hashes of a collection, sorted, in Arrow's compact form."""

from __future__ import annotations

import bisect
import hashlib
from functools import cached_property
from typing import Any

import pyarrow as pa

_CHUNK = 4096


class Census:
    """Of one moment; later writes do not show."""

    def __init__(self, table: pa.Table) -> None:
        """Blocking.

        Args:
            table: Columns `id` and `hash`, in any order.
        """
        # Arrow sorts by bytes of UTF-8, which is the order of code points, as Python's.
        ordered = table.sort_by("id").combine_chunks()
        self._ids: Any = ordered.column("id")
        self._hashes: Any = ordered.column("hash")
        self.rows = table.num_rows

    @cached_property
    def digest(self) -> str:
        """Blocking: about a second for a million documents."""
        digest = hashlib.sha256()
        for start in range(0, self.rows, _CHUNK):
            for name, content in self._pairs(start, start + _CHUNK):
                encoded = name.encode()
                digest.update(b"%d:%b%b" % (len(encoded), encoded, content.encode()))
        return digest.hexdigest()

    def page(self, after: str, limit: int) -> list[tuple[str, str]]:
        start = 0
        if after:
            start = bisect.bisect_right(range(self.rows), after, key=self._id)
        return self._pairs(start, start + limit)

    def _id(self, place: int) -> str:
        return str(self._ids[place].as_py())

    def _pairs(self, start: int, stop: int) -> list[tuple[str, str]]:
        ids = self._ids.slice(start, max(0, stop - start)).to_pylist()
        hashes = self._hashes.slice(start, max(0, stop - start)).to_pylist()
        return list(zip(ids, hashes, strict=True))
