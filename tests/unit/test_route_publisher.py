"""What a leading master says and when, and what another one answers meanwhile. In stepped time,
where no timer of the loop matters.
"""

from __future__ import annotations

import asyncio

import msgspec
import pytest
import structlog
from fakes import MemoryBroker
from stepped_clock import SteppedClock, settled

from mesh.errors import UnavailableError
from mesh.ports import Message
from mesh.runtime import route_publisher
from mesh.runtime.background import Background
from mesh.runtime.route_publisher import RoutePublisher
from mesh.types import BreakerState, Health
from mesh.wire import codec, subjects
from mesh.wire.messages import BreakerWord, NodeLoad, RouteNode, RouteUpdate

SNAPSHOTS_S = 1000.0
PAUSE = 0.05


class World:
    """A publisher, its nodes, and all that it says."""

    def __init__(self, name: str = "master") -> None:
        self.broker = MemoryBroker()
        self.clock = SteppedClock(1000.0)
        self.said: list[RouteUpdate] = []
        self.followed: list[list[str]] = []
        self.nodes = {slug: RouteNode(slug=slug, name=slug) for slug in ("crm", "docs")}
        self.leads = False
        self.background = Background(self.clock)
        self.bus = self.broker.bus(name)
        self.publisher = RoutePublisher(
            self.bus,
            self.clock,
            self.background,
            lambda: (list(self.nodes.values()), False),
            snapshot_interval_s=SNAPSHOTS_S,
            leads=lambda: self.leads,
            on_followed=lambda nodes: self.followed.append([node.slug for node in nodes]),
        )

    async def start(self) -> None:
        listener = self.broker.bus("ops")
        await listener.subscribe(subjects.ROUTES, self.heard)
        await self.publisher.start()
        await settled()

    def heard(self, message: Message) -> None:
        self.said.append(codec.decode(message.data, RouteUpdate))

    async def lead(self, epoch: int = 7) -> None:
        self.leads = True
        self.publisher.open()
        self.publisher.lead(epoch)
        await settled()

    async def change(self, slug: str = "crm", **fields) -> None:
        self.nodes[slug] = msgspec.structs.replace(self.nodes[slug], **fields)
        self.publisher.changed()
        await settled()

    async def other_says(self, **fields) -> None:
        update = RouteUpdate(**{"nodes": [], "removed": [], "blind": False} | fields)
        self.broker.bus("master").publish(subjects.ROUTES, codec.encode(update))
        await settled()

    async def paused(self) -> None:
        """The time in which changes are gathered is over."""
        await self.clock.step(PAUSE)

    def versions(self) -> list[tuple[int, int]]:
        return [(update.epoch, update.version) for update in self.said]


@pytest.fixture
async def world():
    world = World()
    await world.start()
    yield world
    await world.publisher.stop()
    await world.background.stop()
    assert world.background.failures == 0
    assert world.broker.handler_failures == 0


# -- leading ---------------------------------------------------------------------------------------


async def test_a_leader_begins_with_all_of_it(world):
    assert world.said == []
    await world.lead()
    [update] = world.said
    assert (update.epoch, update.version, update.base) == (7, 1, 0)
    assert [node.slug for node in update.nodes] == ["crm", "docs"]


async def test_a_leader_that_knows_nobody_yet_is_silent(world):
    world.leads = True
    world.publisher.lead(7)
    await settled()
    assert world.said == []
    world.publisher.open()
    await world.paused()
    assert world.versions() == [(7, 1)]


async def test_the_first_change_goes_out_at_once_and_the_next_ones_together(world):
    await world.lead()
    await world.paused()
    await world.change(health=Health.SUSPECT)
    assert world.versions() == [(7, 1), (7, 2)]
    await world.change(health=Health.UNREACHABLE)
    await world.change("docs", health=Health.SUSPECT)
    assert len(world.said) == 2
    await world.paused()
    assert world.versions()[2:] == [(7, 3)]
    assert [node.slug for node in world.said[-1].nodes] == ["crm", "docs"]


async def test_a_word_about_a_breaker_does_not_wait(world):
    await world.lead()
    await world.paused()
    word = BreakerWord(state=BreakerState.OPEN, turn=1, until=2)
    await world.change(breakers={"search": word})
    assert world.said[-1].nodes[0].breakers == {"search": word}


async def test_load_alone_goes_out_once_a_second(world):
    await world.lead()
    for busy in range(1, 19):
        await world.paused()
        await world.change(load=NodeLoad(busy=busy))
    assert len(world.said) == 1
    for _ in range(3):
        await world.paused()
        world.publisher.changed()
        await settled()
    assert world.versions()[1:] == [(7, 2)]
    assert world.said[-1].nodes[0].load.busy == 18
    await world.change(load=NodeLoad(busy=30))
    await world.paused()
    assert len(world.said) == 2


async def test_load_goes_with_what_cannot_wait(world):
    await world.lead()
    await world.paused()
    await world.change(load=NodeLoad(busy=4))
    await world.change("docs", health=Health.SUSPECT)
    await world.paused()
    assert [node.slug for node in world.said[-1].nodes] == ["crm", "docs"]


async def test_a_load_that_waits_goes_out_by_itself(world, monkeypatch):
    """Also where nothing else happens any more."""
    monkeypatch.setattr(route_publisher, "_LOADS_EVERY_S", 0.02)
    await world.lead()
    await world.paused()
    world.publisher._loads_due_at = world.clock.now + 0.01
    await world.change(load=NodeLoad(busy=4))
    assert len(world.said) == 1
    world.clock.now += 0.02
    async with asyncio.timeout(5):
        while len(world.said) == 1:
            await asyncio.sleep(0.005)
            await world.clock.step(PAUSE)
    assert world.said[-1].nodes[0].load.busy == 4


