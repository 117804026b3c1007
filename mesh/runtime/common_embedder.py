"""The caller's own embedder, for candidates of nodes whose embedders differ.

It is loaded in a thread of its own when it is first needed, never when a client starts: a model
takes a second and its packages tens of megabytes. A search that comes before it is there does
without.
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
from mesh.errors import MeshError, UnavailableError
from mesh.ports import Clock, Embedder
from mesh.runtime.own_threads import OwnThreads, in_own_thread
from mesh.wire.messages import Candidates, SearchOptions, SearchRequest

log = structlog.get_logger()

_CHUNK = 32
"""Texts embedded at a time; in between the clock is looked at."""
_MOST_VECTORS = 8192
SCALED = "embedders differ, and their cosines were only scaled"
"""Begins the reason of shards that answered whole, and whose order among others is a guess."""
_AGAIN_S = 60.0
"""Before another try to load what could not be loaded."""
_PATIENCE_S = 0.05
"""So long a search waits for a load: models take seconds."""
_AT_ONCE = 2
"""Comparisons; each has a thread."""
_MARGIN_S = 0.01
"""For what was embedded in time to be heard of in time."""


class Comparison(NamedTuple):
    """Texts, compared with a query."""

    threshold: float
    """Below that a cosine is noise to this embedder."""
    cosines: list[float | None]
    """None: the text is missing, has no known words, or no time was left."""
    hurried: bool
    """With more time there would be more of them."""


class Compared(NamedTuple):
    """What nodes found, on one scale."""

    parts: list[Candidates]
    why: str
    """Why their cosines are their own embedders' still; empty: they are one embedder's."""
    hurried: bool = False
    """Some of them are estimates, because no time was left."""


class _Loaded(NamedTuple):
    embedder: Embedder
    fingerprint: str


class CommonEmbedder:
    """Of one client."""

    def __init__(self, load: Callable[[], Embedder], clock: Clock) -> None:
        """Args:
        load: Makes the embedder; blocks, in a thread.
        clock: Time.
        """
        self._load = load
        self._clock = clock
        self._loading: asyncio.Task[_Loaded | str] | None = None
        """Gives the embedder, or why it is not there."""
        self._again_at = float("inf")
        """When to load it anew (monotonic s): it could not be loaded."""
        self._threads = OwnThreads("embedder", _AT_ONCE)
        self._vectors: OrderedDict[bytes, Any] = OrderedDict()
        """By hash of the text, the least recently used first; threads take turns."""
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """It will be needed: load it, beside whatever is done meanwhile."""
        if self._loading is None or self._clock.monotonic() > self._again_at:
            self._again_at = float("inf")
            self._loading = asyncio.create_task(self._loaded())

    async def close(self) -> None:
        """Nothing is waited for any more."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)

    async def fingerprint(self, until: float) -> str:
        """Of the embedder. One that is being loaded is hardly waited for.

        Raises:
            UnavailableError: It is not there by then (monotonic s).
        """
        return (await self._ready(until)).fingerprint

    async def compare(self, query: str, texts: Sequence[str | None], until: float) -> Comparison:
        """Cosines of texts and a query.

        Args:
            query: As the nodes had it.
            texts: None: not at hand.
            until: Monotonic seconds; what cannot be embedded by then is left out.

        Raises:
            UnavailableError: There is no embedder, it failed, or it took too long.
        """
        embedder = (await self._ready(until)).embedder
        left_s = until - self._clock.monotonic()
        if left_s <= 0:
            raise UnavailableError("no time was left")
        try:
            async with asyncio.timeout(left_s):
                cosines, hurried = await self._threads.run(
                    self._cosines, embedder, query, texts, until
                )
        except TimeoutError:
            raise UnavailableError("the embedder took too long") from None
        except Exception as error:
            log.warning("mesh.search.embedder_failed", error=str(error))
            why = str(error) if isinstance(error, MeshError) else "the embedder failed"
            raise UnavailableError(why) from error
        return Comparison(embedder.default_threshold, cosines, hurried)

    async def _ready(self, until: float) -> _Loaded:
        self.prepare()
        loading = self._loading
        assert loading is not None  # noqa: S101 (prepared)
        if not loading.done():
            left_s = min(until - self._clock.monotonic(), _PATIENCE_S)
            if left_s > 0:
                await asyncio.wait((loading,), timeout=left_s)
        if not loading.done():
            raise UnavailableError("the embedder is still being loaded")
        loaded = loading.result()
        if isinstance(loaded, str):
            raise UnavailableError(loaded)
        return loaded

    async def _loaded(self) -> _Loaded | str:
        def load() -> _Loaded:
            embedder = self._load()
            # a model is read when it is first asked something
            return _Loaded(embedder, embedder.id)

        try:
            return await in_own_thread("embedder", load)
        except Exception as error:  # noqa: BLE001 (a search goes on without it)
            self._again_at = self._clock.monotonic() + _AGAIN_S
            log.warning("mesh.search.embedder_not_loaded", error=str(error))
            return f"the embedder cannot be loaded: {error}"

    # -- in a thread -------------------------------------------------------------------------------

    def _cosines(
        self, embedder: Embedder, query: str, texts: Sequence[str | None], until: float
    ) -> tuple[list[float | None], bool]:
        """And whether there was no time for some. It ends before `until`, not after."""
        asked = embedder.embed_query(query)
        keys = [None if text is None else _key(text) for text in texts]
        with self._lock:
            vectors = {key: self._vectors.get(key) for key in keys if key is not None}
        new = {
            key: text
            for key, text in zip(keys, texts, strict=True)
            if key is not None and text is not None and vectors[key] is None
        }
        hurried, slowest_s = False, 0.0
        for start in range(0, len(new), _CHUNK):
            began = self._clock.monotonic()
            if began + slowest_s > until - _MARGIN_S:
                hurried = True
                break
            chunk = list(new)[start : start + _CHUNK]
            rows = embedder.embed_documents([new[key] for key in chunk])
            vectors.update(zip(chunk, rows, strict=True))
            slowest_s = max(slowest_s, self._clock.monotonic() - began)
        self._keep(vectors)
        cosines: list[float | None] = []
        for key in keys:
            vector = None if key is None else vectors[key]
            if vector is None or not vector.any():
                cosines.append(None)
            else:
                cosines.append(round(float(vector @ asked), 7))
        return cosines, hurried

    def _keep(self, vectors: dict[bytes, Any]) -> None:
        with self._lock:
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
) -> Compared:
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
        return Compared(own, "")
    if common is None:
        return Compared(own, f"{SCALED}: this caller has no embedder")
    try:
        ours = await common.fingerprint(until)
        texts = [found.content for found in common_scale.foreign(parts, ours)]
        judged = await common.compare(request.query, texts, until)
    except UnavailableError as error:
        return Compared(own, f"{SCALED}: {error}")
    least = judged.threshold if given is None else given
    if rescaled := common_scale.rescaled(own, ours, judged.cosines, least):
        return Compared(rescaled, "", judged.hurried)
    few = "no time was left" if judged.hurried else "too few texts came along"
    return Compared(own, f"{SCALED}: {few}")
