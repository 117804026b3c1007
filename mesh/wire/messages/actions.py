"""Actions, and the history of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from mesh.types import ActionState
from mesh.wire.messages.base import ErrorReply, Request, Token, Wire


class ActionRequest(Request, frozen=True, kw_only=True):
    """Run `action`; `id` is its idempotency key."""

    action: Token
    params: dict[str, Any] = {}
    retry: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """Run it once more if attempt number `retry` was the last one and ended as failed, expired,
    cancelled or interrupted; 0: an id that has ended answers with its outcome.
    """
    cancel: bool = False
    """Do not run it, but stop what runs under this id; `params` are not looked at."""
    mode: Literal["sync", "queue"] = "sync"
    """How it came to its node; masters are believed."""


class QueueItem(ActionRequest, frozen=True, kw_only=True):
    """An action in the queue; its subject says for which node and of whom."""

    expires: int = 0
    """Unix ms after which it is no longer begun."""
    digest: str = ""
    """Of action and parameters."""
    requeued: int = 0
    """Unix ms of the end after which it was put back to be tried again; 0: it is new."""


class Queued(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """An action that the broker keeps until its node has run it."""

    id: str
    node: str
    action: str
    state: ActionState = ActionState.QUEUED
    expires: int = 0


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
    final: bool = True
    """False, in a failed attempt: another one follows by itself."""
    mode: Literal["sync", "queue"] = "sync"
    """How it came to its node."""


class HistoryQuery(Request, frozen=True, kw_only=True):
    """`master.history`; empty fields match all."""

    action_id: str = ""
    id_prefix: str = ""
    node: str = ""
    action: str = ""
    caller: str = ""
    state: ActionState | None = None
    since: int = 0
    """Unix ms; `accepted_at` is not before."""
    until: int = 0
    """Unix ms; `accepted_at` is before; 0: no end."""
    after: int | None = None
    """Only what changed after this `HistoryPage.sequence`, oldest change first: how to follow."""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50
    offset: Annotated[int, Meta(ge=0)] = 0


class HistoryPage(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """Newest first."""

    actions: list[HistoryRecord]
    total: int
    sequence: int = 0
    """Of the newest change there was when this was read; with `after`: of the last one listed."""


class ActionShow(Request, frozen=True, kw_only=True):
    """`master.action-show`: all about an action, on every node that it went to."""

    action_id: str


class ActionStory(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """What became of an action on one node: where it stands, and every attempt, oldest first."""

    action: HistoryRecord
    attempts: list[HistoryRecord]


class ActionStories(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """By node. Of a fan-out: of each of its parts."""

    id: str
    stories: list[ActionStory]


class ActionProgress(Wire, frozen=True, kw_only=True):
    """`evt.<node>.progress`: how far an action is, at most a few times a second."""

    id: str
    action: Token
    fraction: float | None = None
    """0..1; None: not known."""
    note: Annotated[str, Meta(max_length=500)] = ""
    at: int = 0


class ActionDescription(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """An action as its author declared it."""

    name: Token
    description: str = ""
    idempotent: bool = False
    builtin: bool = False
    compensate: str = ""
    """The action that undoes it."""
    timeout_s: float | None = None
    retries: int = 0
    concurrency: int = 0
    """How many run at once on a node; 0: no limit of its own."""
    params: dict[str, Any] = {}
    """JSON Schema (2020-12)."""
    result: dict[str, Any] | None = None
    """JSON Schema; None: not declared."""


class NodeActions(Wire, frozen=True, kw_only=True):
    """`rpc.<node>.describe`: what a node offers, in full."""

    actions: list[ActionDescription]


class ActionsQuery(Request, frozen=True, kw_only=True):
    """`master.actions`; empty fields match all."""

    node: str = ""
    action: str = ""


class OfferedAction(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """An action, and the nodes that offer it just so."""

    nodes: list[str]
    action: ActionDescription


class OfferedActions(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """By name, built-in ones first."""

    actions: list[OfferedAction]


class ActionCheck(Request, frozen=True, kw_only=True):
    """`master.action-check`: whether an action could be run there, before it is sent. Nothing is
    answered but an error where it could not.
    """

    action: str
    node: str
    params: dict[str, Any] = {}
    action_id: str = ""
    digest: str = ""


class ActionNamed(Request, frozen=True, kw_only=True):
    """`master.action-cancel` and `master.action-retry`: an action by its id, and by its node where
    several ran it.
    """

    action_id: str
    node: str = ""


class QueueQuery(Request, frozen=True, kw_only=True):
    """`master.queue` and `master.dead-letters`."""

    node: str = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50
    offset: Annotated[int, Meta(ge=0)] = 0


class QueueEntry(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """An action that waits, or (dead letters) could not be done."""

    id: str
    node: str
    action: str
    caller: str
    at: int
    """Unix ms: put into the queue; of a dead letter: given up."""
    expires: int = 0
    attempts: int = 0
    error: ErrorReply | None = None


class DeadLetter(QueueEntry, frozen=True, kw_only=True):
    """A queued action that could not be done, as it is kept."""

    params: dict[str, Any] | None = None
    """None: too long to be kept here, or not readable."""
    digest: str = ""
    trace: str = ""


class QueueList(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """In the order in which they will be done; dead letters: newest first. `waiting`: how many of
    each node.
    """

    actions: list[QueueEntry]
    total: int
    waiting: dict[str, int] = {}


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
