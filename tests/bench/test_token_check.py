"""What it costs the gateway to know a bearer that it has seen before."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

import pytest
from fakes import MemoryBroker

from mesh.adapters.clock import SystemClock
from mesh.adapters.jwt import Ed25519Mint, JwtVerifier
from mesh.runtime.gatekeeper import Gatekeeper
from mesh.wire.messages import Identity, Trust

pytestmark = [pytest.mark.bench, pytest.mark.timeout(120)]

MESH = {"issuer": "nodemesh", "audience": "nodemesh"}
TOKENS = 1000
ROUNDS = 20
AT_MOST_US = 20.0


class Masters:
    """They say which key is good."""

    def __init__(self, pair) -> None:
        self._pair = pair

    async def trust(self) -> Trust:
        return Trust(keys=[self._pair.public], revoked=[])


async def measure() -> tuple[float, float]:
    """Microseconds for a token seen before, and for one that is new."""
    mint = Ed25519Mint(**MESH)
    pair = mint.load(mint.make())
    verifier = JwtVerifier(**MESH, leeway_s=5.0)
    gatekeeper = Gatekeeper(MemoryBroker().bus("gateway"), Masters(pair), verifier, SystemClock())
    await gatekeeper.start()
    now = int(time.time())
    tokens = [
        pair.sign(
            Identity(subject=f"app-{n}", scopes=["search", "actions"], token_id=f"t{n}"),
            issued_at=now,
            expires_at=now + 3600,
        )
        for n in range(TOKENS)
    ]
    began = time.perf_counter()
    for token in tokens:
        await gatekeeper.identify(token)
    new_us = (time.perf_counter() - began) / TOKENS * 1e6
    known_us = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for token in tokens:
            assert gatekeeper.known(token) is not None
        known_us.append((time.perf_counter() - began) / TOKENS * 1e6)
    await gatekeeper.stop()
    return statistics.median(known_us), new_us


def test_a_token_that_was_seen_before():
    known_us, new_us = asyncio.run(measure())
    sys.stdout.write(
        f"\ntoken check, {TOKENS} tokens: {known_us:.2f} us where it is cached, "
        f"{new_us:.0f} us the first time\n"
    )
    assert known_us < AT_MOST_US
