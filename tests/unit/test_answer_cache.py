"""Which answers a client gives again, and to whom; in virtual time."""

from __future__ import annotations

import asyncio
import sys

import pytest
from search_world import ScriptedNode, SearchWorld, but_own, versions
from virtual_time import virtual

from mesh.config import MeshConfig, SearchConfig
from mesh.errors import MeshError, OverloadedError, UnavailableError
from mesh.types import Health


def two():
    return ScriptedNode("a"), ScriptedNode("b")


@virtual
async def test_what_was_asked_before_is_not_asked_again():
    async with SearchWorld(*two()) as world:
        first = await world.search()
        second = await world.search()
        assert (first.cached, second.cached, world.asked) == (False, True, 2)
        assert but_own(first) == but_own(second)
        assert second.id not in {"", first.id}
        assert second.duration_ms < first.duration_ms
        assert (world.stats.hits, world.stats.misses, world.stats.entries) == (1, 1, 1)
        assert world.stats.hit_rate == 0.5


@virtual
async def test_an_answer_belongs_to_whoever_gets_it():
    async with SearchWorld(*two()) as world:
        first = await world.search()
        first.results[0].metadata["of"] = "me"
        second = await world.search()
        second.results[0].metadata["of"] = "me"
        assert {hit.metadata["of"] for hit in (await world.search()).results} == {"a", "b"}


@virtual
async def test_who_shares_an_answer_cannot_change_it_for_others():
    async with SearchWorld(*two()) as world:

        async def search():
            answer = await world.search()
            seen = {hit.metadata["of"] for hit in answer.results}
            answer.results[0].metadata["of"] = "me"
            return seen

        found = await asyncio.gather(*(search() for _ in range(5)))
        assert found == [{"a", "b"}] * 5


@virtual
async def test_a_hundred_at_once_are_one_scatter():
    async with SearchWorld(*two()) as world:
        answers = await asyncio.gather(*(world.search() for _ in range(100)))
        assert world.asked == 2
        assert len({answer.id for answer in answers}) == 100
        assert len({str(but_own(answer)) for answer in answers}) == 1
        assert not any(answer.cached for answer in answers)
        assert world.stats.shared == 99


@pytest.mark.parametrize(
    "other",
    [
        {"query": "later"},
        {"limit": 11},
        {"mode": "text"},
        {"threshold": 0.1},
        {"strategy": "round_robin"},
        {"deduplicate": False},
        {"explain": True},
        {"filters": {"kind": "x"}},
        {"nodes": ["a"]},
    ],
    ids=lambda other: next(iter(other)),
)
@virtual
async def test_another_question_has_another_answer(other):
    async with SearchWorld(*two()) as world:
        await world.search()
        assert not (await world.search(**other)).cached
        assert (await world.search(**other)).cached


@virtual
async def test_the_same_question_may_be_put_in_other_words():
    async with SearchWorld(*two()) as world:
        filters = {"kind": ["x", "y"], "size": {"gt": 1}}
        await world.search(filters=filters)
        turned = {"size": {"gt": 1}, "kind": ["y", "x", "y"]}
        again = await world.search(
            " late ", filters=turned, collections=["notes"], require="all", timeout_ms=99
        )
        assert again.cached


@virtual
async def test_an_answer_from_elsewhere_can_be_refused():
    async with SearchWorld(*two()) as world:
        assert not (await world.search(cache=False)).cached
        assert not (await world.search()).cached
        assert not (await world.search(cache=False)).cached
        assert world.asked == 6
        await asyncio.gather(*(world.search(cache=False) for _ in range(3)))
        assert world.asked == 12


@pytest.mark.parametrize("off", [{"cache_mb": 0}, {"cache_ttl_s": 0}])
@virtual
async def test_a_cache_can_be_switched_off(off):
    async with SearchWorld(*two(), **off) as world:
        for _ in range(3):
            assert not (await world.search()).cached
        assert world.asked == 6
        assert world.stats.max_bytes == 0


@virtual
async def test_an_answer_is_good_for_its_time():
    async with SearchWorld(*two(), cache_ttl_s=5) as world:
        await world.search()
        for _ in range(4):
            await asyncio.sleep(1)
            await world.publish()
        assert (await world.search()).cached
        await asyncio.sleep(1)
        assert not (await world.search()).cached


