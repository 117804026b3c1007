"""Figures of the last minute, made of what callers told."""

from __future__ import annotations

import pytest

from mesh.core.call_figures import OTHERS, CallFigures
from mesh.core.latency import bucket
from mesh.wire.messages import VerbOutcome


def told(verb="search", **outcome):
    return VerbOutcome(node="crm", verb=verb, **outcome)


def test_callers_add_up_and_quantiles_are_of_all_of_them():
    figures = CallFigures()
    for ms in (10.0, 1000.0):
        outcome = told(calls=50, failures=1, retried=2, hedged=3, latency={bucket(ms): 50})
        figures.add("ops", outcome, 1000.0)
    search = figures.by_verb(1005.0)["search"]
    assert (search.calls, search.failures, search.retried, search.hedged) == (100, 2, 4, 6)
    assert search.p50_ms == pytest.approx(10, rel=0.05)
    assert search.p99_ms == pytest.approx(1000, rel=0.05)
    assert search.per_s == pytest.approx(20, rel=0.5)
    assert figures.callers(1005.0) == 1


def test_what_is_longer_ago_than_a_minute_is_forgotten():
    figures = CallFigures()
    figures.add("ops", told(calls=60), 0.0)
    figures.add("ops", told("ping", calls=600), 30.0)
    assert figures.by_verb(59.0)["search"].per_s == pytest.approx(1, rel=0.1)
    assert list(figures.by_verb(61.0)) == ["ping"]
    assert figures.callers(91.0) == 0
    assert figures.by_verb(120.0) == {}


def test_who_tells_of_no_calls_is_not_counted():
    figures = CallFigures()
    figures.add("ops", told(refused=5), 0.0)
    assert figures.by_verb(0.0) == {}
    assert figures.callers(0.0) == 0


def test_memory_is_bounded_and_nonsense_passed_over():
    figures = CallFigures()
    for number in range(20_000):
        figures.add(f"u{number}", told(f"act.a{number % 406}", calls=1), 0.0)
    assert figures.callers(0.0) == 10_000
    assert len(figures.by_verb(0.0)) == 204
    assert figures.by_verb(0.0)[OTHERS].calls > 9_000
    nonsense = {-5: 3, 10**9: 3, 4: 10**15, 5: -3, bucket(20): 1}
    figures.add("ops", told("ping", calls=10, latency=nonsense), 0.0)
    assert figures.by_verb(0.0)["ping"].p99_ms == 0
    figures.add("ops", told("ping", calls=10, latency={-5: 3, 10**9: 3, bucket(20): 1}), 0.0)
    assert figures.by_verb(0.0)["ping"].p99_ms == pytest.approx(20, rel=0.05)


def test_searches_are_told_of_by_name_however_many_actions_there_are():
    figures = CallFigures()
    for number in range(500):
        figures.add("ops", told(f"act.a{number}", calls=1), 0.0)
    for verb in ("search", "fetch", "ping"):
        figures.add("ops", told(verb, calls=1), 0.0)
        assert figures.by_verb(0.0)[verb].calls == 1


def test_one_caller_cannot_tell_of_more_calls_than_it_can_make():
    """In however many reports; and what others tell counts beside it."""
    figures = CallFigures()
    for _ in range(1000):
        figures.add("bad", told(calls=2**53, failures=2**53), 0.0)
    figures.add("ops", told(calls=7), 0.0)
    search = figures.by_verb(0.0)["search"]
    assert (search.calls, search.failures) == (1_000_007, 1_000_000)
    assert figures.callers(0.0) == 2
    figures.add("bad", told(calls=5), 5.0)
    assert figures.by_verb(5.0)["search"].calls == 1_000_012
