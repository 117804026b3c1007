"""Answers that tell how things are: the gateway, and a node as the mesh sees it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from mesh import messages
from mesh.types import BreakerState, Health, Status


class NodeIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """What names a node: `id` or `slug`."""

    id: str
    slug: str
    name: str


class VerbBreaker(msgspec.Struct, frozen=True, kw_only=True):
    """Whether calls of one verb are let through to the node (`closed`), kept from it (`open`), or
    tried (`half_open`).
    """

    state: BreakerState
    until: Annotated[int, Meta(description="Unix ms at which calls are tried again; 0: not open.")]
    reason: str


class CircuitBreaker(msgspec.Struct, frozen=True, kw_only=True):
    """What all callers together decided: `state` and `reason` of the verb that fares worst."""

    state: BreakerState
    failure_count: Annotated[int, Meta(description="Probes of the masters failed in a row.")]
    reason: str
    verbs: Annotated[
        dict[str, VerbBreaker],
        Meta(
            description="By `search`, `fetch`, `ping` or `act.<action>`; one that is not there is "
            "closed."
        ),
    ]


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What the node has to do, as of its last heartbeat; times are its own."""

    in_flight: int
    queued: int
    lag_ms: float
    weight: float
    verbs: dict[str, messages.VerbStats]


class OwnStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the mesh sees a node."""

    node: NodeIdentity
    status: Status
    health: Health
    circuit_breaker: CircuitBreaker
    load: Load
    response_time_ms: float | None
    last_ping_at: Annotated[int | None, Meta(description="Unix ms.")]


class HealthReport(msgspec.Struct, frozen=True, kw_only=True):
    """`degraded`: no broker, or tokens cannot be judged yet."""

    status: Literal["healthy", "degraded"]
    version: str
    capabilities: Annotated[list[str], Meta(description="Of all nodes that can be asked now.")]
    timestamp: Annotated[str, Meta(description="ISO 8601, UTC.")]


class Jwks(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON Web Key Set (RFC 7517)."""

    keys: list[messages.PublicKey]


class Probe(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """For whoever runs the process; `reason` where it is not ready."""

    status: Literal["alive", "ready", "not_ready"]
    reason: str = ""
