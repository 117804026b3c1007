"""What is read from a collection's table."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
from lancedb.expr import Expr
from lancedb.query import MatchQuery

from mesh.adapters.lance import candidates, expressions, hot_search, schema
from mesh.adapters.lance.candidates import Query, Weights
from mesh.adapters.lance.census import Census
from mesh.adapters.lance.contents import Contents
from mesh.adapters.lance.driver import translated
from mesh.adapters.lance.hot import HotCopy, Snapshot
from mesh.core import text
from mesh.wire.messages import Candidate, StoredDocument


class Known(NamedTuple):
    """What a writer has to know of a document that is there."""

    hash: str
    chars: int
    """Of its text, or of its terms, which are about as long."""
    words: Callable[[], list[str]]
    """Its terms."""


class Reader:
    """Queries over one table, and over its hot copy where there is one. `gate` limits how many
    queries run at once, over all tables together, for more of them only make each other slower.
    """

    def __init__(self, contents: Contents, gate: asyncio.Semaphore) -> None:
        self._contents = contents
        self._table = contents.table
        self._collection = contents.name
        self._gate = gate

    async def search(self, query: Query, weights: Weights, chosen: Expr | None) -> list[Candidate]:
        """Candidates of LanceDB.

        Raises:
            StateError
        """
        near, matching = await asyncio.gather(
            self.near(query, chosen),
            self.matching(query, chosen),
            # So that no leg still reads when this is over.
            return_exceptions=True,
        )
        if isinstance(near, BaseException):
            raise near
        if isinstance(matching, BaseException):
            raise matching
        return await asyncio.to_thread(candidates.found, query, weights, near, matching)

    async def search_hot(
        self, query: Query, weights: Weights, snapshot: Snapshot
    ) -> list[Candidate]:
        """The same candidates, of a hot copy that is too big for the loop."""
        async with self._gate:
            return await asyncio.to_thread(hot_search.found, query, weights, snapshot)

    async def near(self, query: Query, chosen: Expr | None) -> pa.Table | None:
        """The vector leg's rows, more than `depth`; None if it is not asked.

        Raises:
            StateError
        """
        if query.vector is None:
            return None
        search = self._table.query().nearest_to(query.vector).distance_type("cosine")
        search = self._contents.vector_index.applied(search, filtered=chosen is not None)
        columns = [*candidates.COLUMNS, "_distance"]
        return await self._search(search, chosen, columns, _more(query.depth))

    async def matching(self, query: Query, chosen: Expr | None) -> pa.Table | None:
        """The text leg's rows, more than `depth`; None if it is not asked.

        Raises:
            StateError
        """
        if not query.text or not query.terms:
            return None
        match: Any = MatchQuery
        search = self._table.query().nearest_to_text(match(" ".join(query.terms), "words"))
        columns = [*candidates.COLUMNS, "_score"]
        return await self._search(search, chosen, columns, _more(query.depth))

    async def fetch(self, ids: Sequence[str]) -> list[StoredDocument]:
        """Documents in order of the ids; those that are not there are passed over.

        Raises:
            StateError
        """
        if self._contents.hot is not None:
            return self._fetch_hot(self._contents.hot, ids)
        names = ["id", "content", "metadata", "hash"]
        table = await self._search(self._table.query(), expressions.ids(ids), names)
        columns = (schema.strings(table, name) for name in names)
        stored = {row[0]: _document(*row) for row in zip(*columns, strict=True)}
        return [stored[id_] for id_ in dict.fromkeys(ids) if id_ in stored]

    def _fetch_hot(self, copy: HotCopy, ids: Sequence[str]) -> list[StoredDocument]:
        now = copy.snapshot
        rows = (copy.place(id_) for id_ in dict.fromkeys(ids))
        return [
            _document(now.ids[row], now.contents[row], now.metadata[row], now.hashes[row])
            for row in rows
            if row is not None
        ]

    async def known(self, ids: Sequence[str]) -> dict[str, Known]:
        """Those of the ids that are there.

        Raises:
            StateError
        """
        return await self.chosen(None, ids) if ids else {}

    async def chosen(self, matching: Expr | None, ids: Sequence[str]) -> dict[str, Known]:
        """Whoever has one of the ids, if any are given, and matches, if there is something to.

        Raises:
            StateError
        """
        copy = self._contents.hot
        if copy is not None and matching is None:
            now = copy.snapshot
            rows = ((name, copy.place(name)) for name in ids)
            return {
                name: Known(
                    now.hashes[row],
                    len(now.contents[row]),
                    functools.partial(text.terms, now.contents[row]),
                )
                for name, row in rows
                if row is not None
            }
        names = ["id", "hash", "words"]
        table = await self._search(self._table.query(), expressions.chosen(matching, ids), names)
        columns = (schema.strings(table, name) for name in names)
        return {
            name: Known(digest, len(words), functools.partial(schema.split, words))
            for name, digest, words in zip(*columns, strict=True)
        }

    async def census(self) -> Census:
        """All ids and hashes there are.

        Raises:
            StateError
        """
        table = await self._search(self._table.query(), None, ["id", "hash"])
        return await asyncio.to_thread(Census, table)

    async def _search(
        self, search: Any, chosen: Expr | None, columns: list[str], limit: int | None = None
    ) -> pa.Table:
        search = search.select(columns)
        if limit is not None:
            search = search.limit(limit)
        if chosen is not None:
            search = search.where(chosen)
        async with self._gate:
            with translated("reading", self._collection):
                table: pa.Table = await search.to_arrow()
        return table


def _document(name: str, content: str, metadata: str, digest: str) -> StoredDocument:
    return StoredDocument(
        id=name, content=content, metadata=candidates.read_metadata(metadata), hash=digest
    )


def _more(depth: int) -> int:
    """Rows to ask LanceDB for, of which `candidates.found` chooses the best `depth`."""
    return depth * 2 + 10
