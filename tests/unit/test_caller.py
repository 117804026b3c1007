"""One call over several replicas: chosen, repeated, hedged, refused; in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from caller_world import HUNG, PONG, CallerWorld, raised, route, took
from virtual_time import virtual

from mesh.errors import (
    BadRequestError,
    CircuitOpenError,
    DeadlineExceededError,
    DisconnectedError,
    DrainingError,
    InternalError,
    NodeGoneError,
    NoRespondersError,
    OverloadedError,
    UnavailableError,
)
from mesh.types import BreakerState, Health, Status
from mesh.wire.messages import ActionRequest, BreakerWord, NodeLoad, PingRequest, PingResult

ACTION = ActionRequest(id="k", action="work", params={})


async def act(world, node="a", timeout_s=30.0):
    return await world.caller.action(node, "work", ACTION, PingResult, timeout_s)


# -- one is bad, another one answers ---------------------------------------------------------------


@virtual
async def test_at_half_time_another_one_is_asked_beside_a_node_that_hangs():
    world = CallerWorld("a", "b", strategy="round_robin")
    world.behave("a", HUNG)
    world.behave("b")
    began = world.clock.monotonic()
    assert await world.ping() == "b"
    assert (world.asked_slugs(), took(world, began)) == (["a", "b"], 0.5)
    assert world.lane("a").tally.failures == 1
    deadlines = [body["deadline"] - world.clock.unix_ms() for _, _, body in world.asked]
    assert deadlines == [500, 500]


@virtual
async def test_where_nobody_listens_costs_no_time_and_is_spared_for_a_while():
    world = CallerWorld("a", "b", strategy="round_robin")
    world.behave("b")
    began = world.clock.monotonic()
    for _ in range(4):
        assert await world.ping() == "b"
    assert took(world, began) == 0
    assert world.lane("a").tally.gone == 1
    assert world.lane("a").breaker.state is BreakerState.CLOSED
    await world.clock.sleep(0.26)
    world.behave("a")
    assert {await world.ping() for _ in range(2)} == {"a", "b"}


@virtual
async def test_a_node_that_is_gone_by_the_table_is_not_waited_for():
    world = CallerWorld("a", "b", strategy="round_robin")
    world.behave("a", HUNG)
    world.behave("b")
    began = world.clock.monotonic()
    calls = [asyncio.create_task(world.ping(10.0)) for _ in range(6)]
    await asyncio.sleep(0.1)
    world.know(route("a", health=Health.UNREACHABLE), route("b"))
    assert await asyncio.gather(*calls) == ["b"] * 6
    assert took(world, began) == 0.1
    assert world.lane("a").tally.failures == 0
    assert world.in_flight() == 0


@virtual
async def test_a_node_that_drains_or_is_full_is_passed_over():
    for refusal in (DrainingError("bye"), OverloadedError("full", retry_after_ms=500)):
        world = CallerWorld("a", "b", strategy="round_robin")
        world.behave("a", refusal)
        world.behave("b")
        assert [await world.ping() for _ in range(3)] == ["b"] * 3
        assert world.asked_slugs() == ["a", "b", "b", "b"]
        assert world.lane("a").tally.pushed_back == 1
        assert world.lane("a").breaker.state is BreakerState.CLOSED


@virtual
async def test_what_one_refuses_as_wrong_no_other_is_asked():
    world = CallerWorld("a", "b", strategy="round_robin")
    for slug in "ab":
        world.behave(slug, BadRequestError("nonsense"))
    for _ in range(20):
        assert isinstance(await raised(world.ping()), BadRequestError)
    assert len(world.asked) == 20
    assert world.lane("a").breaker.state is BreakerState.CLOSED
    assert world.lane("a").tally.calls == 0


@virtual
async def test_no_more_attempts_than_allowed():
    world = CallerWorld(*"abcde", max_attempts=3)
    for slug in "abcde":
        world.behave(slug, InternalError("bug"))
    assert isinstance(await raised(world.ping()), InternalError)
    assert len(set(world.asked_slugs())) == len(world.asked) == 3


# -- nobody else -----------------------------------------------------------------------------------


@virtual
async def test_full_alone_is_asked_again_when_it_said():
    world = CallerWorld("a")
    world.behave("a", OverloadedError("full", retry_after_ms=200))
    began = world.clock.monotonic()
    call = asyncio.create_task(world.ping())
    await asyncio.sleep(0.1)
    world.behave("a")
    assert await call == "a"
    assert 0.2 <= took(world, began) <= 0.25


@virtual
async def test_a_time_to_come_back_beyond_the_own_is_not_waited_for():
    world = CallerWorld("a")
    world.behave("a", OverloadedError("full", retry_after_ms=2000))
    began = world.clock.monotonic()
    assert (await raised(world.ping())).retry_after_ms == 2000
    assert took(world, began) == 0


@virtual
async def test_alone_and_gone_is_told_at_once():
    world = CallerWorld("a")
    began = world.clock.monotonic()
    error = await raised(world.ping())
    assert isinstance(error, NoRespondersError)
    assert "node 'a' is away" in str(error)
    world.behave("a", HUNG)
    call = asyncio.create_task(world.ping())
    await asyncio.sleep(0)
    world.know(route("a", health=Health.UNREACHABLE))
    assert isinstance(await raised(call), NodeGoneError)
    assert took(world, began) == 0


@virtual
async def test_a_failing_node_alone_is_asked_again_with_pauses_that_grow():
    world = CallerWorld("a")
    world.behave("a", InternalError("bug"))
    began = world.clock.monotonic()
    assert isinstance(await raised(world.ping()), InternalError)
    assert len(world.asked) == 3
    assert 0.0375 <= took(world, began) <= 0.1125


@virtual
async def test_a_total_outage_is_not_shouted_down():
    """1.2 x what is offered, and the ten that every budget has for callers that seldom call."""
    world = CallerWorld("a", "b", breaker={"enabled": False})
    for slug in "ab":
        world.behave(slug, InternalError("bug"))
    offered = 400
    for _ in range(offered):
        assert isinstance(await raised(world.ping()), InternalError)
        await asyncio.sleep(0.01)
    assert offered < len(world.asked) <= 1.2 * offered + 10


# -- breakers --------------------------------------------------------------------------------------


@virtual
async def test_timeouts_open_the_breaker_and_then_it_is_told_at_once():
    world = CallerWorld("a", breaker={"failure_threshold": 3, "retry_timeout_s": 30})
    world.behave("a", HUNG)
    for _ in range(3):
        assert isinstance(await raised(world.ping(0.3)), DeadlineExceededError)
    began = world.clock.monotonic()
    error = await raised(world.ping())
    assert isinstance(error, CircuitOpenError)
    assert took(world, began) == 0
    assert 29_000 < error.retry_after_ms <= 33_000
    assert len(world.asked) == 3
    await asyncio.sleep(33)
    world.behave("a")
    assert [await world.ping() for _ in range(3)] == ["a"] * 3
    assert world.lane("a").breaker.state is BreakerState.CLOSED


@virtual
async def test_a_broker_that_hangs_is_no_nodes_fault():
    """Nobody notices, everything times out; breakers stay as they were, and so do the reports."""
    world = CallerWorld("a", "b", breaker={"failure_threshold": 1})
    world.behave("a")
    world.behave("b")
    assert await world.ping()
    world.broker.hang()
    began = world.clock.monotonic()
    calls = [asyncio.create_task(raised(world.ping(0.8 + 0.1 * n))) for n in range(10)]
    acting = asyncio.create_task(raised(act(world, timeout_s=1.7)))
    late = [*await asyncio.gather(*calls), await acting]
    assert {type(error) for error in late} == {DeadlineExceededError}
    assert took(world, began) <= 1.75
    world.broker.go_on()
    assert {await world.ping() for _ in range(20)} <= {"a", "b"}
    assert {world.lane(slug).breaker.state for slug in "ab"} == {BreakerState.CLOSED}
    assert await act(world) == PONG
    await world.clock.sleep(1)
    assert sum(verb.failures for report in world.reports() for verb in report.verbs) == 0
    assert world.lane("a", "act.work").breaker.state is BreakerState.CLOSED
    assert world.in_flight() == 0


@virtual
async def test_a_call_that_the_broker_held_up_is_not_blamed_on_its_node_when_it_comes_to():
    """Its time was up after the broker went on, and before its answer was there."""
    world = CallerWorld("a", breaker={"failure_threshold": 1})
    world.behave("a", after_s=1.0)
    world.broker.hang()
    short, long = (asyncio.create_task(raised(world.ping(s))) for s in (1.0, 1.5))
    await short
    await asyncio.sleep(0.05)
    world.broker.go_on()
    assert isinstance(await long, DeadlineExceededError)
    assert world.lane("a").breaker.state is BreakerState.CLOSED
    world.behave("a")
    assert await world.ping() == "a"


@virtual
async def test_a_quiet_caller_blames_a_node_that_hangs():
    """Nothing comes from the broker but the answer to a ping of its own, and that is enough."""
    world = CallerWorld("a", breaker={"failure_threshold": 2})
    world.behave("a", HUNG)
    for _ in range(2):
        heard = world.bus.reads
        assert isinstance(await raised(world.ping(1.0)), DeadlineExceededError)
        assert world.bus.reads == heard
    assert isinstance(await raised(world.ping(1.0)), CircuitOpenError)


@virtual
async def test_an_action_that_waited_for_the_broker_asks_its_breaker_then():
    """The last probe may have been given away meanwhile."""
    world = CallerWorld("a", breaker={"failure_threshold": 1, "success_threshold": 1})
    world.behave("a", InternalError("bug"))
    await raised(act(world))
    await world.clock.sleep(40)
    world.behave("a", after_s=1.0)
    world.broker.stop()
    waiting = [asyncio.create_task(act(world)) for _ in range(3)]
    await asyncio.sleep(0.1)
    sent = len(world.asked)
    world.broker.start()
    ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(end) for end in ends].count(CircuitOpenError) == 2
    assert ends.count(PONG) == len(world.asked) - sent == 1


@virtual
async def test_a_broken_replica_is_left_out():
    world = CallerWorld("a", "b", "c", strategy="round_robin", breaker={"failure_threshold": 2})
    world.behave("a", InternalError("bug"))
    world.behave("b")
    world.behave("c")
    assert {await world.ping() for _ in range(60)} == {"b", "c"}
    assert Counter(world.asked_slugs())["a"] == 2


@virtual
async def test_breakers_never_eject_more_than_half():
    """`a` works: of the three that fail, one stays, for when `a` has all that it may have."""
    world = CallerWorld(
        *"abcd",
        strategy="round_robin",
        max_attempts=4,
        max_in_flight=2,
        breaker={"failure_threshold": 1},
    )
    for slug in "bcd":
        world.behave(slug, InternalError("bug"))
    world.behave("a", PONG, after_s=0.1)
    assert {await world.ping() for _ in range(20)} == {"a"}
    assert Counter(world.asked_slugs()) == {"a": 20, "b": 1, "c": 1, "d": 1}
    world.behave("d")
    assert sorted(await asyncio.gather(*(world.ping() for _ in range(3)))) == ["a", "a", "d"]


@virtual
async def test_a_named_ping_asks_whatever_the_breaker_says():
    world = CallerWorld("a", breaker={"failure_threshold": 1})
    world.behave("a", InternalError("bug"))
    await raised(world.ping())
    assert isinstance(await raised(world.ping()), CircuitOpenError)
    world.behave("a")
    assert await world.caller.node("a", "ping", PingRequest(), PingResult, 1.0) == PONG
    assert isinstance(await raised(world.ping()), CircuitOpenError)


@virtual
async def test_the_masters_word_is_heeded_and_a_new_life_starts_afresh():
    world = CallerWorld("a")
    world.behave("a")
    now = world.clock.unix_ms()
    word = BreakerWord(state=BreakerState.OPEN, turn=now, until=now + 5000, reason="others say so")
    world.know(route("a", breakers={"ping": word}))
    error = await raised(world.ping())
    assert isinstance(error, CircuitOpenError)
    assert error.retry_after_ms == 5000
    probing = BreakerWord(
        state=BreakerState.HALF_OPEN, turn=now + 1, until=now + 5000, probers={"c1": 1, "c2": 1}
    )
    world.know(route("a", breakers={"ping": probing}))
    assert await world.ping() == "a"
    assert isinstance(await raised(world.ping()), CircuitOpenError)
    world.know(route("a", incarnation=2))
    assert await world.ping() == "a"


@virtual
async def test_where_breakers_are_off_nothing_opens():
    world = CallerWorld("a", breaker={"enabled": False, "failure_threshold": 1})
    world.behave("a", InternalError("bug"))
    for _ in range(9):
        assert isinstance(await raised(world.ping()), InternalError)


# -- refused before anything is sent ---------------------------------------------------------------


@virtual
async def test_refused_by_health_and_status_says_why():
    world = CallerWorld("a", "b")
    world.know(
        route("a", health=Health.UNREACHABLE, reason="nobody listens"),
        route("b", status=Status.MAINTENANCE),
    )
    error = await raised(world.ping())
    assert type(error) is UnavailableError
    assert str(error) == "a: unreachable: nobody listens; b: status is maintenance"
    assert world.asked == []


@virtual
async def test_more_than_so_many_at_once_are_refused_at_once():
    world = CallerWorld("a", max_in_flight=5)
    world.behave("a", after_s=0.1)
    calls = [asyncio.create_task(world.ping()) for _ in range(6)]
    await asyncio.sleep(0)
    error = await raised(calls.pop())
    assert isinstance(error, OverloadedError)
    assert error.retry_after_ms
    assert await asyncio.gather(*calls) == ["a"] * 5
    assert world.in_flight() == 0


@pytest.mark.parametrize("timeout_s", [0.0, -1.0])
def test_a_deadline_in_the_past_is_named(timeout_s):
    @virtual
    async def test():
        world = CallerWorld("a")
        world.behave("a")
        calls = [
            world.caller.node("a", "ping", PingRequest(), PingResult, timeout_s),
            world.caller.master("nodes", PingRequest(), PingResult, timeout_s),
            act(world, timeout_s=timeout_s),
            world.ping(timeout_s),
        ]
        for call in calls:
            error = await raised(call)
            assert isinstance(error, DeadlineExceededError)
            assert list(error.fields) == ["deadline"]
        assert world.asked == []

    test()


# -- who is chosen ---------------------------------------------------------------------------------


@virtual
async def test_weights_and_reported_load_of_the_table_are_heeded():
    world = CallerWorld("a", "b", strategy="weighted")
    for slug in "ab":
        world.behave(slug)
    world.know(route("a", weight=3.0), route("b"))
    assert Counter([await world.ping() for _ in range(40)]) == {"a": 30, "b": 10}
    world.know(route("a", weight=3.0, load=NodeLoad(busy=64)), route("b"))
    assert world.lane("a").load.reported == 64


@virtual
async def test_who_is_preferred_goes_first_and_only_first():
    world = CallerWorld("a", "b", "c")
    for slug in "ac":
        world.behave(slug)
    world.behave("b", InternalError("bug"))
    slug, _ = await world.caller.any(world.group, PingRequest(), PingResult, 1.0, prefer="b")
    assert world.asked_slugs() == ["b", slug]


# -- cancelled, and the broker away ----------------------------------------------------------------


@virtual
async def test_a_cancelled_call_frees_all_it_held_and_tells_the_node():
    world = CallerWorld("a", "b", strategy="round_robin")
    world.behave("a", HUNG)
    call = asyncio.create_task(world.search())
    await asyncio.sleep(0.1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.sleep(0.01)
    assert world.cancelled == [("a", "r1")]
    assert world.in_flight() == 0
    assert world.lane("a", "search").tally.calls == 0


@virtual
async def test_a_call_of_an_outage_waits_for_the_broker_within_its_time():
    world = CallerWorld("a")
    world.behave("a")
    world.broker.stop()
    call = asyncio.create_task(world.ping(5.0))
    await asyncio.sleep(1.0)
    world.broker.start()
    assert await call == "a"
    world.broker.stop()
    began = world.clock.monotonic()
    assert isinstance(await raised(world.ping(2.0)), DisconnectedError)
    assert took(world, began) == 2.0


@virtual
async def test_a_call_whose_answer_went_with_the_broker_is_repeated():
    world = CallerWorld("a")
    world.behave("a", after_s=0.2)
    call = asyncio.create_task(world.ping(5.0))
    await asyncio.sleep(0.1)
    world.broker.stop()
    await asyncio.sleep(0.5)
    world.broker.start()
    assert await call == "a"
    assert len(world.asked) == 2
    assert world.lane("a").tally.failures == 0


# -- actions ---------------------------------------------------------------------------------------


@virtual
async def test_an_action_that_nobody_took_on_is_asked_for_again_while_its_node_lives():
    world = CallerWorld("a")
    call = asyncio.create_task(act(world))
    await asyncio.sleep(0.01)
    world.behave("a")
    assert await call == PONG
    world.leave("a")
    began = world.clock.monotonic()
    assert isinstance(await raised(act(world)), NoRespondersError)
    assert took(world, began) < 0.3
    world.know(route("a", health=Health.DRAINING))
    began = world.clock.monotonic()
    assert isinstance(await raised(act(world)), NoRespondersError)
    assert took(world, began) == 0


@virtual
async def test_an_action_whose_node_goes_away_is_not_waited_for_nor_repeated():
    world = CallerWorld("a")
    world.behave("a", HUNG)
    began = world.clock.monotonic()
    call = asyncio.create_task(act(world))
    await asyncio.sleep(1)
    world.know(route("a", health=Health.UNREACHABLE))
    assert isinstance(await raised(call), NodeGoneError)
    assert (took(world, began), len(world.asked)) == (1, 1)


@virtual
async def test_an_action_has_a_breaker_of_its_own():
    world = CallerWorld("a", breaker={"failure_threshold": 2})
    world.behave("a", InternalError("bug"))
    for _ in range(2):
        assert isinstance(await raised(act(world)), InternalError)
    error = await raised(act(world))
    assert isinstance(error, CircuitOpenError)
    assert error.retry_after_ms
    assert len(world.asked) == 2
    world.behave("a")
    assert await world.ping() == "a"


@virtual
async def test_an_action_outlives_an_outage_of_the_broker():
    world = CallerWorld("a")
    world.behave("a", after_s=0.2)
    call = asyncio.create_task(act(world))
    await asyncio.sleep(0.1)
    world.broker.stop()
    await asyncio.sleep(3)
    world.broker.start()
    assert await call == PONG
    assert len(world.asked) == 2


@virtual
async def test_so_many_actions_at_once_and_no_more():
    world = CallerWorld("a", max_in_flight=2)
    world.behave("a", after_s=0.1)
    calls = [asyncio.create_task(act(world)) for _ in range(2)]
    await asyncio.sleep(0)
    began = world.clock.monotonic()
    assert isinstance(await raised(act(world)), OverloadedError)
    assert took(world, began) == 0
    await asyncio.gather(*calls)
    assert world.in_flight() == 0
