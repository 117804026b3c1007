"""How a node gets its key: each way in, what each refusal says, and what is kept when."""

from __future__ import annotations

import pytest

from mesh.errors import (
    ConflictError,
    DisconnectedError,
    NoMasterError,
    StateError,
    UnauthorizedError,
    UntrustedError,
)
from mesh.ports import Login
from mesh.runtime.joining import Joining, KeyFile, Ways
from mesh.types import Status
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    Grant,
    NodeAdopt,
    NodeJoin,
    NodeJoined,
    NodeList,
    NodeRecord,
    NodeRegister,
    NodeRegistered,
)

GIVEN = Login(user="crm", password="given")
OLD = Login(user="crm", password="old")
NEW = Login(user="crm", password="new")
MADE = Login(user="crm", password="made")
OPS = Login(user="ops", password="of ops")
NAME = "join-" + "0" * 32
REFUSED = UnauthorizedError("refused")


class Bus:
    """Of whoever logged in; asks the world's master."""

    def __init__(self, world: World, login: Login) -> None:
        self.identity = login.user
        self.login = login
        self.closed = False
        self._world = world

    async def request(self, subject, payload, *, responder, timeout_s):
        assert responder == "master"
        assert not self.closed
        _, verb, caller = subjects.parts(subject)
        assert caller == self.identity
        return self._world.answer(verb, payload)

    async def close(self):
        self.closed = True


