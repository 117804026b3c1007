"""What masters make of what callers tell: breakers for all, figures, traces; and what they do not
believe.
"""

from __future__ import annotations

import pytest
import pytest_asyncio
import structlog
from fakes import MemoryBroker, MemoryTrail
from stepped_clock import SteppedClock, settled

from mesh.config import BreakerConfig
from mesh.core import permissions
from mesh.core.latency import bucket
from mesh.errors import InvalidError, MeshError, NotFoundError
from mesh.runtime.background import Background
from mesh.runtime.breaker_board import BreakerBoard
from mesh.types import BreakerState
from mesh.wire import codec
from mesh.wire.messages import (
    ActionInfo,
    BreakersQuery,
    BreakersReset,
    CallTrace,
    ExplainQuery,
    NodeRecord,
    Outcomes,
    RouteNode,
    Step,
    VerbOutcome,
)

OPEN = BreakerState.OPEN


def record(slug, incarnation=7):
    refund = ActionInfo(name="refund")
    return NodeRecord(
        id=f"id-{slug}", slug=slug, name=slug, incarnation=incarnation, actions=[refund]
    )


def bad(node="crm", verb="search", **more):
    told = {"calls": 5, "failures": 5, "state": OPEN, "incarnation": 7} | more
    return VerbOutcome(node=node, verb=verb, **told)


class Master:
    """A board with a bus and a registry of its own."""

    def __init__(self, world):
        self.background = Background(world.clock)
        self.trail = MemoryTrail()
        self.changes = 0
        self.gone = []
        self.world = world
        self.board = BreakerBoard(
            world.broker.bus("master"),
            world.clock,
            self.background,
            BreakerConfig(),
            get=world.records.get,
            find=self.find,
            audit=self.trail,
            on_change=self.changed,
            on_gone=self.gone.append,
        )

    def changed(self):
        self.changes += 1

    async def find(self, name):
        for known in self.world.records.values():
            if name in (known.slug, known.id):
                return known
        raise NotFoundError(f"no node {name!r}")

    async def ask(self, verb, request, caller="ops"):
        kind, serve = self.board.verbs[verb]
        assert isinstance(request, kind)
        return await serve(request, caller)


class World:
    def __init__(self):
        self.clock = SteppedClock(1_700_000_000.0)
        self.broker = MemoryBroker()
        self.records = {slug: record(slug) for slug in ("crm", "docs")}
        self.masters = []
        self.callers = {}

    async def master(self, *, leading=True):
        master = Master(self)
        master.board.leading = leading
        self.masters.append(master)
        await master.board.start()
        for caller in ("ops", "web"):  # each has another process, which asks nothing
            await self.tell(
                VerbOutcome(node="crm", verb="fetch", incarnation=7),
                caller=caller,
                connection=f"{caller}-quiet",
            )
        return master

    async def tell(self, *outcomes, caller="ops", connection="c1", traces=()):
        said = Outcomes(connection=connection, verbs=list(outcomes), traces=list(traces))
        await self.send(codec.encode(said), caller)

    async def send(self, payload, caller="ops"):
        bus = self.callers.setdefault(caller, self.broker.bus(caller))
        bus.publish(f"mesh.v1.outcome.{caller}", payload)
        await settled()

    async def steps(self, count, seconds=0.05):
        for _ in range(count):
            await self.clock.step(seconds)


@pytest_asyncio.fixture
async def world():
    made = World()
    yield made
    for master in made.masters:
        await master.board.stop()
        await master.background.stop()


async def test_a_breaker_that_callers_have_open_is_in_the_routes_one_round_later(world):
    master = await world.master()
    await world.tell(bad())
    await world.steps(1)
    word = master.board.words()["crm"]["search"]
    assert (word.state, master.changes) == (OPEN, 1)
    assert word.until == world.clock.unix_ms() + 30_000
    _, breakers, callers = master.board.figures()
    assert (breakers, callers) == ({"open": 1, "half_open": 0}, 1)


async def test_who_told_it_is_whom_the_broker_let_in(world):
    """Else one login could be a crowd."""
    master = await world.master()
    await world.tell(VerbOutcome(node="crm", verb="search", incarnation=7, calls=3), caller="web")
    for number in range(100):
        await world.tell(bad(), caller="bad", connection=f"x{number}")
    await world.steps(3)
    assert master.board.words() == {}


