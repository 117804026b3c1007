"""How long a caller waits for a node, and what it holds against it; in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from caller_world import HUNG, PONG, CallerWorld, raised, route, took
from virtual_time import virtual

from mesh.errors import (
    CircuitOpenError,
    DeadlineExceededError,
    InternalError,
    NodeGoneError,
    OverloadedError,
)
from mesh.types import BreakerState
from mesh.wire.messages import ActionRequest, BreakerWord, PingResult

CLOSED, OPEN = BreakerState.CLOSED, BreakerState.OPEN


def states(world, verb="search"):
    return [world.lane(slug, verb).breaker.state for slug in world.slugs]


async def act(world, action="work", timeout_s=30.0):
    request = ActionRequest(id=f"id-{action}", action=action, params={})
    return await world.caller.action("a", action, request, PingResult, timeout_s)


# -- slow, hung, failing ---------------------------------------------------------------------------


@virtual
async def test_replicas_that_need_more_than_half_of_the_time_get_it():
    world = CallerWorld("a", "b")
    for slug in "ab":
        world.behave(slug, after_s=0.5)
    for number in range(12):
        began = world.clock.monotonic()
        await world.search(f"s{number}", 0.8)
        assert took(world, began) == 0.5
        await asyncio.sleep(0.1)
    assert states(world) == [CLOSED, CLOSED]
    assert world.in_flight() == 0


@virtual
async def test_asking_beside_is_paid_for_as_a_repetition():
    world = CallerWorld("a", "b", retry_budget=0.0)
    for slug in "ab":
        world.behave(slug, after_s=0.5)
    assert await world.ping(0.8)
    assert len(world.asked) == 1


@virtual
async def test_of_three_that_hang_or_work_the_last_one_is_found_in_time():
    world = CallerWorld(*"abc", strategy="round_robin")
    world.behave("a", HUNG)
    world.behave("b", HUNG)
    world.behave("c")
    began = world.clock.monotonic()
    assert await world.search("s", 0.8) == "c"
    assert took(world, began) == 0.6
    await asyncio.sleep(0.01)
    assert sorted(world.cancelled) == [("a", "s"), ("b", "s")]
    assert world.in_flight() == 0


@virtual
async def test_the_only_one_left_has_all_of_the_time():
    world = CallerWorld("a", "b", strategy="round_robin", breaker={"failure_threshold": 1})
    world.behave("a", InternalError("bug"))
    world.behave("b", after_s=0.5)
    assert await world.search("s0", 0.8) == "b"
    world.asked.clear()
    assert await world.search("s1", 0.8) == "b"
    assert world.asked_slugs() == ["b"]


@virtual
async def test_one_in_reserve_helps_where_the_last_closed_one_hangs():
    """Two were broken and are well again; nobody has probed them yet."""
    world = CallerWorld(
        "a", "b", "c", strategy="round_robin", max_attempts=4, breaker={"failure_threshold": 1}
    )
    world.behave("a")
    for slug in "bc":
        world.behave(slug, InternalError("bug"))
    assert {await world.search(f"s{number}") for number in range(5)} == {"a"}
    assert states(world) == [CLOSED, OPEN, OPEN]
    world.behave("a", HUNG)
    for slug in "bc":
        world.behave(slug)
    assert await world.search("s", 0.8) in "bc"


@pytest.mark.parametrize("strategy", ["p2c", "random", "round_robin", "response_time"])
@virtual
async def test_who_fails_at_once_is_not_the_cheapest(strategy):
    world = CallerWorld("a", "b", "c", strategy=strategy)
    world.behave("a", after_s=0.005)
    for slug in "bc":
        world.behave(slug, InternalError("bug"), after_s=0.002)
    failed = 0
    for number in range(200):
        try:
            await world.search(f"s{number}")
        except InternalError:
            failed += 1
        await asyncio.sleep(0.01)
    assert failed <= 15


@virtual
async def test_a_node_that_hangs_is_found_out_by_searches_and_pings():
    world = CallerWorld("a", "b", strategy="round_robin")
    world.behave("a", HUNG)
    world.behave("b", after_s=0.15)
    for _ in range(10):
        assert await world.search("s", 0.8) == "b"
    assert states(world) == [OPEN, CLOSED]
    alone = CallerWorld("a")
    alone.behave("a", after_s=0.4)
    for _ in range(50):
        await alone.ping(1.0)
    alone.behave("a", HUNG)
    for _ in range(5):
        await raised(alone.ping(1.0))
    assert isinstance(await raised(alone.ping(1.0)), CircuitOpenError)


@pytest.mark.parametrize("says_so", [False, True], ids=["silent", "by-node"])
@virtual
async def test_a_short_timeout_is_not_held_against_the_nodes(says_so):
    world = CallerWorld("a", "b", "c")
    for slug in "abc":
        late = DeadlineExceededError("too late") if says_so else PONG
        world.behave(slug, late, after_s=0.004 if says_so else 0.02)
    for number in range(30):
        error = await raised(world.search(f"s{number}", 0.005))
        assert isinstance(error, DeadlineExceededError)
        await asyncio.sleep(0.05)
    assert states(world) == [CLOSED] * 3
    assert not any(verb.failures for report in world.reports() for verb in report.verbs)


@virtual
async def test_nothing_is_sent_after_the_deadline():
    world = CallerWorld("a")
    world.behave("a", InternalError("bug"))
    sleep = world.clock.sleep
    world.clock.sleep = lambda seconds: sleep(seconds + 0.2)  # the loop was busy
    assert isinstance(await raised(world.search("s", 0.1)), InternalError)
    assert len(world.asked) == 1


@virtual
async def test_nothing_is_sent_when_the_broker_comes_back_too_late():
    world = CallerWorld("a")
    world.behave("a")
    world.broker.stop()
    calling = asyncio.create_task(raised(world.ping(0.1)))
    await asyncio.sleep(0.05)
    until_connected = world.bus.until_connected

    async def late(timeout_s):
        left_s = await until_connected(timeout_s)
        await asyncio.sleep(0.1)  # the loop was busy
        return left_s

    world.bus.until_connected = late
    other = asyncio.create_task(raised(world.ping(0.1)))
    await asyncio.sleep(0.01)
    world.broker.start()
    assert isinstance(await other, DeadlineExceededError)
    await asyncio.gather(calling, return_exceptions=True)
    assert len(world.asked) <= 1


# -- a new life ------------------------------------------------------------------------------------


@virtual
async def test_what_the_old_life_was_asked_ends_and_what_the_new_one_was_asked_goes_on():
    world = CallerWorld("a")
    world.behave("a", HUNG)
    lost = asyncio.create_task(act(world, "lost"))
    await asyncio.sleep(1.0)
    started = world.clock.unix_ms()
    await asyncio.sleep(0.1)
    world.behave("a", after_s=0.5)
    kept = asyncio.create_task(act(world, "kept"))
    await asyncio.sleep(0.1)
    began = world.clock.monotonic()
    world.know(route("a", incarnation=started))
    with pytest.raises(NodeGoneError):
        await lost
    assert took(world, began) == 0
    assert await kept == PONG
    assert world.in_flight() == 0


# -- how much at once ------------------------------------------------------------------------------


@virtual
async def test_a_node_has_so_many_in_flight_whatever_is_asked_of_it():
    world = CallerWorld("a", max_in_flight=2)
    world.behave("a", HUNG)
    running = [asyncio.create_task(act(world, f"work{n}")) for n in range(2)]
    await asyncio.sleep(0.01)
    assert isinstance(await raised(act(world, "more")), OverloadedError)
    assert isinstance(await raised(world.ping()), OverloadedError)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    world.behave("a")
    assert await world.ping() == "a"


@virtual
async def test_actions_that_the_node_does_not_have_leave_nothing_behind():
    world = CallerWorld("a")
    world.know(route("a", incarnation=2, actions=["work"]))
    world.behave("a")
    for number in range(50):
        assert await act(world, f"none{number}") == PONG
    assert await act(world) == PONG
    await asyncio.sleep(1.0)
    assert {verb.verb for report in world.reports() for verb in report.verbs} == {"act.work"}
    assert list(world.caller._peers._peers["a"].lanes) == ["act.work"]


@virtual
async def test_names_are_not_remembered_without_end_where_actions_are_unknown():
    world = CallerWorld("a")
    world.behave("a")
    for number in range(300):
        assert await act(world, f"any{number}") == PONG
    assert len(world.caller._peers._peers["a"].lanes) <= 100


@virtual
async def test_full_is_not_called_broken():
    world = CallerWorld("a", "b", max_in_flight=1, strategy="round_robin")
    world.behave("a", InternalError("bug"))
    world.behave("b")
    for number in range(40):
        await world.search(f"s{number}")
    assert states(world) == [OPEN, CLOSED]
    world.behave("b", after_s=0.3)
    running = asyncio.create_task(world.search("long"))
    await asyncio.sleep(0.01)
    error = await raised(world.search("z"))
    assert isinstance(error, OverloadedError)
    assert error.retry_after_ms == 50
    assert "to b are" in str(error)
    await running


# -- the masters' word -----------------------------------------------------------------------------


@virtual
async def test_a_word_holds_for_so_long_whatever_the_clocks_say():
    """The masters' clock is an hour behind ours; a lane made later has heard no later."""
    world = CallerWorld("a")
    word = BreakerWord(
        state=OPEN, turn=1, until=world.clock.unix_ms() - 3_600_000, for_ms=5000, reason="bad"
    )
    world.know(route("a", breakers={"ping": word, "search": word}))
    first = world.lane("a", "ping").breaker
    assert first.open_until == world.clock.monotonic() + 5
    await asyncio.sleep(2.0)
    world.know(route("a", breakers={"ping": word, "search": word}, reason="else"))
    assert world.lane("a", "search").breaker.open_until == first.open_until
