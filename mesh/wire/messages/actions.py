"""Actions, and the history of them."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from mesh.types import ActionState
from mesh.wire.messages.base import ErrorReply, Request, Token, Wire


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


class HistoryQuery(Request, frozen=True, kw_only=True):
    """`master.history`; empty fields match all."""

    action_id: str = ""
    id_prefix: str = ""
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


class FanOutItem(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """How one target of a fan-out fared: `error` is None where it succeeded."""

    node: str
    success: bool
    id: str
    """Of this node's action: the fan-out's id with `.<node>` behind it."""
    state: ActionState | None = None
    result: Any = None
    duration_ms: float | None = None
    error: ErrorReply | None = None


class FanOutResult(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """One action on several nodes; `results` by slug."""

    id: str
    action: str
    success: bool
    """Everywhere."""
    success_count: int
    failure_count: int
    results: dict[str, FanOutItem]


class CancelRequest(Request, frozen=True, kw_only=True):
    """Stop the work of the caller's request `request`: nobody waits for it any more. An action
    that was accepted goes on: its outcome is recorded whoever waits.
    """

    request: str


class CancelResult(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """Whether there was anything to stop."""

    cancelled: bool