@virtual
async def test_long_questions_take_no_more_room_than_is_counted():
    async with SearchWorld(*two()) as world:
        for number in range(3):
            filters = {"kind": [f"{number}-{'x' * 50_000}-{n}" for n in range(5)]}
            await world.search("late " * 800, filters=filters)
        assert world.stats.entries == 3
        assert held_bytes(world.client._cache._entries._entries) < world.stats.bytes


def held_bytes(thing):
    """Of a container, with all that is in it."""
    inside = [*thing, *thing.values()] if isinstance(thing, dict) else thing
    within = map(held_bytes, inside) if isinstance(thing, dict | tuple) else ()
    return sys.getsizeof(thing) + sum(within)


# -- what is never kept ----------------------------------------------------------------------------


@virtual
async def test_a_partial_answer_is_never_kept():
    a, b = two()
    b.hung = True
    async with SearchWorld(a, b) as world:
        assert (await world.search(timeout_ms=50)).partial
        b.hung = False
        answer = await world.search()
        assert (answer.cached, answer.partial) == (False, False)


@virtual
async def test_who_is_away_is_not_answered_for():
    a, b = two()
    async with SearchWorld(a, b) as world:
        await world.search()
        b.health = Health.UNREACHABLE
        await world.publish()
        answer = await world.search()
        assert (answer.cached, answer.partial) == (False, True)
        assert not (await world.search()).cached
        b.health = Health.HEALTHY
        await world.publish()
        assert not (await world.search()).partial


@virtual
async def test_what_a_function_found_is_never_kept():
    async with SearchWorld(ScriptedNode("a"), ScriptedNode("b", version=0)) as world:
        await world.search()
        assert not (await world.search()).cached
        assert (await world.search(nodes=["a"])).cached is False
        assert (await world.search(nodes=["a"])).cached


@virtual
async def test_an_answer_of_newer_data_than_was_asked_is_not_kept():
    a, b = two()
    async with SearchWorld(a, b) as world:
        b.label = 7
        await world.search()
        assert world.stats.entries == 0
        assert not (await world.search()).cached  # its version is known now
        assert (await world.search()).cached


# -- never stale -----------------------------------------------------------------------------------


@virtual
async def test_a_write_elsewhere_is_seen_with_its_event():
    a, b = two()
    async with SearchWorld(a, b) as world:
        await world.search()
        b.version = 2
        await world.tell(b)
        answer = await world.search()
        assert (answer.cached, versions(answer)) == (False, {"a": 1, "b": 2})
        assert (await world.search()).cached


@virtual
async def test_a_write_elsewhere_is_seen_with_the_next_table():
    a, b = two()
    async with SearchWorld(a, b) as world:
        await world.search()
        b.version = 2
        await world.publish()
        assert versions(await world.search()) == {"a": 1, "b": 2}


@pytest.mark.parametrize("told", [True, False], ids=["version told", "version not told"])
@virtual
async def test_who_wrote_is_never_given_what_was_before(told):
    """Neither event nor table have come."""
    a, b = two()
    b.told = told
    async with SearchWorld(a, b) as world:
        await world.search()
        await world.write(b)
        answer = await world.search()
        assert (answer.cached, versions(answer)) == (False, {"a": 1, "b": 2})
        assert (await world.search()).cached is told
        await world.publish()
        await world.search()
        assert (await world.search()).cached


@pytest.mark.parametrize("cache_mb", [64, 0])
@virtual
async def test_who_made_a_shard_finds_it(cache_mb):
    a, b = two()
    b.empty = True
    async with SearchWorld(a, b, cache_mb=cache_mb) as world:
        assert set(versions(await world.search())) == {"a"}
        await world.write(b)
        answer = await world.search()
        assert (answer.cached, set(versions(answer))) == (False, {"a", "b"})
        assert (await world.search()).cached is bool(cache_mb)


@virtual
async def test_until_a_new_shard_is_listed_nothing_is_given_from_the_cache():
    a, b = two()
    b.empty = True
    async with SearchWorld(a, b) as world:
        world.listed_after_s = 1.0
        await world.search()
        await world.write(b)
        await world.search()
        assert not (await world.search()).cached
        await asyncio.sleep(1)
        await world.search()
        answer = await world.search()
        assert (answer.cached, set(versions(answer))) == (True, {"a", "b"})


