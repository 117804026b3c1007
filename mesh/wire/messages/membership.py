"""Who is there and how well: heartbeats, events, routes."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from mesh.types import BreakerState, Health, Status
from mesh.wire.messages.base import Request, Wire

# What a node says of itself is passed on to every caller: whatever is accepted here must be
# readable there, and stay so when figures are added up.
_Count = Annotated[int, Meta(ge=0, le=2**53)]
_Ms = Annotated[float, Meta(ge=0, le=1e9)]
_Text = Annotated[str, Meta(max_length=256)]


class CollectionInfo(Wire, frozen=True, kw_only=True):
    """A shard that a node holds."""

    name: _Text
    shard: _Text
    rows: _Count = 0
    data_version: _Count = 0
    fingerprint: _Text = ""
    outdated: bool = False
    """Its vectors or terms are not such as the node makes: no writes until `reembed`."""


class ActionInfo(Wire, frozen=True, kw_only=True):
    """An action that a node offers; schemas are JSON Schema, served by `$SRV.INFO`."""

    name: _Text
    description: Annotated[str, Meta(max_length=10_000)] = ""
    idempotent: bool = False
    builtin: bool = False
    digest: _Text = ""
    """Of its whole `ActionDescription`: masters ask for that when it changes."""


class VerbStats(Wire, frozen=True, kw_only=True):
    """Service time of one verb on one node."""

    count: _Count = 0
    errors: _Count = 0
    ewma_ms: _Ms = 0.0
    p50_ms: _Ms = 0.0
    p95_ms: _Ms = 0.0
    p99_ms: _Ms = 0.0


class Heartbeat(Wire, frozen=True, kw_only=True):
    """A node's word about itself, every second."""

    node: _Text
    name: _Text = ""
    incarnation: _Count
    """Start time in unix ms, or one more than the node's last: it never falls."""
    sequence: _Count
    version: _Text = ""
    type: _Text = "child"
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    capabilities: Annotated[list[_Text], Meta(max_length=100)] = []
    lag_ms: _Ms = 0.0
    """How late the node's main loop runs what is due."""
    in_flight: _Count = 0
    queued: _Count = 0
    draining: bool = False
    verbs: Annotated[dict[_Text, VerbStats], Meta(max_length=4096)] = {}
    collections: Annotated[list[CollectionInfo], Meta(max_length=4096)] = []
    actions: Annotated[list[ActionInfo], Meta(max_length=4096)] = []
    dropped: _Count = 0
    """Messages refused for their subject or form since the start."""
    overloaded: bool = False
    """It pushed work back since its last heartbeat."""
    expired: _Count = 0
    """Requests since the start that came after their deadline; nothing was done for them."""
    shard: _Text = ""
    """What it calls its part of every collection."""


class NodeEvent(Wire, frozen=True, kw_only=True):
    """`evt.<node>.started`, `evt.<node>.draining` and `evt.<node>.stopped`."""

    incarnation: _Count
    sequence: _Count = 0
    """Of the last heartbeat that may not tell of it yet; 0: there is none."""


class Changed(Wire, frozen=True, kw_only=True):
    """`evt.<node>.changed`: a collection has a new data version."""

    incarnation: _Count
    collection: _Text
    shard: _Text
    data_version: _Count
    rows: _Count


class NodeLoad(Wire, frozen=True, kw_only=True):
    """How busy a node says it is. Coarse, so that it seldom changes."""

    busy: int = 0
    """Requests that run or wait, rounded up to a power of two."""
    search_ms: float = 0.0
    """Mean service time of a search, rounded to two digits; 0: none yet."""


class BreakerWord(Wire, frozen=True, kw_only=True):
    """What the masters say of the calls of one verb to one node."""

    state: BreakerState
    turn: int
    """Unix ms of this word; a later word replaces an earlier one."""
    until: int = 0
    """Unix ms. Open: when probes begin. Half open: when others get to probe, if nothing came of
    these. Without a newer word by then, and a while after, callers decide for themselves.
    """
    for_ms: int = 0
    """Until `until`, from when it was said: for callers whose clocks differ; 0: not told."""
    probers: dict[str, int] = {}
    """Half open: connection of a caller → calls it may send."""
    reason: str = ""


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
    load: NodeLoad = NodeLoad()
    shard: str = ""
    """What it says it holds; its collections may say more."""
    breakers: dict[str, BreakerWord] = {}
    """By verb: `search`, `fetch`, `ping` or `act.<action>`; those of which there is anything to
    say.
    """


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
