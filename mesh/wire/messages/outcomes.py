"""How calls went: told by callers, gathered by masters."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from mesh.types import BreakerState
from mesh.wire.messages.base import Request, Token, Wire

Verb = Annotated[str, Meta(pattern=r"^(search|fetch|ping|act\.[A-Za-z0-9_-]{1,64})(?!\n)$")]
"""What was asked of a node; actions each for itself."""

Connection = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}(?!\n)$")]
_Count = Annotated[int, Meta(ge=0, le=2**53)]
_Short = Annotated[str, Meta(max_length=300)]


class VerbOutcome(Wire, frozen=True, kw_only=True):
    """The calls of one verb to one node since the last report."""

    node: Token
    incarnation: int = 0
    """The life of the node that was asked."""
    verb: Verb
    calls: _Count = 0
    """Answers and failures; without what was cancelled, pushed back or refused as wrong."""
    failures: _Count = 0
    pushed_back: _Count = 0
    gone: _Count = 0
    """Requests that nobody listened to."""
    retried: _Count = 0
    """Calls that were a repetition."""
    hedged: _Count = 0
    """Calls beside one that still ran."""
    state: BreakerState = BreakerState.CLOSED
    """Of the caller's own breaker, now."""
    until: int = 0
    """Unix ms at which it wants to probe, if open."""
    turn: int = 0
    """Of the masters' word that the caller last heard; 0: none."""
    probes_succeeded: _Count = 0
    """Of those that this word allowed."""
    probes_failed: _Count = 0
    """Both counted since that word was heard, not since the last report."""
    probing: _Count = 0
    """Probes that run now, also those that an earlier word allowed."""
    refused: _Count = 0
    """Calls that were not sent because the breaker is open: here is one to probe with."""
    latency: dict[int, int] = {}
    """Bucket of `mesh.core.latency` → calls."""


class Step(Wire, frozen=True, kw_only=True):
    """One decision about one request."""

    at_ms: float
    """Since the request began."""
    node: _Short
    what: Annotated[str, Meta(max_length=32)]
    """`chosen`, `skipped`, `failed`, `retried`, `hedged`, `answered`, `cancelled`, `refused`."""
    why: _Short = ""


class CallTrace(Wire, frozen=True, kw_only=True):
    """Why a request went where it went."""

    id: Annotated[str, Meta(min_length=1, max_length=200)]
    caller: Annotated[str, Meta(max_length=64)] = ""
    """Written by the master, who knows from the subject."""
    verb: Verb
    at: int
    """Unix ms when it began."""
    took_ms: float
    outcome: _Short
    """`ok`, or the kind of the error."""
    steps: Annotated[list[Step], Meta(max_length=200)] = []


class Outcomes(Wire, frozen=True, kw_only=True):
    """`mesh.v1.outcome.<caller>`, twice a second while there is something to tell."""

    connection: Connection
    """One of the caller's processes may fail where another one does not."""
    verbs: Annotated[list[VerbOutcome], Meta(max_length=2000)] = []
    traces: Annotated[list[CallTrace], Meta(max_length=200)] = []


class BreakersQuery(Request, frozen=True, kw_only=True):
    """`master.breakers`; empty: all nodes."""

    node: str = ""


class BreakerInfo(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """One breaker, as the masters see it."""

    node: str
    verb: str
    state: BreakerState
    reason: str
    until: int
    """Unix ms at which probes begin; 0: not open."""
    calls: int
    """In the window."""
    failures: int
    callers: int
    """Connections that used it in the window."""
    open_at: int
    """Those of them whose own breaker is open."""


class BreakerList(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """Breakers of which callers told in the window, by node and verb."""

    breakers: list[BreakerInfo]


class BreakersReset(Request, frozen=True, kw_only=True):
    """`master.breakers-reset`: close a node's breakers, everywhere."""

    node: str
    verb: str = ""
    """Empty: all of its verbs."""


class ExplainQuery(Request, frozen=True, kw_only=True):
    """`master.explain`: an id of a request."""

    request: Annotated[str, Meta(min_length=1, max_length=200)]


class Explanation(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """One trace per node or shard that was asked under the id."""

    request: str
    calls: list[CallTrace]
