"""Keys and tokens of a whole master: real SQL, real signatures, a gatekeeper to believe them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import structlog
from fakes import MemoryBroker, MemoryDoor, MemoryHistory, MemoryTrail
from lease_fakes import MemoryBucket, MemoryDepartures

from mesh import bootstrap
from mesh.adapters.clock import SystemClock
from mesh.adapters.jwt import Ed25519Mint, JwtVerifier
from mesh.adapters.logs import redact
from mesh.adapters.nats.keys import make_master
from mesh.adapters.sealing import SeedSealer
from mesh.adapters.sql.registry import SqlRegistry
from mesh.config import (
    MeshConfig,
    NatsConfig,
    SecurityConfig,
)
from mesh.errors import (
    ConflictError,
    InvalidError,
    MeshError,
    NotFoundError,
    OverloadedError,
    UnauthorizedError,
    UnavailableError,
)
from mesh.ports import AccessTokenRecord, LoginAttempt
from mesh.runtime import issued_tokens, revocations
from mesh.runtime.access_api import AccessApi, digest_of
from mesh.runtime.caller import Caller
from mesh.runtime.gatekeeper import Gatekeeper
from mesh.runtime.master import BrokerControl, Master, Stores
from mesh.runtime.registry_api import RegistryApi
from mesh.runtime.signing_keys import KeyRing
from mesh.types import Status
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    Authenticate,
    Grant,
    Identity,
    NodeChange,
    NodeJoin,
    NodeJoined,
    NodeName,
    NodeRecord,
    NodeRegister,
    NodeRegistered,
    NodeUpdate,
    Revoked,
    TokenRefresh,
    Trust,
    TrustQuery,
)

WRITTEN = (
    "join-token-created",
    "key-rotated",
    "node-adopted",
    "node-joined",
    "node-registered",
    "node-removed",
    "node-updated",
    "signing-key-rotated",
    "token-issued",
    "token-refreshed",
    "token-revoked",
    "user-created",
    "user-removed",
)
SECURITY = SecurityConfig(access_token_s=600, refresh_token_s=3600)


class MovedClock(SystemClock):
    """The real one, moved ahead."""

    ahead_s = 0.0

    def unix_ms(self) -> int:
        return super().unix_ms() + round(self.ahead_s * 1000)


class Office:
    """A master, an operator who asks it, and a gatekeeper."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = MovedClock()
        self.broker = MemoryBroker()
        self.history = MemoryHistory(self.broker.bus("historian"))
        self.door = MemoryDoor()
        self.trail = MemoryTrail()
        self.seed = make_master().issuer_nkey
        self.operator = Caller(self.broker.bus("ops"), self.clock)
        self.access = AccessApi(self.operator)
        self.told: list[Revoked] = []
        verifier = JwtVerifier(issuer="nodemesh", audience="nodemesh", leeway_s=5.0)
        bus = self.broker.bus("gateway")
        self.gatekeeper = Gatekeeper(bus, AccessApi(Caller(bus, self.clock)), verifier, self.clock)

    async def start(self) -> None:
        bus = self.broker.bus("listener")
        await bus.subscribe(subjects.REVOKED, lambda message: self._heard(message.data))
        await self.start_master()
        await self.gatekeeper.start()
        assert self.gatekeeper.ready

    def _heard(self, data: bytes) -> None:
        told = codec.decode(data, Revoked)
        if not told.keys:  # a new ring says so
            self.told.append(told)

    async def start_master(self) -> None:
        self.bus = self.broker.bus("master")
        self.registry = await SqlRegistry.open(f"sqlite+aiosqlite:///{self.folder}/mesh.db")
        signing = KeyRing(
            self.registry.signing_keys,
            self.bus,
            self.clock,
            mint=Ed25519Mint(issuer="nodemesh", audience="nodemesh"),
            sealer=SeedSealer(self.seed),
            audit=self.trail,
        )
        self.master = Master(
            self.bus,
            Stores(self.registry, self.registry.tokens, self.registry.logins),
            BrokerControl(self.door, self.door, MemoryDepartures(), MemoryBucket().lease()),
            self.clock,
            config=MeshConfig(security=SECURITY),
            signing=signing,
            audit=self.trail,
            check_url=self.check_url,
            seedlings=[],
            incarnation=1,
        )
        await self.master.start()

    async def check_url(self, url: str) -> None:
        if "internal" in url:
            raise InvalidError("not a safe address", fields={"url": ["not a safe address"]})

    async def stop_master(self) -> None:
        await self.master.stop()
        await self.bus.close()
        await self.registry.close()

    async def stop(self) -> None:
        await self.gatekeeper.stop()
        await self.stop_master()

    async def ask(self, verb: str, request, kind):
        return await self.operator.master(verb, request, kind, 5.0)

    async def register(self, name: str = "crm") -> NodeRegistered:
        return await self.ask("register", NodeRegister(name=name), NodeRegistered)

    async def set_status(self, node: str, status: Status) -> None:
        change = NodeChange(node=node, change=NodeUpdate(status=status))
        await self.ask("update", change, NodeRecord)

    async def joined(self, name: str = "shop", **options) -> NodeJoined:
        made = await self.access.create_join_token(**options)
        return await self.access.join(made.join_token, NodeRegister(name=name), version="1.2")

    async def good(self, bearer: str) -> Identity:
        return await self.gatekeeper.identify(bearer)

    async def refused(self, *bearers: str | None) -> None:
        """By the gatekeeper, once it has heard what there is to hear."""
        await asyncio.sleep(0.01)
        for bearer in bearers:
            assert bearer
            with pytest.raises(UnauthorizedError):
                await self.gatekeeper.identify(bearer)

    async def refresh_refused(self, *tokens: str | None) -> None:
        for token in tokens:
            assert token
            with pytest.raises(UnauthorizedError, match=r"^Invalid refresh token$"):
                await self.access.refresh(token)


