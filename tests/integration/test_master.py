"""The master over a bus in memory and a real registry: what callers, nodes and operators see."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fakes import (
    MemoryBroker,
    MemoryBus,
    MemoryDoor,
    MemoryHistory,
    MemoryTrail,
    PlainSigning,
    any_url,
)
from lease_fakes import MemoryBucket, MemoryDepartures
from stepped_clock import settled

from mesh.adapters.clock import SystemClock
from mesh.adapters.sql.registry import SqlRegistry
from mesh.config import HealthConfig, MasterConfig, MeshConfig, RateLimitConfig
from mesh.core.leadership import Seat
from mesh.core.route_table import RouteFollower
from mesh.errors import (
    BadRequestError,
    ConflictError,
    DeadlineExceededError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from mesh.ports import Message
from mesh.runtime.master import BrokerControl, Master, Stores
from mesh.types import ActionState, BreakerState, Health, Status
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    ActionInfo,
    Changed,
    CollectionInfo,
    Heartbeat,
    HistoryPage,
    HistoryQuery,
    HistoryRecord,
    NodeChange,
    NodeEvent,
    NodeList,
    NodeName,
    NodeRecord,
    NodeRegister,
    NodeRegistered,
    NodesQuery,
    NodeStats,
    NodeUpdate,
    Outcomes,
    PingRequest,
    PingResult,
    RoutesRequest,
    RouteUpdate,
    VerbOutcome,
)

INTERVAL = 0.05
HEALTH = HealthConfig(
    heartbeat_interval_s=INTERVAL, probe_interval_s=2 * INTERVAL, probe_timeout_s=INTERVAL
)
NOTES = CollectionInfo(name="notes", shard="crm", rows=3, data_version=1, fingerprint="f")


async def until(true: Callable[[], Any], within_s: float = 5.0) -> None:
    """Poll; the condition is the test, the time is only its limit."""
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.005)


class FakeNode:
    """Beats and answers pings, as long as it is told to."""

    def __init__(self, broker: MemoryBroker, slug: str, *, incarnation: int = 1) -> None:
        self.bus = broker.bus(slug)
        self.slug = slug
        self.incarnation = incarnation
        self.sequence = 0
        self.beat: dict[str, Any] = {"collections": [NOTES], "version": "1"}
        self.beating = True
        self.answering = True
        self.pings = 0
        self._task: asyncio.Task[None] | None = None
        self._serving: Any = None

    async def start(self) -> FakeNode:
        await self.serve()
        self._task = asyncio.create_task(self._beat())
        return self

    async def serve(self) -> None:
        self._serving = await self.bus.subscribe(
            f"{subjects.PREFIX}.rpc.{self.slug}.>", self._on_ping
        )

    async def stop_serving(self) -> None:
        await self._serving.unsubscribe()

    async def kill(self) -> None:
        """As `kill -9`: no goodbye, nobody listens any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.bus.close()

    def publish_beat(self, **fields: Any) -> None:
        self.sequence += 1
        beat = Heartbeat(
            **{"node": self.slug, "incarnation": self.incarnation, "sequence": self.sequence}
            | self.beat
            | fields
        )
        if self.bus.connected:
            self.bus.publish(subjects.heartbeat(self.slug), codec.encode(beat))

    def event(self, name: str, message: Any) -> None:
        self.bus.publish(subjects.event(self.slug, name), codec.encode(message))

    async def _beat(self) -> None:
        while True:
            if self.beating:
                self.publish_beat()
            await asyncio.sleep(INTERVAL)

    def _on_ping(self, message: Message) -> None:
        self.pings += 1
        if self.answering:
            pong = PingResult(node=self.slug, incarnation=self.incarnation)
            self.bus.publish(message.reply, codec.ok(pong))


