"""A collection's one writer: what waits while it works is gathered into one LanceDB commit.

Writes happen in the order they came, each judged by what those before it leave. A call is all or
nothing and gets its own result or its own refusal, whoever shares the commit with it. A write runs
to its end even if its caller is cancelled, since a commit that nobody waits for may still happen.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import structlog
from lancedb.expr import Expr

from mesh.adapters.lance import expressions, schema
from mesh.adapters.lance.contents import Contents
from mesh.adapters.lance.embedding import Embedding
from mesh.adapters.lance.hot import Floats, HotRow
from mesh.adapters.lance.planning import Other, Plan, Update, Upsert, Wish, Work
from mesh.adapters.lance.reader import Known, Reader
from mesh.adapters.lance.statistics import Statistics
from mesh.adapters.lance.tidying import Tidier
from mesh.core.filters import Kind
from mesh.errors import MeshError, StateError, UnavailableError
from mesh.ports import Clock, Written
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


class Writer:
    """Takes the same lock as the tidier."""

    def __init__(
        self,
        contents: Contents,
        reader: Reader,
        tidier: Tidier,
        *,
        lock: asyncio.Lock,
        embedding: Embedding,
        clock: Clock,
    ) -> None:
        self._contents = contents
        self._reader = reader
        self._tidier = tidier
        self._lock = lock
        self._embedding = embedding
        self._clock = clock
        self._waiting: deque[Wish] = deque()
        self._working: asyncio.Task[None] | None = None
        self._company = 1
        """Callers of the last commit."""
        self.closed = False
        """What still waits then raises ClosedError."""

    async def write(self, work: Work) -> Written:
        """Raises:
        InvalidError, NotFoundError, StateError, ClosedError
        """
        wish = Wish(work, asyncio.get_running_loop().create_future())
        self._waiting.append(wish)
        if self._working is None:
            self._working = asyncio.create_task(
                self._work(), name=f"writes to {self._contents.name}"
            )
        return await wish.future

    @property
    def idle(self) -> bool:
        """Whether nothing is written or waits."""
        return self._working is None

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

    def _gathered(self) -> list[Wish]:
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

    def _failed(self, wishes: Sequence[Wish], error: Exception) -> None:
        if not isinstance(error, MeshError | ClosedError):
            _log.error(
                "mesh.documents.write_failed", collection=self._contents.name, exc_info=error
            )
        for wish in wishes:
            wish.error = wish.error or error

    async def _write(self, wishes: Sequence[Wish]) -> None:
        for wish in wishes:
            if isinstance(wish.work, Other):
                wish.changed = list((await wish.work.write()).changed)
                return
        try:
            plan = await self._planned(wishes)
            if not plan.rows:
                return
            rows = list(plan.rows.values())
            vectors = await self._embedding.documents(
                [row.document.content for row in rows], [row.document.id for row in rows]
            )
        except Exception as error:
            if len(wishes) == 1 or isinstance(error, UnavailableError):
                raise
            # One caller's text that cannot be embedded is not the others' trouble; an embedder that
            # is away is, and to wait for it once is enough.
            for wish in wishes:
                await self._write_alone(wish)
            return
        await self._commit(plan, vectors)

    async def _write_alone(self, wish: Wish) -> None:
        # Judged anew: what spoke against it may have come from a wish that is not granted.
        wish.changed, wish.error = [], None
        try:
            if self.closed:
                raise ClosedError  # noqa: TRY301
            if self._contents.stale:
                await self._contents.load()
            await self._write([wish])
        except Exception as error:  # noqa: BLE001
            self._failed([wish], error)

    # -- upserts and updates -----------------------------------------------------------------------

    async def upsert(self, documents: Sequence[Document], places: Sequence[str] | None) -> Written:
        """At once: for whoever has the lock."""
        wish = Wish(Upsert(documents, places), asyncio.get_running_loop().create_future())
        await self._write([wish])
        if wish.error is not None:
            raise wish.error
        return Written(tuple(wish.changed), self._contents.data_version)

    async def _planned(self, wishes: Sequence[Wish]) -> Plan:
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
        plan = Plan(
            self._contents.columns,
            known,
            {
                name: Document(id=name, content=found.content, metadata=found.metadata)
                for name, found in stored.items()
            },
            self._contents.name,
        )
        if plan.chars(wishes) <= _INLINE_CHARS:
            plan.judge(wishes)
        else:
            await asyncio.to_thread(plan.judge, wishes)
        return plan

    async def _commit(self, plan: Plan, vectors: Floats) -> None:
        contents, rows = self._contents, list(plan.rows.values())
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
        await contents.trim()
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
        if sum(known.chars for known in stored.values()) <= _INLINE_CHARS:
            change = _without(stored.values())
        else:
            change = await asyncio.to_thread(_without, stored.values())
        with contents.committing():
            result = await contents.table.delete(expressions.chosen(chosen, ids))
            contents.committed(result.version, change, stored)
        await contents.trim()
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


def _without(gone: Iterable[Known]) -> Statistics:
    change = Statistics()
    for known in gone:
        change.remove(known.words())
    return change


def ordered(stored: Mapping[str, object], ids: Sequence[str]) -> list[str]:
    """Those of the ids that are there, or all that are there."""
    return [name for name in dict.fromkeys(ids) if name in stored] if ids else sorted(stored)