def told_of(node: str, joined: NodeJoined) -> list[Revoked]:
    """What everybody hears of a node that is shut out."""
    return [Revoked(subjects=[node]), Revoked(tokens=[joined.grant.id])]


@pytest.fixture
async def office(tmp_path) -> AsyncIterator[Office]:
    office = Office(tmp_path)
    await office.start()
    yield office
    await office.stop()
    assert office.master.failures == 0
    assert office.broker.handler_failures == 0


# -- issuing ---------------------------------------------------------------------------------------


async def test_an_issued_token_opens_the_door_for_whom_it_names(office):
    grant = await office.access.issue("app", ["search", "actions:refund", "search"], ttl_s=60)
    who = await office.good(grant.access_token)
    assert who == Identity(subject="app", scopes=["search", "actions:refund"], token_id=grant.id)
    assert (grant.token_type, grant.expires_in, grant.refresh_token) == ("Bearer", 60, None)
    office.clock.ahead_s = 59
    assert await office.good(grant.access_token)
    office.clock.ahead_s = 66
    await office.refused(grant.access_token)


@pytest.mark.parametrize("subject", ["crm", "master", "gateway", "bridge", "JS"])
async def test_a_name_of_a_node_or_a_reserved_one_gets_no_token(office, subject):
    await office.register("crm")
    with pytest.raises(ConflictError, match=subject):
        await office.access.issue(subject, ["search"])
    assert (await office.access.tokens(all=True)).tokens == []


async def test_a_node_does_not_take_the_name_of_somebody_who_has_tokens(office):
    grant = await office.access.issue("app", ["search"])
    with pytest.raises(ConflictError, match="meshctl tokens revoke --subject app"):
        await office.register("App")
    await office.access.revoke(grant.id)
    assert (await office.register("App")).node.slug == "app"


async def test_tokens_survive_the_master(office):
    grant = await office.access.issue("app", ["search"], refresh=True)
    revoked = await office.access.issue("app", ["search"])
    await office.access.revoke(revoked.id)
    await office.stop_master()
    await office.start_master()
    trust = await office.access.trust()
    assert trust.revoked == [revoked.id]
    assert await office.good(grant.access_token)
    assert await office.access.refresh(grant.refresh_token)


# -- refreshing ------------------------------------------------------------------------------------


async def test_a_refresh_gives_new_tokens_of_the_same_kind(office):
    first = await office.access.issue("app", ["search"], ttl_s=60, refresh=True)
    assert first.refresh_expires_in == 3600
    second = await office.access.refresh(first.refresh_token)
    assert (second.subject, second.scopes, second.node) == ("app", ["search"], None)
    assert (second.expires_in, second.refresh_expires_in) == (600, 3600)
    assert (await office.good(second.access_token)).token_id == second.id
    assert await office.good(first.access_token), "until it expires"
    third = await office.access.refresh(second.refresh_token)
    assert len({first.refresh_token, second.refresh_token, third.refresh_token}) == 3


async def test_a_used_refresh_token_ends_its_family(office):
    other = await office.access.issue("app", ["search"], refresh=True)
    first = await office.access.issue("app", ["search"], refresh=True)
    second = await office.access.refresh(first.refresh_token)
    assert await office.good(second.access_token)
    await office.refresh_refused(first.refresh_token)
    await office.refused(first.access_token, second.access_token)
    await office.refresh_refused(second.refresh_token, first.refresh_token)
    assert await office.good(other.access_token), "another family"
    assert await office.access.refresh(other.refresh_token)
    assert {token for one in office.told for token in one.tokens} == {first.id, second.id}


