"""What the masters hear of calls: outcomes in batches, and traces; in virtual time."""

from __future__ import annotations

import asyncio

from caller_world import HUNG, CallerWorld, raised, route
from virtual_time import virtual

from mesh.errors import CircuitOpenError, InternalError, OverloadedError, TooLargeError
from mesh.types import BreakerState, Health
from mesh.wire.messages import ActionRequest, PingResult


def verbs(report):
    return {(outcome.node, outcome.verb): outcome for outcome in report.verbs}


@virtual
async def test_outcomes_go_out_together_twice_a_second_and_only_if_there_are_any():
    world = CallerWorld("a", "b", strategy="round_robin")
    world.behave("a", after_s=0.01)
    world.behave("b")
    await asyncio.gather(*(world.ping() for _ in range(10)))
    assert world.reports() == []
    await asyncio.sleep(0.6)
    (report,) = world.reports()
    assert report.connection == "c1"
    assert {key: outcome.calls for key, outcome in verbs(report).items()} == {
        ("a", "ping"): 5,
        ("b", "ping"): 5,
    }
    assert sum(verbs(report)["a", "ping"].latency.values()) == 5
    assert verbs(report)["a", "ping"].incarnation == 1
    await asyncio.sleep(5)
    assert len(world.reports()) == 1
    await world.ping()
    await asyncio.sleep(0.6)
    assert sum(outcome.calls for outcome in world.reports()[1].verbs) == 1


@virtual
async def test_a_breaker_that_opens_is_told_at_once():
    world = CallerWorld("a", breaker={"failure_threshold": 2}, max_attempts=1)
    world.behave("a", InternalError("bug"))
    for _ in range(2):
        await raised(world.ping())
    await asyncio.sleep(0.02)
    (report,) = world.reports()
    (outcome,) = report.verbs
    assert (outcome.calls, outcome.failures, outcome.state) == (2, 2, BreakerState.OPEN)
    assert 29_000 < outcome.until - world.clock.unix_ms() < 34_000


@virtual
async def test_what_is_no_call_is_counted_apart():
    world = CallerWorld("a", "b", "c", strategy="round_robin")
    world.behave("a", OverloadedError("full"))
    world.behave("c")
    assert await world.ping() == "c"
    await asyncio.sleep(0.6)
    told = verbs(world.reports()[0])
    assert (told["a", "ping"].calls, told["a", "ping"].pushed_back) == (0, 1)
    assert (told["b", "ping"].calls, told["b", "ping"].gone) == (0, 1)
    assert (told["c", "ping"].calls, told["c", "ping"].retried) == (1, 1)


@virtual
async def test_reports_of_an_outage_are_part_of_the_next_one():
    world = CallerWorld("a")
    world.behave("a")
    await world.search("r1")
    world.broker.stop()
    await asyncio.sleep(2)
    assert world.reports() == []
    world.broker.start()
    await world.search("r2")
    await asyncio.sleep(0.6)
    (report,) = world.reports()
    assert [outcome.calls for outcome in report.verbs] == [2]
    assert [trace.id for trace in report.traces] == ["r1", "r2"]


@virtual
async def test_closing_tells_the_rest():
    world = CallerWorld("a")
    world.behave("a")
    await world.ping()
    world.caller.close()
    assert [outcome.calls for outcome in world.reports()[0].verbs] == [1]


@virtual
async def test_the_calls_of_an_old_life_are_told_as_its_own():
    world = CallerWorld("a")
    world.behave("a")
    await world.ping()
    world.know(route("a", incarnation=2))
    await world.ping()
    await asyncio.sleep(0.6)
    (report,) = world.reports()
    assert sorted((outcome.incarnation, outcome.calls) for outcome in report.verbs) == [
        (1, 1),
        (2, 1),
    ]


# -- traces ----------------------------------------------------------------------------------------


async def told(world):
    await asyncio.sleep(0.6)
    return [trace for report in world.reports() for trace in report.traces]