@pytest.mark.parametrize(
    "outcome",
    [
        bad("nobody"),
        bad(verb="act.unheard-of"),
        bad(incarnation=6),
        bad(incarnation=2**53),
        bad(incarnation=0),
    ],
    ids=["unknown node", "unknown action", "earlier life", "later life", "no life"],
)
async def test_what_cannot_be_is_passed_over(world, outcome):
    master = await world.master()
    await world.tell(outcome)
    await world.steps(3)
    assert master.board.words() == {}
    assert (await master.ask("breakers", BreakersQuery())).breakers == []


async def test_made_up_verbs_fill_no_memory(world):
    master = await world.master()
    for start in range(0, 4000, 2000):
        await world.tell(*(bad(verb=f"act.x{start + number}") for number in range(2000)))
    await world.tell(*(bad(f"n{number}") for number in range(2000)))
    figures, _, _ = master.board.figures()
    assert figures == {}
    assert master.board._shared.nodes() == ["crm"]
    assert (await master.ask("breakers", BreakersQuery())).breakers == []


async def test_bad_messages_are_dropped_counted_and_told_of_once_a_second(world):
    master = await world.master()
    with structlog.testing.capture_logs() as lines:
        for payload in (b"", b"[]", b'{"connection":"a b"}', b'{"connection":"c","verbs":[{}]}'):
            await world.send(payload)
        await world.tell(verbs := VerbOutcome(node="crm", verb="search", incarnation=7, calls=1))
        await world.send(codec.encode({"connection": "c", "verbs": [{"verb": "x.y"}]}))
    assert verbs.calls == 1
    assert master.board.dropped == 5
    told = [line for line in lines if line["event"] == "mesh.breakers.message_dropped"]
    assert len(told) == 1
    assert master.board.figures()[2] == 1


async def test_where_nobody_listens_the_node_is_doubted(world):
    master = await world.master()
    gone = {"incarnation": 7, "gone": 3}
    await world.tell(
        VerbOutcome(node="crm", verb="search", **gone),
        VerbOutcome(node="docs", verb="search", **gone | {"incarnation": 6}),
        VerbOutcome(node="nobody", verb="search", **gone),
    )
    assert master.gone == ["crm"]


async def test_a_new_life_of_a_node_starts_with_closed_breakers(world):
    master = await world.master()
    await world.tell(bad())
    await world.steps(1)
    assert "crm" in master.board.words()
    world.records["crm"] = record("crm", 8)
    assert master.board.words() == {}


async def test_a_node_that_is_no_more_is_forgotten(world):
    master = await world.master()
    await world.tell(bad(), bad("docs"))
    await world.steps(1)
    assert list(master.board.words()) == ["crm", "docs"]
    del world.records["crm"], world.records["docs"]
    assert master.board.words() == {}
    await world.steps(2, 5.1)
    assert master.board._shared.nodes() == []


async def test_figures_are_of_all_callers(world):
    master = await world.master()
    for connection, ms in (("c1", 10), ("c2", 100)):
        latency = {bucket(ms): 10}
        outcome = VerbOutcome(
            node="crm", verb="search", incarnation=7, calls=10, failures=1, latency=latency
        )
        await world.tell(outcome, connection=connection)
    verbs, breakers, callers = master.board.figures()
    assert (verbs["search"].calls, verbs["search"].failures, callers) == (20, 2, 1)
    assert verbs["search"].p99_ms == pytest.approx(100, rel=0.05)
    assert breakers == {"open": 0, "half_open": 0}


async def test_an_operator_resets_a_breaker_at_whichever_master_and_it_is_written_down(world):
    leader, other = await world.master(), await world.master(leading=False)
    await world.tell(bad(), bad(verb="ping"))
    await world.steps(1)
    other.board.follow([RouteNode(slug="crm", incarnation=7, breakers=leader.board.words()["crm"])])
    listed = await other.ask("breakers-reset", BreakersReset(node="id-crm", verb="search"))
    await settled()
    for master in (leader, other):
        states = {verb: word.state for verb, word in master.board.words()["crm"].items()}
        assert states == {"search": BreakerState.CLOSED, "ping": OPEN}
    assert {one.verb: one.state for one in listed.breakers}["search"] is BreakerState.CLOSED
    entry = other.trail.last("breakers-reset")
    assert (entry.actor, entry.subject, entry.details) == ("ops", "crm", {"verb": "search"})
    assert leader.trail.entries == []
    await other.ask("breakers-reset", BreakersReset(node="crm"))
    await settled()
    assert leader.board.words()["crm"]["ping"].state is BreakerState.CLOSED


