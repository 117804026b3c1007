"""A node's side of a search: its collections on disk and those its author searches by hand."""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import Mapping, Sequence

import msgspec
import structlog

from mesh.config import MeshConfig
from mesh.core.documents import content_hash
from mesh.core.merge import depth, rank
from mesh.core.text import query_terms, terms
from mesh.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidError,
    MeshError,
    StateError,
    UnavailableError,
)
from mesh.ports import Clock, Documents, Embedder
from mesh.runtime.own_threads import OwnThreads
from mesh.runtime.results import coverage, how_it_went, lacks_a_leg, missing_texts, search_result
from mesh.runtime.sdk import SearchFunction
from mesh.wire.messages import (
    Candidate,
    Candidates,
    CollectionInfo,
    Document,
    SearchRequest,
    SearchResult,
    ShardHits,
    ShardReport,
)

log = structlog.get_logger()

_TIME_SHARE = 0.8
"""Of the request's time that a function may take: what is left brings the others' part home."""
_EMBED_SHARE = 0.5
"""Likewise, and the embedder: then words have to do."""
_THREADS = 4
"""That wait for the embedder at once, for functions."""
_MAX_TEXT_BYTES = 16_384
_MAX_TEXTS_BYTES = 524_288
"""Of all functions together, shared evenly among their documents; longer texts are cut."""


