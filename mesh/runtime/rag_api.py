"""What a client may ask for a language model to read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec

from mesh.core.merge import Ranking
from mesh.core.passages import Packed, pack
from mesh.core.route_table import RouteTable
from mesh.errors import InvalidError
from mesh.runtime.results import coverage, search_result
from mesh.runtime.search_plan import plan
from mesh.wire import codec
from mesh.wire.messages import (
    RagRequest,
    RagResult,
    SearchOptions,
    SearchRequest,
    SearchResult,
    ShardReport,
)

CAPABILITY = "rag"
"""Of nodes whose documents may be put before a model."""

_NOT_OFFERED = "its node does not offer rag"
_MOST_INLINE_CHARS = 65_536
"""More text than this is split in a thread: it takes milliseconds."""


class _Searcher(Protocol):
    """The part of `MeshClient` that this needs."""

    @property
    def routes(self) -> RouteTable: ...

    @property
    def search(self) -> Callable[..., Awaitable[SearchResult]]: ...

    async def submit(self, request: SearchRequest, *, on_behalf: str = "") -> SearchResult: ...

    async def _learn_names(self, options: SearchOptions) -> None: ...


class RagApi:
    """The part of `MeshClient` that has to do with rag."""

    async def rag(
        self: _Searcher,
        query: str,
        *,
        budget: int = 1500,
        passages: int = 20,
        limit: int = 20,
        collections: Sequence[str] | None = None,
        nodes: Sequence[str] | None = None,
        **options: Any,
    ) -> RagResult:
        """The best passages for a question, numbered, with their sources, within a token budget,
        and the text to put before a model. No model is called.

        Args:
            query: 1..4096 characters.
            budget: 100..100,000 tokens of the whole prompt; estimated, see `mesh.core.tokens`.
            passages: 1..100 at most.
            limit: 1..100 documents to take them from.
            collections: Names; None: all there are.
            nodes: Slugs; None: all. Only nodes with the capability `rag` are asked.
            options: As `search`.

        Raises:
            InvalidError: A value that cannot be, an unknown collection, column or node, a node
                that does not offer rag.
            UnavailableError: Fewer shards answered than `require` asks.
        """
        names = {
            "collections": None if collections is None else list(collections),
            "nodes": None if nodes is None else list(nodes),
        }
        asked = {"query": query, "budget": budget, "passages": passages, "limit": limit}
        request = codec.convert(asked | {"options": names}, RagRequest)
        await self._learn_names(request.options)  # whom to leave out depends on the table
        asking, skipped = _choose(self.routes, request)
        if asking is None:
            return await _packed(request, _nothing(request), skipped)
        found = await self.search(
            query, limit=limit, collections=collections, nodes=asking.nodes, **options
        )
        return await _packed(request, found, skipped)

    async def submit_rag(self: _Searcher, request: RagRequest, *, on_behalf: str = "") -> RagResult:
        """`rag` for a request that is made, and checked against its type, already; see `submit`.

        Raises:
            InvalidError: An unknown collection, column or node, or one that does not offer rag.
            UnavailableError: Fewer shards answered than `require` asks.
        """
        await self._learn_names(request.options)  # whom to leave out depends on the table
        asking, skipped = _choose(self.routes, request)
        if asking is None:
            return await _packed(request, _nothing(request), skipped)
        search = SearchRequest(
            id=request.id,
            trace=request.trace,
            on_behalf=request.on_behalf,
            origin=request.origin,
            query=request.query,
            limit=request.limit,
            options=asking,
        )
        return await _packed(request, await self.submit(search, on_behalf=on_behalf), skipped)


def _choose(
    table: RouteTable, request: RagRequest
) -> tuple[SearchOptions | None, list[ShardReport]]:
    """What to search, and the shards left out because no replica's node offers rag. None: there is
    nobody to ask.

    Raises:
        InvalidError: A node was named that does not offer it; where there is nobody to ask, an
            unknown collection too.
    """
    options = request.options
    offering = {slug for slug, node in table.nodes.items() if CAPABILITY in node.capabilities}
    if offering == set(table.nodes):
        return options, []
    if options.nodes is not None:
        if lacking := sorted((set(options.nodes) & set(table.nodes)) - offering):
            message = f"{', '.join(lacking)}: no such capability: {CAPABILITY}"
            raise InvalidError(message, fields={"options.nodes": [message]})
        return options, []
    skipped = [
        ShardReport(
            collection=collection,
            shard=shard,
            node=replicas[0].node.slug,
            status="skipped",
            reason=_NOT_OFFERED,
        )
        for collection in options.collections or table.collections()
        for shard, replicas in table.shards(collection).items()
        if not any(holder.node.slug in offering for holder in replicas)
    ]
    if not offering:
        plan(table, SearchRequest(query=request.query, options=options))
        return None, skipped
    return msgspec.structs.replace(options, nodes=sorted(offering)), skipped


def _nothing(request: RagRequest) -> SearchResult:
    return search_result(
        Ranking([], 0),
        texts={},
        shards=coverage([]),
        strategy=request.options.strategy,
        duration_ms=0.0,
        id=request.id,
    )


async def _packed(
    request: RagRequest, found: SearchResult, skipped: Sequence[ShardReport]
) -> RagResult:
    if sum(len(hit.content) for hit in found.results) > _MOST_INLINE_CHARS:
        packed = await asyncio.to_thread(_pack, request, found)
    else:
        packed = _pack(request, found)
    return RagResult(
        passages=packed.passages,
        count=len(packed.passages),
        prompt=packed.prompt,
        tokens=packed.tokens,
        budget=request.budget,
        truncated=packed.truncated,
        documents=found.count,
        duration_ms=found.duration_ms,
        nodes_searched=found.nodes_searched,
        partial=found.partial,
        shards=coverage([*found.shards.details, *skipped]) if skipped else found.shards,
        id=found.id,
        cached=found.cached,
    )


def _pack(request: RagRequest, found: SearchResult) -> Packed:
    return pack(request.query, found.results, budget=request.budget, most=request.passages)
