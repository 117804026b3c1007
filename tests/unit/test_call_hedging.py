"""A search that takes longer than others did is asked of a second replica; in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from caller_world import HUNG, CallerWorld, raised, took
from virtual_time import virtual

from mesh.errors import InternalError, InvalidError


async def practised(**routing):
    """Two replicas that took 10 ms for each of 100 searches."""
    world = CallerWorld("a", "b", strategy="round_robin", **routing)
    for slug in "ab":
        world.behave(slug, after_s=0.01)
    for number in range(100):
        await world.search(f"r{number}")
    world.asked.clear()
    return world


@virtual
async def test_the_second_answers_and_the_first_is_told_to_stop():
    world = await practised()
    world.behave("a", HUNG)
    began = world.clock.monotonic()
    assert await world.search("slow") == "b"
    assert 0.019 <= took(world, began) <= 0.022
    await asyncio.sleep(0.01)
    assert (world.asked_slugs(), world.cancelled) == (["a", "b"], [("a", "slow")])
    assert world.in_flight() == 0
    assert world.lane("a", "search").tally.failures == 0
    assert world.lane("b", "search").tally.hedged == 1


@virtual
async def test_the_first_may_still_win():
    world = await practised()
    world.behave("a", after_s=0.012)
    world.behave("b", HUNG)
    assert await world.search("slow") == "a"
    await asyncio.sleep(0.01)
    assert world.cancelled == [("b", "slow")]
    assert world.in_flight() == 0


@virtual
async def test_hedges_are_at_most_a_twentieth_of_searches():
    world = await practised()
    for slug in "ab":
        world.behave(slug, after_s=0.1)
    for number in range(100):
        await world.search(f"s{number}")
    assert 100 < len(world.asked) <= 100 + 0.05 * 200


@virtual
async def test_no_hedge_where_the_budget_is_none_or_nobody_else_is_there():
    for slugs, routing in (("ab", {"hedge_budget": 0.0}), ("a", {})):
        world = CallerWorld(*slugs, strategy="round_robin", **routing)
        for slug in slugs:
            world.behave(slug, after_s=0.01)
        for number in range(100):
            await world.search(f"r{number}")
        for slug in slugs:
            world.behave(slug, after_s=0.1)
        world.asked.clear()
        await world.search("slow")
        assert len(world.asked) == 1


@virtual
async def test_pings_are_not_hedged():
    world = await practised()
    for slug in "ab":
        world.behave(slug, after_s=0.2)
    await world.ping()
    assert len(world.asked) == 1


@virtual
async def test_when_both_fail_it_is_told_once_and_a_refusal_at_once():
    world = await practised(max_attempts=2)
    for slug in "ab":
        world.behave(slug, InternalError("bug"), after_s=0.05)
    assert isinstance(await raised(world.search("slow")), InternalError)
    assert world.asked_slugs() == ["a", "b"]
    world.behave("a", InvalidError("no such column"), after_s=0.02)
    world.behave("b", HUNG)
    assert isinstance(await raised(world.search("wrong")), InvalidError)
    await asyncio.sleep(0.01)
    assert world.cancelled == [("b", "wrong")]
    assert world.in_flight() == 0


@virtual
async def test_who_gives_up_stops_both():
    world = await practised()
    for slug in "ab":
        world.behave(slug, HUNG)
    call = asyncio.create_task(world.search("slow"))
    await asyncio.sleep(0.1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.sleep(0.01)
    assert sorted(world.cancelled) == [("a", "slow"), ("b", "slow")]
    assert world.in_flight() == 0


@virtual
async def test_a_slow_node_is_known_as_slow_though_its_searches_are_hedged_away():
    world = await practised()
    world.behave("a", HUNG)
    await world.search("slow")
    assert world.lane("a", "search").load.ewma_ms > 15
