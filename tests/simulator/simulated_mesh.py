"""A whole mesh of the simulator, and what a run of it shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from simulator.callers import Caller
from simulator.calls import TIMEOUT_S, Tallies
from simulator.master import Master
from simulator.nodes import Node
from simulator.policies import DEFAULT, Policy
from simulator.timeline import Timeline


@dataclass(frozen=True, kw_only=True)
class Report:
    """What callers noticed, from a moment on."""

    policy: str
    offered: int
    failed: int
    sent: int
    retried: int
    hedged: int
    p50_ms: float
    p99_ms: float
    out_of_rotation_s: float
    """From the start of the measurement until the last node left the callers' tables."""
    false_deaths: int
    most_probing: int

    @property
    def sent_per_offered(self) -> float:
        return self.sent / self.offered if self.offered else 0.0


class SimulatedMesh:
    """Shards with replicas, called by many. `run` it, break it in between, and look."""

    def __init__(
        self,
        policy: Policy = DEFAULT,
        *,
        shards: int = 1,
        replicas: int = 3,
        callers: int = 5,
        rate: float = 200.0,
        service_ms: float = 5.0,
        parallel: int = 10,
        queued: int = 128,
        refuses_late: bool = True,
        seed: int = 1,
    ) -> None:
        """`rate`: calls a second of all callers together; `refuses_late`: see `Node`."""
        self.policy = policy
        self.time = Timeline(seed)
        self.shards = {
            f"s{shard}": [
                Node(
                    self.time,
                    f"n{shard}-{place}",
                    f"s{shard}",
                    service_ms=service_ms,
                    parallel=parallel,
                    queued=queued,
                    refuses_late=refuses_late,
                )
                for place in range(replicas)
            ]
            for shard in range(shards)
        }
        self.nodes = [node for nodes in self.shards.values() for node in nodes]
        self.master = Master(self.time, policy, self.nodes)
        self.tallies = Tallies()
        self.callers = [
            Caller(f"caller-{number}", policy, self.master, self.shards, self.tallies)
            for number in range(callers)
        ]
        for caller in self.callers:
            caller.attach(rate / callers)
        self._since = 0.0

    # -- faults ----------------------------------------------------------------------------------

    def crash(self, node: Node) -> None:
        """As kill -9: the broker notices at once that its connections are gone."""
        node.crash()
        self.master.disconnected(node)

    def lose_broker(self) -> None:
        """It is gone, and everybody notices."""
        self.master.broker_lost()
        for caller in self.callers:
            caller.disconnected()

    def find_broker(self) -> None:
        """It is back, however it was away."""
        self.master.broker_found()
        for caller in self.callers:
            caller.connected = True

    # -- time ------------------------------------------------------------------------------------

    def run(self, seconds: float) -> SimulatedMesh:
        self.time.run(self.time.now + seconds)
        return self

    def finish(self) -> SimulatedMesh:
        """No call begins any more, and those under way end."""
        for caller in self.callers:
            caller.offering = False
        return self.run(2 * TIMEOUT_S)

    def measure(self) -> SimulatedMesh:
        """Calls that began before do not count in the report."""
        tallies = self.tallies
        tallies.offered = tallies.failed = tallies.refused = 0
        tallies.sent = tallies.retried = tallies.hedged = 0
        tallies.calls.clear()
        self._since = self.time.now
        return self

    def report(self) -> Report:
        tallies = self.tallies
        calls = [call for call in tallies.calls if call[0] >= self._since]
        times = sorted(ms for _, ms, answered in calls if answered)
        out_s = [at - self._since for at in self.master.out_s.values() if at >= self._since]
        return Report(
            policy=self.policy.name,
            offered=tallies.offered,
            failed=len(calls) - len(times),
            sent=tallies.sent,
            retried=tallies.retried,
            hedged=tallies.hedged,
            p50_ms=_quantile(times, 0.5),
            p99_ms=_quantile(times, 0.99),
            out_of_rotation_s=max(out_s, default=0.0),
            false_deaths=len(self.master.false_deaths),
            most_probing=tallies.most_probing,
        )


def _quantile(ordered: Sequence[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


_COLUMNS = (
    ("policy", lambda r: r.policy),
    ("calls", lambda r: str(r.offered)),
    ("failed", lambda r: str(r.failed)),
    ("p50 ms", lambda r: f"{r.p50_ms:.1f}"),
    ("p99 ms", lambda r: f"{r.p99_ms:.1f}"),
    ("sent/call", lambda r: f"{r.sent_per_offered:.3f}"),
    ("retried", lambda r: str(r.retried)),
    ("hedged", lambda r: str(r.hedged)),
    ("out after s", lambda r: f"{r.out_of_rotation_s:.3f}"),
    ("false deaths", lambda r: str(r.false_deaths)),
)


def table(title: str, reports: Iterable[Report]) -> str:
    """Policies side by side, as text."""
    rows = [[name for name, _ in _COLUMNS]]
    rows += [[cell(report) for _, cell in _COLUMNS] for report in reports]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([title, *lines])
