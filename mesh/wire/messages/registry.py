"""Registered nodes, and what an operator may change."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mesh.types import Health, Status
from mesh.wire.messages.base import Request, ShownOnce, Token, Wire
from mesh.wire.messages.membership import ActionInfo, CollectionInfo, VerbStats


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
    shard: str = ""
    """What it calls its part of every collection; empty: not heard since the master's start."""
    created_at: int = 0
    updated_at: int = 0


class NodeRegister(Request, frozen=True, kw_only=True):
    """`master.register`."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    url: Annotated[str, Meta(max_length=2048, pattern=r"^https?://[^\s/]\S*(?!\n)$")] | None = None
    type: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,31}(?!\n)$")] = "child"
    capabilities: Annotated[list[Token], Meta(max_length=32)] = msgspec.field(
        default_factory=lambda: ["search", "actions"]
    )
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    description: Annotated[str, Meta(max_length=2000)] = ""
    domains: Annotated[list[str], Meta(max_length=64)] = []
    keywords: Annotated[list[str], Meta(max_length=64)] = []
    metadata: dict[str, Any] = {}


class NodeRegistered(ShownOnce, frozen=True, kw_only=True, omit_defaults=False):
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
    url: Annotated[str, Meta(max_length=2048, pattern=r"^https?://[^\s/]\S*(?!\n)$")] | None = None
    status: Status | None = None
    type: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,31}(?!\n)$")] | None = None
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


class VerbFigures(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """Calls of one verb in the last minute, as callers saw them."""

    calls: int = 0
    failures: int = 0
    per_s: float = 0.0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0
    retried: int = 0
    hedged: int = 0


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
    verbs: dict[str, VerbFigures] = {}
    breakers: dict[str, int] = {}
    """How many are `open` and `half_open`; the others let everything through."""
    callers: int = 0
    """Identities that told of calls in the last minute."""
