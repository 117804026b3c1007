"""Who is there and how well: heartbeats, events, routes."""

from __future__ import annotations

from mesh.types import BreakerState, Health, Status
from mesh.wire.messages.base import Request, Wire


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
    p50_ms: float = 0.0
    p95_ms: float = 0.0
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
    expired: int = 0
    """Requests since the start that came after their deadline; nothing was done for them."""


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