class NodeSearch:
    """Answers searches with candidates (for a caller that merges) or with a result of its own."""

    def __init__(
        self,
        slug: str,
        config: MeshConfig,
        *,
        documents: Documents,
        embedder: Embedder,
        searches: Mapping[str, SearchFunction],
        clock: Clock,
    ) -> None:
        self._slug = slug
        self._shard = config.node.shard or slug
        self._config = config
        self._documents = documents
        self._embedder = embedder
        self._searches = searches
        self._clock = clock
        # Not the loop's: an endpoint that hangs would keep them from everybody else.
        self._threads = OwnThreads("embed-found", _THREADS)

    def custom(self) -> tuple[CollectionInfo, ...]:
        """The collections that are functions; how many documents they hold is not known."""
        return tuple(
            CollectionInfo(name=name, shard=self._shard, fingerprint=self._embedder.id)
            for name in sorted(self._searches)
        )

    async def answer(self, request: SearchRequest) -> Candidates | SearchResult:
        """What was found; a collection of the author's own that fails is named in it.

        Raises:
            MeshError: The request is refused, or nothing that was asked answered.
        """
        began = self._clock.monotonic()
        self._refuse_unknown(request)
        words = query_terms(request.query)
        shards = list(await self._stored(request))
        failed: dict[str, MeshError] = {}
        for name, outcome in (await self._computed(request, words)).items():
            if isinstance(outcome, ShardHits):
                shards.append(outcome)
            else:
                failed[name] = outcome
        if failed and not shards:
            raise next(iter(failed.values()))
        part = Candidates(
            node=self._slug,
            terms=words,
            shards=shards,
            took_ms=round((self._clock.monotonic() - began) * 1000, 3),
            failed={name: str(error) for name, error in failed.items()},
        )
        if request.candidates:
            return part
        return await self._ranked(request, part)

    def _refuse_unknown(self, request: SearchRequest) -> None:
        wanted = request.options.collections
        if wanted is None or request.candidates:
            return  # a federating caller knows who holds what; a drop may just have happened
        known = {info.name for info in self._documents.collections()} | set(self._searches)
        unknown = sorted(set(wanted) - known)
        if unknown:
            message = (
                f"unknown collection {', '.join(map(repr, unknown))}; {self._slug} holds: "
                + (", ".join(sorted(known)) or "none")
            )
            raise InvalidError(message, fields={"options.collections": [message]})

    async def _stored(self, request: SearchRequest) -> Sequence[ShardHits]:
        options = request.options
        return await self._documents.search(
            request.query,
            collections=options.collections,
            mode=options.mode,
            depth=depth(request.limit),
            threshold=options.threshold,
            filters=options.filters,
            texts=request.texts,
            embed_within_s=self._left_s(request) * _EMBED_SHARE,
        )

    def _left_s(self, request: SearchRequest) -> float:
        """Of the request's time."""
        left_ms = request.options.timeout_ms
        if request.deadline:
            left_ms = min(left_ms, request.deadline - self._clock.unix_ms())
        return left_ms / 1000

    async def _computed(
        self, request: SearchRequest, words: Sequence[str]
    ) -> dict[str, ShardHits | MeshError]:
        """By collection what its function gave; one that fails costs the others nothing."""
        wanted = request.options.collections
        names = [name for name in sorted(self._searches) if wanted is None or name in wanted]
        if request.options.filters or not names:
            return {}  # a function's documents have no columns to filter by
        within_s = self._left_s(request) * _TIME_SHARE
        budget = _MAX_TEXTS_BYTES // len(names)
        outcomes = await asyncio.gather(
            *(self._tried(name, request, words, within_s, budget) for name in names)
        )
        return dict(zip(names, outcomes, strict=True))

    async def _tried(
        self,
        name: str,
        request: SearchRequest,
        words: Sequence[str],
        within_s: float,
        budget_bytes: int,
    ) -> ShardHits | MeshError:
        try:
            async with asyncio.timeout(within_s) as limit:
                return await self._ask(name, request, words, within_s, budget_bytes)
        except MeshError as error:
            return error
        except Exception:
            if limit.expired():
                return DeadlineExceededError(f"the search of {name!r} gave no answer in time")
            reference = secrets.token_hex(8)
            log.exception("mesh.search.function_failed", collection=name, reference=reference)
            return InternalError(
                f"the search of {name!r} failed; the node's log has it under {reference}",
                reference=reference,
            )

    async def _ask(
        self,
        name: str,
        request: SearchRequest,
        words: Sequence[str],
        within_s: float,
        budget_bytes: int,
    ) -> ShardHits:
        """A function chooses documents; the mesh ranks them, by what it sees of them.

        The function's corpus is unknown, so what it returned stands for it: N, lengths and
        document frequencies are counted over the returned documents.
        """
        documents = await self._searches[name](request)
        cosines, no_vectors = await self._cosines(request, documents, within_s * _EMBED_SHARE)
        options = request.options
        floor = self._embedder.default_threshold if options.threshold is None else options.threshold
        tokens = [terms(document.content) for document in documents]
        longest = min(_MAX_TEXT_BYTES, budget_bytes // max(1, len(documents)))
        candidates = [
            msgspec.structs.replace(
                _candidate(document, cosine, words, found, floor),
                content=_cut(document.content, longest),  # no `fetch` would find the rest
            )
            for document, cosine, found in zip(documents, cosines, tokens, strict=True)
        ]
        return ShardHits(
            collection=name,
            shard=self._shard,
            rows=len(documents),
            tokens=sum(map(len, tokens)),
            df=[sum(word in found for found in map(set, tokens)) for word in words],
            fingerprint=self._embedder.id,
            data_version=0,
            candidates=candidates,
            no_vectors=no_vectors,
        )

    async def _cosines(
        self, request: SearchRequest, documents: Sequence[Document], within_s: float
    ) -> tuple[Sequence[float | None], str]:
        """One per document, if that is asked; and why there are none.

        Raises:
            StateError, UnavailableError: There are none, and they are all that is asked.
        """
        mode = request.options.mode
        nothing = [None] * len(documents)
        if mode == "text" or not documents:
            return nothing, ""
        texts = [document.content for document in documents]
        work = functools.partial(self._compared, request.query, texts)
        error: MeshError
        try:
            async with asyncio.timeout(within_s):
                return await self._threads.run(work), ""
        except TimeoutError:
            error = UnavailableError("the embedder gave no vectors in time")
        except (StateError, UnavailableError) as its:
            error = its
        if mode == "vector":
            raise error
        return nothing, str(error)

    def _compared(self, query: str, texts: Sequence[str]) -> list[float]:
        # The query first: it is not tried twice, so an endpoint that is away is found out soon.
        vector = self._embedder.embed_query(query)
        return [float(cosine) for cosine in self._embedder.embed_documents(texts) @ vector]

    async def _ranked(self, request: SearchRequest, part: Candidates) -> SearchResult:
        """For a caller without our client: this node's candidates, ranked and cut."""
        options = request.options
        ranking = rank(
            [part],
            mode=options.mode,
            limit=request.limit,
            strategy=options.strategy,
            deduplicate=options.deduplicate,
            explain=options.explain,
        )
        texts = {
            (self._slug, name, document.id): document.content
            for (_node, name), ids in missing_texts(ranking).items()
            for document in await self._documents.fetch(name, ids)
        }
        reports = [
            ShardReport(
                collection=hits.collection,
                shard=hits.shard,
                node=self._slug,
                status=status,
                reason=reason,
            )
            for hits in part.shards
            for status, reason in (how_it_went(hits, options.mode),)
        ] + [
            ShardReport(
                collection=name, shard=self._shard, node=self._slug, status="failed", reason=why
            )
            for name, why in part.failed.items()
        ]
        return search_result(
            ranking,
            texts=texts,
            shards=coverage(reports),
            strategy=options.strategy,
            duration_ms=part.took_ms,
            one_leg=lacks_a_leg(reports),
        )


def _candidate(
    document: Document,
    cosine: float | None,
    words: Sequence[str],
    found: Sequence[str],
    floor: float,
) -> Candidate:
    tf = [found.count(word) for word in words]
    return Candidate(
        id=document.id,
        cosine=None if cosine is None else round(cosine, 6),
        vector_hit=cosine is not None and cosine >= floor,
        text_hit=any(tf),
        length=len(found),
        tf=tf,
        hash=content_hash(document.content, document.metadata),
        content=document.content,
        metadata=document.metadata,
    )


def _cut(text: str, longest_bytes: int) -> str:
    return text.encode()[:longest_bytes].decode(errors="ignore")
