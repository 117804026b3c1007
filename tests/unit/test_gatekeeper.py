"""The judge at the door, over a bus in memory and a master that says what the test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from fakes import MemoryBroker
from stepped_clock import SteppedClock, settled

from mesh.adapters.logs import redact
from mesh.errors import MeshError, TooLargeError, UnauthorizedError, UnavailableError
from mesh.ports import Message, UnknownKeyError
from mesh.runtime import gatekeeper as module
from mesh.runtime.access_api import AccessApi, digest_of
from mesh.runtime.caller import Caller
from mesh.runtime.gatekeeper import Gatekeeper
from mesh.wire import codec, subjects
from mesh.wire.messages import Authenticate, Identity, PublicKey, Revoked, Trust

KEY = "nmk_" + "k" * 43
OTHER_KEY = "nmk_" + "o" * 43
APP = Identity(subject="app", scopes=["search"], token_id="t1")
CRM = Identity(subject="crm", scopes=["search", "actions"], node=True)


class NamedTokens:
    """`mesh.ports.TokenVerifier` for tokens `<kid>.<id>.<expiry>`; counts what it costs."""

    def __init__(self) -> None:
        self.trusted: set[str] = set()
        self.verified = 0

    def trust(self, keys: list[PublicKey]) -> bool:
        before, self.trusted = self.trusted, {key.kid for key in keys}
        return self.trusted != before

    def verify(self, token: str, now: float) -> tuple[Identity, float]:
        self.verified += 1
        kid, token_id, expiry = token.split(".")
        if kid == "bad":
            raise UnauthorizedError("the token is not valid")
        if kid not in self.trusted:
            raise UnknownKeyError("the token is signed with an unknown key")
        if now >= float(expiry):
            raise UnauthorizedError("the token has expired")
        return Identity(subject="app", scopes=["search"], token_id=token_id), float(expiry)


class Master:
    """Answers `trust` and `authenticate`; `held` keeps an answer back until it is let go."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.bus = broker.bus("master")
        self.kids = ["k1"]
        self.revoked: list[str] = []
        self.keys = {digest_of(KEY): CRM}
        self.asked: list[str] = []
        self.fails: Callable[[str], MeshError | None] = lambda _verb: None
        self.held: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._serving = await self.bus.subscribe(f"{subjects.PREFIX}.master.*.*", self._serve)

    async def stop(self) -> None:
        await self._serving.unsubscribe()

    def revoke(self, *tokens: str, subject: str = "") -> None:
        told = Revoked(tokens=list(tokens), subjects=[subject] if subject else [])
        self.bus.publish(subjects.REVOKED, codec.encode(told))

    def _serve(self, message: Message) -> None:
        verb = message.subject.split(".")[3]
        self.asked.append(verb)
        task = asyncio.get_running_loop().create_task(self._answer(verb, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, verb: str, message: Message) -> None:
        answer = self._said(verb, message.data)
        if verb in self.held:
            await self.held[verb].wait()
        if isinstance(answer, MeshError):
            self.bus.publish(message.reply, codec.encode(codec.error_reply(answer)))
        else:
            self.bus.publish(message.reply, codec.ok(answer))

    def _said(self, verb: str, data: bytes) -> Any:
        if (failure := self.fails(verb)) is not None:
            return failure
        if verb == "trust":
            keys = [PublicKey(kid=kid, x="") for kid in self.kids]
            return Trust(keys=keys, revoked=list(self.revoked))
        who = self.keys.get(codec.decode(data, Authenticate).digest)
        return UnauthorizedError("Invalid API key") if who is None else who


class World:
    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.clock = SteppedClock(1000.0)
        self.master = Master(self.broker)
        self.bus = self.broker.bus("gateway")
        self.verifier = NamedTokens()
        access = AccessApi(Caller(self.bus, self.clock))
        self.gatekeeper = Gatekeeper(self.bus, access, self.verifier, self.clock)

    def asked(self, verb: str) -> int:
        return self.master.asked.count(verb)


@pytest.fixture
async def world():
    world = World()
    await world.master.start()
    await world.gatekeeper.start()
    yield world
    await world.gatekeeper.stop()
    assert world.broker.handler_failures == 0


@pytest.fixture
async def lonely():
    """Its masters are away from the start."""
    world = World()
    await world.gatekeeper.start()
    yield world
    await world.gatekeeper.stop()


async def refused(gatekeeper: Gatekeeper, bearer: str) -> str:
    with pytest.raises(UnauthorizedError) as refusal:
        await gatekeeper.identify(bearer)
    assert gatekeeper.known(bearer) is None
    return str(refusal.value)


# -- tokens ----------------------------------------------------------------------------------------


async def test_a_good_token_is_judged_here_once_and_then_known(world):
    assert world.gatekeeper.ready
    assert world.gatekeeper.known("k1.t1.2000") is None
    for _ in range(3):
        assert await world.gatekeeper.identify("k1.t1.2000") == APP
    assert world.gatekeeper.known("k1.t1.2000") == APP
    assert world.verifier.verified == 1
    assert world.master.asked == ["trust"]


async def test_what_is_known_is_forgotten_when_it_expires(world):
    await world.gatekeeper.identify("k1.t1.1005")
    world.clock.now = 1004.9
    assert world.gatekeeper.known("k1.t1.1005") == APP
    world.clock.now = 1005.0
    assert await refused(world.gatekeeper, "k1.t1.1005") == "the token has expired"


async def test_a_revoked_token_is_refused_the_moment_it_is_heard(world):
    await world.gatekeeper.identify("k1.t1.2000")
    world.master.revoke("t1")
    await settled()
    assert await refused(world.gatekeeper, "k1.t1.2000") == "the token was revoked"
    assert await world.gatekeeper.identify("k1.t2.2000")


async def test_a_key_that_is_retired_is_forgotten_the_moment_it_is_heard(world):
    await world.gatekeeper.identify("k1.t1.2000")
    assert [key.kid for key in world.gatekeeper.public_keys] == ["k1"]
    world.master.kids = ["k2"]
    world.master.bus.publish(subjects.REVOKED, codec.encode(Revoked(keys=True)))
    await settled()
    assert "unknown key" in await refused(world.gatekeeper, "k1.t1.2000")
    assert await world.gatekeeper.identify("k2.t1.2000")
    assert [key.kid for key in world.gatekeeper.public_keys] == ["k2"]


async def test_keys_that_were_asked_for_before_they_changed_are_asked_for_again(world):
    await world.gatekeeper.identify("k1.t1.2000")
    world.master.held["trust"] = asyncio.Event()
    await world.clock.step(10)  # a master has read the old keys, and is slow to say so
    world.master.kids = ["k2"]
    world.master.bus.publish(subjects.REVOKED, codec.encode(Revoked(keys=True)))
    await settled()
    world.master.held.pop("trust").set()
    await settled()
    assert "unknown key" in await refused(world.gatekeeper, "k1.t1.2000")


async def test_what_was_revoked_before_the_gateway_started_is_refused(world):
    world.master.revoked = ["t9"]
    await world.clock.step(10)
    assert await refused(world.gatekeeper, "k1.t9.2000") == "the token was revoked"


async def test_an_older_list_does_not_undo_what_was_heard(world):
    """A list that was read before the revocation and arrives after it."""
    await world.gatekeeper.identify("k1.t1.9000")
    world.master.held["trust"] = asyncio.Event()
    await world.clock.step(10)
    world.master.revoke("t1")
    await settled()
    world.master.held["trust"].set()
    await settled()
    await refused(world.gatekeeper, "k1.t1.9000")
    world.master.revoked = ["t1"]
    for _ in range(8):
        await world.clock.step(10)
        await refused(world.gatekeeper, "k1.t1.9000")
    assert world.gatekeeper._heard == {}, "the list has it by now"


async def test_keys_and_revocations_are_asked_for_again_and_again(world):
    for round_ in range(2, 5):
        await world.clock.step(10)
        assert world.asked("trust") == round_


async def test_what_an_outage_kept_from_us_is_asked_for_when_it_is_over(world):
    await world.gatekeeper.identify("k1.t1.2000")
    world.broker.stop()
    world.master.revoked = ["t1"]
    assert await world.gatekeeper.identify("k1.t1.2000") == APP
    world.broker.start()
    await settled()
    await refused(world.gatekeeper, "k1.t1.2000")


async def test_tokens_are_judged_while_every_master_is_away(world):
    await world.master.stop()
    await world.clock.step(100)
    assert world.gatekeeper.ready
    assert (await world.gatekeeper.identify("k1.new.2000")).token_id == "new"


async def test_a_key_that_is_no_longer_trusted_opens_nothing(world):
    await world.gatekeeper.identify("k1.t1.2000")
    world.master.kids = ["k2"]
    await world.clock.step(10)
    assert await refused(world.gatekeeper, "k1.t1.2000") == (
        "the token is signed with an unknown key"
    )


async def test_an_unknown_key_is_asked_for_but_not_by_everybody(world):
    world.master.kids = ["k1", "k2"]
    await world.clock.step(3)
    assert (await world.gatekeeper.identify("k2.t1.2000")).token_id == "t1"
    assert world.asked("trust") == 2
    for number in range(50):
        await refused(world.gatekeeper, f"k{number + 9}.t1.2000")
    assert world.asked("trust") == 2
    await world.clock.step(3)
    answers = await asyncio.gather(
        *(world.gatekeeper.identify(f"x{number}.t.2000") for number in range(50)),
        return_exceptions=True,
    )
    assert {type(answer) for answer in answers} == {UnknownKeyError}
    assert world.asked("trust") == 3


# -- before a master has spoken --------------------------------------------------------------------


async def test_without_keys_no_token_can_be_judged(lonely):
    assert not lonely.gatekeeper.ready
    with pytest.raises(UnavailableError) as away:
        await lonely.gatekeeper.identify("k1.t1.2000")
    assert away.value.retry_after_ms
    await lonely.master.start()
    await lonely.clock.step(1)
    assert lonely.gatekeeper.ready
    assert await lonely.gatekeeper.identify("k1.t1.2000") == APP


async def test_a_key_that_only_a_master_can_judge_is_not_refused_while_none_answers(lonely):
    with pytest.raises(UnavailableError) as away:
        await lonely.gatekeeper.identify(KEY)
    assert away.value.retry_after_ms
    await lonely.master.start()
    assert await lonely.gatekeeper.identify(KEY) == CRM


# -- API keys --------------------------------------------------------------------------------------


async def test_an_api_key_is_asked_for_once_in_thirty_seconds(world):
    for _ in range(3):
        assert await world.gatekeeper.identify(KEY) == CRM
    assert world.gatekeeper.known(KEY) == CRM
    world.clock.now += 29.9
    assert world.gatekeeper.known(KEY) == CRM
    assert world.asked("authenticate") == 1
    world.clock.now += 0.1
    assert world.gatekeeper.known(KEY) is None
    await world.gatekeeper.identify(KEY)
    assert world.asked("authenticate") == 2


async def test_many_who_show_one_key_ask_once(world):
    answers = await asyncio.gather(*(world.gatekeeper.identify(KEY) for _ in range(50)))
    assert answers == [CRM] * 50
    assert world.asked("authenticate") == 1


async def test_one_who_goes_takes_nobody_along(world):
    world.master.held["authenticate"] = asyncio.Event()
    first, second = (asyncio.create_task(world.gatekeeper.identify(KEY)) for _ in range(2))
    await settled()
    first.cancel()
    await settled()
    world.master.held["authenticate"].set()
    assert await second == CRM
    assert first.cancelled()


async def test_a_key_that_was_rotated_is_forgotten_at_once(world):
    await world.gatekeeper.identify(KEY)
    world.master.keys = {}
    world.master.revoke(subject="docs")
    await settled()
    assert world.gatekeeper.known(KEY) == CRM, "another node's"
    world.master.revoke(subject="crm")
    await settled()
    assert await refused(world.gatekeeper, KEY) == "Invalid API key"


async def test_an_answer_that_a_rotation_overtook_is_not_used(world):
    world.master.held["authenticate"] = asyncio.Event()
    asking = asyncio.create_task(world.gatekeeper.identify(KEY))
    await settled()
    world.master.keys = {}
    world.master.revoke(subject="crm")
    await settled()
    world.master.held.pop("authenticate").set()
    with pytest.raises(UnauthorizedError, match="Invalid API key"):
        await asking
    assert await refused(world.gatekeeper, KEY) == "Invalid API key"


async def test_keys_that_somebody_makes_up_are_not_asked_about_without_end(world):
    """Nor do they keep out whose key was good before."""
    await world.gatekeeper.identify(KEY)
    world.clock.now += 30
    world.master.held["authenticate"] = asyncio.Event()
    asking = [
        asyncio.create_task(world.gatekeeper.identify(f"nmk_{number:043}")) for number in range(256)
    ]
    await settled()
    with pytest.raises(UnavailableError, match="too many") as full:
        await world.gatekeeper.identify(OTHER_KEY)
    assert full.value.retry_after_ms
    assert len(world.gatekeeper._asked) == 256
    honest = asyncio.create_task(world.gatekeeper.identify(KEY))
    await settled()
    world.master.held.pop("authenticate").set()
    assert await honest == CRM
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert {type(answer) for answer in answers} == {UnauthorizedError}
    assert await refused(world.gatekeeper, OTHER_KEY) == "Invalid API key"


async def test_a_key_that_was_good_opens_while_every_master_is_away(world):
    await world.gatekeeper.identify(KEY)
    await world.master.stop()
    for _ in range(40):
        await world.clock.step(10)
        assert await world.gatekeeper.identify(KEY) == CRM
    with pytest.raises(UnavailableError):
        await world.gatekeeper.identify(OTHER_KEY)
    world.broker.stop()
    world.broker.start()
    await settled()
    assert await world.gatekeeper.identify(KEY) == CRM


async def test_a_master_that_hangs_does_not_hold_up_whose_key_was_good(world):
    await world.gatekeeper.identify(KEY)
    world.clock.now += 30
    world.master.fails = lambda _verb: UnavailableError("the database is not available")
    assert await world.gatekeeper.identify(KEY) == CRM
    world.clock.now += 1
    world.master.held["authenticate"] = asyncio.Event()
    async with asyncio.timeout(1):
        assert await world.gatekeeper.identify(KEY) == CRM
    world.master.held.pop("authenticate").set()


@pytest.mark.parametrize("outage", ["master", "broker"])
async def test_a_removal_that_was_missed_is_noticed_as_soon_as_a_master_answers(world, outage):
    await world.gatekeeper.identify(KEY)
    if outage == "broker":
        world.broker.stop()
    await world.master.stop()
    if outage == "broker":
        world.broker.start()
    world.clock.now += 30
    assert await world.gatekeeper.identify(KEY) == CRM
    world.master.keys = {}
    await world.master.start()
    await world.clock.step(10)  # somebody, or the gatekeeper itself, asked a master something
    assert await refused(world.gatekeeper, KEY) == "Invalid API key"
    await world.master.stop()
    world.clock.now += 5
    with pytest.raises(UnavailableError):
        await world.gatekeeper.identify(KEY)


async def test_what_was_heard_of_a_key_counts_without_a_master_too(world):
    await world.gatekeeper.identify(KEY)
    await world.master.stop()
    world.clock.now += 30
    assert await world.gatekeeper.identify(KEY) == CRM
    world.master.revoke(subject="crm")
    await settled()
    with pytest.raises(UnavailableError):
        await world.gatekeeper.identify(KEY)


async def test_which_keys_were_learnt_can_be_read_in_the_log(world):
    world.master.kids = ["k7"]
    with structlog.testing.capture_logs() as logged:
        await world.clock.step(10)
    [learnt] = [entry for entry in logged if entry["event"] == "mesh.gatekeeper.keys_learnt"]
    assert redact(None, "", learnt)["kids"] == ["k7"]


async def test_a_list_that_no_message_holds_is_an_error(world):
    world.master.fails = lambda _verb: TooLargeError("the answer is too large")
    with structlog.testing.capture_logs() as logged:
        await world.clock.step(10)
    assert ("mesh.gatekeeper.trust_too_large", "error") in [
        (entry["event"], entry["log_level"]) for entry in logged
    ]
    assert world.gatekeeper.ready


async def test_keys_are_asked_for_again_after_an_outage_of_the_broker(world):
    """A rotation may have been told meanwhile."""
    await world.gatekeeper.identify(KEY)
    world.broker.stop()
    world.broker.start()
    assert world.gatekeeper.known(KEY) is None
    world.master.keys = {}
    assert await refused(world.gatekeeper, KEY) == "Invalid API key"


async def test_bad_keys_cost_the_master_one_question_each(world):
    for _ in range(20):
        assert await refused(world.gatekeeper, OTHER_KEY) == "Invalid API key"
    assert world.asked("authenticate") == 1
    world.master.keys[digest_of(OTHER_KEY)] = CRM
    world.clock.now += 5
    assert await world.gatekeeper.identify(OTHER_KEY) == CRM


async def test_many_different_keys_ask_a_few_at_a_time(world):
    world.master.held["authenticate"] = asyncio.Event()
    asking = [
        asyncio.create_task(world.gatekeeper.identify(f"nmk_{number:043}")) for number in range(100)
    ]
    await settled()
    assert world.asked("authenticate") == 16
    world.master.held["authenticate"].set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert {type(answer) for answer in answers} == {UnauthorizedError}
    assert world.asked("authenticate") == 100


async def test_a_master_in_trouble_is_no_refusal(world):
    world.master.fails = lambda _verb: UnavailableError("the database is not available")
    with pytest.raises(UnavailableError) as away:
        await world.gatekeeper.identify(KEY)
    assert away.value.retry_after_ms
    assert "database" not in str(away.value)
    world.master.fails = lambda _verb: None
    assert await world.gatekeeper.identify(KEY) == CRM


# -- everything else -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bearer",
    [
        "",
        "x",
        "a.b",
        "a.b.c.d",
        "nmk_",
        "nmk_short",
        KEY + "k",
        KEY[:-1] + ".",
        KEY[:-1] + "\n",
        "nmr_" + "r" * 43,
        "nmj_" + "j" * 43,
        "k1.é.2000",
        "k1.\ud800.2000",
        "k1." + "x" * 8192 + ".2000",
        "bad.t1.2000",
    ],
    ids=range(15),
)
async def test_everything_else_is_refused_without_asking(world, bearer):
    words = await refused(world.gatekeeper, bearer)
    assert not bearer or len(bearer) < 2 or bearer not in words
    assert world.asked("authenticate") == 0
    assert world.asked("trust") == 1


