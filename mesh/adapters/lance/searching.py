"""A search over collections of one node."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from mesh.adapters.lance import candidates
from mesh.adapters.lance.candidates import Query
from mesh.adapters.lance.embedding import Embedding, Floats
from mesh.adapters.lance.table import Collection
from mesh.adapters.lance.writing import ClosedError
from mesh.core import filters as filter_rules
from mesh.core import text
from mesh.core.filters import Condition
from mesh.errors import StateError, UnavailableError
from mesh.types import SearchMode
from mesh.wire.messages import ShardHits


class Searcher:
    """Over whatever collections there are."""

    def __init__(self, collections: Mapping[str, Collection], embedding: Embedding) -> None:
        self._collections = collections
        self._embedding = embedding

    async def search(
        self,
        query: str,
        *,
        collections: Sequence[str] | None,
        mode: SearchMode,
        depth: int,
        threshold: float | None,
        filters: Mapping[str, Any],
        texts: int | None,
        embed_within_s: float | None,
    ) -> tuple[ShardHits, ...]:
        """See `LanceDocuments.search`."""
        names = sorted(self._collections) if collections is None else dict.fromkeys(collections)
        asked = [self._collections[name] for name in names if name in self._collections]
        if not asked:
            return ()
        conditions = filter_rules.plan(filters, [collection.columns for collection in asked])
        vector, no_vectors = await self._vector(query, mode, embed_within_s)
        least = self._embedding.embedder.default_threshold if threshold is None else threshold
        prepared = Query(
            terms=tuple(text.query_terms(query)),
            text=mode != "vector",
            vector=vector,
            depth=depth,
            threshold=least,
            near=mode != "text",
            no_vectors=no_vectors,
            texts=texts,
        )
        found: list[ShardHits | None] = []
        later: dict[int, tuple[Collection, tuple[Condition, ...] | None]] = {}
        for place, (collection, chosen) in enumerate(zip(asked, conditions, strict=True)):
            found.append(_search_at_once(collection, prepared, chosen))
            await asyncio.sleep(0)  # whatever else the loop has to do comes in between
            if found[-1] is None:
                later[place] = (collection, chosen)
        try:
            async with asyncio.TaskGroup() as group:
                searches = {
                    place: group.create_task(self._search(collection, prepared, chosen))
                    for place, (collection, chosen) in later.items()
                }
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        for place, search in searches.items():
            found[place] = search.result()
        return candidates.within_budget([hits for hits in found if hits is not None])

    async def _search(
        self, collection: Collection, query: Query, chosen: tuple[Condition, ...] | None
    ) -> ShardHits | None:
        """None if the collection was dropped meanwhile."""
        try:
            return await collection.search(query, chosen)
        except ClosedError:
            now = self._collections.get(collection.name)
            # It was embedded anew.
            return await now.search(query, chosen) if now and not now.closed else None

    async def _vector(
        self, query: str, mode: SearchMode, within_s: float | None
    ) -> tuple[Floats | None, str]:
        """The query's vector, if it has one and that is asked; and why not."""
        if mode == "text":
            return None, ""
        try:
            return await self._embedding.query(query, within_s), ""
        except (StateError, UnavailableError) as error:
            if mode == "vector":
                raise
            return None, str(error)  # words are better than nothing


def _search_at_once(
    collection: Collection, query: Query, chosen: tuple[Condition, ...] | None
) -> ShardHits | None:
    """None if it takes longer, or the collection was dropped meanwhile."""
    try:
        return collection.search_at_once(query, chosen)
    except ClosedError:
        return None