async def test_a_refresh_token_expires(office):
    grant = await office.access.issue("app", ["search"], refresh=True)
    office.clock.ahead_s = 3601
    await office.refresh_refused(grant.refresh_token, "nmr_made-up", grant.access_token)


async def test_twenty_refreshes_at_once_leave_nothing_good(office):
    """One takes it at most; the others show a used token, and that is what a thief would do."""
    grant = await office.access.issue("app", ["search"], refresh=True)
    answers = await asyncio.gather(
        *(office.access.refresh(grant.refresh_token) for _ in range(20)), return_exceptions=True
    )
    counted = Counter(type(answer) for answer in answers)
    assert counted[Grant] <= 1
    assert counted[Grant] + counted[UnauthorizedError] == 20
    await office.refused(grant.access_token)
    for won in (answer for answer in answers if isinstance(answer, Grant)):
        await office.refused(won.access_token)
        await office.refresh_refused(won.refresh_token)
    assert (await office.access.tokens()).tokens == []


async def test_many_refreshes_one_after_the_other_all_succeed(office):
    grants = [await office.access.issue(f"app{n}", ["search"], refresh=True) for n in range(5)]
    for _ in range(4):
        grants = await asyncio.gather(
            *(office.access.refresh(grant.refresh_token) for grant in grants)
        )
    assert {(await office.good(g.access_token)).subject for g in grants} == {
        f"app{n}" for n in range(5)
    }


# -- revoking --------------------------------------------------------------------------------------


async def test_one_token_is_revoked_by_its_id(office):
    one, other = [await office.access.issue("app", ["search"]) for _ in range(2)]
    assert await office.good(one.access_token)
    assert (await office.access.revoke(one.id)).revoked == 1
    await office.refused(one.access_token)
    assert await office.good(other.access_token)
    assert (await office.access.revoke(one.id)).revoked == 0
    with pytest.raises(NotFoundError, match="nothing"):
        await office.access.revoke("nothing")


async def test_a_refresh_token_is_revoked_with_its_family(office):
    grant = await office.access.issue("app", ["search"], refresh=True)
    [listed] = [t for t in (await office.access.tokens()).tokens if t.kind == "refresh"]
    assert (await office.access.revoke(listed.id)).revoked == 2
    await office.refused(grant.access_token)
    await office.refresh_refused(grant.refresh_token)


async def test_a_subject_loses_all_tokens(office):
    grants = [await office.access.issue("app", ["search"], refresh=True) for _ in range(3)]
    other = await office.access.issue("other", ["search"])
    assert (await office.access.revoke(subject="app")).revoked == 6
    await office.refused(*(grant.access_token for grant in grants))
    await office.refresh_refused(*(grant.refresh_token for grant in grants))
    assert await office.good(other.access_token)


@pytest.mark.parametrize("given", [{}, {"id": "a", "subject": "b"}], ids=["neither", "both"])
async def test_what_to_revoke_must_be_said(office, given):
    with pytest.raises(InvalidError):
        await office.access.revoke(**given)


async def test_many_are_told_in_messages_that_fit(office, monkeypatch):
    monkeypatch.setattr(revocations, "_TOLD_AT_ONCE", 10)
    grants = [await office.access.issue("app", ["search"]) for _ in range(25)]
    assert (await office.access.revoke(subject="app")).revoked == 25
    await asyncio.sleep(0.01)
    assert [len(told.tokens) for told in office.told] == [10, 10, 5]
    told = {token for one in office.told for token in one.tokens}
    assert told == {grant.id for grant in grants}


async def test_a_list_that_no_message_holds_comes_in_several(office, monkeypatch):
    grants = [await office.access.issue("app", ["search"]) for _ in range(7)]
    await office.access.revoke(subject="app")
    whole = (await office.access.trust()).revoked
    assert whole == sorted(grant.id for grant in grants)
    monkeypatch.setattr(issued_tokens, "_TRUST_AT_ONCE", 3)
    trust = await office.access.trust()
    assert trust.revoked == whole
    assert trust.keys
    asked = await office.ask("trust", TrustQuery(after=whole[4]), Trust)
    assert (asked.revoked, asked.more) == (whole[5:], False)


async def test_a_token_is_told_of_for_as_long_as_clocks_may_differ(office):
    grant = await office.access.issue("app", ["search"], ttl_s=60)
    await office.access.revoke(grant.id)
    office.clock.ahead_s = 60 + 8  # a gateway 4 s behind takes it until 65 s by its own clock
    assert (await office.access.trust()).revoked == [grant.id]
    office.clock.ahead_s = 60 + 11
    assert (await office.access.trust()).revoked == []


