"""How a collection whose vectors or terms are another embedder's or another version's gets such as
this node makes.

Nothing is written to it meanwhile (see `foreign`), so the table stands still while its texts are
embedded; the vectors are staged in a file, and a kill costs one batch. The last step is one commit
of LanceDB's: a new version of the table with the same documents, or none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pyarrow as pa
import structlog

from mesh.adapters.lance import schema
from mesh.adapters.lance.contents import Store
from mesh.adapters.lance.embedding import Embedding
from mesh.adapters.lance.shelf import Shelf
from mesh.adapters.lance.staging import Staged, staging_file
from mesh.adapters.lance.table import Collection
from mesh.adapters.lance.writing import ClosedError
from mesh.core import text
from mesh.ports import Reembedded

_BATCH = 64
"""Texts embedded between two words of progress, and lost by a kill."""
_WRITTEN = 1024
"""Rows in memory at once when the new version is written."""

Progress = Callable[[float | None, str], None]

_log = structlog.get_logger()


class Reembedding:
    """One collection at a time: the embedder is what it waits for."""

    def __init__(self, shelf: Shelf, store: Store) -> None:
        self._shelf = shelf
        self._store = store
        self._turn = asyncio.Lock()

    async def run(self, name: str, progress: Progress) -> Reembedded:
        """See `LanceDocuments.reembed`."""
        if self._turn.locked():
            progress(None, "waiting for another collection's turn")
        async with contextlib.AsyncExitStack() as turn:
            await turn.enter_async_context(self._turn)
            found = self._shelf.known(name)
            file = staging_file(self._shelf.folder, name)
            if not found.foreign:
                file.unlink(missing_ok=True)
                return Reembedded(0, found.fingerprint, found.fingerprint, found.data_version)
            try:
                staged = None
                if found.foreign.vectors:
                    staged = await _staged(found, file, self._store.embedding, progress)
                    turn.callback(staged.close)
                # Its turn ends with the last step, whether or not anybody waits for that.
                last = self._made_anew(found, staged, progress, turn.pop_all())
                return await self._shelf.to_the_end(last)
            except ClosedError:
                if not self._shelf.closed:
                    # Dropped, and the file may have come after that.
                    file.unlink(missing_ok=True)
                raise self._shelf.gone(name) from None

    async def _made_anew(
        self,
        old: Collection,
        staged: Staged | None,
        progress: Progress,
        turn: contextlib.AsyncExitStack,
    ) -> Reembedded:
        async with turn:
            progress(1.0, "writing")
            new = await self._shelf.swap(old, lambda: rewrite(self._store, old, staged))
            if staged is not None:
                await asyncio.to_thread(staged.remove)
        rows = new.statistics.rows
        _log.info("mesh.documents.reembedded", collection=old.name, documents=rows)
        return Reembedded(rows, old.fingerprint, new.fingerprint, new.data_version)


async def _staged(
    collection: Collection, file: Path, embedding: Embedding, progress: Progress
) -> Staged:
    """Vectors of all texts; those that an earlier run staged are not made again. May be cancelled.

    Raises:
        MeshError: The embedder's, or the table cannot be read.
        ClosedError: It was dropped.
    """
    embedder = embedding.embedder
    found = await asyncio.to_thread(Staged, file, embedder=embedder.id, dim=embedder.dim)
    try:
        await _stage(collection, found, embedding, progress)
    except BaseException:
        found.close()
        raise
    return found


async def _stage(
    collection: Collection, staged: Staged, embedding: Embedding, progress: Progress
) -> None:
    rows, done = collection.statistics.rows, 0
    async with aclosing(collection.scan(["id", "content"], _BATCH)) as batches:
        async for batch in batches:
            texts = _texts(batch)
            names = dict(zip(texts, map(str, batch.column("id").to_pylist()), strict=True))
            missing = staged.missing(texts)
            if missing:
                vectors = await embedding.documents(missing, [names[text] for text in missing])
                await asyncio.to_thread(staged.add, missing, vectors)
            if collection.closed:
                raise ClosedError  # whoever drops it waits for this
            done += len(texts)
            progress(min(1.0, done / rows) if rows else None, f"{done} of {rows} documents")


async def rewrite(store: Store, collection: Collection, staged: Staged | None) -> None:
    """Make the new version: the same documents with staged vectors (None: with those they have)
    and today's terms.

    Raises:
        RuntimeError: LanceDB's; the old version stays.
        ClosedError: It was dropped.
    """
    old = collection.layout
    layout = schema.made_anew(old, store.embedder.dim, embedder=store.embedder.id)
    kept = [name for name in old.names if name != "vector" or staged is None]
    loop = asyncio.get_running_loop()

    def rows(batches: AsyncIterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Pulled by a thread of LanceDB's, which may wait for the loop."""
        while True:
            pulled = asyncio.run_coroutine_threadsafe(_next(batches), loop).result()
            if pulled is None:
                return
            yield _made_anew(pulled, layout, staged)

    async with aclosing(collection.scan(kept, _WRITTEN)) as batches:
        await store.connection.create_table(
            collection.name,
            data=pa.RecordBatchReader.from_batches(layout, rows(batches)),
            schema=layout,
            mode="overwrite",
            on_bad_vectors="null",
        )


async def _next(batches: AsyncIterator[pa.RecordBatch]) -> pa.RecordBatch | None:
    return await anext(batches, None)


def _made_anew(old: pa.RecordBatch, layout: pa.Schema, staged: Staged | None) -> pa.RecordBatch:
    texts = _texts(old)
    words = [text.terms(content) for content in texts]
    made: dict[str, Any] = {
        "words": pa.array([" ".join(found) for found in words], pa.utf8()),
        "length": pa.array([len(found) for found in words], pa.int32()),
    }
    if staged is not None:
        made["vector"] = schema.vector_array(staged.vectors(texts), layout)
    arrays = [made[name] if name in made else old.column(name) for name in layout.names]
    return pa.RecordBatch.from_arrays(arrays, schema=layout)


def _texts(batch: pa.RecordBatch) -> list[str]:
    return [content or "" for content in batch.column("content").to_pylist()]