async def test_nothing_goes_out_once_the_lease_has_ended(world):
    """Before anybody has told it so: a process that was paused asks the clock, not its memory."""
    await world.lead()
    await world.paused()
    world.leads = False
    await world.change(health=Health.HEALTHY)
    world.publisher.resend()
    await world.paused()
    page = await world.publisher.page(0)
    assert world.versions() == [(7, 1)]
    assert page.nodes[0].health is Health.UNREACHABLE, "nor is it told to whoever asks"


async def test_a_leader_that_comes_back_does_so_under_its_new_epoch(world):
    await world.lead()
    await world.paused()
    world.leads = False
    world.publisher.follow()
    await world.paused()
    await world.lead(9)
    await world.paused()
    assert world.versions() == [(7, 1), (9, 1)]
    assert world.said[-1].base == 0


# -- following -------------------------------------------------------------------------------------


async def test_a_follower_answers_with_what_the_leader_said(world):
    node = RouteNode(slug="crm", name="crm", health=Health.HEALTHY)
    await world.other_says(epoch=5, version=3, nodes=[node])
    page = await world.publisher.page(0)
    assert (page.epoch, page.version, page.nodes) == (5, 3, [node])
    worse = msgspec.structs.replace(node, health=Health.SUSPECT)
    await world.other_says(epoch=5, version=4, base=3, nodes=[worse])
    page = await world.publisher.page(0)
    assert (page.version, page.nodes) == (4, [worse])
    assert world.followed == [["crm"], ["crm"]]


async def test_a_follower_that_missed_something_keeps_what_it_has_until_all_is_said_again(world):
    node = RouteNode(slug="crm", name="crm", health=Health.HEALTHY)
    await world.other_says(epoch=5, version=3, nodes=[node])
    await world.other_says(epoch=5, version=5, base=4, nodes=[])
    assert (await world.publisher.page(0)).version == 3
    await world.other_says(epoch=5, version=5, nodes=[node])
    assert (await world.publisher.page(0)).version == 5


async def test_a_leader_that_was_overtaken_hears_its_successor(world):
    """Even while nobody has told it yet that it does not lead."""
    await world.lead()
    world.leads = False
    await world.other_says(epoch=8, version=1, nodes=[])
    assert (await world.publisher.page(0)).epoch == 8


async def test_a_follower_that_has_heard_nothing_says_so_soon(world, monkeypatch):
    monkeypatch.setattr(route_publisher, "_WARM_WAIT_S", 0.01)
    with pytest.raises(UnavailableError) as refused:
        await world.publisher.page(0)
    assert refused.value.retry_after_ms == 500


async def test_a_new_master_asks_those_that_are_there(world):
    await world.lead()

    def answer(message: Message) -> None:
        pages = route_publisher.snapshot(world.publisher.table, route_publisher._size)
        world.bus.publish(message.reply, codec.ok(pages[0]))

    await world.bus.subscribe(subjects.master("routes", "master"), answer)
    newcomer = World()
    newcomer.broker, newcomer.bus = world.broker, world.broker.bus("master")
    newcomer.publisher._bus = newcomer.bus
    await newcomer.publisher.start()
    try:
        assert newcomer.publisher.table == world.publisher.table
        await world.paused()
        await world.change(health=Health.SUSPECT)
        assert newcomer.publisher.table == world.publisher.table
    finally:
        await newcomer.publisher.stop()
        await newcomer.background.stop()


# -- lapses, and what cannot be told ---------------------------------------------------------------


async def test_a_change_that_falls_into_a_lapse_of_the_lease_goes_out_when_it_is_renewed(world):
    """Nobody wakes the publisher then: the next snapshot would be the first to tell of it."""
    await world.lead()
    await world.paused()
    world.leads = False
    await world.change(health=Health.SUSPECT)
    for _ in range(3):
        await world.paused()
    assert len(world.said) == 1
    world.leads = True
    for _ in range(2):
        await world.paused()
    assert world.versions() == [(7, 1), (7, 2)]


async def test_a_lapse_in_which_nothing_changes_does_not_end_the_snapshots(world):
    await world.lead()
    world.publisher._snapshot_due_at = world.clock.now
    world.leads = False
    for _ in range(3):
        await world.paused()
    world.leads = True
    for _ in range(2):
        await world.paused()
    assert world.versions() == [(7, 1), (7, 1)]


@pytest.mark.parametrize(
    "flaw",
    [
        {"weight": float("inf")},
        {"load": NodeLoad(search_ms=float("nan"))},
        {"reason": "x" * route_publisher.MAX_PAGE_BYTES},
    ],
    ids=["infinite", "not a number", "larger than a page"],
)
async def test_a_route_that_callers_could_not_read_costs_them_no_other(world, flaw):
    world.nodes["bad"] = RouteNode(slug="bad", **flaw)
    with structlog.testing.capture_logs() as lines:
        await world.lead()
        await world.paused()
        await world.change(health=Health.HEALTHY)
    for update in world.said:
        assert "bad" not in [node.slug for node in update.nodes]
    assert world.said[-1].nodes[0].health is Health.HEALTHY
    told = [line["node"] for line in lines if line["event"] == "mesh.routes.node_left_out"]
    assert told == ["bad"]
    await world.paused()
    world.nodes["bad"] = RouteNode(slug="bad")
    await world.change("docs", name="Docs")
    assert "bad" in [node.slug for node in world.said[-1].nodes]
