"""A collection whose vectors or terms are another embedder's or another version's, and how it gets
such as this node makes.

Meanwhile it is searched as it is: vectors of different embedders do not compare, so its text leg
alone answers. Nothing is written to it, since half of the vectors would be of no use to either
embedder. So the table stands still while its texts are embedded; the vectors are staged in a file,
and a kill costs one batch. The last step is one commit of LanceDB's: a new version of the table
with the same documents, or none.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb import AsyncConnection

from mesh.adapters.lance import schema
from mesh.adapters.lance.candidates import Query
from mesh.core import text
from mesh.errors import StateError
from mesh.ports import Embedder

if TYPE_CHECKING:
    from mesh.adapters.lance.table import Collection

_BATCH = 64
"""Texts embedded between two words of progress, and lost by a kill."""
_WRITTEN = 1024
"""Rows in memory at once when the new version is written."""
_DIGEST_BYTES = 32
_STAGED_VERSION = 1

Progress = Callable[[float | None, str], None]


class Foreign(NamedTuple):
    """Why a collection is not such as this node would have made it."""

    embedder: str
    """Fingerprint of the vectors that are there."""
    vectors: bool
    """Whether these are another embedder's; else only the terms are another version's."""
    reason: str
    """What it is, and what to do; completes "collection … is"."""


def foreign(layout: pa.Schema, collection: str, *, embedder: str, node: str = "") -> Foreign | None:
    """What is wrong with a table's vectors or terms; None: nothing.

    Args:
        layout: The table's schema.
        collection: Its name.
        embedder: Fingerprint of this node's embedder.
        node: Who this is, for the advice.
    """
    made_by = schema.makers(layout)
    on = f" --node {node}" if node else ""
    mend = f"`meshctl collections reembed {collection}{on}`"
    if made_by.embedder != embedder:
        return Foreign(
            made_by.embedder,
            vectors=True,
            reason=f"embedded by {made_by.embedder!r}, and this node uses {embedder!r}: set "
            f"search.embedder back to what it was, or run {mend}",
        )
    if made_by.tokenizer != text.VERSION:
        return Foreign(
            made_by.embedder,
            vectors=False,
            reason=f"indexed by another version of nodemesh: run {mend}",
        )
    return None


def answerable(query: Query, where: Foreign | None) -> Query:
    """The query without its vector where that compares with nothing."""
    if where is None or not where.vectors or not query.near:
        return query
    return query._replace(vector=None, no_vectors=where.reason)


class Staged:
    """Vectors by their text, in a file that outlives a kill.

    The first line is JSON and names the embedder; then come records of one length: SHA-256 of the
    text, the vector, and a CRC of both. What is torn off at the end, or is another embedder's, is
    embedded again. Blocking.
    """

    def __init__(self, path: Path, *, embedder: str, dim: int) -> None:
        """Raises StateError: the file cannot be used."""
        self._path = path
        self._record = np.dtype(
            [("digest", "u1", _DIGEST_BYTES), ("vector", "<f4", dim), ("crc", "<u4")]
        )
        self._head = msgspec.json.encode([_STAGED_VERSION, embedder, dim]) + b"\n"
        self._places: dict[bytes, int] = {}
        try:
            whole = self._load() if path.exists() else 0
            self._file = path.open("r+b" if whole else "w+b")
            if not whole:
                self._file.write(self._head)
                whole = len(self._head)
            self._file.truncate(whole)
            self._file.seek(whole)
        except OSError as error:
            raise self._unusable(error) from error

    def _load(self) -> int:
        """Bytes that can be used; 0: none."""
        with self._path.open("rb") as file:
            if file.readline() != self._head:
                return 0
            while len(record := file.read(self._record.itemsize)) == self._record.itemsize:
                if zlib.crc32(record[:-4]) != int.from_bytes(record[-4:], "little"):
                    break
                self._places[record[:_DIGEST_BYTES]] = len(self._places)
        return len(self._head) + len(self._places) * self._record.itemsize

    def missing(self, texts: Sequence[str]) -> list[str]:
        """Those without a vector, each once."""
        return [text for text in dict.fromkeys(texts) if _digest(text) not in self._places]

    def add(self, texts: Sequence[str], vectors: npt.NDArray[np.float32]) -> None:
        """Keep vectors; on disk when this returns.

        Raises:
            StateError: They cannot be kept.
        """
        records = np.zeros(len(texts), dtype=self._record)
        for place, (content, vector) in enumerate(zip(texts, vectors, strict=True)):
            digest = _digest(content)
            records[place]["digest"] = np.frombuffer(digest, dtype=np.uint8)
            records[place]["vector"] = vector
            records[place]["crc"] = zlib.crc32(records[place].tobytes()[:-4])
        try:
            self._file.write(records.tobytes())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unusable(error) from error
        for content in texts:
            self._places[_digest(content)] = len(self._places)

    def vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """`(n, dim)` float32 of texts that all were added."""
        rows: npt.NDArray[np.float32] = np.zeros(
            (len(texts), self._record["vector"].shape[0]), dtype=np.float32
        )
        for row, content in zip(rows, texts, strict=True):
            place = len(self._head) + self._places[_digest(content)] * self._record.itemsize
            record = os.pread(self._file.fileno(), self._record.itemsize, place)
            row[:] = np.frombuffer(record, dtype=self._record)[0]["vector"]
        return rows

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """It has done its work."""
        self.close()
        self._path.unlink(missing_ok=True)

    def _unusable(self, error: OSError) -> StateError:
        return StateError(f"{self._path} cannot be used: {error.strerror}")


def staging_file(folder: Path, collection: str) -> Path:
    """Where a collection's vectors are staged."""
    return folder / f"{collection}.reembedding"


async def staged(
    collection: Collection, file: Path, embedder: Embedder, progress: Progress
) -> Staged:
    """Vectors of all texts; those that an earlier run staged are not made again. May be cancelled.

    Raises:
        MeshError: The embedder's, or the table cannot be read.
        ClosedError: It was dropped.
    """
    found = await asyncio.to_thread(lambda: Staged(file, embedder=embedder.id, dim=embedder.dim))
    try:
        await _stage(collection, found, embedder, progress)
    except BaseException:
        found.close()
        raise
    return found


async def _stage(
    collection: Collection, staged: Staged, embedder: Embedder, progress: Progress
) -> None:
    rows, done = collection.statistics.rows, 0
    async with aclosing(collection.scan(["content"], _BATCH)) as batches:
        async for batch in batches:
            texts = _texts(batch)
            missing = staged.missing(texts)
            if missing:
                vectors = await asyncio.to_thread(embedder.embed_documents, missing)
                await asyncio.to_thread(staged.add, missing, vectors)
            if collection.closed:
                return  # whoever drops it waits for this; `rewrite` sees it too
            done += len(texts)
            progress(min(1.0, done / rows) if rows else None, f"{done} of {rows} documents")


async def rewrite(
    connection: AsyncConnection, collection: Collection, staged: Staged | None, embedder: Embedder
) -> None:
    """Make the new version: the same documents with staged vectors (None: with those they have)
    and today's terms.

    Raises:
        RuntimeError: LanceDB's; the old version stays.
        ClosedError: It was dropped.
    """
    old = collection.layout
    layout = schema.made_anew(old, embedder.dim, embedder=embedder.id)
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
        await connection.create_table(
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


def _digest(content: str) -> bytes:
    return hashlib.sha256(content.encode()).digest()