async def test_memory_is_bounded(world, monkeypatch):
    small = Gatekeeper(world.bus, world.gatekeeper._access, world.verifier, world.clock)
    for memory in (small._tokens, small._keys, small._bad_keys):
        assert memory._most == module._REMEMBERED == 10_000
        memory._most = 10
    await small.start()
    for number in range(30):
        await small.identify(f"k1.t{number}.2000")
        assert await small.identify("k1.t0.2000"), "what is used stays"
        await refused(small, f"nmk_{number:043}")
        world.master.keys[digest_of(f"nmk_{number:043}")] = CRM
    assert small.known("k1.t0.2000")
    assert small.known("k1.t1.2000") is None
    assert (len(small._tokens), len(small._bad_keys)) == (10, 10)
    for number in range(30):
        world.clock.now += 5
        await small.identify(f"nmk_{number:043}")
    assert len(small._keys) == 10
    await small.stop()


async def test_who_waits_when_it_stops_is_told(world):
    world.master.held["authenticate"] = asyncio.Event()
    waiting = asyncio.create_task(world.gatekeeper.identify(KEY))
    await settled()
    late = asyncio.create_task(world.gatekeeper.identify(OTHER_KEY))
    await asyncio.sleep(0)
    await world.gatekeeper.stop()
    for one in (waiting, late):
        with pytest.raises(UnavailableError):
            await one
    with pytest.raises(UnavailableError):
        await world.gatekeeper.identify(OTHER_KEY)


async def test_a_message_that_cannot_be_read_changes_nothing(world):
    await world.gatekeeper.identify("k1.t1.2000")
    world.master.bus.publish(subjects.REVOKED, b'{"tokens": "t1"}')
    await settled()
    assert world.broker.handler_failures == 1
    world.broker.handler_failures = 0
    assert world.gatekeeper.known("k1.t1.2000") == APP
