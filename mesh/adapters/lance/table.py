"""One collection: a LanceDB table with one writer at a time and any number of readers.

The writer leaves equal documents alone, embeds in a thread, and commits each call as one LanceDB
version: all or nothing, also for kill -9. Statistics and the data version change with the commit. A
write that began runs to its end even if its caller is cancelled, since a commit that nobody waits
for may still happen.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import structlog
from lancedb import AsyncConnection, AsyncTable
from lancedb.expr import Expr
from lancedb.index import FTS

from mesh.adapters.lance import candidates, expressions, schema
from mesh.adapters.lance.candidates import Query, Weights
from mesh.adapters.lance.census import Census
from mesh.adapters.lance.driver import translated
from mesh.adapters.lance.reader import Reader
from mesh.adapters.lance.statistics import Statistics
from mesh.adapters.lance.tidying import Tidier
from mesh.core import documents as rules
from mesh.core import text
from mesh.core.filters import Condition, Kind, conditions
from mesh.errors import MeshError, NotFoundError, StateError
from mesh.ports import Clock, Embedder, Written
from mesh.wire.messages import CollectionInfo, Document, ShardHits, StoredDocument

_FULL_TEXT = FTS(
    with_position=False,
    base_tokenizer="whitespace",
    max_token_length=None,
    lower_case=False,
    stem=False,
    remove_stop_words=False,
    ascii_folding=False,
)

_MOST_IDS = 1000
"""In one expression."""

_log = structlog.get_logger()


class Store(NamedTuple):
    """What all collections of a node share."""

    connection: AsyncConnection
    embedder: Embedder
    shard: str
    clock: Clock
    gate: asyncio.Semaphore
    """Limits the queries that run at once."""


class ClosedError(Exception):
    """The collection was closed or dropped before the work began."""


class Collection:
    """Made by `create` or `open`; `LanceDocuments` keeps one per name."""

    def __init__(self, name: str, store: Store, table: AsyncTable) -> None:
        self.name = name
        self.closed = False
        self.columns: dict[str, Kind] = {}
        self.statistics = Statistics()
        self.data_version = 0
        self._store = store
        self._embedder = store.embedder
        self._table = table
        self._schema: pa.Schema = pa.schema([])
        self._born = 0
        self._stale = True
        """Whether a write may have changed the table without our knowing."""
        self._counted: tuple[int, Census] | None = None
        """The last census, and of which data version."""
        self._writer = asyncio.Lock()
        self._writes: set[asyncio.Task[Written]] = set()
        self._reads = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._reader = Reader(table, name, store.gate)
        self._tidier = Tidier(table, name, writer=self._writer, clock=store.clock)

    # -- life --------------------------------------------------------------------------------------

    @classmethod
    async def create(cls, store: Store, name: str, *, born: int) -> Self:
        """Make an empty collection, whose data versions are above `born`.

        Raises:
            StateError
        """
        embedder = store.embedder
        layout = schema.table_schema(embedder.dim, embedder=embedder.id, born=born)
        with translated("creating", name):
            table = await store.connection.create_table(name, schema=layout)
        collection = cls(name, store, table)
        await collection._prepare()
        return collection

    @classmethod
    async def open(cls, store: Store, name: str) -> Self | None:
        """Open what is there and count its statistics; None if it is not there, or a crash left it
        half made: then nothing in it was acknowledged.

        Raises:
            StateError: It cannot be read, or holds vectors or terms that this node does not make.
        """
        with translated("opening", name):
            try:
                table = await store.connection.open_table(name)
            except ValueError as error:
                if "was not found" not in str(error):
                    raise
                return None
        collection = cls(name, store, table)
        await collection._prepare()
        return collection

    async def _prepare(self) -> None:
        await self._reload()
        with translated("indexing", self.name):
            # A crash between the table and its index leaves it without.
            if not await self._table.list_indices():
                await self._table.create_index("words", config=_FULL_TEXT)

    async def _reload(self) -> None:
        """Learn everything from the table, as after a start or a write that failed half-way.

        Raises:
            StateError
        """
        statistics = Statistics()
        with translated("reading", self.name):
            self._schema = await self._table.schema()
            schema.check_makers(self._schema, self.name, embedder=self._embedder.id)
            version = await self._table.version()
            async for batch in await self._table.query().select(["words"]).to_batches():
                await asyncio.to_thread(_count, statistics, batch)
        self.columns = schema.columns_of(self._schema)
        self.statistics = statistics
        self._born = schema.born(self._schema)
        self.data_version = max(self.data_version, self._born + version)
        self._stale = False

    async def close(self) -> None:
        """Finish the write and the reads that run; what waits or comes later raises ClosedError."""
        self.closed = True
        await self._tidier.close()
        await self.settled()
        # A query on a closed table does not raise an error of Python's: it panics.
        await self._idle.wait()
        self._table.close()  # type: ignore[no-untyped-call]

    async def settled(self) -> None:
        """Until the writes that run now have ended."""
        await asyncio.gather(*self._writes, return_exceptions=True)

    @property
    def info(self) -> CollectionInfo:
        return CollectionInfo(
            name=self.name,
            shard=self._store.shard,
            rows=self.statistics.rows,
            data_version=self.data_version,
            fingerprint=self._embedder.id,
        )

    # -- writing -----------------------------------------------------------------------------------

    async def upsert(self, documents: Sequence[Document], places: Sequence[str]) -> Written:
        """Write documents with distinct ids; `places` names each one in errors.

        Raises:
            InvalidError, StateError, ClosedError
        """
        return await self._write(lambda: self._upsert(documents, places))

    async def update(self, id: str, fields: Mapping[str, Any]) -> Written:  # noqa: A002
        """Merge fields into one document.

        Raises:
            InvalidError, NotFoundError, StateError, ClosedError
        """

        async def write() -> Written:
            return await self._upsert([await self._merged(id, fields)], ["fields"])

        return await self._write(write)

    async def _merged(self, id: str, fields: Mapping[str, Any]) -> Document:  # noqa: A002
        stored = await self._reader.fetch([id])
        if not stored:
            raise NotFoundError(f"collection {self.name!r} has no document {id[:80]!r}")
        old = Document(id=id, content=stored[0].content, metadata=stored[0].metadata)
        return rules.merged(old, fields)

    async def delete(self, ids: Sequence[str], filters: Mapping[str, Any]) -> Written:
        """Remove the documents that have one of the ids, if any are given, and match the filters;
        one of both has to be there.

        Raises:
            InvalidError, StateError, ClosedError
        """

        async def write() -> Written:
            return await self._delete(self._chosen(ids, filters), ids)

        return await self._write(write)

    def _chosen(self, ids: Sequence[str], filters: Mapping[str, Any]) -> Expr:
        parts = [expressions.ids(ids)] if ids else []
        parts += expressions.each(conditions(filters, self.columns))
        return expressions.all_of(parts)

    async def replace(
        self, puts: Sequence[Document], deletes: Sequence[str], columns: Mapping[str, Kind]
    ) -> Written:
        """Remove these, write those, refuse nothing; `columns` are made where there are none.

        Raises:
            StateError, ClosedError
        """

        async def write() -> Written:
            missing = {key: kind for key, kind in columns.items() if key not in self.columns}
            if missing:
                with self._committing():
                    await self._add_columns(missing)
                    self._committed(await self._table.version(), Statistics(), 0)
            done = Written((), self.data_version)
            for start in range(0, len(deletes), _MOST_IDS):
                some = deletes[start : start + _MOST_IDS]
                done = await self._delete(expressions.ids(some), some)
            return await self._upsert(puts, None) if puts else done

        return await self._write(write)

    # -- what a write would do ---------------------------------------------------------------------

    async def would_upsert(self, documents: Sequence[Document], places: Sequence[str]) -> int:
        """How many documents `upsert` would change.

        Raises:
            InvalidError, StateError, ClosedError
        """
        schema.new_columns(documents, self.columns, places=places)
        with self._reading():
            stored = await self._reader.words(
                expressions.ids(document.id for document in documents)
            )
        return sum(
            rules.content_hash(document.content, document.metadata)
            != stored.get(document.id, ("", []))[0]
            for document in documents
        )

    async def would_update(
        self,
        id: str,  # noqa: A002
        fields: Mapping[str, Any],
    ) -> tuple[Document, bool]:
        """The document as `update` would leave it, and whether that is another one.

        Raises:
            InvalidError, NotFoundError, StateError, ClosedError
        """
        with self._reading():
            new = await self._merged(id, fields)
        return new, bool(await self.would_upsert([new], ["fields"]))

    async def would_delete(self, ids: Sequence[str], filters: Mapping[str, Any]) -> list[str]:
        """Whom `delete` would remove.

        Raises:
            InvalidError, StateError, ClosedError
        """
        chosen = self._chosen(ids, filters)
        with self._reading():
            stored = await self._reader.words(chosen)
        return _ordered(stored, ids)

    async def _write(self, write: Callable[[], Awaitable[Written]]) -> Written:
        """Run `write` alone, and to its end even if the caller is cancelled."""
        task = asyncio.create_task(self._alone(write), name=f"write to {self.name}")
        self._writes.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    async def _alone(self, write: Callable[[], Awaitable[Written]]) -> Written:
        async with self._writer:
            if self.closed:
                raise ClosedError
            if self._stale:
                await self._reload()
            try:
                return await write()
            finally:
                if self._stale:
                    # If this fails too, the next write tries again.
                    with contextlib.suppress(StateError):
                        await self._reload()

    def _finished(self, task: asyncio.Task[Written]) -> None:
        self._writes.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, MeshError | ClosedError):
            _log.error("mesh.documents.write_failed", collection=self.name, exc_info=error)

    async def _upsert(self, documents: Sequence[Document], places: Sequence[str] | None) -> Written:
        added = schema.new_columns(documents, self.columns, places=places)
        stored = await self._reader.words(expressions.ids(document.id for document in documents))
        rows, vectors, change = await asyncio.to_thread(self._rows, documents, stored)
        if not rows:
            return Written((), self.data_version)
        with self._committing():
            if added:
                await self._add_columns(added)
            now = self._store.clock.unix_ms()
            table = schema.as_table(rows, vectors, schema=self._schema, updated_at=now)
            merge = self._table.merge_insert("id").when_matched_update_all()
            # An index on id would let concurrent inserts of one id through. A document without
            # known words has null for a vector.
            merge = merge.when_not_matched_insert_all().use_index(False)
            result = await merge.execute(table, on_bad_vectors="null")
            self._committed(result.version, change, len(rows))
        return Written(tuple(row.document.id for row in rows), self.data_version)

    async def _add_columns(self, added: Mapping[str, Kind]) -> None:
        await self._table.add_columns(pa.schema(schema.column_fields(added)))
        self._schema = await self._table.schema()
        self.columns = schema.columns_of(self._schema)

    def _rows(
        self, documents: Sequence[Document], stored: Mapping[str, tuple[str, list[str]]]
    ) -> tuple[list[schema.Row], npt.NDArray[np.float32], Statistics]:
        """What has to be written, with vectors, and what that does to the statistics."""
        rows: list[schema.Row] = []
        change = Statistics()
        for document in documents:
            digest = rules.content_hash(document.content, document.metadata)
            old_digest, old_words = stored.get(document.id, ("", []))
            if digest == old_digest:
                continue
            words = text.terms(document.content)
            metadata = rules.canonical(document.metadata).decode()
            rows.append(schema.Row(document, words, digest, metadata))
            change.add(words)
            if old_digest:
                change.remove(old_words)
        vectors = self._embedder.embed_documents([row.document.content for row in rows])
        return rows, vectors, change

    async def _delete(self, chosen: Expr, ids: Sequence[str]) -> Written:
        stored = await self._reader.words(chosen)
        if not stored:
            return Written((), self.data_version)
        change = Statistics()
        for _, words in stored.values():
            change.remove(words)
        with self._committing():
            result = await self._table.delete(chosen)
            self._committed(result.version, change, 0)
        return Written(tuple(_ordered(stored, ids)), self.data_version)

    @contextlib.contextmanager
    def _committing(self) -> Iterator[None]:
        """Until `_committed` nobody can say whether LanceDB made a version."""
        self._stale = True
        with translated("writing", self.name):
            yield

    def _committed(self, version: int, change: Statistics, rows: int) -> None:
        self.statistics.apply(change)
        self.data_version = self._born + version
        self._stale = False
        self._tidier.wrote(rows, total=self.statistics.rows)

    # -- reading -----------------------------------------------------------------------------------

    async def search(self, query: Query, filters: tuple[Condition, ...] | None) -> ShardHits:
        """Each leg's best candidates.

        Args:
            query: What to look for.
            filters: Conditions that all must hold; None: nothing can match.

        Raises:
            StateError, ClosedError
        """
        rows, tokens = self.statistics.rows, self.statistics.tokens
        df = self.statistics.df(query.terms)
        hits = ShardHits(
            collection=self.name,
            shard=self._store.shard,
            rows=rows,
            tokens=tokens,
            df=df,
            fingerprint=self._embedder.id,
            data_version=self.data_version,
        )
        if filters is None:
            return msgspec.structs.replace(hits, unmatched=True)
        if not rows:
            return hits
        chosen = expressions.all_of(expressions.each(filters)) if filters else None
        with self._reading():
            near, matching = await asyncio.gather(
                self._reader.near(query, chosen),
                self._reader.matching(query, chosen),
                # So that no leg still reads when this is over.
                return_exceptions=True,
            )
        if isinstance(near, BaseException):
            raise near
        if isinstance(matching, BaseException):
            raise matching
        weights = Weights(rows, df, tokens / rows)
        found = await asyncio.to_thread(candidates.found, query, weights, near, matching)
        return msgspec.structs.replace(hits, candidates=found)

    async def fetch(self, ids: Sequence[str]) -> list[StoredDocument]:
        """Documents in order of the ids; those that are not there are passed over.

        Raises:
            StateError, ClosedError
        """
        with self._reading():
            return await self._reader.fetch(ids)

    async def census(self) -> Census:
        """What is there now, counted anew where something was written since the last time.

        Raises:
            StateError, ClosedError
        """
        version = self.data_version
        if self._counted is None or self._counted[0] != version:
            with self._reading():
                self._counted = (version, await self._reader.census())
        return self._counted[1]

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        if self.closed:
            raise ClosedError
        self._reads += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._reads -= 1
            if not self._reads:
                self._idle.set()


def _ordered(stored: Mapping[str, object], ids: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(ids) if name in stored] if ids else sorted(stored)


def _count(statistics: Statistics, batch: pa.RecordBatch) -> None:
    for words in batch.column("words").to_pylist():
        statistics.add(schema.split(words or ""))
