"""What a master believes of what nodes say of themselves, and how much of it it listens to."""

from __future__ import annotations

import msgspec
import pytest
import structlog
from fakes import MemoryBroker
from stepped_clock import SteppedClock, settled

from mesh.bootstrap.nodes import _next_incarnation
from mesh.config import HealthConfig
from mesh.core.reported_load import ReportedLoad
from mesh.errors import StateError
from mesh.runtime.background import Background
from mesh.runtime.membership import Membership
from mesh.types import Health
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    Heartbeat,
    NodeEvent,
    NodeLoad,
    NodeRecord,
    RouteNode,
    VerbStats,
)

MINUTE_MS = 60_000


class Records:
    """A registry of one node."""

    def __init__(self) -> None:
        self.all = [NodeRecord(id="id-crm", slug="crm", name="crm")]

    async def nodes(self):
        return self.all

    async def observe(self, *records):
        pass


class World:
    def __init__(self) -> None:
        self.clock = SteppedClock(1_700_000_000.0)
        self.broker = MemoryBroker()
        self.background = Background(self.clock)
        self.node = self.broker.bus("crm")
        self.sequence = 0
        self.pinged = []
        self.membership = Membership(
            self.broker.bus("master"),
            Records(),
            self.clock,
            self.background,
            HealthConfig(),
            incarnation=1,
            on_change=lambda: None,
        )
        self.membership._prober.request = lambda slug, **_: self.pinged.append(slug)

    async def send(self, **fields) -> None:
        self.sequence += 1
        beat = {"node": "crm", "incarnation": 1, "sequence": self.sequence} | fields
        self.node.publish(subjects.heartbeat("crm"), codec.encode(beat))
        await settled()

    async def event(self, name: str, incarnation: int) -> None:
        event = NodeEvent(incarnation=incarnation)
        self.node.publish(subjects.event("crm", name), codec.encode(event))
        await settled()

    @property
    def record(self) -> NodeRecord:
        return self.membership.view.find("crm")


@pytest.fixture
async def world():
    world = World()
    await world.membership.start()
    await settled()
    yield world
    await world.background.stop()
    await world.membership.stop()


@pytest.mark.parametrize(
    "nonsense",
    [
        {"verbs": {"search": {"ewma_ms": 1.79e308}}},
        {"verbs": {"search": {"ewma_ms": -1.0}}},
        {"verbs": {f"v{number}": {} for number in range(5000)}},
        {"in_flight": 2**62},
        {"queued": -1},
        {"lag_ms": 1e300},
        {"weight": 0.0},
        {"sequence": 2**60},
        {"collections": [{"name": "c" * 300, "shard": "s"}]},
        {"collections": [{"name": f"c{number}", "shard": "s"} for number in range(5000)]},
        {"actions": [{"name": f"a{number}"} for number in range(5000)]},
        {"capabilities": ["x"] * 101},
        {"version": "v" * 1000},
    ],
    ids=[
        "endless search", "negative search", "many verbs", "huge load", "negative load", "huge lag",
        "no weight", "huge sequence", "long name", "many collections", "many actions",
        "many capabilities", "long version",
    ],
)  # fmt: skip
async def test_nonsense_is_dropped_and_counted(world, nonsense):
    before = world.record
    await world.send(**nonsense)
    assert world.membership.dropped == 1
    assert world.record is before


@pytest.mark.parametrize("ms", [1.79e308, 1e9, 999_999.0, 0.0004])
@pytest.mark.parametrize("busy", [2**62, 0])
def test_whatever_load_is_told_callers_can_read_it(ms, busy):
    beat = Heartbeat(
        node="crm",
        incarnation=1,
        sequence=1,
        in_flight=busy,
        queued=busy,
        verbs={"search": VerbStats(ewma_ms=ms)},
    )
    load = ReportedLoad().heard(beat)
    route = RouteNode(slug="crm", load=load)
    assert codec.decode(codec.encode(route), RouteNode) == route
    assert load.busy <= 2**30
    assert load.search_ms <= 1e6
    assert isinstance(load, NodeLoad)


async def test_a_flood_of_heartbeats_costs_the_master_a_few_an_interval(world):
    heard = []
    world.membership.view.heard = heard.append
    for _ in range(500):
        await world.send(overloaded=world.sequence % 2 == 0)
    assert len(heard) == 10
    assert world.membership.dropped == 490
    await world.clock.step(1.0)
    await world.send()
    assert len(heard) == 11


async def test_a_life_from_the_future_is_none(world):
    """It would outrank all that follow, until its time has come."""
    now_ms = world.clock.unix_ms()
    await world.send(incarnation=now_ms + 2 * MINUTE_MS)
    await world.event("draining", now_ms + 2 * MINUTE_MS)
    await world.event("stopped", 2**53)
    assert world.membership.dropped == 3
    await world.send(incarnation=now_ms + 1000)
    assert world.record.incarnation == now_ms + 1000
    assert world.record.health is not Health.DRAINING


async def test_the_next_life_of_a_node_is_believed_where_the_clocks_were_set_back(world):
    started = world.clock.unix_ms()
    await world.send(incarnation=started)
    world.clock.now -= 7200
    world.membership._beats = type(world.membership._beats)(10, 1.0)
    await world.send(incarnation=started + 1)
    assert world.record.incarnation == started + 1


async def test_an_older_life_that_goes_on_beating_is_told_of_seldom(world):
    await world.send(incarnation=9)
    with structlog.testing.capture_logs() as lines:
        for _ in range(70):
            await world.clock.step(0.2)
            await world.send(incarnation=8)
    told = [line for line in lines if line["event"] == "mesh.node.older_life_beats"]
    assert [(line["incarnation"], line["newer"]) for line in told] == [(8, 9)] * 2


async def test_many_who_find_nobody_there_cause_few_probes(world):
    await world.send()
    await world.clock.step(0.01)
    world.pinged.clear()
    for _ in range(1000):
        world.membership.doubt("crm")
    assert len(world.pinged) <= 1
    world.membership.departed("crm", "read error")
    world.membership.departed("crm", "read error")
    assert len(world.pinged) >= 2, "the broker's word does not wait"


async def test_health_that_changes_all_the_time_does_not_fill_the_log(world):
    with structlog.testing.capture_logs() as lines:
        for number in range(200):
            await world.clock.step(0.2)
            await world.send(draining=number % 2 == 0)
    told = [line for line in lines if line["event"] == "mesh.node.health_changed"]
    at_info = [line for line in told if line["log_level"] == "info"]
    assert len(told) > 150
    assert len(at_info) <= 30 + 200 * 0.2 * 0.5 + 1


def test_a_node_starts_later_than_it_ever_has(tmp_path):
    file = tmp_path / "incarnation.json"
    assert _next_incarnation(file, 1000) == 1000
    assert _next_incarnation(file, 2000) == 2000
    assert _next_incarnation(file, 500) == 2001, "the clock was set back"
    assert _next_incarnation(file, 2001) == 2002
    assert msgspec.json.decode(file.read_bytes()) == 2002
    file.write_text("{}")
    with pytest.raises(StateError, match="remove it"):
        _next_incarnation(file, 3000)
