"""What is in a collection's table, and what memory knows of it: columns, statistics, data version
and, where it fits, a hot copy. All of it changes in one step with LanceDB's commit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import structlog
from lancedb import AsyncConnection, AsyncTable

from mesh.adapters.lance import hot, schema
from mesh.adapters.lance.driver import translated
from mesh.adapters.lance.embedding import Embedding
from mesh.adapters.lance.foreign import Foreign, foreign
from mesh.adapters.lance.hot import Floats, HotCopy, HotRow
from mesh.adapters.lance.hot_budget import HotBudget
from mesh.adapters.lance.statistics import Statistics
from mesh.adapters.lance.vector_index import VectorIndex
from mesh.core.filters import Kind
from mesh.ports import Clock, Embedder

_INLINE_ROWS = 16
_INLINE_CHARS = 8_000
"""So little is taken into the hot copy on the loop: about a millisecond."""

_log = structlog.get_logger()


class Store(NamedTuple):
    """What all collections of a node share."""

    connection: AsyncConnection
    embedding: Embedding
    shard: str
    clock: Clock
    gate: asyncio.Semaphore
    """Limits the queries that run at once."""
    budget: HotBudget
    node: str = ""
    """Who this is, for advice."""

    @property
    def embedder(self) -> Embedder:
        return self.embedding.embedder


class Contents:
    """Of one table. Whoever changes it holds the writer's lock."""

    def __init__(self, name: str, store: Store, table: AsyncTable) -> None:
        self.name = name
        self.table = table
        self.schema: pa.Schema = pa.schema([])
        self.columns: dict[str, Kind] = {}
        self.statistics = Statistics()
        self.data_version = 0
        self.vector_index = VectorIndex(table, name, store.embedder.dim)
        self.hot: HotCopy | None = None
        """None: there is no room for it."""
        self.foreign: Foreign | None = None
        """Set where its vectors or terms are not such as this node makes."""
        self.stale = True
        """Whether a write may have changed the table without our knowing."""
        self._store = store
        self._born = 0
        self._told: bool | None = None
        """What the log knows of the hot copy."""

    async def load(self) -> None:
        """Learn everything from the table, as after a start or a write that failed half-way.

        Raises:
            StateError
        """
        # The one that there is goes first, so that there are never two; its room is kept for it.
        self.hot = None
        try:
            await self._load()
        except BaseException:
            self._store.budget.free(self.name)
            raise

    async def _load(self) -> None:
        with translated("reading", self.name):
            layout = await self.table.schema()
            self.foreign = foreign(
                layout, self.name, embedder=self._store.embedder.id, node=self._store.node
            )
            version = await self.table.version()
            scan = _Scan(await self._new_copy())
            async for batch in await self.table.query().select(scan.columns).to_batches():
                await asyncio.to_thread(scan.read, batch)
                # Taken as it grows: another collection may be loaded meanwhile.
                if scan.copy is not None and not self._takes(scan.copy):
                    scan.copy = None
        if scan.copy is not None:
            scan.copy.publish()
        self.schema = layout
        self.columns = schema.columns_of(layout)
        self.statistics = scan.statistics
        self._born = schema.born(layout)
        self.data_version = max(self.data_version, self._born + version)
        self._keep(scan.copy)
        await self.vector_index.open(self.statistics.rows)
        self.stale = False

    async def _new_copy(self) -> HotCopy | None:
        """An empty one, unless the vectors alone are too big, or another embedder's."""
        if self.foreign:
            return None
        rows, dim = await self.table.count_rows(), self._store.embedder.dim
        fits = self._store.budget.fits(self.name, hot.estimate_bytes(rows, 0, dim))
        return HotCopy(dim) if fits else None

    # -- writing -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def committing(self) -> Iterator[None]:
        """Until `committed` nobody can say whether LanceDB made a version.

        Raises:
            StateError
        """
        self.stale = True
        with translated("writing", self.name):
            yield

    async def add_columns(self, added: Mapping[str, Kind]) -> None:
        """New metadata columns; a version of its own."""
        await self.table.add_columns(pa.schema(schema.column_fields(added)))
        self.schema = await self.table.schema()
        self.columns = schema.columns_of(self.schema)

    async def take_in(self, rows: Sequence[HotRow], vectors: Floats) -> None:
        """Into the hot copy, where the next `committed` shows them."""
        if self.hot is None:
            return
        chars = sum(len(row.content) for row in rows)
        if len(rows) <= _INLINE_ROWS and chars <= _INLINE_CHARS:
            self.hot.add(rows, vectors)
        else:
            await asyncio.to_thread(self.hot.add, rows, vectors)

    def committed(self, version: int, change: Statistics, removed: Iterable[str] = ()) -> None:
        """The table has this version now; memory follows, and `trim` has to."""
        self.statistics.apply(change)
        self.data_version = self._born + version
        if self.hot is not None:
            self.hot.publish(removed)
        self.stale = False

    async def trim(self) -> None:
        """Keep the hot copy within its room: without its dead rows, or, if need be, not at all."""
        if self.hot is not None and not self._fits(self.hot) and self.hot.compactable:
            self._keep(await asyncio.to_thread(self.hot.compacted))
        else:
            self._keep(self.hot)

    # -- the hot copy ------------------------------------------------------------------------------

    @property
    def wants_review(self) -> bool:
        """Whether `review` has something to do that no write brought about."""
        is_cold = self.hot is None and self.foreign is None
        return is_cold and self.vector_index.is_due(self.statistics.rows)

    async def review(self) -> None:
        """Make a hot copy where there is room again, and tidy the one that there is; index the
        vectors of a table that stays on disk.

        Raises:
            StateError
        """
        if self.hot is not None and self.hot.wasteful:
            self._keep(await asyncio.to_thread(self.hot.compacted))
        elif (
            self.hot is None
            and self.foreign is None
            and self._store.budget.may_return(self.name, self._size())
        ):
            await self.load()
        if self.wants_review:
            await self.vector_index.build(self.statistics.rows)

    def close(self) -> None:
        """Free its part of the budget; one without a copy has none: it may be another's by now."""
        if self.hot is not None:
            self.hot = None
            self._store.budget.free(self.name)

    def _fits(self, copy: HotCopy) -> bool:
        return self._store.budget.fits(self.name, copy.bytes)

    def _takes(self, copy: HotCopy) -> bool:
        return self._store.budget.take(self.name, copy.bytes)

    def _size(self) -> int:
        rows, tokens = self.statistics.rows, self.statistics.tokens
        return hot.estimate_bytes(rows, tokens, self._store.embedder.dim)

    def _keep(self, copy: HotCopy | None) -> None:
        """If there is still room for it."""
        if copy is not None and not self._takes(copy):
            copy = None
        is_hot = copy is not None
        if is_hot != self._told and not self.foreign:
            self._told = is_hot
            _log.info(
                "mesh.documents.kept_in_memory" if is_hot else "mesh.documents.too_big_for_memory",
                collection=self.name,
                rows=self.statistics.rows,
                mb=round((self._size() if copy is None else copy.bytes) / 2**20, 1),
                room_mb=round(self._store.budget.room(self.name) / 2**20, 1),
            )
        self.hot = copy
        if copy is None:
            self._store.budget.free(self.name)


class _Scan:
    """One pass over the table: statistics, and rows for the hot copy if there is one."""

    def __init__(self, copy: HotCopy | None) -> None:
        self.copy = copy
        self.statistics = Statistics()
        self.columns = ["words"]
        if copy is not None:
            self.columns += ["id", "content", "hash", "metadata", "vector"]

    def read(self, batch: pa.RecordBatch) -> None:
        """Blocking."""
        table = pa.Table.from_batches([batch])
        words = [schema.split(joined) for joined in schema.strings(table, "words")]
        for found in words:
            self.statistics.add(found)
        if self.copy is not None:
            texts = (schema.strings(table, name) for name in ("id", "content", "hash", "metadata"))
            rows = [HotRow(*row) for row in zip(*texts, words, strict=True)]
            self.copy.add(rows, schema.vectors_of(table, self.copy.dim)[0])