async def test_what_a_congested_broker_did_not_take_is_told_soon(office, monkeypatch):
    publish, refusals = office.bus.publish, iter(range(3))

    def congested(subject: str, payload: bytes) -> None:
        if subject == subjects.REVOKED and next(refusals, None) is not None:
            raise OverloadedError("the connection to the broker is congested")
        publish(subject, payload)

    monkeypatch.setattr(office.bus, "publish", congested)
    office.master._authority._revocations.tell(tokens=["t1"])
    office.master._authority._revocations.tell(tokens=["t2"])
    async with asyncio.timeout(5):
        while len(office.told) < 2:
            await asyncio.sleep(0.01)
    assert [told.tokens for told in office.told] == [["t1"], ["t2"]]
    assert next(refusals, None) is None


async def test_what_the_broker_missed_is_told_when_it_is_back(office):
    grant = await office.access.issue("app", ["search"])
    await office.good(grant.access_token)
    office.broker.stop()
    office.master._authority._revocations.tell(tokens=[grant.id], names=["crm"])
    await asyncio.sleep(0.01)
    assert office.told == []
    office.broker.start()
    await asyncio.sleep(0.01)
    assert office.told == [Revoked(tokens=[grant.id], subjects=["crm"])]
    assert office.master._authority._revocations._untold == []


async def test_what_expired_long_ago_is_pruned(office):
    await office.access.issue("app", ["search"], ttl_s=1)
    office.clock.ahead_s = 86_400
    await office.stop_master()
    await office.start_master()
    assert len((await office.access.tokens(all=True)).tokens) == 1, "listed for a day"
    office.clock.ahead_s = 86_500
    await office.stop_master()
    await office.start_master()
    async with asyncio.timeout(5):
        while (await office.access.tokens(all=True)).tokens:
            await asyncio.sleep(0.01)


# -- nodes and their keys --------------------------------------------------------------------------


async def test_an_api_key_says_which_node_it_is(office):
    made = await office.register("crm")
    assert made.api_key.startswith("nmk_")
    expected = Identity(subject="crm", scopes=["search", "actions"], node=True)
    assert await office.good(made.api_key) == expected
    assert office.gatekeeper.known(made.api_key) == expected


async def test_a_rotated_key_replaces_the_old_one_and_ends_the_tokens(office):
    """Whoever had the old key has what it gave as well."""
    joined = await office.joined("crm")
    assert await office.good(joined.api_key)
    assert await office.good(joined.grant.access_token)
    rotated = await office.access.rotate_key("crm")
    await office.refused(joined.api_key)
    assert (await office.good(rotated.api_key)).subject == "crm"
    assert rotated.node.id == joined.node.id
    await office.refused(joined.grant.access_token)
    await office.refresh_refused(joined.grant.refresh_token)
    assert office.told == told_of("crm", joined)
    with pytest.raises(NotFoundError):
        await office.access.rotate_key("nobody")


@pytest.mark.parametrize("status", [Status.INACTIVE, Status.MAINTENANCE, Status.ERROR])
async def test_a_node_that_is_not_active_is_shut_out(office, status):
    joined = await office.joined()
    assert await office.good(joined.api_key)
    assert await office.good(joined.grant.access_token)
    await office.set_status("shop", status)
    await office.refused(joined.api_key, joined.grant.access_token)
    await office.refresh_refused(joined.grant.refresh_token)
    assert office.told == told_of("shop", joined)
    await office.set_status("shop", Status.ACTIVE)
    await office.refused(joined.grant.access_token)
    await office.refresh_refused(joined.grant.refresh_token)
    office.gatekeeper._bad_keys.clear()
    assert await office.good(joined.api_key)


async def test_what_another_master_did_to_a_node_counts_when_it_refreshes(office):
    joined = await office.joined()
    await office.registry.update("shop", NodeUpdate(status=Status.INACTIVE))
    await office.refresh_refused(joined.grant.refresh_token)
    await office.refused(joined.grant.access_token)
    assert (await office.access.tokens(subject="shop")).tokens == []


async def test_other_changes_shut_nobody_out(office):
    joined = await office.joined()
    change = NodeChange(node="shop", change=NodeUpdate(weight=3.0, status=Status.ACTIVE))
    await office.ask("update", change, NodeRecord)
    assert await office.good(joined.grant.access_token)
    assert office.told == [Revoked(subjects=["shop"])], "the other masters look again"


