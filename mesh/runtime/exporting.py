"""What a node shows the other replicas of its shard, so that they can make themselves equal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from mesh.core.replication import Position, equality
from mesh.errors import ForbiddenError, InvalidError
from mesh.ports import Census, Clock, Documents, ReplicaState
from mesh.wire import codec
from mesh.wire.messages import (
    AppliedPage,
    CollectionState,
    CopyState,
    Document,
    DocumentsPage,
    ExportQuery,
    IndexPage,
)

MOST_PAGE_BYTES = 900_000
_IDS_AT_ONCE = 100
_KEPT_S = 60.0


class _Kept(NamedTuple):
    """A census that pages are being read from."""

    position: Position
    census: Census
    until: float


class Exports:
    """Answers `export`; who may ask has been seen to."""

    def __init__(
        self,
        node: str,
        shard: str,
        *,
        documents: Documents,
        state: ReplicaState,
        clock: Clock,
        position: Callable[[], Position],
        following: Callable[[], bool],
    ) -> None:
        self._node = node
        self._shard = shard
        self._documents = documents
        self._state = state
        self._clock = clock
        self._position = position
        self._following = following
        self._kept: dict[str, _Kept] = {}

    async def answer(self, query: ExportQuery) -> bytes:
        """Encoded.

        Raises:
            ForbiddenError: It is about another shard.
            InvalidError: Unknown collection.
        """
        if query.shard != self._shard:
            raise ForbiddenError(f"{self._node} holds shard {self._shard!r}, not {query.shard!r}")
        match query.what:
            case "state" | "hashes":
                return codec.ok(await self._copy(hashes=query.what == "hashes"))
            case "index":
                return codec.ok(await self._index(query))
            case "documents":
                return codec.ok(await self._documents_of(query))
            case "applied":
                return codec.ok(await self._applied(query))

    def forget(self) -> None:
        """Count anew: the copy does not go on from where it was."""
        self._kept.clear()

    async def _copy(self, *, hashes: bool) -> CopyState:
        position = self._position()  # what is written meanwhile is in the log after it
        return CopyState(
            node=self._node,
            shard=self._shard,
            log=position.log,
            sequence=position.sequence,
            following=self._following(),
            collections=[
                CollectionState(
                    name=info.name,
                    rows=info.rows,
                    data_version=info.data_version,
                    columns=self._documents.columns(info.name),
                    hash=await self._digest(info.name) if hashes else "",
                )
                for info in self._documents.collections()
            ],
        )

    async def _digest(self, collection: str) -> str:
        try:
            census = await self._documents.census(collection)
        except InvalidError:
            return ""  # dropped meanwhile
        columns = self._documents.columns(collection)
        return await asyncio.to_thread(lambda: equality(census.digest, columns))

    async def _index(self, query: ExportQuery) -> IndexPage:
        census = await self._census(query.collection, query.since)
        page = census.page(query.after, query.limit)
        return IndexPage(
            ids=[name for name, _ in page],
            hashes=[content for _, content in page],
            more=len(page) == query.limit,
        )

    async def _census(self, collection: str, since: int) -> Census:
        """Any one of since then will do: whoever copies replays what came after."""
        now = self._clock.monotonic()
        self._kept = {name: kept for name, kept in self._kept.items() if kept.until > now}
        kept = self._kept.get(collection)
        here = self._position()
        if kept is None or kept.position.log != here.log or kept.position.sequence < since:
            kept = _Kept(here, await self._documents.census(collection), now)
        self._kept[collection] = kept._replace(until=now + _KEPT_S)
        return kept.census

    async def _documents_of(self, query: ExportQuery) -> DocumentsPage:
        """As many as fit; those that are gone by now are passed over."""
        found: list[Document] = []
        size = looked = 0
        for start in range(0, len(query.ids), _IDS_AT_ONCE):
            some = query.ids[start : start + _IDS_AT_ONCE]
            stored = {one.id: one for one in await self._documents.fetch(query.collection, some)}
            for name in some:
                one = stored.get(name)
                if one is not None:
                    document = Document(id=one.id, content=one.content, metadata=one.metadata)
                    taken = len(codec.encode(document))
                    if found and size + taken > MOST_PAGE_BYTES:
                        return DocumentsPage(documents=found, looked=looked)
                    found.append(document)
                    size += taken
                looked += 1
        return DocumentsPage(documents=found, looked=looked)

    async def _applied(self, query: ExportQuery) -> AppliedPage:
        writes = await self._state.applied_after(query.after, query.limit)
        size = 0
        for number, write in enumerate(writes):
            size += len(codec.encode(write))
            if number and size > MOST_PAGE_BYTES:
                return AppliedPage(writes=writes[:number], more=True)
        return AppliedPage(writes=writes, more=len(writes) == query.limit)
