"""Sagas: what somebody wants done, and how far it is."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mesh.types import SagaState, StepState
from mesh.wire.messages.base import ErrorReply, Request, Token, Wire

MOST_STEPS = 64
MOST_DEFINITION_BYTES = 256 * 1024

# None or a name: a description is for people, so it may be anything short.
_Seconds = Annotated[float, Meta(gt=0, le=365 * 86_400)]
_Name = Annotated[str, Meta(max_length=200)]
_NodeName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{0,64}(?!\n)$")]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of what people write: a field that is not known is refused, not passed over."""


class SagaCompensation(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The action that undoes a step."""

    action: Token
    node: _NodeName = ""
    """Slug; empty: where the step was done."""
    params: dict[str, Any] | None = None
    """None: the step's own."""


class SagaStepDefinition(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step, as it was asked for."""

    name: Token
    action: Token
    node: _NodeName = ""
    """Slug; empty: the only node that qualifies."""
    params: dict[str, Any] = {}
    """A text `${step.field}` stands for a part of an earlier step's result."""
    compensate: SagaCompensation | None = None
    """None: as the action's author declared."""
    final: bool = False
    """There is no way back once this one has begun."""
    timeout_s: _Seconds | None = None
    """After that it is cancelled, and what was done is undone."""


class SagaDefinition(_Strict, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A saga, as it was asked for."""

    id: _NodeName = ""
    """Its idempotency key, one token; empty: one is made."""
    name: _Name = ""
    """For people."""
    timeout_s: _Seconds | None = None
    """From its start until it is undone instead; None: `sagas.timeout_s`."""
    steps: Annotated[list[SagaStepDefinition], Meta(min_length=1, max_length=MOST_STEPS)]


class SagaCall(Wire, frozen=True, kw_only=True):
    """An action on a node, with whatever of its parameters is not known yet as `${…}`."""

    action: str
    node: str
    params: dict[str, Any] = {}


class SagaStep(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """One step, and how far it is."""

    name: str
    state: StepState = StepState.WAITING
    call: SagaCall
    undo: SagaCall | None = None
    final: bool = False
    timeout_s: float | None = None
    retry: int = 0
    """`ActionRequest.retry` of what is asked for now: the step, or its compensation."""
    attempt: int = 0
    """Of the step's action, as its node counts; 0: not known."""
    began_at: int = 0
    """Unix ms."""
    ended_at: int = 0
    result: Any = None
    """Null also if it is too long to be kept; what later steps need of it is in their own
    parameters.
    """
    error: ErrorReply | None = None
    undo_attempts: int = 0
    """Of its compensation that have failed."""
    undo_error: ErrorReply | None = None
    undone_at: int = 0


class Saga(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """A saga, whole: what the stream keeps of it, and what is shown."""

    id: str
    name: str = ""
    caller: str
    state: SagaState
    version: int
    """Grows with every change."""
    runner: str = ""
    """Who runs it: nobody else changed it since he took it over, but for `stop`."""
    digest: str = ""
    """Of its definition: the same id with another one is refused."""
    started_at: int
    """Unix ms."""
    changed_at: int
    ended_at: int = 0
    deadline: int
    """Unix ms after which it is undone instead."""
    reason: str = ""
    """Why it is undone, waits for a person or has failed."""
    stop: bool = False
    """No further step is begun: what was done is to be undone."""
    steps: list[SagaStep]


class SagaRun(Request, frozen=True, kw_only=True):
    """`master.saga-run`: begin it; the same id again joins the one that runs or has run."""

    saga: SagaDefinition
    allowed: list[str] | None = None
    """Actions that whoever a gateway speaks for may run; None: all."""
    wait_ms: Annotated[int, Meta(ge=0, le=2000)] = 0
    """Answer later, if it ends so soon."""


class SagasQuery(Request, frozen=True, kw_only=True):
    """`master.sagas`; empty fields match all."""

    state: SagaState | None = None
    name: str = ""
    caller: str = ""
    since: int = 0
    """Unix ms; it was not started before."""
    allowed: list[str] | None = None
    """Only sagas of no other actions than these; None: all."""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50
    offset: Annotated[int, Meta(ge=0)] = 0


class SagaList(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """Newest first, without parameters and results."""

    sagas: list[Saga]
    total: int


class SagaName(Request, frozen=True, kw_only=True):
    """`master.saga-resume`."""

    saga: Token
    allowed: list[str] | None = None
    """As in `SagaRun`: one of other actions is as good as none."""


class SagaAbort(SagaName, frozen=True, kw_only=True):
    """`master.saga-abort`."""

    give_up: _NodeName = ""
    """A step whose compensation is not to be waited for; empty: the saga is to be undone."""


class SagaShow(SagaName, frozen=True, kw_only=True):
    """`master.saga-show`."""

    after: int = -1
    """Answer as soon as its version is beyond this, or `wait_ms` have passed."""
    wait_ms: Annotated[int, Meta(ge=0, le=2000)] = 0
