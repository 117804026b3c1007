"""One collection: a LanceDB table with one writer at a time and any number of readers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Any, Self

import msgspec
import pyarrow as pa
from lancedb import AsyncTable
from lancedb.expr import Expr
from lancedb.index import FTS

from mesh.adapters.lance import expressions, hot_search, schema
from mesh.adapters.lance.candidates import Query, Weights
from mesh.adapters.lance.census import Census
from mesh.adapters.lance.contents import Contents, Store
from mesh.adapters.lance.driver import translated
from mesh.adapters.lance.foreign import Foreign, answerable
from mesh.adapters.lance.planning import Other, Update, Upsert, not_found
from mesh.adapters.lance.reader import Reader
from mesh.adapters.lance.statistics import Statistics
from mesh.adapters.lance.tidying import Tidier
from mesh.adapters.lance.writing import ClosedError, Writer, ordered
from mesh.core import documents as rules
from mesh.core.filters import Condition, Kind, conditions
from mesh.errors import ConflictError
from mesh.ports import Written
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


class Collection:
    """Made by `create` or `open`; `LanceDocuments` keeps one per name."""

    def __init__(self, name: str, store: Store, table: AsyncTable) -> None:
        self.name = name
        self._store = store
        self._table = table
        self._contents = Contents(name, store, table)
        self.unproven = False
        """Whether it was made for a write that has not succeeded yet."""
        self._counted: tuple[int, Census] | None = None
        """The last census, and of which data version."""
        self._reads = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._reader = Reader(self._contents, store.gate)
        lock = asyncio.Lock()
        self._tidier = Tidier(self._contents, lock=lock, clock=store.clock)
        self._writer = Writer(
            self._contents,
            self._reader,
            self._tidier,
            lock=lock,
            embedding=store.embedding,
            clock=store.clock,
        )

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
        collection.unproven = True
        await collection._prepare()
        return collection

    @classmethod
    async def open(cls, store: Store, name: str) -> Self | None:
        """Open what is there and count its statistics; None if it is not there, or a crash left it
        half made: then nothing in it was acknowledged.

        Raises:
            StateError: It cannot be read.
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
        await self._contents.load()
        with translated("indexing", self.name):
            # A crash between the table and its index leaves it without.
            if not any(index.columns == ["words"] for index in await self._table.list_indices()):
                await self._table.create_index("words", config=_FULL_TEXT)
        if self._contents.wants_review:
            self._tidier.begin()

    def refuse_writes(self) -> None:
        """What waits or comes later raises ClosedError; `close` is about to follow."""
        self._writer.closed = True

    async def close(self) -> None:
        """Finish the write and the reads that run; what waits or comes later raises ClosedError."""
        self.refuse_writes()
        await self._tidier.close()
        await self.settled()
        # A query on a closed table does not raise an error of Python's: it panics.
        await self._idle.wait()
        self._table.close()  # type: ignore[no-untyped-call]
        self._contents.close()

    async def settled(self) -> None:
        """Until the writes that run now have ended."""
        await self._writer.settled()

    @property
    def idle(self) -> bool:
        """Whether it is empty, and nobody writes or waits to."""
        return self._writer.idle and not self.statistics.rows

    @property
    def closed(self) -> bool:
        return self._writer.closed

    @property
    def columns(self) -> dict[str, Kind]:
        """Metadata keys that can be filtered by."""
        return self._contents.columns

    @property
    def statistics(self) -> Statistics:
        return self._contents.statistics

    @property
    def data_version(self) -> int:
        return self._contents.data_version

    @property
    def info(self) -> CollectionInfo:
        return CollectionInfo(
            name=self.name,
            shard=self._store.shard,
            rows=self.statistics.rows,
            data_version=self.data_version,
            fingerprint=self.fingerprint,
            outdated=self.foreign is not None,
        )

    # -- another embedder's ------------------------------------------------------------------------

    @property
    def foreign(self) -> Foreign | None:
        """Set where its vectors or terms are not such as this node makes."""
        return self._contents.foreign

    @property
    def blank(self) -> bool:
        """Whether it is foreign and empty: then it may be made anew for whoever writes."""
        return self.foreign is not None and not self.statistics.rows

    @property
    def fingerprint(self) -> str:
        """Of the vectors that are there."""
        return self.foreign.embedder if self.foreign else self._store.embedder.id

    def _refuse_if_foreign(self) -> None:
        """Raises ConflictError where this node could not make vectors and terms like the others."""
        if self.foreign and not self.blank:
            raise ConflictError(f"collection {self.name!r} is {self.foreign.reason}")

    @property
    def layout(self) -> pa.Schema:
        """The table's schema."""
        return self._contents.schema

    async def scan(self, columns: list[str], rows: int) -> AsyncGenerator[pa.RecordBatch, None]:
        """Everything there is, at most `rows` at a time.

        Raises:
            StateError, ClosedError
        """
        with self._reading(), translated("reading", self.name):
            query = self._table.query().select(columns)
            async for batch in await query.to_batches(max_batch_length=rows):
                yield batch

    # -- writing -----------------------------------------------------------------------------------

    async def upsert(self, documents: Sequence[Document], places: Sequence[str]) -> Written:
        """Write documents with distinct ids; `places` names each one in errors.

        Raises:
            InvalidError, StateError, ClosedError
        """
        return await self._write(Upsert(documents, places))

    async def update(self, id: str, fields: Mapping[str, Any]) -> Written:  # noqa: A002
        """Merge fields into one document.

        Raises:
            InvalidError, NotFoundError, StateError, ClosedError
        """
        return await self._write(Update(id, fields))

    async def delete(self, ids: Sequence[str], filters: Mapping[str, Any]) -> Written:
        """Remove the documents that have one of the ids, if any are given, and match the filters;
        one of both has to be there.

        Raises:
            InvalidError, StateError, ClosedError
        """

        async def write() -> Written:
            return await self._writer.delete(self._matching(filters), ids)

        return await self._write(Other(write))

    async def _write(self, work: Upsert | Update | Other) -> Written:
        self._refuse_if_foreign()
        return await self._writer.write(work)

    def _matching(self, filters: Mapping[str, Any]) -> Expr | None:
        parts = expressions.each(conditions(filters, self.columns))
        return expressions.all_of(parts) if parts else None

    async def replace(
        self, puts: Sequence[Document], deletes: Sequence[str], columns: Mapping[str, Kind]
    ) -> Written:
        """Remove these, write those, refuse nothing; `columns` are made where there are none.

        Raises:
            StateError, ClosedError
        """

        async def write() -> Written:
            await self._writer.add_columns(columns)
            done = Written((), self.data_version)
            for start in range(0, len(deletes), _MOST_IDS):
                done = await self._writer.delete(None, deletes[start : start + _MOST_IDS])
            return await self._writer.upsert(puts, None) if puts else done

        return await self._write(Other(write))

    # -- what a write would do ---------------------------------------------------------------------

    async def would_upsert(self, documents: Sequence[Document], places: Sequence[str]) -> int:
        """How many documents `upsert` would change.

        Raises:
            InvalidError, StateError, ClosedError
        """
        self._refuse_if_foreign()
        schema.new_columns(documents, self.columns, places=places)
        with self._reading():
            stored = await self._reader.known([document.id for document in documents])
        return sum(
            document.id not in stored
            or rules.content_hash(document.content, document.metadata) != stored[document.id].hash
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
        self._refuse_if_foreign()
        stored = await self.fetch([id])
        if not stored:
            raise not_found(self.name, id)
        old = Document(id=id, content=stored[0].content, metadata=stored[0].metadata)
        new = rules.merged(old, fields)
        return new, bool(await self.would_upsert([new], ["fields"]))

    async def would_delete(self, ids: Sequence[str], filters: Mapping[str, Any]) -> list[str]:
        """Whom `delete` would remove.

        Raises:
            InvalidError, StateError, ClosedError
        """
        self._refuse_if_foreign()
        matching = self._matching(filters)
        with self._reading():
            stored = await self._reader.chosen(matching, ids)
        return ordered(stored, ids)

    # -- reading -----------------------------------------------------------------------------------

    def search_at_once(
        self, query: Query, filters: tuple[Condition, ...] | None
    ) -> ShardHits | None:
        """What `search` gives, where that takes neither a thread nor LanceDB; else None.

        Raises:
            ClosedError
        """
        if self.closed:
            raise ClosedError
        query = answerable(query, self.foreign)
        hits = self._hits(query)
        if filters is None:
            return msgspec.structs.replace(hits, unmatched=True)
        if not hits.rows:
            return hits
        copy = self._contents.hot
        if copy is None or filters or not hot_search.is_quick(copy.snapshot, query):
            return None
        found = hot_search.found(query, _weights(hits), copy.snapshot)
        return msgspec.structs.replace(hits, candidates=found)

    async def search(self, query: Query, filters: tuple[Condition, ...] | None) -> ShardHits:
        """Each leg's best candidates.

        Args:
            query: What to look for.
            filters: Conditions that all must hold; None: nothing can match. LanceDB judges them, so
                that there is one meaning of them.

        Raises:
            StateError, ClosedError
        """
        query = answerable(query, self.foreign)
        hits = self._hits(query)
        if filters is None:
            return msgspec.structs.replace(hits, unmatched=True)
        if not hits.rows:
            return hits
        copy = self._contents.hot
        with self._reading():
            if copy is not None and not filters:
                found = await self._reader.search_hot(query, _weights(hits), copy.snapshot)
            else:
                chosen = expressions.all_of(expressions.each(filters)) if filters else None
                found = await self._reader.search(query, _weights(hits), chosen)
        return msgspec.structs.replace(hits, candidates=found)

    def _hits(self, query: Query) -> ShardHits:
        """The statistics, without candidates."""
        return ShardHits(
            collection=self.name,
            shard=self._store.shard,
            rows=self.statistics.rows,
            tokens=self.statistics.tokens,
            df=self.statistics.df(query.terms),
            fingerprint=self.fingerprint,
            data_version=self.data_version,
            no_vectors=query.no_vectors if self.statistics.rows else "",
            old_words=query.old_words if self.statistics.rows else "",
        )

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


def _weights(hits: ShardHits) -> Weights:
    return Weights(hits.rows, hits.df, hits.tokens / hits.rows)
