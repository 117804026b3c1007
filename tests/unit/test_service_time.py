from __future__ import annotations

import pytest

from mesh.core.service_time import WINDOW, ServiceTime
from mesh.wire.messages import VerbStats


def test_nothing_measured_yet():
    assert ServiceTime().stats() == VerbStats()


def test_first_call_is_the_mean_then_it_follows():
    meter = ServiceTime()
    meter.record(10)
    assert meter.stats().ewma_ms == 10
    for _ in range(100):
        meter.record(20, failed=True)
    stats = meter.stats()
    assert stats.ewma_ms == pytest.approx(20, abs=0.01)
    assert (stats.count, stats.errors) == (101, 100)


def test_p99_is_of_the_last_calls_only():
    meter = ServiceTime()
    meter.record(10_000)
    for took in range(WINDOW):
        meter.record(took)
    assert meter.stats().p99_ms == int(WINDOW * 0.99)


def test_quantiles():
    meter = ServiceTime()
    for took in range(100):
        meter.record(took)
    stats = meter.stats()
    assert (stats.p50_ms, stats.p95_ms, stats.p99_ms) == (50, 95, 99)


def test_a_heartbeat_without_a_call_since_the_last_one_costs_nothing():
    meter = ServiceTime()
    meter.record(1)
    assert meter.stats() is meter.stats()
    before = meter.stats()
    meter.record(2)
    assert meter.stats().count == before.count + 1