@pytest.mark.parametrize(
    ("caller", "who", "origin"),
    [
        ("gateway", "gateway for ann", "192.0.2.7"),
        ("bridge", "bridge for ann", "192.0.2.7"),
        ("ops", "ops", "198.51.100.3"),
        ("crm2", "crm2", ""),
    ],
)
async def test_whom_a_caller_speaks_for_is_written_down_where_it_is_believed(
    office, caller, who, origin
):
    asking = Caller(office.broker.bus(caller), office.clock)
    mesh, access = RegistryApi(asking), AccessApi(asking)
    made = await office.access.create_user("ops", ["admin"])
    await office.door.judge(LoginAttempt("ops", made.api_key, "198.51.100.3"))
    office.trail.entries.clear()
    said = {"on_behalf": "ann", "origin": "192.0.2.7"}
    with structlog.testing.capture_logs() as logged:
        await mesh.register_node(NodeRegister(name="crm"), **said)
        await mesh.update_node("crm", NodeUpdate(status=Status.INACTIVE), **said)
        await access.rotate_key("crm", **said)
        await mesh.remove_node("crm", **said)
        grant = await access.issue("app", ["search"], refresh=True, **said)
        fresh = await access.refresh(grant.refresh_token, **said)
        await access.revoke(fresh.id, **said)
        made = await access.create_join_token(**said)
        await access.join(made.join_token, NodeRegister(name="shop"), **said)
        await access.adopt(NodeRegister(name="local"), **said)
        await access.create_user("web", ["search"], **said)
        await access.rotate_user_key("web", **said)
        await access.remove_user("web", **said)
        await access.rotate_signing_keys(60, **said)
    told = {entry["event"]: entry["by"] for entry in logged if "by" in entry}
    assert told == dict.fromkeys(told, who)
    written = [(entry.actor, entry.origin) for entry in office.trail.entries]
    assert written == [(who, origin)] * len(written)
    assert sorted(office.trail.kinds()) == sorted([*WRITTEN, "key-rotated"])


async def test_a_url_that_is_not_safe_registers_nothing(office):
    made = await office.access.create_join_token()
    unsafe = NodeRegister(name="crm", url="http://internal/")
    for attempt in (
        lambda: office.ask("register", unsafe, NodeRegistered),
        lambda: office.access.adopt(unsafe),
        lambda: office.access.join(made.join_token, unsafe),
    ):
        with pytest.raises(InvalidError, match="not a safe address"):
            await attempt()
    assert await office.registry.nodes() == []
    await office.joined("crm")
    change = NodeChange(node="crm", change=NodeUpdate(url="http://internal/"))
    with pytest.raises(InvalidError, match="not a safe address"):
        await office.ask("update", change, NodeRecord)
    assert (await office.registry.nodes())[0].url is None


async def test_a_removed_node_is_shut_out_and_its_name_starts_afresh(office):
    joined = await office.joined()
    await office.ask("remove", NodeName(node="shop"), NodeRecord)
    await office.refused(joined.api_key, joined.grant.access_token)
    await office.refresh_refused(joined.grant.refresh_token)
    again = await office.joined()
    await office.refused(joined.api_key, joined.grant.access_token)
    assert (await office.good(again.api_key)).subject == "shop"


async def test_a_removal_that_got_half_way_can_be_asked_for_again(office, monkeypatch):
    joined = await office.joined()

    async def fail(*_args: object, **_options: object) -> None:
        raise UnavailableError("the database is not available")

    with monkeypatch.context() as broken:
        broken.setattr(office.registry.tokens, "revoke_subject", fail)
        with pytest.raises(UnavailableError):
            await office.ask("remove", NodeName(node="shop"), NodeRecord)
    await office.ask("remove", NodeName(node="shop"), NodeRecord)
    await office.refused(joined.grant.access_token)
    with pytest.raises(NotFoundError):
        await office.ask("remove", NodeName(node="shop"), NodeRecord)


async def test_a_user_whose_removal_got_half_way_is_shut_out_by_the_next_one(office, monkeypatch):
    await office.access.create_user("web", ["search"])
    identity = Identity(subject="web", scopes=["search"])
    grant = await office.master._authority.issued.grant(identity, ttl_s=60, family="f")

    async def fail(*_args: object, **_options: object) -> None:
        raise UnavailableError("the database is not available")

    with monkeypatch.context() as broken:
        broken.setattr(office.registry.tokens, "revoke_subject", fail)
        with pytest.raises(UnavailableError):
            await office.access.remove_user("web")
    await office.refresh_refused(grant.refresh_token)
    assert await office.good(grant.access_token)
    office.door.kicks.clear()
    with pytest.raises(NotFoundError):
        await office.access.remove_user("web")
    await office.refused(grant.access_token)
    async with asyncio.timeout(2):
        while "web" not in office.door.kicks:
            await asyncio.sleep(0.01)


