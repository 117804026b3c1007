"""Whatever becomes of keys, in whatever order: exactly those open the door that should, and nobody
stays inside with one that does not.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Collection
from typing import Any, NamedTuple

import hypothesis.strategies as st
from fakes import (
    MemoryBroker,
    MemoryLoginStore,
    MemoryRegistry,
    MemoryTokenStore,
    MemoryTrail,
    PlainSigning,
    any_url,
)
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mesh.config import HealthConfig, SecurityConfig
from mesh.errors import ConflictError, MeshError, NotFoundError, UnauthorizedError
from mesh.ports import LoginAttempt, LoginGrant
from mesh.runtime.access_api import digest_of
from mesh.runtime.authority import Authority
from mesh.runtime.background import Background
from mesh.runtime.logins import Logins
from mesh.runtime.membership import Membership
from mesh.runtime.whereabouts import Whereabouts
from mesh.types import Status
from mesh.wire.messages import (
    Authenticate,
    Heartbeat,
    NodeAdopt,
    NodeApprove,
    NodeChange,
    NodeKeyRotate,
    NodeName,
    NodeRegister,
    NodeReject,
    NodeUpdate,
    Request,
    UserCreate,
    UserKeyRotate,
    UserName,
)

NAMES = st.sampled_from(["crm", "app", "new"])
ANNOUNCED = st.sampled_from(["crm", "app"])
UNANNOUNCED = st.sampled_from(["crm", "new"])
CHOICE = st.integers(0, 9)
DAY_S = 86_400
AT_THE_BROKER = (Status.ACTIVE, Status.MAINTENANCE, Status.ERROR)


class Clock:
    """Time that others move; who sleeps looks at it whenever the loop turns."""

    now = 1_800_000_000.0

    def unix_ms(self) -> int:
        return round(self.now * 1000)

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            await asyncio.sleep(0)


class Connection(NamedTuple):
    name: str
    key: str
    until: int | None


class Broker:
    """`Bouncer`, and what it cuts."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []

    async def kick(self, names: Collection[str]) -> Counter[str]:
        cut = [one for one in self.connections if one.name in names]
        self.connections = [one for one in self.connections if one.name not in names]
        return Counter(one.name for one in cut)


class Holder:
    """What the model knows of a name that is given."""

    def __init__(self, key: str, *, node: bool) -> None:
        self.key = key
        self.node = node
        self.previous = ""
        self.previous_until = 0
        self.status = Status.ACTIVE
        self.heard = False

    def replace(self, key: str, overlap_s: int, now_ms: int) -> None:
        self.previous = self.key if overlap_s else ""
        self.previous_until = now_ms + overlap_s * 1000
        self.key = key


