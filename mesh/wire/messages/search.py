"""Searching, and fetching what a search found."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mesh.types import MergeStrategy, Require, SearchMode
from mesh.wire.messages.base import (
    MAX_BATCH,
    MAX_LIMIT,
    MAX_QUERY_CHARS,
    CollectionName,
    DocumentId,
    Filter,
    Request,
    Token,
    Wire,
)


class SearchOptions(Wire, frozen=True, kw_only=True):
    """Section 6 of the contract; every field has the default a caller would want."""

    collections: Annotated[list[CollectionName], Meta(min_length=1, max_length=256)] | None = None
    threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    filters: Annotated[dict[str, Filter], Meta(max_length=32)] = {}
    mode: SearchMode = "hybrid"
    nodes: Annotated[list[Token], Meta(min_length=1, max_length=1024)] | None = None
    strategy: MergeStrategy = "score"
    require: Require = "any"
    timeout_ms: Annotated[int, Meta(ge=1, le=60_000)] = 800
    deduplicate: bool = True
    explain: bool = False
    cache: bool = True
    """False: the answer is neither taken from what the caller keeps nor kept."""


class SearchRequest(Request, frozen=True, kw_only=True):
    """A search, to a node or to the whole mesh."""

    query: Annotated[str, Meta(min_length=1, max_length=MAX_QUERY_CHARS)]
    limit: Annotated[int, Meta(ge=1, le=MAX_LIMIT)] = 10
    options: SearchOptions = SearchOptions()
    candidates: bool = False
    """True: answer with `Candidates` for a caller that merges; else with a `SearchResult`."""
    texts: int | None = None
    """How many candidates of each shard bring their text along, the best ones; None: all."""


class Candidate(Wire, frozen=True, kw_only=True, gc=False):
    """A document that one of the legs found, with what ranking it globally takes."""

    id: str
    cosine: float | None = None
    """None: the query has no vector, or the document has none."""
    vector_hit: bool = False
    """The vector leg found it (and it passed the threshold)."""
    text_hit: bool = False
    """The text leg found it."""
    length: int = 0
    """Tokens in the document."""
    tf: list[int] = []
    """How often each of `Candidates.terms` occurs, same order."""
    hash: str = ""
    """Of the content and metadata: equal documents have equal hashes."""
    content: str | None = None
    """None: it did not come along; `fetch` has it."""
    metadata: dict[str, Any] = {}


class ShardHits(Wire, frozen=True, kw_only=True):
    """One collection's shard: its candidates and its part of the global statistics."""

    collection: str
    shard: str
    rows: int
    """Documents that the filters let through are not counted apart: N of BM25 is the shard's."""
    tokens: int
    """Sum of the documents' lengths."""
    df: list[int]
    """In how many documents each of the terms occurs, same order as `Candidates.terms`."""
    fingerprint: str
    data_version: int
    candidates: list[Candidate] = []
    no_vectors: str = ""
    """Why its vector leg is missing, though it was asked."""
    unmatched: bool = False
    """It lacks a column that is filtered by: nothing can match. Its statistics count."""


class Candidates(Wire, frozen=True, kw_only=True):
    """A node's answer to a search that the caller merges."""

    node: str
    terms: list[str]
    shards: list[ShardHits]
    took_ms: float = 0.0
    failed: dict[str, str] = {}
    """Collections that gave nothing, and why."""


class _FoundCandidate(Candidate, frozen=True, kw_only=True, gc=False):
    metadata: msgspec.Raw = msgspec.Raw(b"{}")  # type: ignore[assignment]


class _FoundShard(ShardHits, frozen=True, kw_only=True):
    candidates: list[_FoundCandidate] = []  # type: ignore[assignment]


class FoundCandidates(Candidates, frozen=True, kw_only=True):
    """`Candidates` as a caller that merges reads them: of hundreds ten are shown, and only these
    have their metadata read (`metadata_of`). On the wire they are the same.
    """

    shards: list[_FoundShard]  # type: ignore[assignment]


def metadata_of(candidate: Candidate) -> dict[str, Any]:
    """Its metadata; none where it is not an object: the node that says so is wrong."""
    metadata: Any = candidate.metadata
    if not isinstance(metadata, msgspec.Raw):
        return candidate.metadata
    try:
        return _metadata.decode(metadata)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


_metadata = msgspec.json.Decoder(dict[str, Any])


class Hit(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """One result."""

    id: str
    content: str
    score: float
    model_class: str
    model_type: str
    metadata: dict[str, Any]
    node: str
    collection: str
    shard: str
    explain: dict[str, float] | None = None


class ShardReport(Wire, frozen=True, kw_only=True):
    """How one shard's part of a search went."""

    collection: str
    shard: str
    node: str
    status: str
    """`ok`, `failed`, `skipped` or `timed_out`."""
    reason: str = ""
    took_ms: float | None = None


class Shards(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """Coverage of a search."""

    total: int
    ok: int
    failed: int
    skipped: int
    timed_out: int
    details: list[ShardReport]


class SearchResult(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """Section 6: the answer."""

    results: list[Hit]
    count: int
    total_results: int
    """Distinct candidates that were ranked."""
    duration_ms: float
    nodes_searched: int
    node_breakdown: dict[str, int]
    type_breakdown: dict[str, int]
    merge_strategy: MergeStrategy
    avg_score: float
    partial: bool
    shards: Shards
    id: str = ""
    """Of the request: what `meshctl explain` takes."""
    cached: bool = False
    """It was asked for before, and nothing has been written since: no node was asked."""


class CacheRequest(Request, frozen=True, kw_only=True):
    """Ask the gateways for their caches of answers."""

    clear: bool = False
    """Forget all answers first."""


class CacheStats(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """A cache of answers, since its process started."""

    entries: int
    bytes: int
    max_bytes: int
    """0: it is off."""
    hits: int
    misses: int
    evictions: int
    """Answers that had to go before their time, for want of room."""
    shared: int
    """Searches that took the answer of one that was under way already; misses, too."""
    hit_rate: float | None
    """Hits by hits and misses; None: nothing was asked yet."""


class CacheReport(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """What one gateway says of its cache."""

    gateway: str
    """Host and process id."""
    stats: CacheStats
    cleared: int | None = None
    """How many answers were forgotten; None: that was not asked for."""


class CacheReports(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """By gateway."""

    gateways: list[CacheReport]


class FetchRequest(Request, frozen=True, kw_only=True):
    """Texts of documents a search found."""

    collection: CollectionName
    ids: Annotated[list[DocumentId], Meta(min_length=1, max_length=MAX_BATCH)]


class StoredDocument(Wire, frozen=True, kw_only=True):
    """A document as a node holds it."""

    id: str
    content: str
    metadata: dict[str, Any] = {}
    hash: str = ""


class FetchResult(Wire, frozen=True, kw_only=True):
    """The documents asked for that are there."""

    documents: list[StoredDocument]
