"""What callers remember: of every node, of every call and attempt, and of all together."""

from __future__ import annotations

from dataclasses import dataclass, field

from mesh.core.breaker import Breaker, Permit
from mesh.core.peer_load import PeerLoad
from mesh.types import BreakerState
from simulator.nodes import Node
from simulator.policies import Policy
from simulator.timeline import Timer

TIMEOUT_S = 0.8


@dataclass(slots=True)
class Tallies:
    """What all callers of a run together saw."""

    offered: int = 0
    failed: int = 0
    refused: int = 0
    """Of the failed: those for which nothing was sent at all."""
    sent: int = 0
    retried: int = 0
    hedged: int = 0
    calls: list[tuple[float, float, bool]] = field(default_factory=list)
    """Start (s), duration (ms), answered."""
    probing: dict[str, int] = field(default_factory=dict)
    """Node → calls in flight that were admitted by a half-open breaker."""
    most_probing: int = 0


@dataclass(slots=True)
class Told:
    """Since the last report."""

    calls: int = 0
    failures: int = 0
    gone: int = 0
    refused: int = 0
    due: bool = False


class Lane:
    __slots__ = ("away_until", "breaker", "life", "load", "node", "open", "told")

    def __init__(self, node: Node, policy: Policy, life: int) -> None:
        self.node = node
        self.life = life
        self.load = PeerLoad(node.slug)
        self.breaker = Breaker(policy.breaker)
        self.away_until = 0.0
        self.open: dict[Attempt, None] = {}
        self.told = Told()


class Attempt:
    __slots__ = ("began", "call", "ended", "lane", "permit", "probes", "timer", "token")

    def __init__(self, call: Call, lane: Lane, permit: Permit, began: float) -> None:
        self.call = call
        self.lane = lane
        self.permit = permit
        self.began = began
        self.token = lane.load.sent(began)
        self.ended = False
        self.timer: Timer | None = None
        self.probes = (
            lane.breaker.state is BreakerState.HALF_OPEN and permit != lane.breaker.exempt()
        )


class Call:
    __slots__ = ("attempts", "began", "done", "give_up", "half", "hedge", "open", "shard", "tried")

    def __init__(self, shard: str, now: float) -> None:
        self.shard = shard
        self.began = now
        self.give_up = now + TIMEOUT_S
        self.attempts = 0
        self.tried: list[str] = []
        self.open: list[Attempt] = []
        self.hedge: Timer | None = None
        self.half: Timer | None = None
        self.done = False