class Keys(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.broker = Broker()
        self.store = MemoryLoginStore()
        self.registry = MemoryRegistry(self.store)
        self.trail = MemoryTrail()
        self.holders: dict[str, Holder] = {}
        self.keys: list[tuple[str, str]] = []
        """Name and key, of all that ever were."""
        self.waiting: set[tuple[str, str]] = set()
        self.rejected: set[tuple[str, str]] = set()
        self.run(self._begin())

    async def _begin(self) -> None:
        bus = MemoryBroker().bus("master")
        tokens = MemoryTokenStore(self.store)
        self.background = Background(self.clock)
        health = HealthConfig()
        self.membership = Membership(
            bus,
            self.registry,  # type: ignore[arg-type] (no history is asked for)
            self.clock,
            self.background,
            health,
            incarnation=1,
            on_change=lambda: None,
        )
        self.authority = Authority(
            bus,
            self.membership,
            registry=self.registry,  # type: ignore[arg-type]
            tokens=tokens,
            logins=self.store,
            signing=PlainSigning(),
            audit=self.trail,
            bouncer=self.broker,
            check_url=any_url,
            clock=self.clock,
            background=self.background,
            config=SecurityConfig(),
        )
        self.authority.start()
        self.strict, self.open = (
            Logins(
                self.store,
                tokens,
                audit=self.trail,
                whereabouts=Whereabouts(self.trail.last_origin, self.clock),
                clock=self.clock,
                config=SecurityConfig(approval_queue=queue),
            )
            for queue in (False, True)
        )

    def run(self, work: Any) -> Any:
        async def whole() -> Any:
            try:
                return await work
            finally:
                for _ in range(10):  # what was begun has come to rest
                    await asyncio.sleep(0)

        return self.loop.run_until_complete(whole())

    def ask(self, verb: str, request: Any) -> Any:
        return self.run(self.authority.verbs[verb][1](request, "ops"))

    def look(self, verb: str, request: Any) -> Any:
        """Nothing comes of it that would have to come to rest."""
        return self.loop.run_until_complete(self.authority.verbs[verb][1](request, "ops"))

    def judged(self, door: Logins, name: str, key: str) -> LoginGrant:
        return self.loop.run_until_complete(door.judge(LoginAttempt(name, key, "10.0.0.1")))

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            assert self.background.failures == 0
            self.loop.run_until_complete(self.background.stop())
            self.loop.close()

    # -- nodes -------------------------------------------------------------------------------------

    def given(self, name: str, key: str, *, node: bool) -> None:
        self.holders[name] = Holder(key, node=node)
        self.keys.append((name, key))
        self.waiting = {one for one in self.waiting if one[0] != name}

    @rule(name=ANNOUNCED)
    def register(self, name: str) -> None:
        try:
            made = self.ask("register", NodeRegister(name=name))
        except ConflictError:
            assert name in self.holders
            return
        assert name not in self.holders
        self.given(name, made.api_key, node=True)

    @rule(name=ANNOUNCED)
    def adopt(self, name: str) -> None:
        holder = self.holders.get(name)
        unused = holder is not None and holder.node and not holder.heard
        allowed = holder is None or (unused and holder.status is Status.ACTIVE)
        try:
            made = self.ask("adopt", NodeAdopt(node=NodeRegister(name=name)))
        except ConflictError:
            assert not allowed
            return
        assert allowed
        if holder is None:
            self.given(name, made.api_key, node=True)
        else:
            holder.replace(made.api_key, 0, self.clock.unix_ms())
            self.keys.append((name, made.api_key))

    @rule(name=NAMES, overlap_s=st.sampled_from([0, 60]))
    def rotate(self, name: str, overlap_s: int) -> None:
        self.everybody_connects()
        holder = self.holders.get(name)
        is_user = holder is not None and not holder.node
        verb, asked = (
            ("user-rotate-key", UserKeyRotate(name=name, overlap_s=overlap_s))
            if is_user
            else ("rotate-key", NodeKeyRotate(node=name, overlap_s=overlap_s))
        )
        try:
            made = self.ask(verb, asked)
        except NotFoundError:
            assert holder is None
            return
        assert holder is not None
        assert bool(made.previous_until) == bool(overlap_s)
        holder.replace(made.api_key, overlap_s, self.clock.unix_ms())
        self.keys.append((name, made.api_key))

    @rule(name=NAMES, status=st.sampled_from([*AT_THE_BROKER, Status.INACTIVE, Status.PENDING]))
    def status_changes(self, name: str, status: Status) -> None:
        self.everybody_connects()
        holder = self.holders.get(name)
        try:
            self.ask("update", NodeChange(node=name, change=NodeUpdate(status=status)))
        except NotFoundError:
            assert holder is None or not holder.node
            return
        assert holder is not None
        holder.status = status

    @rule(name=NAMES)
    def is_heard(self, name: str) -> None:
        holder = self.holders.get(name)
        if holder is not None and holder.node:
            holder.heard = True
            self.membership.view.heard(Heartbeat(node=name, incarnation=5, sequence=1))
            self.run(self.registry.observe(self.membership.view.find(name)))

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        self.everybody_connects()
        holder = self.holders.get(name)
        is_user = holder is not None and not holder.node
        verb, asked = (
            ("user-remove", UserName(name=name)) if is_user else ("remove", NodeName(node=name))
        )
        try:
            self.ask(verb, asked)
        except NotFoundError:
            assert holder is None
            return
        del self.holders[name]

    @rule(name=ANNOUNCED)
    def create_user(self, name: str) -> None:
        try:
            made = self.ask("user-create", UserCreate(name=name, scopes=["search"]))
        except ConflictError:
            assert name in self.holders
            return
        assert name not in self.holders
        self.given(name, made.api_key, node=False)

    # -- strangers ---------------------------------------------------------------------------------

    @rule(name=UNANNOUNCED, choice=st.integers(0, 2))
    def knock(self, name: str, choice: int) -> None:
        """With one of three keys of its own."""
        key = f"nmk_{name:_<42}{choice}"
        known = (name, key) in self.keys
        if not known:
            self.keys.append((name, key))
        if not self.opens(name, key):
            self.refused(self.open, name, key)
            if name not in self.holders and (name, key) not in self.rejected:
                self.waiting.add((name, key))

    def first_waiting(self, name: str, choice: int) -> tuple[str, str] | None:
        pending = [one for one in self.look("pending", Request()).nodes if one.name == name]
        if not pending:
            assert not any(one[0] == name for one in self.waiting)
            return None
        one = pending[choice % len(pending)]
        key = next(k for n, k in self.waiting if n == name and digest_of(k)[:16] == one.fingerprint)
        return one.id, key

    @rule(name=UNANNOUNCED, choice=CHOICE)
    def approve(self, name: str, choice: int) -> None:
        if (one := self.first_waiting(name, choice)) is not None:
            self.ask("approve", NodeApprove(node=one[0]))
            self.given(name, one[1], node=True)

    @rule(name=UNANNOUNCED, choice=CHOICE)
    def reject(self, name: str, choice: int) -> None:
        if (one := self.first_waiting(name, choice)) is not None:
            self.ask("reject", NodeReject(node=one[0]))
            self.waiting.discard((name, one[1]))
            self.rejected.add((name, one[1]))
            self.refused(self.open, name, one[1])  # it asks again at once

    # -- the door ----------------------------------------------------------------------------------

    @rule()
    def everybody_connects(self) -> None:
        for name, key in self.keys:
            if self.opens(name, key):
                grant = self.judged(self.strict, name, key)
                connection = Connection(name, key, grant.until)
                if connection not in self.broker.connections:
                    self.broker.connections.append(connection)

    @rule(seconds=st.sampled_from([1, 61, DAY_S + 700]))
    def time_passes(self, seconds: int) -> None:
        self.clock.now += seconds
        self.run(asyncio.sleep(0))
        if seconds > DAY_S:
            self.waiting.clear()
            self.rejected.clear()

    def is_good(self, name: str, key: str) -> bool:
        holder = self.holders.get(name)
        if holder is None:
            return False
        overlaps = holder.previous == key and self.clock.unix_ms() < holder.previous_until
        return holder.key == key or overlaps

    def opens(self, name: str, key: str) -> bool:
        return self.is_good(name, key) and self.holders[name].status in AT_THE_BROKER

    def refused(self, door: Logins, name: str, key: str) -> None:
        try:
            self.judged(door, name, key)
        except UnauthorizedError as error:
            assert str(error) == "wrong name or key"
        else:
            raise AssertionError(f"{key} opened the door as {name}")

    @invariant()
    def exactly_the_keys_that_should_open_the_door(self) -> None:
        if not hasattr(self, "authority"):
            return
        for name, key in self.keys:
            if self.opens(name, key):
                grant = self.judged(self.strict, name, key)
                holder = self.holders[name]
                expected = None if key == holder.key else math.ceil(holder.previous_until / 1000)
                assert (grant.name, grant.until) == (name, expected)
            else:
                self.refused(self.strict, name, key)

    @invariant()
    def the_same_keys_open_gateways_for_who_is_active(self) -> None:
        if not hasattr(self, "authority"):
            return
        for name, key in self.keys:
            try:
                who = self.look("authenticate", Authenticate(digest=digest_of(key)))
            except MeshError:
                who = None
            holder = self.holders.get(name)
            good = self.is_good(name, key) and holder.status is Status.ACTIVE
            assert (who is not None) == good
            if who is not None:
                assert (who.subject, who.node) == (name, holder.node)

    @invariant()
    def nobody_stays_inside_for_a_second_with_a_key_that_is_not_good(self) -> None:
        if not hasattr(self, "authority"):
            return
        bad = [one for one in self.broker.connections if not self.opens(one.name, one.key)]
        self.clock.now += 1.1
        self.run(asyncio.sleep(0))
        self.broker.connections = [
            one
            for one in self.broker.connections
            if one.until is None or one.until > self.clock.now
        ]
        assert [one for one in self.broker.connections if one in bad] == []

    @invariant()
    def those_wait_who_should(self) -> None:
        if hasattr(self, "authority"):
            pending = self.look("pending", Request()).nodes
            shown = {(one.name, one.fingerprint) for one in pending}
            assert shown == {(name, digest_of(key)[:16]) for name, key in self.waiting}


TestKeys = Keys.TestCase
TestKeys.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
