"""`mesh.ports.Documents`: all collections of one node, in one folder."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import lancedb
import numpy as np
import numpy.typing as npt
import structlog

from mesh.adapters.lance import candidates, memory, reembedding, schema
from mesh.adapters.lance.candidates import Query
from mesh.adapters.lance.catalogue import Catalogue
from mesh.adapters.lance.contents import Store
from mesh.adapters.lance.driver import translated
from mesh.adapters.lance.hot_budget import HotBudget
from mesh.adapters.lance.table import Collection
from mesh.adapters.lance.writing import ClosedError
from mesh.core import documents as rules
from mesh.core import filters as filter_rules
from mesh.core import text
from mesh.core.filters import Condition, Kind
from mesh.errors import InvalidError, MeshError, StateError, UnavailableError
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

_MAX_LISTED = 20
_INDEX_CACHE_BYTES = 96 * 1024 * 1024
"""Of all collections together; LanceDB would take gigabytes."""
_METADATA_CACHE_BYTES = 32 * 1024 * 1024
"""Likewise."""

_log = structlog.get_logger()


class LanceDocuments:
    """Open with `LanceDocuments.open`; one per folder and process."""

    def __init__(self, store: Store, catalogue: Catalogue, folder: Path) -> None:
        self._store = store
        self._catalogue = catalogue
        self._folder = folder
        self._making = asyncio.Lock()
        """Held while a collection comes or goes."""
        self._reembedding = asyncio.Lock()
        """One at a time: the embedder is what it waits for."""
        self._collections: dict[str, Collection] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

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
        store = Store(connection, embedder, shard, clock, gate, budget, node)
        documents = cls(store, catalogue, folder)
        await documents._open_all()
        return documents

    async def _open_all(self) -> None:
        for name in self._catalogue.unfinished_drops:
            await self._remove(name)
        for name in await self._table_names():
            if collection := await Collection.open(self._store, name):
                self._collections[name] = collection
                if collection.foreign:
                    _log.warning(
                        "mesh.documents.foreign", collection=name, why=collection.foreign.reason
                    )
            else:
                _log.warning("mesh.documents.half_made_collection_skipped", collection=name)

    async def _table_names(self) -> list[str]:
        names: list[str] = []
        token: str | None = None
        with translated("listing", "*"):
            while True:
                page = await self._store.connection.list_tables(page_token=token)
                names.extend(page.tables)
                token = page.page_token
                if not token:
                    return sorted(names)

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
        while True:
            found = await self._obtain(collection, distinct, places)
            try:
                return await found.upsert(distinct, places)
            except ClosedError:
                if self._closed:
                    raise self._gone(collection) from None
                # Dropped meanwhile: this makes it anew, as if it had come after the drop.

    async def _obtain(
        self, name: str, documents: Sequence[Document], places: Sequence[str]
    ) -> Collection:
        """The collection, made if there is none; not for documents it would then refuse."""
        found = self._collections.get(name)
        if found is not None and not found.closed:
            return found
        schema.new_columns(documents, {}, places=places)
        return await self._to_the_end(self._make(name))

    async def _make(self, name: str) -> Collection:
        async with self._making:
            if self._closed:
                raise self._gone(name)
            found = self._collections.get(name)
            if found is None:
                if name in self._catalogue.unfinished_drops:
                    # Else the next start would remove what is written from now on.
                    await self._remove(name)
                last = self._catalogue.last_version(name)
                born = max(self._store.clock.unix_ms(), last)
                # Opened, if an earlier attempt failed between the table and its index.
                found = await Collection.open(self._store, name)
                found = found or await Collection.create(self._store, name, born=born)
                self._collections[name] = found
            return found

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Cancelling the caller must not leave a collection half made or half gone."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def update(self, collection: str, id: str, fields: Mapping[str, Any]) -> Written:  # noqa: A002
        """Merge fields into one document.

        Raises:
            InvalidError, NotFoundError, StateError: Nothing changed.
        """
        found = self._known(collection)
        try:
            return await found.update(id, fields)
        except ClosedError:
            raise self._gone(collection) from None

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
        found = self._known(collection)
        if not ids and not filters:
            message = "give ids or a filter; to remove everything, drop the collection"
            raise InvalidError(message, fields={"ids": [message]})
        try:
            return await found.delete(ids, filters or {})
        except ClosedError:
            raise self._gone(collection) from None

    async def drop(self, collection: str) -> None:
        """Remove a collection; also if a crash comes in between, once this began.

        Raises:
            InvalidError, StateError
        """
        # Now, and not when its turn comes: whatever is written from here on outlives the drop.
        self._known(collection).refuse_writes()
        await self._to_the_end(self._drop(collection))

    async def _drop(self, collection: str) -> None:
        async with self._making:
            found = self._known(collection)
            await found.close()
            del self._collections[collection]
            try:
                await asyncio.to_thread(self._catalogue.begin_drop, collection, found.data_version)
            except StateError:
                if reopened := await Collection.open(self._store, collection):
                    self._collections[collection] = reopened
                raise
            await self._remove(collection)

    async def _remove(self, collection: str) -> None:
        with translated("dropping", collection):
            await self._store.connection.drop_table(collection, ignore_missing=True)
            reembedding.staging_file(self._folder, collection).unlink(missing_ok=True)
        await asyncio.to_thread(self._catalogue.end_drop, collection)

    # -- another embedder's vectors ----------------------------------------------------------------

    async def reembed(self, collection: str, progress: reembedding.Progress) -> Reembedded:
        """Embed every document anew, if its vectors or terms are not of this node's making.

        Raises:
            InvalidError: Unknown collection, or it was dropped meanwhile.
            MeshError: The embedder's; nothing changed.
            StateError: It cannot be read or written; nothing changed.
        """
        if self._reembedding.locked():
            progress(None, "waiting for another collection's turn")
        async with contextlib.AsyncExitStack() as turn:
            await turn.enter_async_context(self._reembedding)
            found = self._known(collection)
            if not found.foreign:
                return Reembedded(0, found.fingerprint, found.fingerprint, found.data_version)
            staged = None
            if found.foreign.vectors:
                file = reembedding.staging_file(self._folder, collection)
                staged = await reembedding.staged(found, file, self._store.embedder, progress)
                turn.callback(staged.close)
            try:
                # Its turn ends with the last step, whether or not anybody waits for that.
                last = self._made_anew(found, staged, progress, turn.pop_all())
                return await self._to_the_end(last)
            except ClosedError:
                raise self._gone(collection) from None

    async def _made_anew(
        self,
        old: Collection,
        staged: reembedding.Staged | None,
        progress: reembedding.Progress,
        turn: contextlib.AsyncExitStack,
    ) -> Reembedded:
        async with turn:
            new = await self._swapped(old, staged, progress)
            if staged is not None:
                await asyncio.to_thread(staged.remove)
        rows = new.statistics.rows
        _log.info("mesh.documents.reembedded", collection=old.name, documents=rows)
        return Reembedded(rows, old.fingerprint, new.fingerprint, new.data_version)

    async def _swapped(
        self, old: Collection, staged: reembedding.Staged | None, progress: reembedding.Progress
    ) -> Collection:
        """The new version, opened, in the old one's place."""
        progress(1.0, "writing")
        async with self._making:
            if self._collections.get(old.name) is not old or old.closed:
                raise ClosedError
            with translated("re-embedding", old.name):
                await reembedding.rewrite(self._store.connection, old, staged, self._store.embedder)
            new = await Collection.open(self._store, old.name)
            if new is None:
                raise self._gone(old.name)
            self._collections[old.name] = new
            await old.close()
            return new

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
            raise self._gone(collection) from None

    async def would_update(
        self,
        collection: str,
        id: str,  # noqa: A002
        fields: Mapping[str, Any],
    ) -> tuple[Document, bool]:
        try:
            return await self._known(collection).would_update(id, fields)
        except ClosedError:
            raise self._gone(collection) from None

    async def would_delete(
        self,
        collection: str,
        *,
        ids: Sequence[str] = (),
        filters: Mapping[str, Any] | None = None,
    ) -> tuple[str, ...]:
        found = self._known(collection)
        try:
            return tuple(await found.would_delete(ids, filters or {}))
        except ClosedError:
            raise self._gone(collection) from None

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
        while True:
            found = self._collections.get(collection)
            if found is None or found.closed:
                found = await self._to_the_end(self._make(collection))
            try:
                return await found.replace(puts, deletes, wanted)
            except ClosedError:
                if self._closed:
                    raise self._gone(collection) from None

    async def census(self, collection: str) -> Census:
        found = self._known(collection)
        try:
            return await found.census()
        except ClosedError:
            raise self._gone(collection) from None

    async def settled(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(found.settled() for found in self._collections.values()))

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
    ) -> tuple[ShardHits, ...]:
        """Each leg's best candidates of every collection asked that is here; `texts` of each bring
        theirs along.

        Raises:
            InvalidError: A filter that fits none of them.
            StateError
        """
        names = sorted(self._collections) if collections is None else dict.fromkeys(collections)
        asked = [self._collections[name] for name in names if name in self._collections]
        if not asked:
            return ()
        conditions = filter_rules.plan(filters, [collection.columns for collection in asked])
        prepared = await self._query(
            query, mode=mode, depth=depth, threshold=threshold, texts=texts
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

    async def _query(
        self,
        query: str,
        *,
        mode: SearchMode,
        depth: int,
        threshold: float | None,
        texts: int | None,
    ) -> Query:
        vector: npt.NDArray[np.float32] | None = None
        no_vectors = ""
        if mode != "text":
            try:
                vector = await self._embedded(query)
            except (StateError, UnavailableError) as error:
                if mode == "vector":
                    raise
                no_vectors = str(error)  # words are better than nothing
        least = self._store.embedder.default_threshold if threshold is None else threshold
        return Query(
            terms=tuple(text.query_terms(query)),
            text=mode != "vector",
            vector=vector,
            depth=depth,
            threshold=least,
            near=mode != "text",
            no_vectors=no_vectors,
            texts=texts,
        )

    async def _embedded(self, query: str) -> npt.NDArray[np.float32] | None:
        """None: the query has no direction.

        Raises:
            StateError: The embedder gave no vector.
        """
        embedder = self._store.embedder
        if len(query) <= embedder.quick_chars:
            vector = embedder.embed_query(query)
        else:
            vector = await asyncio.to_thread(embedder.embed_query, query)
        if vector.shape != (embedder.dim,) or not np.isfinite(vector).all():
            raise StateError(f"the embedder {embedder.id} gave no vector for the query")
        return vector if vector.any() else None

    async def fetch(self, collection: str, ids: Sequence[str]) -> tuple[StoredDocument, ...]:
        """Documents by id; those that are not there are passed over.

        Raises:
            InvalidError, StateError
        """
        found = self._known(collection)
        await asyncio.sleep(0)  # whatever else the loop has to do comes first
        try:
            return tuple(await found.fetch(ids)) if ids else ()
        except ClosedError:
            raise self._gone(collection) from None

    async def close(self) -> None:
        """Finish the writes that run; those that wait raise UnavailableError."""
        self._closed = True
        async with self._making:
            await asyncio.gather(*(found.close() for found in self._collections.values()))
            self._store.connection.close()  # type: ignore[no-untyped-call]

    def _known(self, collection: str) -> Collection:
        try:
            return self._collections[collection]
        except KeyError:
            raise self._unknown(collection) from None

    def _gone(self, collection: str) -> MeshError:
        """The error for work that a drop or the end of the node came before."""
        if self._closed:
            return UnavailableError("the node is stopping")
        return self._unknown(collection)

    def _unknown(self, collection: str) -> InvalidError:
        known = sorted(self._collections)
        listed = ", ".join(known[:_MAX_LISTED]) + (", …" if len(known) > _MAX_LISTED else "")
        message = f"unknown collection {collection[:128]!r}; known: {listed or 'none'}"
        return InvalidError(message, fields={"collection": [message]})


def _search_at_once(
    collection: Collection, query: Query, chosen: tuple[Condition, ...] | None
) -> ShardHits | None:
    """None if it takes longer, or the collection was dropped meanwhile."""
    try:
        return collection.search_at_once(query, chosen)
    except ClosedError:
        return None


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
