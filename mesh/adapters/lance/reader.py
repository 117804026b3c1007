"""What is read from a collection's table."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pyarrow as pa
from lancedb import AsyncTable
from lancedb.expr import Expr
from lancedb.query import MatchQuery

from mesh.adapters.lance import candidates, expressions, schema
from mesh.adapters.lance.candidates import Query
from mesh.adapters.lance.census import Census
from mesh.adapters.lance.driver import translated
from mesh.wire.messages import StoredDocument

_metadata = msgspec.json.Decoder(dict[str, Any])


class Reader:
    """Queries over one table; `gate` limits how many run at once, over all tables together, for
    more of them only make each other slower.
    """

    def __init__(self, table: AsyncTable, collection: str, gate: asyncio.Semaphore) -> None:
        self._table = table
        self._collection = collection
        self._gate = gate

    async def near(self, query: Query, chosen: Expr | None) -> pa.Table | None:
        """The vector leg's rows, best first; None if it is not asked.

        Raises:
            StateError
        """
        if query.vector is None:
            return None
        search = self._table.query().nearest_to(query.vector).distance_type("cosine")
        columns = [*candidates.COLUMNS, "_distance"]
        return await self._search(search, chosen, columns, query.depth)

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
        return await self._search(search, chosen, columns, query.depth * 2 + 10)

    async def fetch(self, ids: Sequence[str]) -> list[StoredDocument]:
        """Documents in order of the ids; those that are not there are passed over.

        Raises:
            StateError
        """
        names = ["id", "content", "metadata", "hash"]
        table = await self._search(self._table.query(), expressions.ids(ids), names)
        columns = (schema.strings(table, name) for name in names)
        stored = {
            id_: StoredDocument(
                id=id_, content=content, metadata=_metadata.decode(metadata), hash=digest
            )
            for id_, content, metadata, digest in zip(*columns, strict=True)
        }
        return [stored[id_] for id_ in dict.fromkeys(ids) if id_ in stored]

    async def words(self, chosen: Expr) -> dict[str, tuple[str, list[str]]]:
        """Hash and terms, by id, of the rows that match.

        Raises:
            StateError
        """
        names = ["id", "hash", "words"]
        table = await self._search(self._table.query(), chosen, names)
        columns = (schema.strings(table, name) for name in names)
        return {
            id_: (digest, schema.split(words)) for id_, digest, words in zip(*columns, strict=True)
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
