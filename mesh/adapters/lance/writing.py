"""A collection's one writer: what waits while it works is gathered into one LanceDB commit.

Writes happen in the order they came, each judged by what those before it leave. A call is all or
nothing and gets its own result or its own refusal, whoever shares the commit with it. A write runs
to its end even if its caller is cancelled, since a commit that nobody waits for may still happen.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import structlog
from lancedb.expr import Expr

from mesh.adapters.lance import expressions, schema
from mesh.adapters.lance.contents import Contents
from mesh.adapters.lance.hot import Floats, HotRow
from mesh.adapters.lance.reader import Known, Reader
from mesh.adapters.lance.statistics import Statistics
from mesh.adapters.lance.tidying import Tidier
from mesh.core import documents as rules
from mesh.core import text
from mesh.core.filters import Kind
from mesh.errors import MeshError, NotFoundError, StateError
from mesh.ports import Clock, Embedder, Written
from mesh.wire.messages import Document

_MOST_DOCUMENTS = 1000
"""In one commit of several callers; one caller's call may have more."""
_MOST_CHARS = 2_000_000
_LINGER_S = 0.005
"""How long a commit waits for as many callers as the last one had. They come back one by one, and
without it the first of them would have a commit alone while the others wait for the next.

Source: `commit_delay` and `commit_siblings` of PostgreSQL.
"""
_INLINE_CHARS = 4_000
"""So little text is taken apart on the loop; a thread would cost more."""

_log = structlog.get_logger()


class ClosedError(Exception):
    """The collection was closed or dropped before the work began."""


class Upsert(NamedTuple):
    """Documents with distinct ids."""

    documents: Sequence[Document]
    places: Sequence[str] | None
    """What errors call each; None: a value of another kind than its column's is no error."""


class Update(NamedTuple):
    """Fields to merge into one document."""

    id: str
    fields: Mapping[str, Any]


class Other(NamedTuple):
    """Whatever has a commit of its own."""

    write: Callable[[], Awaitable[Written]]


Work = Upsert | Update | Other


