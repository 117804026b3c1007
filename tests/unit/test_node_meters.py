"""What a node measures of the requests it serves."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from mesh.adapters.clock import SystemClock
from mesh.core.service_time import ServiceTime
from mesh.errors import InvalidError, UnavailableError
from mesh.runtime.node_doors import _Metered


@pytest.mark.parametrize(
    ("error", "count", "failed"),
    [
        (None, 1, 0),
        (InvalidError("of the caller"), 1, 0),
        (UnavailableError("of the node"), 1, 1),
        (asyncio.CancelledError(), 0, 0),
    ],
    ids=["answered", "refused", "failed", "cancelled"],
)
def test_a_request_counts_for_what_it_was(error, count, failed):
    meter = ServiceTime()
    with contextlib.suppress(type(error) if error else ()), _Metered(SystemClock(), meter, None):
        if error is not None:
            raise error
    stats = meter.stats()
    assert (stats.count, stats.errors) == (count, failed)
