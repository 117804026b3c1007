"""Vocabulary shared by every layer. Imports the standard library only."""

from __future__ import annotations

import enum
from typing import Literal, NewType

VERSION = "0.1.0"
"""Of the distribution; told in heartbeats and by `--version`."""

Slug = NewType("Slug", str)
"""A node's name on the bus: one subject token."""

Monotonic = NewType("Monotonic", float)
"""Seconds of a clock that never goes back; comparable within one process only."""

UnixMs = NewType("UnixMs", int)
"""Milliseconds since 1970 UTC."""

SearchMode = Literal["hybrid", "vector", "text"]
MergeStrategy = Literal["score", "round_robin"]
Require = Literal["any", "quorum", "all"]
Strategy = Literal["p2c", "round_robin", "least_connections", "weighted", "response_time", "random"]
"""How a caller chooses among the replicas of a shard."""


class BreakerState(enum.StrEnum):
    """Whether calls of one verb to one node are let through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    """A few calls are let through, to see."""


class Health(enum.StrEnum):
    """What the mesh sees of a node, from signals."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    STALLED = "stalled"
    OVERLOADED = "overloaded"
    UNREACHABLE = "unreachable"
    DRAINING = "draining"


class Status(enum.StrEnum):
    """What an operator decided about a node, kept in SQL."""

    ACTIVE = "active"
    INACTIVE = "inactive"
    MAINTENANCE = "maintenance"
    ERROR = "error"
    PENDING = "pending"


class ActionState(enum.StrEnum):
    """Where an action stands; all but the first three are outcomes."""

    QUEUED = "queued"
    """The broker keeps it for its node."""
    ACCEPTED = "accepted"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    INTERRUPTED = "interrupted"


class SagaState(enum.StrEnum):
    """Where a saga stands; the last three are its ends."""

    RUNNING = "running"
    COMPENSATING = "compensating"
    """A step failed, or somebody aborted it: what was done is undone, last step first."""
    PAUSED = "paused"
    """Whether a step took effect is not known: a person has to resume or abort it."""
    SUCCEEDED = "succeeded"
    COMPENSATED = "compensated"
    FAILED = "failed"
    """Neither done nor undone: a step after the point of no return, or a compensation, failed."""


class StepState(enum.StrEnum):
    """Where a step of a saga stands."""

    WAITING = "waiting"
    RUNNING = "running"
    """Sent, or about to be; how it ended is not known yet."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """It did not do its work: there is nothing to undo."""
    UNCERTAIN = "uncertain"
    """It ended in the middle (interrupted, expired, cancelled): it may have done its work."""
    UNDOING = "undoing"
    UNDONE = "undone"
    NOT_UNDONE = "not_undone"
    """Its compensation failed for good."""