async def test_a_removed_users_name_may_be_a_nodes_by_now(office):
    joined = await office.joined("web")
    with pytest.raises(NotFoundError):
        await office.access.remove_user("web")
    assert await office.good(joined.grant.access_token)
    assert office.door.kicks == []


async def test_what_is_refused_at_the_gateway_is_written_down_with_its_address(office):
    asked = {"origin": "192.0.2.7", "on_behalf": ""}
    bus = office.broker.bus("gateway")
    gateway = Caller(bus, office.clock)
    for verb, request, kind in (
        ("authenticate", Authenticate(digest="0" * 64, **asked), Identity),
        ("token-refresh", TokenRefresh(digest="0" * 64, **asked), Grant),
        ("join", NodeJoin(token="nmj_x", node=NodeRegister(name="x"), **asked), NodeJoined),
    ):
        office.trail.counts.clear()
        with pytest.raises(UnauthorizedError):
            await gateway.master(verb, request, kind, 5.0)
        assert office.trail.counts == {("login-refused", "(unknown)", "192.0.2.7"): 1}, verb
    await bus.close()


async def test_two_rotations_one_after_the_other_leave_nobody_with_the_oldest_key(office):
    """Also where the first overlap has just ended and nobody has looked yet."""
    await office.access.create_user("web", ["search"])
    await office.access.rotate_user_key("web", 5)
    before = await office.registry.logins.find("web")
    ended = before._replace(previous_until=1)
    office.door.kicks.clear()
    await office.master._authority.exclusion.key_replaced(ended, previous_until=2**40, by="ops")
    async with asyncio.timeout(2):
        while "web" not in office.door.kicks:
            await asyncio.sleep(0.01)


async def test_a_key_is_forgotten_once_whoever_had_it_is_out(office):
    await office.access.create_user("web", ["search"])
    await office.access.rotate_user_key("web", 60)
    office.door.failing = 2
    office.clock.ahead_s = 61
    exclusion = office.master._authority.exclusion
    ended = await office.registry.logins.ended_overlaps(at=office.clock.unix_ms())
    assert [holder.name for holder in ended] == ["web"]
    looking = asyncio.create_task(exclusion.end_overlaps())
    await asyncio.sleep(0.2)
    assert await office.registry.logins.ended_overlaps(at=office.clock.unix_ms()) == ended
    async with asyncio.timeout(10):
        while await office.registry.logins.ended_overlaps(at=office.clock.unix_ms()):
            await asyncio.sleep(0.05)
    assert not office.door.failing
    looking.cancel()


async def test_a_node_that_is_removed_while_it_refreshes_gets_nothing_that_lasts(office):
    for round_ in range(5):
        joined = await office.joined(f"n{round_}")
        answer, _ = await asyncio.gather(
            office.access.refresh(joined.grant.refresh_token),
            office.ask("remove", NodeName(node=f"n{round_}"), NodeRecord),
            return_exceptions=True,
        )
        if isinstance(answer, Grant):
            await office.refused(answer.access_token)
            await office.refresh_refused(answer.refresh_token)
        assert (await office.access.tokens(subject=f"n{round_}")).tokens == []


# -- joining ---------------------------------------------------------------------------------------


async def test_a_node_joins_with_what_its_join_token_allows(office):
    joined = await office.joined("Web Shop", scopes=["search", "actions:refund"])
    node, grant = joined.node, joined.grant
    assert (node.slug, node.name, node.version) == ("web-shop", "Web Shop", "1.2")
    assert node.status is Status.ACTIVE
    assert (grant.node, grant.subject, grant.expires_in) == ("web-shop", "web-shop", 600)
    expected = Identity(subject="web-shop", scopes=["search", "actions:refund"], node=True)
    assert await office.good(joined.api_key) == expected
    token = await office.good(grant.access_token)
    assert (token.subject, token.scopes, token.node) == ("web-shop", expected.scopes, True)
    refreshed = await office.access.refresh(grant.refresh_token)
    assert (refreshed.node, refreshed.scopes) == ("web-shop", expected.scopes)
    await office.stop_master()
    await office.start_master()
    assert office.master.membership.view.find("web-shop").version == "1.2"


async def test_a_node_that_is_removed_while_it_joins_gets_nothing(office, monkeypatch):
    add = office.registry.tokens.add

    async def remove_first(*tokens: object) -> bool:
        await office.ask("remove", NodeName(node="shop"), NodeRecord)
        return await add(*tokens)

    monkeypatch.setattr(office.registry.tokens, "add", remove_first)
    with pytest.raises(ConflictError, match="removed while it joined"):
        await office.joined()
    assert (await office.access.tokens()).tokens == []