async def test_a_reset_names_what_is_wrong(world):
    master = await world.master()
    with pytest.raises(NotFoundError):
        await master.ask("breakers-reset", BreakersReset(node="nobody"))
    with pytest.raises(InvalidError, match=r"act\.refund") as caught:
        await master.ask("breakers-reset", BreakersReset(node="crm", verb="act.x"))
    assert "verb" in caught.value.fields
    assert master.trail.entries == []


async def test_nobody_but_a_master_resets_by_telling_all(world):
    """The subject is the masters' own: the broker lets no login publish `evt.master.*`."""
    for granted in (
        permissions.of_node("crm"),
        permissions.of_user("ops", ["admin", "search", "actions"]),
        permissions.of_gateway(),
    ):
        assert not permissions.may_publish(granted, "mesh.v1.evt.master.breakers-reset")


async def test_who_follows_decides_nothing_and_is_warm_when_it_leads(world):
    leader, other = await world.master(), await world.master(leading=False)
    await world.tell(bad())
    await world.steps(1)
    assert other.board.words() == {}
    words = leader.board.words()["crm"]
    other.board.follow([RouteNode(slug="crm", incarnation=7, breakers=words)])
    assert other.board.words()["crm"] == words
    other.board.follow([RouteNode(slug="crm", incarnation=6, breakers={})])
    assert other.board.words()["crm"] == words
    leader.board.leading, other.board.leading = False, True
    await world.steps(1, 30.1)
    assert other.board.words()["crm"]["search"].probers == {"c1": 2}


async def test_breakers_are_listed_of_one_node_or_all(world):
    master = await world.master()
    await world.tell(bad(), bad("docs", "ping"))
    await world.steps(1)
    every = (await master.ask("breakers", BreakersQuery())).breakers
    assert [(one.node, one.verb, one.state) for one in every] == [
        ("crm", "search", OPEN),
        ("docs", "ping", OPEN),
    ]
    (one,) = (await master.ask("breakers", BreakersQuery(node="id-docs"))).breakers
    assert (one.node, one.open_at, one.callers) == ("docs", 1, 1)
    with pytest.raises(NotFoundError):
        await master.ask("breakers", BreakersQuery(node="nobody"))


async def test_a_request_is_explained_by_whoever_told_of_it(world):
    master = await world.master()
    step = Step(at_ms=0.1, node="crm", what="chosen", why="p2c")
    traces = [
        CallTrace(
            id=name, caller="web", verb="search", at=1, took_ms=2.0, outcome="ok", steps=[step]
        )
        for name in ("r1.crm", "r2")
    ]
    await world.tell(traces=traces)
    (told,) = (await master.ask("explain", ExplainQuery(request="r1"))).calls
    assert (told.id, told.caller, told.steps) == ("r1.crm", "ops", [step])
    with pytest.raises(NotFoundError, match="r3"):
        await master.ask("explain", ExplainQuery(request="r3"))


async def test_a_reset_that_nobody_can_hear_of_is_no_reset(world):
    master = await world.master()
    world.broker.stop()
    with pytest.raises(MeshError):
        await master.ask("breakers-reset", BreakersReset(node="crm"))
    assert master.trail.entries == []
    world.broker.start()


async def test_a_flood_of_one_callers_reports_is_dropped_and_costs_the_others_nothing(world):
    master = await world.master()
    told = VerbOutcome(node="crm", verb="search", incarnation=7, calls=1)
    payload = codec.encode(Outcomes(connection="c1", verbs=[told]))
    bus = world.broker.bus("bad")
    for _ in range(2000):
        bus.publish("mesh.v1.outcome.bad", payload)
    await settled()
    assert master.board.dropped == 1500
    await world.tell(told, caller="web")
    assert master.board.figures()[0]["search"].calls == 501
    assert master.board.dropped == 1500


async def test_only_so_many_resets_are_remembered(world):
    """Each comes back once, unless it is lost on the way."""
    master = await world.master()
    for _ in range(100):
        await master.ask("breakers-reset", BreakersReset(node="crm"))
    assert len(master.board._own_resets) == 64
