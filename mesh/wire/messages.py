"""Everything that crosses the bus.

JSON; unknown fields are ignored, new fields get defaults, no field is ever re-typed.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mesh.types import ActionState, Health, MergeStrategy, Require, SearchMode, Status

# -- limits that both ends know -------------------------------------------------------------------

MAX_QUERY_CHARS = 4096
MAX_LIMIT = 100
MAX_BATCH = 1000
MAX_CONTENT_CHARS = 1_000_000

Token = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""One subject token."""

CollectionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}$")]
"""A collection's full name; its last dotted segment is its type."""

DocumentId = Annotated[str, Meta(min_length=1, max_length=512)]
Scalar = str | int | float | bool | None


class Range(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A filter's bounds; text compares by code point."""

    gt: str | int | float | None = None
    gte: str | int | float | None = None
    lt: str | int | float | None = None
    lte: str | int | float | None = None


Filter = Scalar | list[Scalar] | Range
"""A column equals a value, is one of a list, or lies in a range."""


class Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of what is written and read back by mesh processes."""


class Request(Wire, frozen=True, kw_only=True):
    """What every request may carry."""

    id: str = ""
    """uuid7 of the request."""
    deadline: int = 0
    """Unix ms after which nobody waits for the answer; 0: none."""
    trace: Annotated[str, Meta(max_length=256)] = ""
    """W3C traceparent."""
    on_behalf: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{0,64}$")] = ""
    """Whom a gateway, master or bridge speaks for."""


# -- replies ---------------------------------------------------------------------------------------


class OkReply(Wire, frozen=True, kw_only=True, tag="ok"):
    """The answer."""

    result: msgspec.Raw = msgspec.Raw(b"null")


class ErrorReply(Wire, frozen=True, kw_only=True, tag="error"):
    """A refusal or failure; see `mesh.errors`."""

    code: int
    kind: str
    message: str
    retryable: bool = False
    retry_after_ms: int | None = None
    fields: dict[str, list[str]] = {}
    reference: str | None = None


Reply = OkReply | ErrorReply


# -- ping ------------------------------------------------------------------------------------------


class PingRequest(Request, frozen=True, kw_only=True):
    """Are you there?"""


class PingResult(Wire, frozen=True, kw_only=True):
    """Yes, and this is who answers."""

    node: str
    incarnation: int
    version: str = ""
    at: int = 0


# -- search ----------------------------------------------------------------------------------------


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


class SearchRequest(Request, frozen=True, kw_only=True):
    """A search, to a node or to the whole mesh."""

    query: Annotated[str, Meta(min_length=1, max_length=MAX_QUERY_CHARS)]
    limit: Annotated[int, Meta(ge=1, le=MAX_LIMIT)] = 10
    options: SearchOptions = SearchOptions()
    candidates: bool = False
    """True: answer with `Candidates` for a caller that merges; else with a `SearchResult`."""


class Candidate(Wire, frozen=True, kw_only=True):
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
    """None: too long to come along; `fetch` has it."""
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


class Candidates(Wire, frozen=True, kw_only=True):
    """A node's answer to a search that the caller merges."""

    node: str
    terms: list[str]
    shards: list[ShardHits]
    took_ms: float = 0.0
    failed: dict[str, str] = {}
    """Collections that gave nothing, and why."""


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


# -- actions ---------------------------------------------------------------------------------------


class ActionRequest(Request, frozen=True, kw_only=True):
    """Run `action`; `id` is its idempotency key."""

    action: Token
    params: dict[str, Any] = {}


class ActionResult(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """How an action that was accepted ended well."""

    id: str
    node: str
    action: str
    state: ActionState
    result: Any = None
    duration_ms: float = 0.0
    attempt: int = 1


class HistoryRecord(Wire, frozen=True, kw_only=True):
    """One step in the life of an action."""

    id: str
    node: str
    action: str
    state: ActionState
    caller: str
    at: int
    """Unix ms."""
    attempt: int = 1
    duration_ms: float | None = None
    params: dict[str, Any] | None = None
    """None: too long for the history; `digest` still tells equal ones."""
    digest: str = ""
    result: Any = None
    error: ErrorReply | None = None
    accepted_at: int = 0
    trace: str = ""


class Document(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a node stores."""

    id: DocumentId
    content: Annotated[str, Meta(max_length=MAX_CONTENT_CHARS)]
    metadata: dict[str, Any] = {}


# -- membership ------------------------------------------------------------------------------------


class CollectionInfo(Wire, frozen=True, kw_only=True):
    """A shard that a node holds."""

    name: str
    shard: str
    rows: int = 0
    data_version: int = 0
    fingerprint: str = ""


class ActionInfo(Wire, frozen=True, kw_only=True):
    """An action that a node offers; schemas are JSON Schema, served by `$SRV.INFO`."""

    name: str
    description: str = ""
    idempotent: bool = False
    builtin: bool = False


class VerbStats(Wire, frozen=True, kw_only=True):
    """Service time of one verb on one node."""

    count: int = 0
    errors: int = 0
    ewma_ms: float = 0.0
    p99_ms: float = 0.0


class Heartbeat(Wire, frozen=True, kw_only=True):
    """A node's word about itself, every second."""

    node: str
    name: str = ""
    incarnation: int
    """Start time in unix ms, never lower than the node's last."""
    sequence: int
    version: str = ""
    type: str = "child"
    weight: float = 1.0
    capabilities: list[str] = []
    lag_ms: float = 0.0
    """How late the node's main loop runs what is due."""
    in_flight: int = 0
    queued: int = 0
    draining: bool = False
    verbs: dict[str, VerbStats] = {}
    collections: list[CollectionInfo] = []
    actions: list[ActionInfo] = []
    dropped: int = 0
    """Messages refused for their subject or form since the start."""
    overloaded: bool = False
    """It pushed work back since its last heartbeat."""


class NodeEvent(Wire, frozen=True, kw_only=True):
    """`evt.<node>.started`, `evt.<node>.draining` and `evt.<node>.stopped`."""

    incarnation: int


class Changed(Wire, frozen=True, kw_only=True):
    """`evt.<node>.changed`: a collection has a new data version."""

    incarnation: int
    collection: str
    shard: str
    data_version: int
    rows: int


# -- routes ----------------------------------------------------------------------------------------


class RouteNode(Wire, frozen=True, kw_only=True):
    """What a caller needs to know of a node."""

    slug: str
    name: str = ""
    status: Status = Status.ACTIVE
    health: Health = Health.UNREACHABLE
    reason: str = ""
    incarnation: int = 0
    type: str = "child"
    weight: float = 1.0
    capabilities: list[str] = []
    collections: list[CollectionInfo] = []
    actions: list[str] = []


class RoutesRequest(Request, frozen=True, kw_only=True):
    """Ask a master for the pages of the route table."""

    page: int = 0


class RouteUpdate(Wire, frozen=True, kw_only=True):
    """A delta (`base` > 0: applies to that version alone) or a page of a snapshot (`base` 0).

    (epoch, version) orders tables: a master that takes over starts a new epoch.
    """

    epoch: int
    version: int
    base: int = 0
    page: int = 0
    pages: int = 1
    nodes: list[RouteNode] = []
    removed: list[str] = []
    blind: bool = False
    """The master cannot see the broker: health is what it was."""


# -- registry API ----------------------------------------------------------------------------------


class NodeRecord(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """A registered node: what the operator said, what it says, what the mesh sees."""

    id: str
    slug: str
    name: str
    url: str | None = None
    type: str = "child"
    status: Status = Status.ACTIVE
    health: Health = Health.UNREACHABLE
    reason: str = ""
    description: str = ""
    capabilities: list[str] = []
    domains: list[str] = []
    keywords: list[str] = []
    metadata: dict[str, Any] = {}
    weight: float = 1.0
    version: str = ""
    incarnation: int = 0
    response_time_ms: float | None = None
    """EWMA of the probes' round trips."""
    last_ping_at: int | None = None
    """Unix ms of the last probe that was answered."""
    failures: int = 0
    """Probes failed in a row."""
    collections: list[CollectionInfo] = []
    actions: list[ActionInfo] = []
    lag_ms: float = 0.0
    in_flight: int = 0
    queued: int = 0
    verbs: dict[str, VerbStats] = {}
    created_at: int = 0
    updated_at: int = 0


class NodeRegister(Request, frozen=True, kw_only=True):
    """`master.register`."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    url: Annotated[str, Meta(max_length=2048, pattern=r"^https?://[^\s/]+")] | None = None
    type: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,31}$")] = "child"
    capabilities: Annotated[list[Token], Meta(max_length=32)] = msgspec.field(
        default_factory=lambda: ["search", "actions"]
    )
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    description: Annotated[str, Meta(max_length=2000)] = ""
    domains: Annotated[list[str], Meta(max_length=64)] = []
    keywords: Annotated[list[str], Meta(max_length=64)] = []
    metadata: dict[str, Any] = {}


class NodeRegistered(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """The new node and its key, shown this once."""

    node: NodeRecord
    api_key: str


class NodesQuery(Request, frozen=True, kw_only=True):
    """`master.nodes`; empty fields match all."""

    node: str = ""
    """Slug or id."""
    status: Status | None = None
    type: str = ""


class NodeList(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """`nodes` in order of their slugs; `blind` where the master cannot see the broker."""

    nodes: list[NodeRecord]
    blind: bool = False


class NodeUpdate(Wire, frozen=True, kw_only=True):
    """What an operator may change; None leaves a field as it is."""

    name: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    url: Annotated[str, Meta(max_length=2048, pattern=r"^https?://[^\s/]+")] | None = None
    status: Status | None = None
    type: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,31}$")] | None = None
    weight: Annotated[float, Meta(gt=0, le=1000)] | None = None
    capabilities: Annotated[list[Token], Meta(max_length=32)] | None = None
    description: Annotated[str, Meta(max_length=2000)] | None = None
    domains: Annotated[list[str], Meta(max_length=64)] | None = None
    keywords: Annotated[list[str], Meta(max_length=64)] | None = None
    metadata: dict[str, Any] | None = None


class NodeChange(Request, frozen=True, kw_only=True):
    """`master.update`."""

    node: str
    change: NodeUpdate


class NodeName(Request, frozen=True, kw_only=True):
    """`master.remove` and `master.probe`: slug or id."""

    node: str


class NodeStats(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """`master.stats`."""

    total: int
    active: int
    inactive: int
    error: int
    healthy: int
    """Active and healthy."""
    avg_response_time_ms: float | None
    by_type: dict[str, int]
    by_health: dict[str, int]
    collections: int
    documents: int
    blind: bool = False


class HistoryQuery(Request, frozen=True, kw_only=True):
    """`master.history`; empty fields match all."""

    action_id: str = ""
    node: str = ""
    action: str = ""
    caller: str = ""
    state: ActionState | None = None
    since: int = 0
    """Unix ms."""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50
    offset: Annotated[int, Meta(ge=0)] = 0


class HistoryPage(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """Newest first."""

    actions: list[HistoryRecord]
    total: int
