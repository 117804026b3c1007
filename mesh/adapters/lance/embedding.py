"""What the embedder makes of texts: on threads of its own, and nothing of it taken on trust.

An embedder may wait for an endpoint that does not answer. Threads of its own, since those of the
loop's executor are what everything else on the node needs; few, since each waits for the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mesh.errors import StateError, UnavailableError
from mesh.ports import Embedder

A = TypeVar("A")
R = TypeVar("R")
Floats = npt.NDArray[np.float32]

_THREADS = 4
"""For documents, and as many for queries: whoever searches does not wait for those who write."""


class Embedding:
    """Of one node."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._documents = ThreadPoolExecutor(_THREADS, "embed-documents")
        self._queries = ThreadPoolExecutor(_THREADS, "embed-queries")

    async def documents(self, texts: Sequence[str], names: Sequence[str]) -> Floats:
        """`(n, dim)` float32, zero where a text has no direction.

        Args:
            texts: At least one.
            names: What errors call each.

        Raises:
            MeshError: The embedder's.
            StateError: It gave something else than vectors for these texts.
        """
        embedder = self.embedder
        if sum(map(len, texts)) <= embedder.quick_chars:
            vectors = embedder.embed_documents(texts)
        else:
            vectors = await self._in_thread(self._documents, embedder.embed_documents, texts)
        expected = (len(texts), embedder.dim)
        if vectors.shape != expected:
            raise StateError(
                f"the embedder {embedder.id} gave vectors of shape {vectors.shape}, not "
                f"{expected}; nothing was written"
            )
        wrong = ~np.isfinite(vectors).all(axis=1)
        if wrong.any():
            name = names[int(np.argmax(wrong))]
            raise StateError(
                f"the embedder {embedder.id} gave a vector with NaN or infinity for document "
                f"{name[:80]!r}; nothing was written"
            )
        return vectors

    async def query(self, text: str, within_s: float | None = None) -> Floats | None:
        """`(dim,)` float32; None: the query has no direction.

        Raises:
            MeshError: The embedder's.
            StateError: It gave no vector.
            UnavailableError: It took longer.
        """
        embedder = self.embedder
        if len(text) <= embedder.quick_chars:
            vector = embedder.embed_query(text)
        else:
            try:
                async with asyncio.timeout(within_s):
                    vector = await self._in_thread(self._queries, embedder.embed_query, text)
            except TimeoutError:
                message = "the embedder gave no vector for the query in time"
                raise UnavailableError(message) from None
        if vector.shape != (embedder.dim,) or not np.isfinite(vector).all():
            raise StateError(f"the embedder {embedder.id} gave no vector for the query")
        return vector if vector.any() else None

    async def _in_thread(
        self, threads: ThreadPoolExecutor, work: Callable[[A], R], argument: A
    ) -> R:
        try:
            result = asyncio.get_running_loop().run_in_executor(threads, work, argument)
        except RuntimeError:  # after `close`
            raise UnavailableError("the node is stopping") from None
        return await result

    def close(self) -> None:
        """Take no more; what runs ends when it ends."""
        self._documents.shutdown(wait=False)
        self._queries.shutdown(wait=False)
