"""No answer that is kept is older than what its caller has heard, in whatever order it hears."""

from __future__ import annotations

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from mesh.core.data_versions import DataVersions, Shard
from mesh.core.result_cache import ResultCache
from mesh.core.route_table import RouteTable
from mesh.types import Health
from mesh.wire.messages import CollectionInfo, RouteNode

NODES = ("a", "b", "c")
SHARDS = (Shard("notes", "a", ("a",)), Shard("notes", "bc", ("b", "c")))
SETTLE_S = 2.0


class FreshnessMachine(RuleBasedStateMachine):
    """Nodes write; what they say of it is heard late, twice, in any order, or never. An answer is
    the version of each node that was asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.versions = DataVersions(SETTLE_S)
        self.cache = ResultCache(1_000_000, 1e9)
        self.actual = dict.fromkeys(NODES, 1)
        self.lives = dict.fromkeys(NODES, 1)
        self.events: list[tuple[str, int, int]] = []
        self.tables: list[RouteTable] = []
        self.least = dict.fromkeys(NODES, 0)
        """What the caller was told of by somebody who had it from the node."""
        self.turn = 0
        self.asking: list[tuple[bytes, dict, dict[str, int]]] = []
        self.beat()
        self.hear_table(1)

    # -- what happens ----------------------------------------------------------------------------

    @rule(node=st.sampled_from(NODES), tell=st.booleans())
    def write(self, node: str, tell: bool) -> None:
        self.actual[node] += 1
        if tell:
            self.events.append((node, self.lives[node], self.actual[node]))

    @rule(node=st.sampled_from(NODES))
    def restart(self, node: str) -> None:
        self.lives[node] += 1

    @rule()
    def beat(self) -> None:
        self.turn += 1
        nodes = [
            RouteNode(
                slug=node,
                health=Health.HEALTHY,
                incarnation=self.lives[node],
                collections=[
                    CollectionInfo(
                        name="notes",
                        shard="a" if node == "a" else "bc",
                        data_version=self.actual[node],
                    )
                ],
            )
            for node in NODES
        ]
        self.tables.append(RouteTable(epoch=1, version=self.turn, nodes=nodes))

    @rule(seconds=st.sampled_from([0.1, 1.0, SETTLE_S]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    # -- what is heard ---------------------------------------------------------------------------

    @rule(back=st.integers(1, 4))
    def hear_table(self, back: int) -> None:
        """One of the last."""
        told = self.tables[-back:][0]
        nodes = [msgspec.structs.replace(node) for node in told.nodes.values()]
        table = RouteTable(epoch=1, version=told.version, nodes=nodes)
        self.versions.adopt(table, self.now)
        for node, route in table.nodes.items():
            self.told(node, route.collections[0].data_version)

    @precondition(lambda self: self.events)
    @rule(back=st.integers(1, 4))
    def hear_event(self, back: int) -> None:
        node, life, version = self.events[-back:][0]
        self.versions.changed(node, life, "notes", version, self.now)
        if life == self.lives[node]:  # of an earlier life only what came in time counts
            self.told(node, version)

    @rule(node=st.sampled_from(NODES), known=st.booleans())
    def write_oneself(self, node: str, known: bool) -> None:
        self.actual[node] += 1
        self.versions.wrote(node, "notes", self.actual[node] if known else None, self.now)
        self.told(node, self.actual[node])

    def told(self, node: str, version: int) -> None:
        self.least[node] = max(self.least[node], version)

    # -- searching -------------------------------------------------------------------------------

    @rule(replica=st.sampled_from([None, None, "b", "c"]), late=st.booleans())
    def search(self, replica: str | None, late: bool) -> None:
        """All, or the shard alone that has no replicas; answered at once, or later than others."""
        stamp = self.versions.stamp(SHARDS if replica else SHARDS[:1])
        assert stamp is not None
        if self.now < stamp.settled_at:
            return
        kept = self.cache.get(stamp.digest, self.now)
        if kept is None:
            answer = {node: self.actual[node] for node in ("a", replica) if node}
            self.asking.append((stamp.digest, dict(stamp.versions), answer))
            if not late:
                self.answered(len(self.asking) - 1)
            return
        for node, version in eval(kept).items():
            assert version >= self.least[node], f"{node}: {version} of {self.least}"

    @precondition(lambda self: self.asking)
    @rule(number=st.integers(0, 5))
    def answered(self, number: int) -> None:
        key, versions, answer = self.asking.pop(number % len(self.asking))
        if all(versions[node, "notes"] == version for node, version in answer.items()):
            self.cache.put(key, repr(answer).encode(), self.now)
        for node, version in answer.items():
            self.versions.seen(node, "notes", version, self.now)


FreshnessMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=40)
TestFreshness = FreshnessMachine.TestCase


def test_of_a_shard_of_which_nothing_is_known_there_is_no_state():
    assert DataVersions().stamp(SHARDS) is None