@virtual
async def test_a_trace_tells_who_was_chosen_skipped_and_tried_instead():
    world = CallerWorld("a", "b", "c", strategy="round_robin")
    world.know(route("a"), route("b"), route("c", health=Health.STALLED, reason="its loop hangs"))
    world.behave("a", HUNG)
    world.behave("b")
    assert await world.search("why") == "b"
    (trace,) = await told(world)
    assert (trace.id, trace.verb, trace.outcome, trace.took_ms) == ("why", "search", "ok", 500.0)
    steps = [(step.at_ms, step.node, step.what) for step in trace.steps]
    assert steps == [
        (0, "c", "skipped"),
        (0, "a", "chosen"),
        (500.0, "b", "retried"),
        (500.0, "a", "cancelled"),
        (500.0, "b", "answered"),
    ]
    assert "its loop hangs" in trace.steps[0].why
    assert trace.steps[2].why == "no answer for 500 ms"


@virtual
async def test_a_refused_call_has_a_trace_too_and_pings_have_none():
    world = CallerWorld("a")
    world.know(route("a", health=Health.UNREACHABLE, reason="gone"))
    await raised(world.search("no"))
    await raised(world.ping())
    (trace,) = await told(world)
    assert (trace.id, trace.outcome) == ("no", "unavailable")
    assert [(step.what, step.why) for step in trace.steps] == [("refused", "a: unreachable: gone")]


@virtual
async def test_of_many_plain_calls_the_first_twenty_are_told_and_all_odd_ones_up_to_a_limit():
    world = CallerWorld("a", "b", strategy="round_robin")
    for slug in "ab":
        world.behave(slug)
    for number in range(50):
        await world.search(f"plain{number}")
    world.leave("a")
    await world.search("odd1")
    await world.search("odd2")
    ids = [trace.id for trace in await told(world)]
    assert len(ids) == 22
    assert "odd1" in ids
    for number in range(100):
        await raised(world.caller.any(world.caller.group(["x"], "search"), REQUEST, PingResult, 1))
        assert number >= 0
    assert len(await told(world)) == 22 + 64


REQUEST = ActionRequest(id="nobody", action="x", params={})


@virtual
async def test_the_trace_of_an_action_that_is_not_sent_says_why():
    world = CallerWorld("a", breaker={"failure_threshold": 1})
    world.behave("a", InternalError("bug"))
    await raised(world.caller.action("a", "x", REQUEST, PingResult, 5.0))
    refused = await raised(world.caller.action("a", "x", REQUEST, PingResult, 5.0))
    assert isinstance(refused, CircuitOpenError)
    first, second = await told(world)
    assert [step.what for step in first.steps] == ["chosen", "failed"]
    ((what, node, why),) = [(step.what, step.node, step.why) for step in second.steps]
    assert (what, node, second.outcome) == ("refused", "a", "circuit_open")
    assert "1 failures in a row" in why


@virtual
async def test_an_action_has_a_trace_under_its_id():
    world = CallerWorld("a")
    call = world.caller.action(
        "a", "work", ActionRequest(id="k", action="work", params={}), PingResult, 5.0
    )
    task = asyncio.create_task(call)
    await asyncio.sleep(0.01)
    world.behave("a")
    await task
    (trace,) = await told(world)
    assert (trace.id, trace.verb, trace.outcome) == ("k", "act.work", "ok")
    assert [step.what for step in trace.steps] == ["chosen", "failed", "retried", "answered"]


@virtual
async def test_a_report_that_is_too_large_goes_without_traces_and_then_in_parts():
    slugs = [f"node{number:02d}" for number in range(40)]
    world = CallerWorld(*slugs, strategy="round_robin")
    publish, sizes = world.bus.publish, []

    def limited(subject, payload):
        if ".outcome." in subject:
            sizes.append(len(payload))
            if len(payload) > 3000:
                raise TooLargeError("too large")
        publish(subject, payload)

    world.bus.publish = limited
    for slug in slugs:
        world.behave(slug)
    for number in range(40):
        await world.search(f"s{number}")
    await asyncio.sleep(0.6)
    assert sizes[0] > 3000, "the first try"
    told = [verb for report in world.reports() for verb in report.verbs]
    assert sorted(verb.node for verb in told) == slugs, "each once"
    assert sum(verb.calls for verb in told) == 40
    tries = len(sizes)
    await asyncio.sleep(5)
    assert len(sizes) == tries, "there is nothing left"
