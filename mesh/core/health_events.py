"""What the failure detector hears and says: events, effects, and reasons as people read them."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.types import Health

# -- events ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HeartbeatReceived:
    node: str
    incarnation: int
    sequence: int
    lag_s: float = 0.0
    overloaded: bool = False
    draining: bool = False


@dataclass(frozen=True, slots=True)
class ProbeAnswered:
    node: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """`no_responders`: the broker says that nobody listens; else the answer stayed out."""

    node: str
    no_responders: bool


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """The broker says that a connection which logged in as the node has ended."""

    node: str


@dataclass(frozen=True, slots=True)
class Doubted:
    """Callers found that nobody listens."""

    node: str


@dataclass(frozen=True, slots=True)
class NodeDraining:
    """The node takes no new work from now on; its heartbeats say so too, after the one numbered
    `sequence`.
    """

    node: str
    incarnation: int
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class NodeStopped:
    """The node's goodbye."""

    node: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class NodeKnown:
    """Registered, and last heard (by an earlier master) as `incarnation`; 0: never."""

    node: str
    incarnation: int = 0


@dataclass(frozen=True, slots=True)
class NodeForgotten:
    node: str


@dataclass(frozen=True, slots=True)
class BeatEchoed:
    """The master heard its own heartbeat: the broker delivers."""


@dataclass(frozen=True, slots=True)
class BrokerLost:
    pass


@dataclass(frozen=True, slots=True)
class BrokerFound:
    pass


@dataclass(frozen=True, slots=True)
class Tick:
    pass


Event = (
    HeartbeatReceived
    | ProbeAnswered
    | ProbeFailed
    | ConnectionLost
    | Doubted
    | NodeDraining
    | NodeStopped
    | NodeKnown
    | NodeForgotten
    | BeatEchoed
    | BrokerLost
    | BrokerFound
    | Tick
)

# -- effects ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProbeNode:
    """`again`: the same question as an interval ago; else something has happened since whatever
    probe still runs, and its question may be lost with what received it.
    """

    node: str
    again: bool = False


@dataclass(frozen=True, slots=True)
class SetHealth:
    node: str
    health: Health
    reason: str


@dataclass(frozen=True, slots=True)
class SetBlind:
    blind: bool


Effect = ProbeNode | SetHealth | SetBlind

# -- reasons, as people read them ------------------------------------------------------------------

NEVER_HEARD = "never heard"
NOT_HEARD_YET = "not heard yet"
STARTED = "started; its answer to a probe is awaited"
RETURNED = "back; its answer to a probe is awaited"
BEATS_MISSING = "heartbeats stay out"
SILENT = "no sign of life"
NOBODY_LISTENS = "nobody listens"
STOPPED = "stopped"
LAGGING = "its main loop is stalled"
OVERLOADED = "it has as much work as it takes"
DRAINING = "it takes no new work"
FLAPPING = "flapping"
"""With how often and how long."""