@virtual
async def test_on_several_nodes_one_write_is_heard_of_from_each():
    a, b = two()
    a.told = b.told = False
    async with SearchWorld(a, b) as world:
        await world.search()
        await world.client.fan_out("reembed", {"collection": "notes"}, nodes=["a", "b"])
        assert not (await world.search()).cached


@virtual
async def test_who_wrote_does_not_join_those_who_asked_before():
    a, b = two()
    a.after_s = b.after_s = 0.1
    async with SearchWorld(a, b) as world:
        early = asyncio.create_task(world.search())
        await asyncio.sleep(0.01)
        await world.write(b)
        assert versions(await world.search()) == {"a": 1, "b": 2}
        assert versions(await early) == {"a": 1, "b": 2} or not (await early).cached
        assert world.asked == 4


@virtual
async def test_a_write_whose_outcome_is_not_known_may_have_happened():
    a, b = two()
    async with SearchWorld(a, b) as world:
        await world.search()
        world.broker.muted = lambda subject: ".re." in subject
        with pytest.raises(MeshError):
            await world.client.run_action(
                "index", {"collection": "notes", "documents": []}, node="b", timeout_s=0.5
            )
        world.broker.muted = lambda _subject: False
        assert versions(await world.search()) == {"a": 1, "b": 2}


@virtual
async def test_replicas_may_differ_for_two_heartbeats():
    one, other = ScriptedNode("one", shard="x"), ScriptedNode("other", shard="x")
    async with SearchWorld(one, other) as world:
        await world.search()
        assert (await world.search()).cached
        one.version = 2
        await world.tell(one)
        await world.search()
        assert not (await world.search()).cached
        await asyncio.sleep(2)
        await world.search()
        assert (await world.search()).cached


@virtual
async def test_without_word_of_the_masters_nothing_is_given():
    async with SearchWorld(*two()) as world:
        await world.search()
        await asyncio.sleep(10.9)
        assert (await world.search()).cached
        await asyncio.sleep(0.2)
        assert not (await world.search()).cached
        await world.publish()
        assert (await world.search()).cached


@virtual
async def test_what_happened_while_the_broker_was_away_is_found_out_first():
    a, b = two()
    async with SearchWorld(a, b) as world:
        await world.search()
        world.broker.stop()
        b.version = 2
        world.broker.start()
        await asyncio.sleep(0.01)
        assert versions(await world.search()) == {"a": 1, "b": 2}
        assert not (await world.search()).cached
        await asyncio.sleep(2)
        await world.publish()
        await world.search()
        assert (await world.search()).cached


@virtual
async def test_a_collection_that_went_takes_its_answers_along():
    a, b = two()
    async with SearchWorld(a, b) as world:
        await world.search()
        b.version = 0
        await world.tell(b)
        b.version = 1
        assert not (await world.search()).cached


@virtual
async def test_a_cache_can_be_emptied():
    async with SearchWorld(*two()) as world:
        late = asyncio.create_task(world.search("soon"))
        await world.search()
        assert world.client.clear_cache() == 2
        await late
        assert not (await world.search("soon")).cached
        assert not (await world.search()).cached


@virtual
async def test_an_answer_asked_for_before_a_cache_was_emptied_is_not_in_it():
    async with SearchWorld(*two()) as world:
        late = asyncio.create_task(world.search())
        await asyncio.sleep(0.005)
        world.client.clear_cache()
        await late
        assert world.stats.entries == 0
        assert not (await world.search()).cached


# -- one flight ------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["off", "just written", "no master", "broker was away"])
@virtual
async def test_a_hundred_at_once_are_one_scatter_where_nothing_is_kept(why):
    one, other = ScriptedNode("a", shard="x"), ScriptedNode("b", shard="x")
    async with SearchWorld(one, other, cache_mb=0 if why == "off" else 64) as world:
        match why:
            case "just written":
                await world.tell(one)
                await world.write(one)
            case "no master":
                await asyncio.sleep(20)
            case "broker was away":
                world.broker.stop()
                world.broker.start()
                await asyncio.sleep(0.01)
        answers = await asyncio.gather(*(world.search() for _ in range(100)))
        assert world.asked == 1
        assert len({answer.id for answer in answers}) == 100
        assert not (await world.search()).cached


