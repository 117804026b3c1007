"""The last traces of all callers, found by their ids, in bounded memory."""

from __future__ import annotations

from mesh.core.trace_log import TraceLog
from mesh.wire.messages import CallTrace, Step


def trace(request, *nodes, at=0, why=""):
    steps = [Step(at_ms=0.0, node=node, what="chosen", why=why) for node in nodes]
    return CallTrace(id=request, verb="search", at=at, took_ms=1.0, outcome="ok", steps=steps)


def test_a_request_is_found_with_all_that_was_asked_under_its_id():
    log = TraceLog()
    log.add(trace("r1.docs", "docs", at=2), "ops")
    log.add(trace("r1", "crm", at=1), "ops")
    log.add(trace("r2", "crm"), "ops")
    assert [found.id for found in log.find("r1")] == ["r1", "r1.docs"]
    assert [found.id for found in log.find("r1.docs")] == ["r1.docs"]
    assert log.find("r") == []


def test_an_id_may_hold_points_without_being_part_of_another():
    log = TraceLog()
    log.add(trace("order.17", "crm"), "ops")
    assert log.find("order") == []
    assert len(log.find("order.17")) == 1


def test_who_told_it_is_what_the_broker_says():
    log = TraceLog()
    claimed = CallTrace(id="r1", caller="gateway", verb="ping", at=0, took_ms=1.0, outcome="ok")
    log.add(claimed, "ops")
    assert log.find("r1")[0].caller == "ops"


def test_the_oldest_go_first():
    log = TraceLog(capacity=4)
    for number in range(6):
        log.add(trace(f"r{number}"), f"u{number}")
    assert len(log) == 4
    assert [bool(log.find(f"r{number}")) for number in range(6)] == [False] * 2 + [True] * 4


def test_one_caller_does_not_push_out_the_others():
    log = TraceLog(capacity=10)
    for number in range(4):
        log.add(trace(f"mine{number}"), "ops")
    for number in range(1000):
        log.add(trace("same" if number % 2 else f"n{number}"), "loud")
    assert all(log.find(f"mine{number}") for number in range(4))
    assert len(log) == 9
    assert len(log._by_id) == 4 + 3


def test_bytes_are_bounded_and_long_stories_lose_their_middle():
    log = TraceLog(most_chars=200_000)
    for number in range(100):
        log.add(trace(f"r{number}", *map(str, range(200)), why="x" * 300), f"u{number % 3}")
    assert log._chars <= 200_000
    assert 0 < len(log) < 10
    steps = log.find("r99")[0].steps
    assert [step.node for step in (steps[0], steps[-1])] == ["0", "199"]
    assert len(steps) == 100
