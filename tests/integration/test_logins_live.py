"""The door of a real broker with a real master behind it: who gets in, and how fast one is out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh import bootstrap
from mesh.adapters.clock import SystemClock
from mesh.adapters.nats.bus import NatsBus
from mesh.config import MeshConfig, NatsConfig, SecurityConfig
from mesh.errors import (
    ConflictError,
    DisconnectedError,
    ForbiddenError,
    InvalidError,
    MeshError,
    UnauthorizedError,
)
from mesh.ports import Login
from mesh.runtime.access_api import AccessApi, digest_of
from mesh.runtime.caller import Caller
from mesh.runtime.registry_api import RegistryApi
from mesh.types import Status
from mesh.wire import codec, subjects
from mesh.wire.messages import Heartbeat, Identity, NodeRegister, NodeUpdate, PingResult, Request

JOINER = f"join-{'0a' * 16}"
OWN_KEY = f"nmk_{'w' * 43}"


class Live:
    """A broker, a master, and the operator whom the credentials name."""

    def __init__(self, broker, folder: Path) -> None:
        self.url = broker.url
        self.broker = broker
        self.folder = folder
        self.buses: list[NatsBus] = []

    @property
    def config(self) -> NatsConfig:
        return NatsConfig(servers=[self.url])

    async def start(self) -> None:
        self.operator = Caller(await self.log_in(self.broker.login("operator")), SystemClock())
        self.access = AccessApi(self.operator)
        self.registry = RegistryApi(self.operator)

    async def log_in(self, login: Login) -> NatsBus:
        bus = await NatsBus.connect(login.user, self.config, login=login)
        self.buses.append(bus)
        return bus

    async def by_key(self, name: str, key: str) -> NatsBus:
        return await self.log_in(Login(user=name, password=key))

    async def refused(self, name: str, key: str) -> None:
        with pytest.raises(UnauthorizedError):
            await self.by_key(name, key)

    async def out(self, bus: NatsBus, *, within_s: float = 1.0) -> float:
        """Seconds until it has lost its connection; it is not let in again."""
        began = time.monotonic()
        while bus.connected:
            assert time.monotonic() - began < within_s
            await asyncio.sleep(0.002)
        took = time.monotonic() - began
        await asyncio.sleep(0.3)
        assert not bus.connected
        return took

    async def stays(self, bus: NatsBus, for_s: float) -> None:
        until = time.monotonic() + for_s
        while time.monotonic() < until:
            await bus.flush(timeout_s=1)
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        for bus in self.buses:
            await bus.close()


@pytest.fixture
async def live(broker, tmp_path) -> AsyncIterator[Live]:
    config = MeshConfig(
        nats=NatsConfig(servers=[broker.url], credentials=str(broker.credentials("master"))),
        security=SecurityConfig(approval_queue=True),
    )
    async with bootstrap.master(config, data_dir=tmp_path / "master") as master:
        live = Live(broker, tmp_path)
        await live.start()
        yield live
        await live.close()
        assert master.failures == 0


async def test_a_key_opens_the_door_for_whom_it_names_and_no_further(live):
    made = await live.registry.register_node(NodeRegister(name="crm"))
    bus = await live.by_key("crm", made.api_key)
    assert (await Caller(bus, SystemClock()).master("ping", Request(), PingResult, 5)).node
    with pytest.raises(ForbiddenError):
        await Caller(bus, SystemClock()).master("nodes", Request(), PingResult, 5)
    await live.refused("crm", OWN_KEY)
    await live.refused("docs", made.api_key)
    await live.refused("master", made.api_key)
    kinds = [(one.kind, one.subject) for one in (await live.access.audit()).entries]
    assert ("login-granted", "crm") in kinds
    assert ("node-registered", "crm") in kinds


async def test_who_is_removed_or_suspended_is_out_within_a_second(live):
    removed = await live.registry.register_node(NodeRegister(name="crm"))
    resting = await live.registry.register_node(NodeRegister(name="docs"))
    rotated = await live.registry.register_node(NodeRegister(name="web"))
    user = await live.access.create_user("app", ["search"])
    keys = {
        "crm": removed.api_key,
        "docs": resting.api_key,
        "web": rotated.api_key,
        "app": user.api_key,
    }
    inside = {name: await live.by_key(name, key) for name, key in keys.items()}
    await live.registry.update_node("docs", NodeUpdate(status=Status.MAINTENANCE))
    await live.stays(inside["docs"], 0.4)
    for name, change in (
        ("crm", live.registry.remove_node("crm")),
        ("docs", live.registry.update_node("docs", NodeUpdate(status=Status.INACTIVE))),
        ("web", live.access.rotate_key("web")),
        ("app", live.access.remove_user("app")),
    ):
        await change
        await live.out(inside[name])
        await live.refused(name, keys[name])
        with pytest.raises(UnauthorizedError):
            await live.access.authenticate(keys[name])
    kicked = await live.access.audit(kind="connections-kicked")
    assert {one.subject for one in kicked.entries} == set(keys)
    assert {one.actor for one in kicked.entries} == {"operator"}


async def test_an_old_key_is_good_until_its_overlap_ends_also_for_who_was_in_before(live):
    made = await live.registry.register_node(NodeRegister(name="crm"))
    before = await live.by_key("crm", made.api_key)
    rotated = await live.access.rotate_key("crm", overlap_s=2)
    within = await live.by_key("crm", made.api_key)
    assert (await live.access.authenticate(made.api_key)).subject == "crm"
    await live.stays(before, 0.5)
    await live.out(before, within_s=4)
    assert not within.connected
    await live.refused("crm", made.api_key)
    await live.by_key("crm", rotated.api_key)
    expected = Identity(subject="crm", scopes=["search", "actions"], node=True)
    assert await live.access.authenticate(rotated.api_key) == expected


async def test_a_joiner_becomes_a_node_over_the_bus_and_can_do_nothing_else(live):
    made = await live.access.create_join_token(uses=1)
    bus = await live.by_key(JOINER, made.join_token)
    caller = Caller(bus, SystemClock())
    with pytest.raises(ForbiddenError):
        await caller.master("nodes", Request(), PingResult, 5)
    joined = await AccessApi(caller).join(made.join_token, NodeRegister(name="crm"), version="1")
    await live.by_key("crm", joined.api_key)
    await live.refused(JOINER, made.join_token)
    written = (await live.access.audit(kind="node-joined")).entries
    assert [(one.actor, one.subject) for one in written] == [(JOINER, "crm")]


async def test_a_stranger_waits_until_an_operator_lets_it_in(live):
    for _ in range(2):
        await live.refused("new", OWN_KEY)
    [one] = (await live.access.pending()).nodes
    assert (one.name, one.fingerprint) == ("new", digest_of(OWN_KEY)[:16])
    assert one.address == "127.0.0.1"
    other = f"nmk_{'x' * 43}"
    await live.refused("new", other)
    with pytest.raises(ConflictError, match="2 nodes wait"):
        await live.access.approve("new")
    [another] = [node for node in (await live.access.pending()).nodes if node.id != one.id]
    assert (await live.access.reject(another.id)).fingerprint == digest_of(other)[:16]
    await live.refused("new", other)
    assert (await live.access.approve("new", ["search"])).slug == "new"
    assert (await live.access.pending()).nodes == []
    await live.by_key("new", OWN_KEY)
    await live.refused("new", other)
    assert (await live.access.authenticate(OWN_KEY)).scopes == ["search"]


async def test_a_node_is_adopted_until_it_has_been_heard(live):
    first = await live.access.adopt(NodeRegister(name="crm"))
    second = await live.access.adopt(NodeRegister(name="crm"))
    await live.refused("crm", first.api_key)
    bus = await live.by_key("crm", second.api_key)
    await live.stays(bus, 1.0)
    beat = Heartbeat(node="crm", name="crm", incarnation=7, sequence=1)
    bus.publish(subjects.heartbeat("crm"), codec.encode(beat))
    async with asyncio.timeout(5):
        while not (await live.registry.nodes(node="crm")).nodes[0].incarnation:
            await asyncio.sleep(0.02)
    with pytest.raises(ConflictError, match="in use"):
        await live.access.adopt(NodeRegister(name="crm"))
    await live.stays(bus, 0.3)


async def test_names_are_given_once_whoever_has_them(live):
    await live.access.create_user("app", ["search"])
    await live.registry.register_node(NodeRegister(name="crm"))
    for attempt, why in (
        (live.registry.register_node(NodeRegister(name="App")), "meshctl users remove app"),
        (live.access.adopt(NodeRegister(name="app")), "there is a user"),
        (live.access.create_user("crm", ["search"]), "there is a node"),
        (live.access.create_user("app", ["search"]), "there is a user"),
        (live.access.issue("crm", ["search"]), "there is a node"),
    ):
        with pytest.raises(ConflictError, match=why):
            await attempt
    for name in ("master", "Gateway", JOINER):
        with pytest.raises(MeshError, match="reserved"):
            await live.access.create_user(name, ["search"])
    assert [user.name for user in (await live.access.users()).users] == ["app", "operator"]
    assert await live.access.issue("app", ["search"])


async def test_nobody_locks_himself_out(live):
    """The answer with the new key would not reach him."""
    with pytest.raises(InvalidError, match="--overlap"):
        await live.access.rotate_user_key("operator")
    with pytest.raises(InvalidError, match="is you"):
        await live.access.remove_user("operator")
    await live.stays(live.buses[0], 0.5)
    made = await live.access.rotate_user_key("operator", overlap_s=60)
    second = AccessApi(Caller(await live.by_key("operator", made.api_key), SystemClock()))
    assert [user.name for user in (await second.users()).users] == ["operator"]


async def test_without_a_master_who_is_in_stays_and_nobody_comes(broker, tmp_path):
    config = MeshConfig(
        nats=NatsConfig(servers=[broker.url], credentials=str(broker.credentials("master")))
    )
    live = Live(broker, tmp_path)
    async with bootstrap.master(config, data_dir=tmp_path / "master"):
        await live.start()
    await live.stays(live.buses[0], 0.2)
    with pytest.raises(DisconnectedError, match="no master"):
        await live.log_in(broker.login("operator"))
    async with bootstrap.master(config, data_dir=tmp_path / "master"):
        await live.log_in(broker.login("operator"))
    await live.close()