class World:
    """A master with some keys that are good, a key file, a clock that jumps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.good = {"ops": "of ops", NAME: "token"}
        self.kept: Login | None = None
        self.unwritable = False
        self.troubles: list[Exception] = []
        """Raised by the next logins, one each."""
        self.refusal: Exception | None = None
        """What the master says to who asks for a key."""
        self.status: Status | None = None
        self.asked: list[tuple[str, object]] = []
        self.logins: list[str] = []
        self.buses: list[Bus] = []
        self.sleeping = lambda: None

    def monotonic(self):
        return self.now

    def unix_ms(self):
        return 1

    async def sleep(self, seconds):
        self.now += seconds
        self.sleeping()

    async def connect(self, login):
        self.logins.append(login.password)
        if self.troubles:
            raise self.troubles.pop(0)
        if self.good.get(login.user) != login.password:
            raise REFUSED
        self.buses.append(Bus(self, login))
        return self.buses[-1]

    def answer(self, verb, payload):
        self.asked.append((verb, payload))
        if verb == "nodes":
            nodes = [] if self.status is None else [record(status=self.status)]
            return codec.ok(NodeList(nodes=nodes))
        if self.refusal is not None:
            return codec.encode(codec.error_reply(self.refusal))
        self.good["crm"] = "new"
        if verb == "join":
            grant = Grant(id="1", subject="crm", scopes=[], access_token="a", expires_in=1)
            return codec.ok(NodeJoined(node=record(), api_key="new", grant=grant))
        assert verb == "adopt"
        return codec.ok(NodeRegistered(node=record(), api_key="new"))

    def write(self, login):
        if self.unwritable:
            raise StateError("the disk is full")
        self.kept = login

    async def enter(self, **ways):
        file = KeyFile(path="/data/key.json", read=lambda: self.kept, write=self.write)
        joining = Joining(
            "crm",
            NodeRegister(name="CRM", weight=2.0),
            Ways(given=ways.pop("given", None), key_file=file, **ways),
            self.connect,
            self,
            version="1.2",
            random_name=lambda: NAME,
            new_key=lambda: MADE,
        )
        login, bus = await joining.enter()
        assert bus.login == login
        assert [bus.closed for bus in self.buses] == [True] * (len(self.buses) - 1) + [False]
        return login


def record(**fields):
    return NodeRecord(id="1", slug="crm", name="CRM", **fields)


@pytest.fixture
def world():
    return World()


async def test_a_key_that_was_given_is_used_as_it_is_and_not_kept(world):
    world.good["crm"] = "given"
    world.kept = OLD
    assert await world.enter(given=GIVEN, join_token="token", operator=OPS) == GIVEN
    assert world.kept == OLD
    assert world.logins == ["given"]


async def test_a_given_key_that_is_refused_is_the_end(world):
    world.kept = OLD
    with pytest.raises(UnauthorizedError, match=r"refuse node 'crm'.*rotate-key crm --out"):
        await world.enter(given=GIVEN, join_token="token", operator=OPS, request_approval=True)
    assert world.logins == ["given"]


async def test_a_kept_key_comes_before_all_ways_to_get_one(world):
    world.good["crm"] = "old"
    world.kept = OLD
    assert await world.enter(join_token="token", operator=OPS) == OLD
    assert not world.asked


async def test_a_join_token_is_shown_under_a_random_name_and_its_key_kept(world):
    assert await world.enter(join_token="token", operator=OPS) == NEW
    assert world.kept == NEW
    ((verb, payload),) = world.asked
    assert verb == "join"
    asked = codec.decode(payload, NodeJoin)
    assert asked.token == "token"
    assert (asked.node.name, asked.node.weight, asked.version) == ("CRM", 2.0, "1.2")
    assert world.buses[0].login == Login(user=NAME, password="token")


async def test_an_operator_registers_it(world):
    assert await world.enter(operator=OPS, request_approval=True) == NEW
    assert world.kept == NEW
    ((verb, payload),) = world.asked
    assert verb == "adopt"
    assert codec.decode(payload, NodeAdopt).node.name == "CRM"
    assert world.logins == ["of ops", "new"]


async def test_nothing_to_come_in_with_names_every_way(world):
    with pytest.raises(StateError) as caught:
        await world.enter()
    words = ["--creds", "MESH_NODE__API_KEY", "MESH_NODE__JOIN_TOKEN", "--state-dir"]
    assert [word for word in [*words, "--request-approval"] if word not in str(caught.value)] == []
    assert world.logins == []


async def test_a_key_that_cannot_be_kept_is_not_used(world):
    world.unwritable = True
    with pytest.raises(StateError, match="disk is full"):
        await world.enter(operator=OPS)
    assert world.logins == ["of ops"]


@pytest.mark.parametrize("way", [{"join_token": "token"}, {"operator": OPS}], ids=["token", "ops"])
async def test_who_was_removed_registers_anew_when_started_again(world, way):
    world.kept = OLD
    assert await world.enter(**way) == NEW
    assert world.kept == NEW
    assert world.logins[0] == "old"


@pytest.mark.parametrize("way", [{"join_token": "token"}, {"operator": OPS}], ids=["token", "ops"])
@pytest.mark.parametrize("kept", [None, OLD], ids=["new", "kept"])
async def test_a_name_that_is_taken_says_how_to_get_its_key(world, way, kept):
    world.kept, world.status = kept, Status.ACTIVE
    world.refusal = ConflictError("there is a node 'crm' already")
    with pytest.raises(ConflictError, match=r"already.*rotate-key crm --out /data/key.json"):
        await world.enter(**way)
    assert world.kept == kept


async def test_a_suspended_node_says_so(world):
    world.kept, world.status = OLD, Status.INACTIVE
    world.refusal = ConflictError("there is a node 'crm' already")
    with pytest.raises(UnauthorizedError, match=r"is inactive: .*update crm --status active"):
        await world.enter(operator=OPS)


@pytest.mark.parametrize("at_login", [True, False], ids=["login", "verb"])
async def test_a_join_token_that_is_used_up_says_how_to_get_another(world, at_login):
    if at_login:
        del world.good[NAME]
    else:
        world.refusal = UnauthorizedError("Invalid join token")
    with pytest.raises(UnauthorizedError, match=r"used up.*join-token create"):
        await world.enter(join_token="token")
    assert world.kept is None


async def test_a_refused_kept_key_without_another_way_is_the_end(world):
    world.kept = OLD
    with pytest.raises(UnauthorizedError, match=r"the key in /data/key.json.*nodes show crm"):
        await world.enter()


async def test_its_own_key_waits_until_somebody_approves(world):
    """Kept before the first try, or a crash would make another one that nobody has seen."""
    naps = []

    def sleeping():
        naps.append(world.now)
        assert world.kept == MADE
        if len(naps) == 20:
            world.good["crm"] = "made"

    world.sleeping = sleeping
    assert await world.enter(request_approval=True) == MADE
    pauses = [after - before for before, after in zip([0.0, *naps], naps, strict=False)]
    assert pauses == sorted(pauses)
    assert pauses[0] <= 0.5
    assert pauses[-1] == 10


async def test_who_was_waiting_goes_on_waiting_with_the_same_key(world):
    world.kept = MADE

    def sleeping():
        world.good["crm"] = "made"

    world.sleeping = sleeping
    assert await world.enter(request_approval=True) == MADE


@pytest.mark.parametrize(
    "way",
    [{"given": GIVEN}, {"join_token": "token"}, {"operator": OPS}, {"request_approval": True}],
    ids=lambda way: next(iter(way)),
)
async def test_masters_that_are_away_are_waited_for(world, way):
    world.good["crm"] = "made" if "request_approval" in way else "given"
    world.troubles = [NoMasterError("none"), NoMasterError("none")]
    await world.enter(**way)
    assert world.troubles == []


async def test_a_master_that_goes_away_in_between_is_asked_again(world):
    world.refusal = NoMasterError("gone")
    naps = []

    def sleeping():
        naps.append(world.now)
        if len(naps) == 3:
            world.refusal = None

    world.sleeping = sleeping
    assert await world.enter(operator=OPS) == NEW
    assert [verb for verb, _ in world.asked] == ["adopt"] * 4


@pytest.mark.parametrize(
    ("trouble", "way"),
    [
        (DisconnectedError("no broker"), {"given": GIVEN}),
        (UntrustedError("another certificate"), {"given": GIVEN}),
        (UntrustedError("another certificate"), {"operator": OPS}),
        (UntrustedError("another certificate"), {"join_token": "token"}),
        (UntrustedError("another certificate"), {"request_approval": True}),
    ],
    ids=["broker", "given", "operator", "token", "approval"],
)
async def test_a_broker_that_is_away_or_not_ours_ends_it(world, trouble, way):
    world.troubles = [trouble]
    with pytest.raises(type(trouble), match=str(trouble)):
        await world.enter(**way)
    assert len(world.logins) == 1