async def test_a_node_that_is_shut_out_while_it_joins_gets_nothing(office, monkeypatch):
    add = office.registry.tokens.add

    async def rest_first(*tokens: object) -> bool:
        await office.registry.update("shop", NodeUpdate(status=Status.INACTIVE))  # another master
        return await add(*tokens)

    monkeypatch.setattr(office.registry.tokens, "add", rest_first)
    with pytest.raises(ConflictError, match="not active any more"):
        await office.joined()
    assert (await office.access.tokens()).tokens == []


@pytest.mark.parametrize("fails", ["add", "node"])
async def test_a_join_that_the_database_broke_leaves_nothing_behind(office, monkeypatch, fails):
    made = await office.access.create_join_token(uses=1)

    async def fail(*_args: object) -> None:
        raise UnavailableError("the database is not available")

    with monkeypatch.context() as broken:
        broken.setattr(office.registry.tokens, fails, fail)
        with pytest.raises(UnavailableError):
            await office.access.join(made.join_token, NodeRegister(name="shop"))
    assert await office.registry.nodes() == []
    assert [token.kind for token in (await office.access.tokens()).tokens] == ["join"]
    joined = await office.access.join(made.join_token, NodeRegister(name="shop"))
    assert await office.good(joined.api_key)


async def test_a_name_is_never_both_a_node_and_somebody_with_tokens(office, monkeypatch):
    """Whichever is written last sees the other, and gives way."""
    store, registry = office.registry.tokens, office.registry
    register, add = registry.register, store.add

    async def issued_first(record, **options):
        await register(record, **options)
        await add(AccessTokenRecord("a", record.slug, False, ("search",), "", 0, 2**52))

    async def registered_first(access, refresh=None):
        await register(NodeRecord(id="1", slug=access.subject, name="x"), api_key_hash="k")
        return await add(access, refresh)

    with monkeypatch.context() as racing:
        racing.setattr(registry, "register", issued_first)
        with pytest.raises(ConflictError, match="there are tokens"):
            await office.register("app")
    assert await registry.nodes() == []
    with monkeypatch.context() as racing:
        racing.setattr(store, "add", registered_first)
        with pytest.raises(ConflictError, match="there is a node"):
            await office.access.issue("web", ["search"])
    assert (await office.access.tokens(subject="web")).tokens == []


async def test_the_databases_copy_of_a_join_token_lets_nobody_join(office):
    made = await office.access.create_join_token()
    with pytest.raises(UnauthorizedError):
        await office.access.join(digest_of(made.join_token), NodeRegister(name="shop"))
    asked = NodeJoin(token=made.join_token, node=NodeRegister(name="shop"))
    assert made.join_token not in repr(asked)
    old = {"digest": digest_of(made.join_token), "node": {"name": "shop"}}
    bus = office.broker.bus("late")
    reply = await bus.request(
        subjects.master("join", "late"), json.dumps(old).encode(), responder="master", timeout_s=5
    )
    with pytest.raises(MeshError):
        codec.result_of(reply, NodeJoined)
    await bus.close()
    assert await office.access.join(made.join_token, NodeRegister(name="shop"))


async def test_ten_nodes_race_for_one_join_token(office):
    made = await office.access.create_join_token(uses=1)
    answers = await asyncio.gather(
        *(
            office.access.join(made.join_token, NodeRegister(name=f"node {number}"))
            for number in range(10)
        ),
        return_exceptions=True,
    )
    assert Counter(type(answer) for answer in answers) == {NodeJoined: 1, UnauthorizedError: 9}
    assert len(await office.registry.nodes()) == 1


async def test_a_name_that_is_taken_or_cannot_be_costs_no_use(office):
    made = await office.access.create_join_token(uses=1)
    await office.register("crm")
    for name, error in (("crm", ConflictError), ("master", InvalidError)):
        with pytest.raises(error):
            await office.access.join(made.join_token, NodeRegister(name=name))
    assert (await office.access.join(made.join_token, NodeRegister(name="shop"))).api_key
    with pytest.raises(UnauthorizedError, match=r"^Invalid join token$"):
        await office.access.join(made.join_token, NodeRegister(name="other"))


async def test_a_join_token_ends(office):
    made = [await office.access.create_join_token(uses=None, ttl_s=60) for _ in range(2)]
    for number in range(3):
        await office.access.join(made[0].join_token, NodeRegister(name=f"n{number}"))
    assert (await office.access.revoke(made[0].id)).revoked == 1
    office.clock.ahead_s = 61
    for token in (made[0].join_token, made[1].join_token, "nmj_made-up"):
        with pytest.raises(UnauthorizedError, match=r"^Invalid join token$"):
            await office.access.join(token, NodeRegister(name="late"))
    assert made[1].uses is None