class _Wish:
    """What one caller waits for."""

    __slots__ = ("changed", "error", "future", "work")

    def __init__(self, work: Work, future: asyncio.Future[Written]) -> None:
        self.work = work
        self.future = future
        self.changed: list[str] = []
        self.error: Exception | None = None

    @property
    def documents(self) -> int:
        return len(self.work.documents) if isinstance(self.work, Upsert) else 1

    @property
    def chars(self) -> int:
        if not isinstance(self.work, Upsert):
            return 0
        return sum(len(document.content) for document in self.work.documents)

    def settle(self, data_version: int) -> None:
        """Tell the caller, if he is still there."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(Written(tuple(self.changed), data_version))
        else:
            self.future.set_exception(self.error)


class Writer:
    """Takes the same lock as the tidier."""

    def __init__(
        self,
        contents: Contents,
        reader: Reader,
        tidier: Tidier,
        *,
        lock: asyncio.Lock,
        embedder: Embedder,
        clock: Clock,
    ) -> None:
        self._contents = contents
        self._reader = reader
        self._tidier = tidier
        self._lock = lock
        self._embedder = embedder
        self._clock = clock
        self._waiting: deque[_Wish] = deque()
        self._working: asyncio.Task[None] | None = None
        self._company = 1
        """Callers of the last commit."""
        self.closed = False
        """What still waits then raises ClosedError."""

    async def write(self, work: Work) -> Written:
        """Raises:
        InvalidError, NotFoundError, StateError, ClosedError
        """
        wish = _Wish(work, asyncio.get_running_loop().create_future())
        self._waiting.append(wish)
        if self._working is None:
            self._working = asyncio.create_task(
                self._work(), name=f"writes to {self._contents.name}"
            )
        return await wish.future

    async def settled(self) -> None:
        """Until all that waits now has been written or refused."""
        while self._working is not None:
            await asyncio.wait([self._working])

    async def _work(self) -> None:
        try:
            while self._waiting:
                if len(self._waiting) < self._company and not self.closed:
                    await self._clock.sleep(_LINGER_S)
                async with self._lock:
                    await self._next()
        finally:
            self._working = None

    async def _next(self) -> None:
        wishes = self._gathered()
        self._company = len(wishes)
        try:
            if self.closed:
                raise ClosedError  # noqa: TRY301
            if self._contents.stale:
                await self._contents.load()
            await self._write(wishes)
        except Exception as error:  # noqa: BLE001 (it is the callers')
            self._failed(wishes, error)
        except BaseException:
            for wish in (*wishes, *self._waiting):
                wish.future.cancel()
            raise
        if self._contents.stale and not self.closed:
            # Before the callers hear of it: what they read then is right. If this fails too, the
            # next write tries again.
            with contextlib.suppress(StateError):
                await self._contents.load()
        for wish in wishes:
            wish.settle(self._contents.data_version)

    def _gathered(self) -> list[_Wish]:
        """The next ones that go into one commit, in their order."""
        first = self._waiting.popleft()
        wishes = [first]
        if isinstance(first.work, Other):
            return wishes
        documents, chars = first.documents, first.chars
        while self._waiting and not isinstance(self._waiting[0].work, Other):
            documents += self._waiting[0].documents
            chars += self._waiting[0].chars
            if documents > _MOST_DOCUMENTS or chars > _MOST_CHARS:
                break
            wishes.append(self._waiting.popleft())
        return wishes

    def _failed(self, wishes: Sequence[_Wish], error: Exception) -> None:
        if not isinstance(error, MeshError | ClosedError):
            _log.error(
                "mesh.documents.write_failed", collection=self._contents.name, exc_info=error
            )
        for wish in wishes:
            wish.error = wish.error or error

    async def _write(self, wishes: Sequence[_Wish]) -> None:
        for wish in wishes:
            if isinstance(wish.work, Other):
                wish.changed = list((await wish.work.write()).changed)
                return
        try:
            plan, vectors = await self._planned(wishes)
        except Exception:
            if len(wishes) == 1:
                raise
            # One caller's text that cannot be embedded is not the others' trouble.
            for wish in wishes:
                try:
                    if self._contents.stale:
                        await self._contents.load()
                    await self._write([wish])
                except Exception as error:  # noqa: BLE001
                    self._failed([wish], error)
            return
        await self._commit(plan, vectors)

    # -- upserts and updates -----------------------------------------------------------------------

    async def upsert(self, documents: Sequence[Document], places: Sequence[str] | None) -> Written:
        """At once: for whoever has the lock."""
        wish = _Wish(Upsert(documents, places), asyncio.get_running_loop().create_future())
        await self._write([wish])
        if wish.error is not None:
            raise wish.error
        return Written(tuple(wish.changed), self._contents.data_version)

    async def _planned(self, wishes: Sequence[_Wish]) -> tuple[_Plan, Floats]:
        ids: dict[str, None] = {}
        updated: dict[str, None] = {}
        for wish in wishes:
            match wish.work:
                case Upsert(documents):
                    ids.update((document.id, None) for document in documents)
                case Update(name):
                    updated[name] = None
        known = await self._reader.known([*ids, *updated])
        stored = {found.id: found for found in await self._reader.fetch(list(updated))}
        plan = _Plan(
            self._contents.columns,
            known,
            {
                name: Document(id=name, content=found.content, metadata=found.metadata)
                for name, found in stored.items()
            },
            self._contents.name,
        )
        if sum(wish.chars for wish in wishes) <= _INLINE_CHARS:
            plan.judge(wishes)
        else:
            await asyncio.to_thread(plan.judge, wishes)
        texts = [row.document.content for row in plan.rows.values()]
        if sum(map(len, texts)) <= self._embedder.quick_chars:
            vectors = self._embedder.embed_documents(texts)
        else:
            vectors = await asyncio.to_thread(self._embedder.embed_documents, texts)
        self._check(vectors, list(plan.rows))
        return plan, vectors

    def _check(self, vectors: Floats, ids: Sequence[str]) -> None:
        """Raises:
        StateError: The embedder gave something else than vectors for these documents.
        """
        expected = (len(ids), self._embedder.dim)
        if vectors.shape != expected:
            raise StateError(
                f"the embedder {self._embedder.id} gave vectors of shape {vectors.shape}, not "
                f"{expected}; nothing was written"
            )
        wrong = ~np.isfinite(vectors).all(axis=1)
        if wrong.any():
            name = ids[int(np.argmax(wrong))]
            raise StateError(
                f"the embedder {self._embedder.id} gave a vector with NaN or infinity for document "
                f"{name[:80]!r}; nothing was written"
            )

    async def _commit(self, plan: _Plan, vectors: Floats) -> None:
        rows = list(plan.rows.values())
        if not rows:
            return
        contents = self._contents
        with contents.committing():
            if plan.added:
                await contents.add_columns(plan.added)
            now = self._clock.unix_ms()
            table = schema.as_table(rows, vectors, schema=contents.schema, updated_at=now)
            merge = contents.table.merge_insert("id").when_matched_update_all()
            # An index on id would let concurrent inserts of one id through. A document without
            # known words has null for a vector.
            merge = merge.when_not_matched_insert_all().use_index(False)
            result = await merge.execute(table, on_bad_vectors="null")
            kept = [
                HotRow(row.document.id, row.document.content, row.hash, row.metadata, row.words)
                for row in rows
            ]
            await contents.take_in(kept, vectors)
            contents.committed(result.version, plan.change)
        self._tidier.wrote(len(rows), total=contents.statistics.rows)

    # -- the rest ----------------------------------------------------------------------------------

    async def delete(self, chosen: Expr | None, ids: Sequence[str]) -> Written:
        """At once: for whoever has the lock.

        Args:
            chosen: What they have to match besides; None: nothing.
            ids: Whom; none: all that match.
        """
        contents = self._contents
        stored = await self._reader.chosen(chosen, ids)
        if not stored:
            return Written((), contents.data_version)
        change = Statistics()
        for known in stored.values():
            change.remove(known.words())
        with contents.committing():
            result = await contents.table.delete(expressions.chosen(chosen, ids))
            contents.committed(result.version, change, stored)
        self._tidier.wrote(0, total=contents.statistics.rows)
        return Written(tuple(ordered(stored, ids)), contents.data_version)

    async def add_columns(self, columns: Mapping[str, Kind]) -> None:
        """Those that are missing; at once: for whoever has the lock."""
        contents = self._contents
        missing = {key: kind for key, kind in columns.items() if key not in contents.columns}
        if missing:
            with contents.committing():
                await contents.add_columns(missing)
                contents.committed(await contents.table.version(), Statistics())
            self._tidier.wrote(0, total=contents.statistics.rows)


class _Plan:
    """What a commit will write, of which caller's wishes, and who is refused."""

    def __init__(
        self,
        columns: Mapping[str, Kind],
        known: Mapping[str, Known],
        stored: dict[str, Document],
        collection: str,
    ) -> None:
        self.rows: dict[str, schema.Row] = {}
        """By id; the last version of each."""
        self.added: dict[str, Kind] = {}
        self.change = Statistics()
        """What the commit does to the statistics."""
        self._columns = dict(columns)
        self._known = known
        self._documents = stored
        """As they are now, those that are to be updated."""
        self._collection = collection

    def judge(self, wishes: Sequence[_Wish]) -> None:
        """In their order, each by what the others before it leave."""
        for wish in wishes:
            try:
                self._judge(wish)
            except MeshError as error:
                wish.error = error
        for name, row in self.rows.items():
            self.change.add(row.words)
            if name in self._known:
                self.change.remove(self._known[name].words())

    def _judge(self, wish: _Wish) -> None:
        """Raises:
        InvalidError, NotFoundError
        """
        match wish.work:
            case Upsert(documents, places):
                self._put(wish, documents, places)
            case Update(name, fields):
                row = self.rows.get(name)
                old = row.document if row else self._documents.get(name)
                if old is None:
                    raise not_found(self._collection, name)
                self._put(wish, [rules.merged(old, fields)], ["fields"])

    def _put(
        self, wish: _Wish, documents: Sequence[Document], places: Sequence[str] | None
    ) -> None:
        added = schema.new_columns(documents, self._columns, places=places)
        rows: list[schema.Row] = []
        for document in documents:
            digest = rules.content_hash(document.content, document.metadata)
            if digest != self._hash(document.id):
                metadata = rules.canonical(document.metadata).decode()
                rows.append(schema.Row(document, text.terms(document.content), digest, metadata))
        if not rows:
            return
        self.added |= added
        self._columns |= added
        self.rows |= {row.document.id: row for row in rows}
        wish.changed = [row.document.id for row in rows]

    def _hash(self, name: str) -> str:
        if row := self.rows.get(name):
            return row.hash
        return self._known[name].hash if name in self._known else ""


def not_found(collection: str, name: str) -> NotFoundError:
    """There is no such document."""
    return NotFoundError(f"collection {collection!r} has no document {name[:80]!r}")


def ordered(stored: Mapping[str, object], ids: Sequence[str]) -> list[str]:
    """Those of the ids that are there, or all that are there."""
    return [name for name in dict.fromkeys(ids) if name in stored] if ids else sorted(stored)