class Mesh:
    """A broker, a master, and an operator who asks."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.door = MemoryDoor()
        self.bucket = MemoryBucket()
        self.departures = MemoryDepartures()
        self.seats: list[Seat] = []
        self.signing = PlainSigning()
        self.trail = MemoryTrail()
        self.broker = MemoryBroker()
        self.history = MemoryHistory(self.broker.bus("historian"))
        self.operator = self.broker.bus("ops")
        self.updates: list[RouteUpdate] = []
        self.follower = RouteFollower()
        self.nodes: list[FakeNode] = []
        self.lives = 0

    async def start(self) -> Mesh:
        await self.operator.subscribe(subjects.ROUTES, self._on_routes)
        await self.start_master()
        return self

    async def start_master(self) -> None:
        self.lives += 1
        self.bus: MemoryBus = self.broker.bus("master")
        self.registry = await SqlRegistry.open(self.url)
        self.master = self.made(self.bus, self.lives)
        await self.master.start()

    def made(self, bus: MemoryBus, incarnation: int, **settings: Any) -> Master:
        lease = self.bucket.lease()
        self.seats.append(lease.seat)
        return Master(
            bus,
            Stores(self.registry, self.registry.tokens, self.registry.logins, self.history),
            BrokerControl(self.door, self.door, self.departures, lease),
            SystemClock(),
            config=MeshConfig(
                health=HEALTH, master=MasterConfig(snapshot_interval_s=0.2), **settings
            ),
            signing=self.signing,
            audit=self.trail,
            check_url=any_url,
            seedlings=[],
            incarnation=incarnation,
        )

    async def stop_master(self) -> None:
        await self.master.stop()
        await self.bus.close()
        await self.registry.close()

    async def close(self) -> None:
        for node in self.nodes:
            await node.kill()
        await self.stop_master()

    async def node(self, slug: str, **fields: Any) -> FakeNode:
        if not await self.registry.lookup([slug]):
            await self.ask("register", NodeRegister(name=slug), NodeRegistered)
        node = await FakeNode(self.broker, slug, **fields).start()
        self.nodes.append(node)
        return node

    async def healthy(self, slug: str = "crm", **fields: Any) -> FakeNode:
        node = await self.node(slug, **fields)
        await until(lambda: self.health(slug) is Health.HEALTHY)
        return node

    async def ask(self, verb: str, request: Any, kind: type[Any]) -> Any:
        payload = request if isinstance(request, bytes) else codec.encode(request)
        reply = await self.operator.request(
            subjects.master(verb, "ops"), payload, responder="master", timeout_s=5.0
        )
        return codec.result_of(reply, kind)

    def _on_routes(self, message: Message) -> None:
        update = codec.decode(message.data, RouteUpdate)
        self.updates.append(update)
        self.follower.apply(update)

    def health(self, slug: str = "crm") -> Health | None:
        """As a caller sees it."""
        node = self.follower.table.node(slug)
        return node.health if node is not None else None

    def record(self, slug: str = "crm") -> NodeRecord:
        return self.master.membership.view.find(slug)


@pytest.fixture
async def mesh(tmp_path) -> AsyncIterator[Mesh]:
    mesh = await Mesh(f"sqlite+aiosqlite:///{tmp_path}/mesh.db").start()
    yield mesh
    await mesh.close()
    assert mesh.master.failures == 0
    assert mesh.broker.handler_failures == 0


# -- health ----------------------------------------------------------------------------------------


async def test_a_registered_node_that_beats_becomes_healthy(mesh):
    node = await mesh.healthy(incarnation=7)
    async with asyncio.timeout(5):
        while not (await mesh.registry.nodes())[0].incarnation:
            await asyncio.sleep(0.02)
    [stored] = await mesh.registry.nodes()
    assert (stored.slug, stored.status, stored.incarnation) == ("crm", Status.ACTIVE, 7)
    assert stored.collections == [NOTES]
    assert mesh.follower.table.holders("notes")[0].node.slug == "crm"
    assert node.pings >= 1


async def test_a_killed_node_is_unreachable_and_back_in_its_next_life(mesh):
    node = await mesh.healthy(incarnation=1)
    await node.kill()
    await until(lambda: mesh.health() is Health.UNREACHABLE, within_s=1)
    assert mesh.record().reason == "nobody listens"
    await mesh.healthy(incarnation=2)
    assert mesh.record().incarnation == 2


async def test_a_hung_node_is_unreachable_and_heals_when_it_goes_on(mesh):
    node = await mesh.healthy()
    node.beating = node.answering = False
    await until(lambda: mesh.health() is Health.UNREACHABLE, within_s=1)
    assert mesh.record().reason == "no sign of life"
    node.beating = node.answering = True
    await until(lambda: mesh.health() is Health.HEALTHY)


async def test_a_node_that_beats_but_does_not_listen_is_not_routed_to(mesh):
    node = await mesh.healthy()
    await node.stop_serving()
    await until(lambda: mesh.health() is Health.UNREACHABLE)
    assert mesh.record().failures >= 1
    await node.serve()
    await until(lambda: mesh.health() is Health.HEALTHY)
    assert mesh.record().failures == 0


@pytest.mark.parametrize(
    ("fields", "health"),
    [
        ({"lag_ms": 2500.0}, Health.STALLED),
        ({"overloaded": True}, Health.OVERLOADED),
        ({"draining": True}, Health.DRAINING),
    ],
)
async def test_what_a_node_says_of_itself_counts_at_once(mesh, fields, health):
    node = await mesh.healthy()
    node.beat |= fields
    await until(lambda: mesh.health() is health)
    for field in fields:
        del node.beat[field]
    await until(lambda: mesh.health() is Health.HEALTHY)


async def test_a_goodbye_is_heard(mesh):
    node = await mesh.healthy(incarnation=3)
    node.event("draining", NodeEvent(incarnation=3))
    node.beat["draining"] = True
    await until(lambda: mesh.health() is Health.DRAINING)
    node.event("stopped", NodeEvent(incarnation=3))
    await until(lambda: mesh.health() is Health.UNREACHABLE)
    assert mesh.record().reason == "stopped"


async def test_a_changed_collection_reaches_callers_before_the_next_beat(mesh):
    node = await mesh.healthy()
    node.beating = False
    node.event(
        "changed",
        Changed(incarnation=1, collection="notes", shard="crm", data_version=8, rows=4),
    )
    await until(lambda: mesh.follower.table.holders("notes")[0].info.data_version == 8, within_s=1)


async def test_a_dead_broker_is_blindness_and_no_mass_death(mesh):
    await mesh.healthy("crm")
    await mesh.healthy("docs")
    mesh.broker.stop()
    await until(lambda: mesh.master.membership.blind)
    await asyncio.sleep(4 * INTERVAL)
    assert {one.health for one in mesh.master.membership.view.records()} == {Health.HEALTHY}
    mesh.updates.clear()
    mesh.broker.start()
    await until(lambda: mesh.updates)
    assert mesh.updates[0].base == 0, "the whole table goes out first"
    await until(lambda: not mesh.follower.table.blind)
    assert mesh.health("crm") is mesh.health("docs") is Health.HEALTHY


async def test_whoever_asks_while_the_whole_table_is_due_gets_no_change_before_it(mesh):
    await mesh.healthy("crm")
    publisher, view = mesh.master._publisher, mesh.master.membership.view
    mesh.updates.clear()
    publisher.resend()
    view.set_health("crm", Health.SUSPECT, "slow")
    await publisher.page(0)
    await until(lambda: mesh.updates)
    assert mesh.updates[0].base == 0


async def test_what_another_master_does_to_a_node_is_seen_at_once(mesh):
    """Removed or suspended there, it is gone or out of the routes here."""
    for slug in ("crm", "docs"):
        await mesh.healthy(slug)
    bus = mesh.broker.bus("master")
    other = mesh.made(bus, 2)
    await other.start()
    try:
        verbs = other._authority.verbs
        asked = NodeChange(node="docs", change=NodeUpdate(status=Status.MAINTENANCE))
        await verbs["update"][1](asked, "ops")
        await verbs["remove"][1](NodeName(node="crm"), "ops")
        await until(lambda: "crm" not in mesh.master.membership.view, within_s=1)
        await until(lambda: mesh.record("docs").status is Status.MAINTENANCE, within_s=1)
        asked = NodeChange(node="docs", change=NodeUpdate(status=Status.ACTIVE))
        await verbs["update"][1](asked, "ops")
        await until(lambda: mesh.record("docs").status is Status.ACTIVE, within_s=1)
    finally:
        await other.stop()
        await bus.close()


async def test_a_probe_that_the_broker_took_with_it_says_nothing_of_the_node(mesh):
    node = await mesh.healthy()
    node.answering = False
    pings = node.pings
    await until(lambda: node.pings > pings)
    failures = mesh.record().failures
    mesh.broker.stop()
    await asyncio.sleep(2 * INTERVAL)
    assert mesh.record().failures == failures


async def test_a_network_that_swallows_everything_is_blindness_too(mesh):
    await mesh.healthy()
    mesh.broker.muted = lambda _subject: True
    await until(lambda: mesh.master.membership.blind)
    await asyncio.sleep(6 * INTERVAL)
    assert mesh.record().health in (Health.HEALTHY, Health.SUSPECT)
    mesh.broker.muted = lambda _subject: False
    await until(lambda: not mesh.master.membership.blind)
    await until(lambda: mesh.health() is Health.HEALTHY)


async def test_response_times_are_measured_and_survive_the_master(mesh):
    await mesh.healthy()
    await until(lambda: mesh.record().response_time_ms is not None)
    before = mesh.record()
    assert before.last_ping_at is not None
    await mesh.stop_master()
    await mesh.start_master()
    assert mesh.record().response_time_ms is not None


# -- what must not be believed ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "payload"),
    [
        (subjects.heartbeat("crm"), b"not json"),
        (subjects.heartbeat("crm"), b'{"node":"crm"}'),
        (subjects.heartbeat("crm"), codec.encode(Heartbeat(node="x", incarnation=1, sequence=1))),
        (subjects.heartbeat("x"), b'{"node":"x","incarnation":-1,"sequence":1}'),
        (subjects.heartbeat("x"), b'{"node":"x","incarnation":%d,"sequence":1}' % 2**60),
        (subjects.heartbeat("x"), b'{"node":"x","incarnation":1,"sequence":1,"type":"NO WAY"}'),
        (subjects.heartbeat("js"), b'{"node":"js","incarnation":1,"sequence":1}'),
        (subjects.event("crm", "changed"), b'{"incarnation":"soon"}'),
        (subjects.event("crm", "stopped"), b"\xff\xfe"),
        (subjects.master("nodes", "ops"), b"{}"),
    ],
)
async def test_a_bad_message_is_dropped_counted_and_harmless(mesh, subject, payload):
    await mesh.healthy()
    dropped = mesh.master.dropped
    mesh.operator.publish(subject, payload)
    await until(lambda: mesh.master.dropped == dropped + 1)
    assert [one.slug for one in await mesh.registry.nodes()] == ["crm"]
    await until(lambda: mesh.health() is Health.HEALTHY)


async def test_events_of_strangers_and_unknown_events_are_nothing(mesh):
    node = await mesh.healthy()
    dropped = mesh.master.dropped
    node.event("sneezed", NodeEvent(incarnation=1))
    mesh.operator.publish(subjects.event("nobody", "stopped"), b'{"incarnation":1}')
    await mesh.ask("ping", b"", PingResult)
    assert mesh.master.dropped == dropped


async def test_an_answer_in_another_name_is_no_answer(mesh):
    node = await mesh.node("crm")
    node.slug = "crm"
    await until(lambda: mesh.health() is Health.HEALTHY)

    def lie(message: Message) -> None:
        pong = PingResult(node="docs", incarnation=1)
        node.bus.publish(message.reply, codec.ok(pong))

    await node.stop_serving()
    await node.bus.subscribe(f"{subjects.PREFIX}.rpc.crm.>", lie)
    before = mesh.record().failures
    await until(lambda: mesh.record().failures > before)


async def test_a_request_that_wants_its_answer_elsewhere_gets_none(mesh):
    heard: list[Message] = []
    await mesh.operator.subscribe(f"{subjects.PREFIX}.re.>", heard.append)
    dropped = mesh.master.dropped
    for reply in (f"{subjects.PREFIX}.re.master.victim.c.1", "elsewhere", subjects.ROUTES):
        mesh.broker.deliver(Message(subjects.master("nodes", "ops"), reply, b"{}"))
    await until(lambda: mesh.master.dropped == dropped + 3)
    assert [one for one in heard if ".victim." in one.subject] == []


# -- routes ----------------------------------------------------------------------------------------


async def test_callers_follow_by_deltas_and_newcomers_by_snapshots(mesh):
    await mesh.healthy()
    await mesh.healthy("docs")
    assert any(update.base for update in mesh.updates)
    newcomer = RouteFollower()
    page = await mesh.ask("routes", RoutesRequest(), RouteUpdate)
    newcomer.apply(page)
    assert list(newcomer.table.nodes) == ["crm", "docs"]
    latest = mesh.follower.table
    await until(lambda: any(u.base == 0 and u.version >= latest.version for u in mesh.updates))
    with pytest.raises(NotFoundError, match="pages 0 to 0"):
        await mesh.ask("routes", RoutesRequest(page=1), RouteUpdate)


async def test_what_is_fetched_never_differs_from_what_is_published(mesh):
    await mesh.healthy()
    for number in range(20):
        mesh.master.membership.view.set_health("crm", Health.SUSPECT, f"{number}")
        page = await mesh.ask("routes", RoutesRequest(), RouteUpdate)
        assert page.nodes[0].reason == f"{number}"
        fetched = RouteFollower()
        fetched.apply(page)
        await until(lambda table=fetched.table: mesh.follower.table.order >= table.order)
        if mesh.follower.table.order == fetched.table.order:
            assert mesh.follower.table == fetched.table


async def test_a_new_master_does_not_publish_before_it_knows_who_is_there(mesh):
    """Its restart must not take anybody out of rotation."""
    nodes = [await mesh.healthy(slug) for slug in ("crm", "docs")]
    await mesh.stop_master()
    epoch = mesh.follower.table.epoch
    mesh.updates.clear()
    await mesh.start_master()
    await until(lambda: mesh.follower.table.epoch > epoch)
    seen = [node for update in mesh.updates for node in update.nodes]
    assert {node.health for node in seen} == {Health.HEALTHY}
    assert {node.incarnation for node in seen} == {nodes[0].incarnation}


async def test_callers_follow_a_master_whose_database_is_new(mesh, tmp_path):
    await mesh.healthy()
    began = mesh.follower.table.epoch
    await mesh.stop_master()
    mesh.url = f"sqlite+aiosqlite:///{tmp_path}/new.db"
    await mesh.start_master()
    await until(lambda: mesh.follower.table.epoch > began)


async def test_a_collection_stays_known_while_its_holder_is_away(mesh):
    node = await mesh.healthy()
    await until(lambda: mesh.record().collections == [NOTES])
    await node.kill()
    await mesh.stop_master()
    await mesh.start_master()
    await until(lambda: mesh.health() is Health.UNREACHABLE)
    [holder] = mesh.follower.table.holders("notes")
    assert (holder.info, holder.node.reason) == (NOTES, "not heard yet")


async def test_what_a_node_tells_later_is_saved_too(mesh):
    node = await mesh.healthy()
    node.beat |= {"version": "2", "actions": [ActionInfo(name="refund")]}
    await until(lambda: mesh.record().version == "2")
    await mesh.stop_master()
    await mesh.start_master()
    assert mesh.record().version == "2"
    assert [action.name for action in mesh.record().actions] == ["refund"]


# -- the registry API ------------------------------------------------------------------------------


async def test_an_operator_registers_a_node_and_sees_its_key_once(mesh):
    made = await mesh.ask(
        "register", NodeRegister(name="Kunden & CRM", weight=2.0, keywords=["k"]), NodeRegistered
    )
    assert (made.node.slug, made.node.name) == ("kunden-crm", "Kunden & CRM")
    assert (made.node.health, made.node.reason) == (Health.UNREACHABLE, "never heard")
    assert len(made.api_key) >= 43
    stored = (mesh.url.removeprefix("sqlite+aiosqlite:///"), made.api_key.encode())
    async with mesh.registry._engine.connect() as connection:
        row = (await connection.exec_driver_sql("SELECT api_key_hash FROM nodes")).one()
    assert row[0] == hashlib.sha256(stored[1]).hexdigest()
    await mesh.healthy("kunden-crm")
    assert mesh.record("kunden-crm").weight == 2.0, "what the operator said stays"


async def test_a_taken_name_is_a_conflict_that_says_what_to_do(mesh):
    await mesh.ask("register", NodeRegister(name="CRM"), NodeRegistered)
    with pytest.raises(ConflictError, match="meshctl nodes remove crm"):
        await mesh.ask("register", NodeRegister(name="crm"), NodeRegistered)


@pytest.mark.parametrize("name", ["master", "***", "JS"])
async def test_a_name_that_cannot_be_a_slug_is_refused(mesh, name):
    with pytest.raises(InvalidError):
        await mesh.ask("register", NodeRegister(name=name), NodeRegistered)
    assert await mesh.registry.nodes() == []


async def test_nodes_are_listed_by_what_is_asked(mesh):
    for name, kind in (("a", "child"), ("b", "bridge")):
        await mesh.ask("register", NodeRegister(name=name, type=kind), NodeRegistered)
    everyone = await mesh.ask("nodes", b"", NodeList)
    assert [one.slug for one in everyone.nodes] == ["a", "b"]
    assert not everyone.blind
    one = await mesh.ask("nodes", NodesQuery(node=everyone.nodes[1].id), NodeList)
    assert [node.slug for node in one.nodes] == ["b"]
    with pytest.raises(NotFoundError, match="there are: a, b"):
        await mesh.ask("nodes", NodesQuery(node="c"), NodeList)


async def test_a_change_reaches_callers_and_the_database(mesh):
    await mesh.healthy()
    change = NodeChange(node="crm", change=NodeUpdate(status=Status.MAINTENANCE, weight=4.0))
    changed = await mesh.ask("update", change, NodeRecord)
    assert (changed.status, changed.weight) == (Status.MAINTENANCE, 4.0)
    assert changed.health is Health.HEALTHY
    await until(lambda: mesh.follower.table.nodes["crm"].status is Status.MAINTENANCE)
    await mesh.stop_master()
    await mesh.start_master()
    assert (mesh.record().status, mesh.record().weight) == (Status.MAINTENANCE, 4.0)
    assert mesh.record().updated_at == changed.updated_at


async def test_a_removed_node_stays_away_whatever_it_says(mesh):
    node = await mesh.healthy(incarnation=5)
    removed = await mesh.ask("remove", NodeName(node="crm"), NodeRecord)
    assert removed.slug == "crm"
    await until(lambda: mesh.health() is None)
    node.incarnation = 6
    dropped, beats = mesh.master.dropped, node.sequence
    await until(lambda: node.sequence > beats + 3 and mesh.master.dropped > dropped)
    await mesh.stop_master()
    await mesh.start_master()
    beats = node.sequence
    await until(lambda: node.sequence > beats + 3)
    assert await mesh.registry.nodes() == [], "also after a restart of the master"
    await mesh.ask("register", NodeRegister(name="crm"), NodeRegistered)
    await until(lambda: mesh.health() is Health.HEALTHY)
    with pytest.raises(NotFoundError):
        await mesh.ask("remove", NodeName(node="nobody"), NodeRecord)


async def test_a_heartbeat_may_be_quicker_than_the_registration_it_follows(mesh, monkeypatch):
    node = await FakeNode(mesh.broker, "crm").start()
    mesh.nodes.append(node)
    register = mesh.registry.register

    async def registered_and_heard(*args, **kwargs):
        await register(*args, **kwargs)
        await until(lambda: mesh.health() is Health.HEALTHY)

    monkeypatch.setattr(mesh.registry, "register", registered_and_heard)
    answer = await mesh.ask("register", NodeRegister(name="crm"), NodeRegistered)
    assert answer.node.health is Health.HEALTHY
    beats = node.sequence
    await until(lambda: node.sequence > beats + 3)
    assert mesh.health() is mesh.record().health is Health.HEALTHY


async def test_a_node_that_another_master_registered_is_known_when_it_is_needed(mesh):
    for slug in ("crm", "docs"):
        record = NodeRecord(id=f"id-{slug}", slug=slug, name=slug)
        await mesh.registry.register(record, api_key_hash=f"key-{slug}")
    assert mesh.master.membership.view.records() == []
    await mesh.healthy("crm")
    probed = await mesh.ask("probe", NodeName(node="id-docs"), NodeRecord)
    assert (probed.slug, probed.reason) == ("docs", "never heard")


async def test_ten_thousand_beats_of_strangers_are_a_few_queries(mesh, monkeypatch):
    await mesh.healthy()
    lookup, asked = mesh.registry.lookup, []

    async def counted(names):
        asked.append(len(names))
        return await lookup(names)

    monkeypatch.setattr(mesh.registry, "lookup", counted)
    dropped = mesh.master.dropped
    for number in range(10_000):
        beat = Heartbeat(node=f"x{number % 5000}", incarnation=1, sequence=number)
        mesh.operator.publish(subjects.heartbeat(beat.node), codec.encode(beat))
    await until(lambda: mesh.master.dropped == dropped + 10_000)
    assert len(asked) <= 4
    assert max(asked) <= 1000
    assert len(mesh.master.membership._strangers) <= 1000
    assert mesh.health() is Health.HEALTHY


async def test_statistics(mesh):
    await mesh.healthy()
    await mesh.ask("register", NodeRegister(name="away"), NodeRegistered)
    stats = await mesh.ask("stats", b"", NodeStats)
    assert (stats.total, stats.active, stats.healthy) == (2, 2, 1)
    assert (stats.collections, stats.documents) == (1, 3)


async def test_a_probe_is_fresh(mesh):
    node = await mesh.healthy()
    pings = node.pings
    probed = await mesh.ask("probe", NodeName(node="crm"), NodeRecord)
    assert node.pings > pings
    assert (probed.health, probed.failures) == (Health.HEALTHY, 0)
    await node.kill()
    probed = await mesh.ask("probe", NodeName(node="crm"), NodeRecord)
    assert (probed.health, probed.reason) == (Health.UNREACHABLE, "nobody listens")
    assert probed.failures >= 1


async def test_ping(mesh):
    pong = await mesh.ask("ping", PingRequest(), PingResult)
    assert (pong.node, pong.incarnation) == ("master", 1)


async def test_bad_requests_say_what_is_wrong(mesh):
    with pytest.raises(BadRequestError, match=r"adopt, .*history, .*token-issue"):
        await mesh.ask("explode", b"{}", NodeList)
    with pytest.raises(BadRequestError, match="JSON"):
        await mesh.ask("nodes", b"{", NodeList)
    with pytest.raises(InvalidError) as refused:
        await mesh.ask("update", {"node": "crm", "change": {"weight": -1}}, NodeRecord)
    assert "change.weight" in refused.value.fields
    with pytest.raises(DeadlineExceededError):
        await mesh.ask("nodes", NodesQuery(deadline=1), NodeList)


# -- history ---------------------------------------------------------------------------------------


def record(number: int, state: ActionState, **fields: Any) -> HistoryRecord:
    return HistoryRecord(
        **{"id": f"{number}", "node": "crm", "action": "index", "caller": "ops"}
        | {"state": state, "at": 1000 + number}
        | fields
    )


async def test_who_saw_an_action_end_finds_it(mesh):
    for number in range(20):
        await mesh.history.append(record(number, ActionState.ACCEPTED), timeout_s=1)
        await mesh.history.append(record(number, ActionState.SUCCEEDED), timeout_s=1)
        page = await mesh.ask("history", HistoryQuery(action_id=f"{number}"), HistoryPage)
        assert [row.state for row in page.actions] == [ActionState.SUCCEEDED]
    page = await mesh.ask("history", HistoryQuery(limit=3), HistoryPage)
    assert ([row.id for row in page.actions], page.total) == (["19", "18", "17"], 20)


async def test_a_long_stream_is_indexed_in_batches_and_only_once(mesh):
    for number in range(600):
        mesh.history.stored.append(record(number, ActionState.SUCCEEDED))
    page = await mesh.ask("history", HistoryQuery(limit=1), HistoryPage)
    assert page.total == 600
    await mesh.stop_master()
    assert mesh.history.stored
    await mesh.start_master()
    assert await mesh.registry.history_cursor() == 600


async def test_history_can_be_read_while_the_stream_is_away(mesh):
    await mesh.history.append(record(1, ActionState.SUCCEEDED), timeout_s=1)
    await mesh.ask("history", HistoryQuery(), HistoryPage)
    mesh.history.available = False
    page = await mesh.ask("history", HistoryQuery(), HistoryPage)
    assert page.total == 1
    mesh.history.available = True
    await mesh.history.append(record(2, ActionState.SUCCEEDED), timeout_s=1)
    page = await mesh.ask("history", HistoryQuery(), HistoryPage)
    assert page.total == 2


async def test_a_stream_that_was_made_anew_is_read_from_its_start(mesh):
    for number in range(5):
        await mesh.history.append(record(number, ActionState.SUCCEEDED), timeout_s=1)
    await mesh.ask("history", HistoryQuery(), HistoryPage)
    mesh.history.stored[:] = [record(77, ActionState.SUCCEEDED)]
    mesh.operator.publish(f"{subjects.PREFIX}.history.crm.index.succeeded", b"")
    async with asyncio.timeout(5):
        while (await mesh.ask("history", HistoryQuery(action_id="77"), HistoryPage)).total == 0:
            await asyncio.sleep(0.02)


async def test_a_record_that_cannot_be_stored_does_not_keep_out_the_rest(tmp_path):
    mesh = await Mesh(f"sqlite+aiosqlite:///{tmp_path}/mesh.db").start()
    try:
        mesh.history.stored += [
            record(1, ActionState.SUCCEEDED),
            record(2, ActionState.SUCCEEDED, at=2**80),
            record(3, ActionState.SUCCEEDED),
        ]
        page = await mesh.ask("history", HistoryQuery(), HistoryPage)
        assert [row.id for row in page.actions] == ["3", "1"]
        assert mesh.master.failures == 1
    finally:
        await mesh.close()


# -- life ------------------------------------------------------------------------------------------


async def test_a_failing_database_costs_nothing_but_the_write(mesh, monkeypatch):
    node = await mesh.healthy()
    broken = 0

    async def refuse(*_records: NodeRecord) -> None:
        nonlocal broken
        broken += 1
        raise UnavailableError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(mesh.registry, "observe", refuse)
        node.beat["version"] = "9"
        await until(lambda: broken)
        assert mesh.health() is Health.HEALTHY
    async with asyncio.timeout(5):
        while (await mesh.registry.nodes())[0].version != "9":
            await asyncio.sleep(0.02)


async def test_a_look_up_that_failed_is_tried_again_with_the_next_beat(mesh, monkeypatch):
    async def refuse(_names: list[str]) -> list[NodeRecord]:
        raise UnavailableError("disk full")

    record = NodeRecord(id="1", slug="crm", name="crm")
    await mesh.registry.register(record, api_key_hash="k")
    node = await FakeNode(mesh.broker, "crm").start()
    mesh.nodes.append(node)
    with monkeypatch.context() as patched:
        patched.setattr(mesh.registry, "lookup", refuse)
        dropped = mesh.master.dropped
        await until(lambda: mesh.master.dropped > dropped)
    await until(lambda: mesh.health() is Health.HEALTHY)


async def test_the_door_opens_last_and_closes_first(tmp_path):
    mesh = await Mesh(f"sqlite+aiosqlite:///{tmp_path}/mesh.db").start()
    assert mesh.door.judge is not None
    assert mesh.trail.running
    assert mesh.signing.running
    await mesh.close()
    assert mesh.door.judge is None
    assert not mesh.trail.running
    assert not mesh.signing.running


async def test_a_caller_who_asks_too_often_is_pushed_back_where_that_is_set(mesh):
    await mesh.stop_master()
    mesh.bus = mesh.broker.bus("master")
    mesh.registry = await SqlRegistry.open(mesh.url)
    limit = RateLimitConfig(bus=True, bus_max_attempts=3)
    mesh.master = mesh.made(mesh.bus, 9, rate_limit=limit)
    await mesh.master.start()
    for _ in range(3):
        await mesh.ask("stats", b"", NodeStats)
    with pytest.raises(UnavailableError, match="more often"):
        await mesh.ask("stats", b"", NodeStats)


async def test_a_master_starts_without_the_stream_and_makes_it_later(tmp_path):
    mesh = Mesh(f"sqlite+aiosqlite:///{tmp_path}/mesh.db")
    mesh.history.available = False
    await mesh.start()
    try:
        await mesh.ask("ping", b"", PingResult)
        assert not mesh.history.prepared
        mesh.history.available = True
        await until(lambda: mesh.history.prepared)
    finally:
        await mesh.close()


async def test_two_masters_answer_each_request_once(mesh):
    other_bus = mesh.broker.bus("master")
    other = mesh.made(other_bus, 2)
    await other.start()
    try:
        answers = [await mesh.ask("ping", b"", PingResult) for _ in range(6)]
        assert {answer.incarnation for answer in answers} == {1, 2}
    finally:
        await other.stop()
        await other_bus.close()


async def test_a_second_master_follows_and_takes_over_without_a_flip(mesh):
    """It knows the nodes already; whoever asks it before gets what the first one says."""
    await mesh.healthy("crm")
    other_bus = mesh.broker.bus("master")
    other = mesh.made(other_bus, 2)
    await other.start()
    try:
        assert (mesh.master.leads, other.leads) == (True, False)
        epochs = {(await mesh.ask("routes", RoutesRequest(), RouteUpdate)).epoch for _ in range(6)}
        assert epochs == {mesh.follower.table.epoch}
        await until(lambda: other.membership.settled)
        mesh.updates.clear()
        await mesh.master._leadership.stop()
        mesh.departures.tell("master", "Client Closed", mesh.seats[0])
        await until(lambda: other.leads, within_s=1)
        epoch = max(epochs)
        await until(lambda: mesh.follower.table.epoch > epoch, within_s=1)
        [first] = [u for u in mesh.updates if (u.epoch, u.version) == mesh.follower.table.order][:1]
        assert first.base == 0
        seen = {node.health for update in mesh.updates for node in update.nodes}
        assert seen == {Health.HEALTHY}
    finally:
        await other.stop()
        await other_bus.close()


async def test_what_the_board_says_of_breakers_is_in_the_routes_and_the_figures(mesh):
    await mesh.healthy("crm")
    failed = VerbOutcome(
        node="crm", incarnation=1, verb="search", calls=30, failures=30, state=BreakerState.OPEN
    )
    for connection in ("c1", "c2"):
        told = codec.encode(Outcomes(connection=connection, verbs=[failed]))
        mesh.operator.publish(subjects.outcome("ops"), told)
    await until(
        lambda: (
            (word := mesh.follower.table.nodes["crm"].breakers.get("search"))
            and word.state is BreakerState.OPEN
        )
    )
    stats = await mesh.ask("stats", b"", NodeStats)
    assert (stats.breakers["open"], stats.callers, stats.verbs["search"].failures) == (1, 1, 60)


async def test_a_node_whose_connection_ended_is_probed_at_once(mesh):
    node = await mesh.healthy("crm")
    await node.stop_serving()
    mesh.departures.tell("crm", "Client Closed", Seat("broker", 99))
    await settled()
    assert mesh.record().health is Health.UNREACHABLE, "no time has passed"


async def test_stop_leaves_nothing_behind(tmp_path):
    before = asyncio.all_tasks()
    mesh = await Mesh(f"sqlite+aiosqlite:///{tmp_path}/mesh.db").start()
    await mesh.healthy()
    await mesh.close()
    assert asyncio.all_tasks() == before
    assert mesh.bus.subscriptions == []