# -- secrets ---------------------------------------------------------------------------------------


async def test_no_secret_is_kept_logged_or_told(office):
    with structlog.testing.capture_logs() as logged:
        joined = await office.joined(description="for the shop")
        made = await office.access.create_join_token()
        issued = await office.access.issue("app", ["search"])
        await office.access.revoke(issued.id)
        second = await office.access.refresh(joined.grant.refresh_token)
        await office.good(second.access_token)
        await office.refresh_refused(joined.grant.refresh_token)
        rotated = await office.access.rotate_key("shop")
        await office.good(rotated.api_key)
        await office.refused(joined.api_key, second.access_token)
    secrets = [joined.api_key, rotated.api_key, made.join_token]
    for grant in (joined.grant, second):
        secrets += [grant.access_token, grant.refresh_token]
    assert len({secret[:3] for secret in secrets}) == 4  # nmk nmj nmr and the tokens' header
    await office.stop_master()
    stored = b"".join(path.read_bytes() for path in office.folder.glob("mesh.db*"))
    await office.start_master()
    assert hashlib.sha256(rotated.api_key.encode()).hexdigest().encode() in stored
    for secret in secrets:
        assert secret.encode() not in stored
        assert secret not in str(logged)
        assert secret not in str(office.told)
        assert secret not in repr([joined, made, rotated, second, issued])
    assert all(
        secret in str(msgspec.to_builtins([joined, made, rotated])) for secret in secrets[:3]
    )
    assert "…" not in str([redact(None, "", dict(entry)) for entry in logged]), "ids are no secrets"
    events = {entry["event"]: entry for entry in logged}
    for event in ("node.joined", "key.rotated", "token.refreshed", "join_token.created"):
        assert events[f"mesh.{event}"]["by"] == "ops"
    assert events["mesh.token.reused"]["log_level"] == "warning"
    assert events["mesh.token.revoked"]["token_id"] == issued.id
    assert events["mesh.token.issued"]["token_id"] == issued.id


# -- everything real -------------------------------------------------------------------------------


async def test_a_live_gateway_refuses_within_a_second_what_a_live_master_revokes(broker, tmp_path):
    def config(role: str) -> MeshConfig:
        login = str(broker.credentials(role))
        return MeshConfig(nats=NatsConfig(servers=[broker.url], credentials=login))

    async def refused_within_a_second(gatekeeper: Gatekeeper, bearer: str) -> None:
        began = time.monotonic()
        while gatekeeper.known(bearer) is not None:
            assert time.monotonic() - began < 1
            await asyncio.sleep(0.001)
        with pytest.raises(UnauthorizedError):
            await gatekeeper.identify(bearer)

    async with bootstrap.gateway(config("gateway")) as (client, gatekeeper):
        assert not gatekeeper.ready, "no master runs yet"
        with pytest.raises(UnavailableError):
            await gatekeeper.identify("a.b.c")
        async with bootstrap.master(config("master"), data_dir=tmp_path / "master"):
            async with asyncio.timeout(10):
                while not gatekeeper.ready:
                    await asyncio.sleep(0.05)
            grant = await client.access.issue("app", ["search"], refresh=True)
            assert (await gatekeeper.identify(grant.access_token)).subject == "app"
            await client.access.revoke(grant.id)
            await refused_within_a_second(gatekeeper, grant.access_token)

            invitation = await client.access.create_join_token()
            shop = NodeRegister(name="shop")
            joined = await client.access.join(invitation.join_token, shop)
            for bearer in (joined.api_key, joined.grant.access_token):
                assert (await gatekeeper.identify(bearer)).subject == "shop"
            rotated = await client.access.rotate_key("shop")
            await refused_within_a_second(gatekeeper, joined.api_key)
            await refused_within_a_second(gatekeeper, joined.grant.access_token)
            assert await gatekeeper.identify(rotated.api_key)
            await client.remove_node("shop")
            await refused_within_a_second(gatekeeper, rotated.api_key)
            kept = await client.access.issue("app", ["search"])
        assert (await gatekeeper.identify(kept.access_token)).subject == "app", "without a master"
        with pytest.raises(MeshError):
            await client.access.trust()
        async with bootstrap.master(config("master"), data_dir=tmp_path / "master"):
            keys = (await client.access.trust()).keys
            assert [key.kid for key in keys] == list(gatekeeper._verifier._trusted)