@virtual
async def test_who_wrote_joins_nobody_also_where_nothing_is_kept():
    a, b = two()
    async with SearchWorld(a, b, cache_mb=0) as world:
        early = asyncio.create_task(world.search())
        await asyncio.sleep(0.005)
        await world.write(b)
        assert versions(await world.search()) == {"a": 1, "b": 2}
        await early
        assert world.asked == 4


@virtual
async def test_who_asks_functions_asks_alone():
    async with SearchWorld(ScriptedNode("a"), ScriptedNode("b", version=0)) as world:
        await asyncio.gather(*(world.search() for _ in range(3)))
        assert world.asked == 6


@virtual
async def test_who_leaves_does_no_harm_to_the_others():
    async with SearchWorld(*two()) as world:
        tasks = [asyncio.create_task(world.search()) for _ in range(5)]
        await asyncio.sleep(0.005)
        tasks[0].cancel()
        tasks[3].cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        gone = [isinstance(one, asyncio.CancelledError) for one in ended]
        assert gone == [True, False, False, True, False]
        assert world.asked == 2
        assert (await world.search()).cached


@virtual
async def test_when_all_have_left_the_nodes_are_told():
    a, b = two()
    a.hung = b.hung = True
    async with SearchWorld(a, b) as world:
        tasks = [asyncio.create_task(world.search()) for _ in range(3)]
        await asyncio.sleep(0.005)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        a.hung = b.hung = False
        assert not (await world.search()).partial  # it did not join what was being cancelled
        assert (a.cancels, b.cancels) == (1, 1)


@virtual
async def test_who_has_less_time_keeps_it():
    a, b = two()
    b.hung = True
    async with SearchWorld(a, b) as world:
        patient = asyncio.create_task(world.search(timeout_ms=800))
        await asyncio.sleep(0.01)
        began = world.clock.monotonic()
        answer = await world.search(timeout_ms=100)
        assert world.clock.monotonic() - began < 0.15
        assert answer.partial
        assert not patient.done()
        await patient


@virtual
async def test_who_has_more_time_uses_it():
    a, b = two()
    b.after_s = 0.3
    async with SearchWorld(a, b) as world:
        hurried = [asyncio.create_task(world.search(timeout_ms=100)) for _ in range(3)]
        await asyncio.sleep(0.01)
        patient = [asyncio.create_task(world.search(timeout_ms=800)) for _ in range(3)]
        assert all([(await one).partial for one in hurried])
        assert not any([(await one).partial for one in patient])
        assert len(b.searches) == 2


@virtual
async def test_who_has_little_more_time_takes_what_there_is():
    """To ask again with less time than the nodes had would only give less."""
    a, b = two()
    b.hung = True
    async with SearchWorld(a, b) as world:
        hurried = asyncio.create_task(world.search(timeout_ms=400))
        await asyncio.sleep(0.01)
        answer = await world.search(timeout_ms=700)
        assert answer.partial
        assert answer.count == 1
        assert len(a.searches) == 1
        await hurried


@virtual
async def test_a_failure_is_everybodys():
    a, b = two()
    a.error = b.error = OverloadedError("full")
    async with SearchWorld(a, b) as world:
        ended = await asyncio.gather(*(world.search() for _ in range(4)), return_exceptions=True)
        assert {type(error) for error in ended} == {UnavailableError}
        assert len({id(error) for error in ended}) == 4
        assert len({(str(error), error.retry_after_ms) for error in ended}) == 1
        a.error = b.error = None
        assert not (await world.search()).partial


@virtual
async def test_what_has_to_answer_is_asked_of_each_search_alone():
    a, b = two()
    b.hung = True
    async with SearchWorld(a, b) as world:
        some, whole = await asyncio.gather(
            world.search(timeout_ms=50),
            world.search(timeout_ms=50, require="all"),
            return_exceptions=True,
        )
        assert some.partial
        assert isinstance(whole, UnavailableError)


@virtual
async def test_an_answer_that_is_too_long_is_not_kept():
    config = MeshConfig(search=SearchConfig(cache_mb=0.006))
    async with SearchWorld(*two(), config=config) as world:
        await world.search()
        assert (world.stats.entries, (await world.search()).cached) == (0, False)
