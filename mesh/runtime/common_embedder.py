"""The caller's own embedder, for candidates of nodes whose embedders differ.

It is loaded in a thread when it is first needed, never when a client starts: a model takes a second
and its packages tens of megabytes. A search that comes before it is there does without.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import structlog

from mesh.core import common_scale
from mesh.errors import MeshError
from mesh.ports import Clock, Embedder
from mesh.wire.messages import Candidates, SearchOptions, SearchRequest

log = structlog.get_logger()

_CHUNK = 32
"""Texts embedded at a time; in between the clock is looked at."""
_MOST_VECTORS = 8192
SCALED = "embedders differ, and their cosines were only scaled"
"""Begins the reason of shards that answered whole, and whose order among others is a guess."""
_AGAIN_S = 60.0
"""Before another try to load what could not be loaded."""


class Comparison(NamedTuple):
    """Texts, compared with a query."""

    fingerprint: str
    threshold: float
    """Below that a cosine is noise to this embedder."""
    cosines: list[float | None]
    """None: the text is missing, has no known words, or no time was left."""


class CommonEmbedder:
    """Of one client."""

    def __init__(self, load: Callable[[], Embedder], clock: Clock) -> None:
        """Args:
        load: Makes the embedder; blocks, in a thread.
        clock: Time.
        """
        self._load = load
        self._clock = clock
        self._loading: asyncio.Task[Embedder | None] | None = None
        self._fingerprint = ""
        self._failed_at = float("-inf")
        self.why = ""
        """What keeps it from being used; empty: nothing, or it was not tried yet."""
        self._vectors: OrderedDict[bytes, Any] = OrderedDict()
        """By hash of the text, the least recently used first; threads take turns."""
        self._turns = threading.Lock()

    def prepare(self) -> None:
        """It will be needed: load it, beside whatever is done meanwhile."""
        if self._loading is None or (
            self._loading.done()
            and self.why
            and self._clock.monotonic() - self._failed_at > _AGAIN_S
        ):
            self.why = ""
            self._loading = asyncio.create_task(self._loaded())

    async def close(self) -> None:
        """Nothing is waited for any more."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)

    async def fingerprint(self, until: float) -> str:
        """Of the embedder; empty: it is not there by then (monotonic s), and `why` tells."""
        self.prepare()
        assert self._loading is not None  # noqa: S101 (prepared)
        if not self._loading.done():
            left_s = until - self._clock.monotonic()
            if left_s > 0:
                await asyncio.wait((self._loading,), timeout=left_s)
        if not self._loading.done():
            self.why = "the embedder is still being loaded"
            return ""
        return "" if self._loading.result() is None else self._fingerprint

    async def compare(
        self, query: str, texts: Sequence[str | None], until: float
    ) -> Comparison | None:
        """Cosines of texts and a query; None: there is no embedder, or it failed.

        Args:
            query: As the nodes had it.
            texts: None: not at hand.
            until: Monotonic seconds; what has not been embedded by then is left out.
        """
        if not await self.fingerprint(until):
            return None
        left_s = until - self._clock.monotonic()
        embedder = self._loading.result() if self._loading is not None else None
        if embedder is None or left_s <= 0:
            self.why = self.why or "no time was left"
            return None
        try:
            async with asyncio.timeout(left_s):
                cosines = await asyncio.to_thread(self._cosines, embedder, query, texts, until)
        except TimeoutError:
            self.why = "the embedder took too long"
            return None
        except Exception as error:  # noqa: BLE001 (a search goes on without it)
            self.why = str(error) if isinstance(error, MeshError) else "the embedder failed"
            log.warning("mesh.search.embedder_failed", error=str(error))
            return None
        self.why = ""
        return Comparison(self._fingerprint, embedder.default_threshold, cosines)

    async def _loaded(self) -> Embedder | None:
        def load() -> tuple[Embedder, str]:
            embedder = self._load()
            return embedder, embedder.id  # a model is read when it is first asked something

        try:
            embedder, self._fingerprint = await asyncio.to_thread(load)
        except Exception as error:  # noqa: BLE001 (a search goes on without it)
            self._failed_at = self._clock.monotonic()
            self.why = f"the embedder cannot be loaded: {error}"
            log.warning("mesh.search.embedder_not_loaded", error=str(error))
            return None
        self.why = ""
        return embedder

    # -- in a thread -------------------------------------------------------------------------------

    def _cosines(
        self, embedder: Embedder, query: str, texts: Sequence[str | None], until: float
    ) -> list[float | None]:
        asked = embedder.embed_query(query)
        keys = [None if text is None else _key(text) for text in texts]
        with self._turns:
            vectors = {key: self._vectors.get(key) for key in keys if key is not None}
        new = {
            key: text
            for key, text in zip(keys, texts, strict=True)
            if key is not None and text is not None and vectors[key] is None
        }
        for start in range(0, len(new), _CHUNK):
            if self._clock.monotonic() >= until:
                break
            chunk = list(new)[start : start + _CHUNK]
            rows = embedder.embed_documents([new[key] for key in chunk])
            vectors.update(zip(chunk, rows, strict=True))
        self._keep(vectors)
        cosines: list[float | None] = []
        for key in keys:
            vector = None if key is None else vectors[key]
            if vector is None or not vector.any():
                cosines.append(None)
            else:
                cosines.append(round(float(vector @ asked), 7))
        return cosines

    def _keep(self, vectors: dict[bytes, Any]) -> None:
        with self._turns:
            for key, vector in vectors.items():
                if vector is not None:
                    self._vectors[key] = vector
                    self._vectors.move_to_end(key)
            while len(self._vectors) > _MOST_VECTORS:
                self._vectors.popitem(last=False)


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def mixes(fingerprints: Collection[str], options: SearchOptions) -> bool:
    """Whether a search of shards with these embedders gets cosines that it would compare, and that
    do not compare.
    """
    return len(fingerprints) > 1 and options.mode != "text" and options.strategy == "score"


def needs_comparison(parts: Sequence[Candidates], options: SearchOptions) -> bool:
    """Whether such cosines came."""
    if options.mode == "text":
        return False
    seen = {shard.fingerprint for part in parts for shard in part.shards}
    return mixes(seen, options) and mixes(common_scale.fingerprints(parts), options)


async def compared(
    common: CommonEmbedder | None,
    request: SearchRequest,
    parts: Sequence[Candidates],
    until: float,
) -> tuple[list[Candidates], str]:
    """The parts with the cosines of one embedder; or with their own, and why.

    Args:
        common: None: this caller has none.
        request: If it names a threshold, and its nodes' embedders were known to differ, they were
            asked without.
        parts: As they came.
        until: Monotonic seconds.
    """
    given = request.options.threshold
    own = list(parts) if given is None else common_scale.cut(parts, given)
    if len(common_scale.fingerprints(parts)) <= 1:
        return own, ""
    why = "this caller has no embedder"
    if common is not None:
        if ours := await common.fingerprint(until):
            texts = [found.content for found in common_scale.foreign(parts, ours)]
            judged = await common.compare(request.query, texts, until)
            if judged is not None:
                least = judged.threshold if given is None else given
                if rescaled := common_scale.rescaled(own, ours, judged.cosines, least):
                    return rescaled, ""
                why = "too few texts came along"
        why = common.why or why
    return own, f"{SCALED}: {why}"
