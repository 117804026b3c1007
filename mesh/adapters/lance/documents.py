"""`mesh.ports.Documents`: all collections of one node, in one folder."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import lancedb

from mesh.adapters.lance import memory, schema
from mesh.adapters.lance.catalogue import Catalogue
from mesh.adapters.lance.contents import Store
from mesh.adapters.lance.driver import translated
from mesh.adapters.lance.embedding import Embedding
from mesh.adapters.lance.hot_budget import HotBudget
from mesh.adapters.lance.reembedding import Progress, Reembedding
from mesh.adapters.lance.searching import Searcher
from mesh.adapters.lance.shelf import Shelf
from mesh.adapters.lance.table import Collection
from mesh.adapters.lance.writing import ClosedError
from mesh.core import documents as rules
from mesh.core.filters import Kind
from mesh.errors import InvalidError, StateError
from mesh.ports import Census, Clock, Embedder, Reembedded, Written
from mesh.types import SearchMode
from mesh.wire.codec import convert
from mesh.wire.messages import (
    CollectionInfo,
    CollectionName,
    Document,
    ShardHits,
    StoredDocument,
)

T = TypeVar("T")

_INDEX_CACHE_BYTES = 96 * 1024 * 1024
"""Of all collections together; LanceDB would take gigabytes."""
_METADATA_CACHE_BYTES = 32 * 1024 * 1024
"""Likewise."""


class LanceDocuments:
    """Open with `LanceDocuments.open`; one per folder and process."""

    def __init__(self, store: Store, catalogue: Catalogue, folder: Path) -> None:
        self._store = store
        self._shelf = Shelf(store, catalogue, folder)
        self._collections = self._shelf.collections
        self._reembedding = Reembedding(self._shelf, store)
        self._searcher = Searcher(self._collections, store.embedding)

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        embedder: Embedder,
        shard: str,
        clock: Clock,
        max_queries: int = 4,
        hot_mb: int = 64,
        node: str = "",
    ) -> Self:
        """Open the collections in a folder, or make the folder.

        Args:
            path: The folder; nothing else may write to it.
            embedder: Makes the vectors. Collections of another one take no writes, and answer with
                their text leg alone, until they are embedded anew.
            shard: What this node calls its part of every collection.
            clock: Time.
            max_queries: Queries at once that the loop does not do itself.
            hot_mb: MiB that hot copies of collections may take together; 0: none.
            node: Who this is, for advice.

        Raises:
            StateError: The folder cannot be used, or the embedder.
        """
        memory.use_little()
        # A relative path without a slash would be taken for the name of a cloud database.
        folder = await asyncio.to_thread(_folder, path)
        catalogue = await asyncio.to_thread(Catalogue, folder)
        await asyncio.to_thread(lambda: embedder.id)
        with translated("listing", "*"):
            session = lancedb.Session(_INDEX_CACHE_BYTES, _METADATA_CACHE_BYTES)
            connection = await lancedb.connect_async(str(folder), session=session)
        gate, budget = asyncio.Semaphore(max_queries), HotBudget(hot_mb * 2**20)
        store = Store(connection, Embedding(embedder), shard, clock, gate, budget, node)
        documents = cls(store, catalogue, folder)
        await documents._shelf.open()
        return documents

    def collections(self) -> tuple[CollectionInfo, ...]:
        """By name."""
        return tuple(self._collections[name].info for name in sorted(self._collections))

    # -- writing -----------------------------------------------------------------------------------

    async def index(self, collection: str, documents: Sequence[Document]) -> Written:
        """Upsert by id, all or nothing; of several documents with one id the last one counts.

        Raises:
            InvalidError, StateError: Nothing changed.
        """
        distinct, places = _checked(collection, documents)
        found = self._collections.get(collection)
        if found is None or found.closed:
            # Not made for documents that it would then refuse.
            schema.new_columns(distinct, {}, places=places)
        return await self._shelf.written(collection, lambda it: it.upsert(distinct, places))

    async def update(self, collection: str, id: str, fields: Mapping[str, Any]) -> Written:  # noqa: A002
        """Merge fields into one document.

        Raises:
            InvalidError, NotFoundError, StateError: Nothing changed.
        """
        found = self._shelf.known(collection)
        try:
            return await found.update(id, fields)
        except ClosedError:
            raise self._shelf.gone(collection) from None

    async def delete(
        self,
        collection: str,
        *,
        ids: Sequence[str] = (),
        filters: Mapping[str, Any] | None = None,
    ) -> Written:
        """Remove by id, by filter, or what has one of the ids and matches the filter.

        Raises:
            InvalidError, StateError: Nothing changed.
        """
        found = self._shelf.known(collection)
        if not ids and not filters:
            message = "give ids or a filter; to remove everything, drop the collection"
            raise InvalidError(message, fields={"ids": [message]})
        try:
            return await found.delete(ids, filters or {})
        except ClosedError:
            raise self._shelf.gone(collection) from None

    async def drop(self, collection: str) -> None:
        """Remove a collection; also if a crash comes in between, once this began.

        Raises:
            InvalidError, StateError
        """
        await self._shelf.drop(collection)

    # -- another embedder's vectors ----------------------------------------------------------------

    async def reembed(self, collection: str, progress: Progress) -> Reembedded:
        """Embed every document anew, if its vectors or terms are not of this node's making.

        Raises:
            InvalidError: Unknown collection, or it was dropped meanwhile.
            MeshError: The embedder's; nothing changed.
            StateError: It cannot be read or written; nothing changed.
        """
        return await self._reembedding.run(collection, progress)

    # -- replicas ----------------------------------------------------------------------------------

    async def would_index(self, collection: str, documents: Sequence[Document]) -> int:
        distinct, places = _checked(collection, documents)
        found = self._collections.get(collection)
        if found is None or found.closed:
            schema.new_columns(distinct, {}, places=places)
            return len(distinct)
        try:
            return await found.would_upsert(distinct, places)
        except ClosedError:
            raise self._shelf.gone(collection) from None

    async def would_update(
        self,
        collection: str,
        id: str,  # noqa: A002
        fields: Mapping[str, Any],
    ) -> tuple[Document, bool]:
        try:
            return await self._shelf.known(collection).would_update(id, fields)
        except ClosedError:
            raise self._shelf.gone(collection) from None

    async def would_delete(
        self,
        collection: str,
        *,
        ids: Sequence[str] = (),
        filters: Mapping[str, Any] | None = None,
    ) -> tuple[str, ...]:
        found = self._shelf.known(collection)
        try:
            return tuple(await found.would_delete(ids, filters or {}))
        except ClosedError:
            raise self._shelf.gone(collection) from None

    async def replace(
        self,
        collection: str,
        *,
        puts: Sequence[Document] = (),
        deletes: Sequence[str] = (),
        columns: Mapping[str, str] | None = None,
    ) -> Written:
        """As another replica did it; nothing is refused.

        Raises:
            StateError
        """
        wanted = convert(dict(columns or {}), dict[str, Kind])
        return await self._shelf.written(collection, lambda it: it.replace(puts, deletes, wanted))

    async def census(self, collection: str) -> Census:
        return await self._read(collection, lambda it: it.census())

    async def settled(self) -> None:
        await self._shelf.settled()

    def new_columns(self, collection: str, documents: Sequence[Document]) -> dict[str, str]:
        found = self._collections.get(collection)
        known = {} if found is None or found.closed else found.columns
        return dict(schema.new_columns(documents, known, places=None))

    def columns(self, collection: str) -> dict[str, str]:
        found = self._collections.get(collection)
        return {} if found is None else dict(found.columns)

    # -- reading -----------------------------------------------------------------------------------

    async def search(
        self,
        query: str,
        *,
        collections: Sequence[str] | None,
        mode: SearchMode,
        depth: int,
        threshold: float | None,
        filters: Mapping[str, Any],
        texts: int | None = None,
        embed_within_s: float | None = None,
    ) -> tuple[ShardHits, ...]:
        """Each leg's best candidates of every collection asked that is here; `texts` of each bring
        theirs along.

        Raises:
            InvalidError: A filter that fits none of them.
            StateError
        """
        return await self._searcher.search(
            query,
            collections=collections,
            mode=mode,
            depth=depth,
            threshold=threshold,
            filters=filters,
            texts=texts,
            embed_within_s=embed_within_s,
        )

    async def fetch(self, collection: str, ids: Sequence[str]) -> tuple[StoredDocument, ...]:
        """Documents by id; those that are not there are passed over.

        Raises:
            InvalidError, StateError
        """
        self._shelf.known(collection)
        await asyncio.sleep(0)  # whatever else the loop has to do comes first
        return tuple(await self._read(collection, lambda it: it.fetch(ids))) if ids else ()

    async def _read(self, collection: str, read: Callable[[Collection], Awaitable[T]]) -> T:
        """What `read` gives: of the new version, if the collection is embedded anew meanwhile."""
        while True:
            found = self._shelf.known(collection)
            try:
                return await read(found)
            except ClosedError:
                if self._collections.get(collection) in {None, found}:
                    raise self._shelf.gone(collection) from None

    async def close(self) -> None:
        """Finish the writes that run; those that wait raise UnavailableError."""
        await self._shelf.close()


def _checked(collection: str, documents: Sequence[Document]) -> tuple[list[Document], list[str]]:
    """Distinct documents, and the place of each in the caller's batch, so that errors name it.

    Raises:
        InvalidError
    """
    _check_name(collection)
    latest: dict[str, tuple[Document, str]] = {}
    for number, document in enumerate(documents):
        place = f"documents[{number}]"
        rules.check(document, field=place)
        latest[document.id] = (document, place)
    if not latest:
        message = "must not be empty"
        raise InvalidError(f"documents {message}", fields={"documents": [message]})
    return [document for document, _ in latest.values()], [place for _, place in latest.values()]


def _check_name(collection: str) -> None:
    try:
        convert(collection, CollectionName)
    except InvalidError:
        message = (
            f"{str(collection)[:128]!r} is no collection name: 1 to 128 letters, digits, "
            "'_', '.' or '-', and no '.' or '-' first"
        )
        raise InvalidError(message, fields={"collection": [message]}) from None


def _folder(path: Path) -> Path:
    """The folder as an absolute path, made if needed.

    Raises:
        StateError
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        return path.resolve(strict=True)
    except OSError as error:
        raise StateError(f"{path} cannot be used for collections: {error.strerror}") from error
