"""The gateway beside Moleculer's, its share of a search, other people's slow clients, memory."""

from __future__ import annotations

import asyncio
import http.client
import statistics
import sys
import time
from collections.abc import Callable
from statistics import median
from urllib.parse import urlsplit

import psutil
import pytest
import uvloop
from gateway_world import BODY, gateway_world, moleculer, open_broker, second_gateway, wrk

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

AT_LEAST_MOLECULER = 1.2
OWN_SHARE_MS = 1.5
SLOWED_AT_MOST = 1.2
GROWTH_AT_MOST = 0.05
ROUNDS = 5


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with gateway_world(tmp_path_factory.mktemp("mesh")) as running:
        yield running


def test_search_beside_moleculer_web(world, tmp_path):
    """Taken in turns, each on a broker of its own, the other one idle meanwhile. Moleculer works in
    two processes, gateway and service, both of them busy; our node costs nothing, so a machine of
    two cores has room for two gateways. One alone is measured as well.
    """

    def ours() -> float:
        return loaded(world.search, world.token)

    with open_broker() as nats_url, moleculer(tmp_path / "peers", nats_url) as peer:
        one, beside_one = in_turns(ours, lambda: loaded(peer))
        with second_gateway(world):
            two, beside_two = in_turns(ours, lambda: loaded(peer))
    for name, mine, theirs in (
        ("one gateway", one, beside_one),
        ("two gateways on one port", two, beside_two),
    ):
        sys.stdout.write(
            f"\nPOST /search, wrk -c32, {name}: {median(mine):,.0f}/s ({min(mine):,.0f} to "
            f"{max(mine):,.0f}), moleculer-web {median(theirs):,.0f}/s ({min(theirs):,.0f} to "
            f"{max(theirs):,.0f}): {median(mine) / median(theirs):.2f} x\n"
        )
    assert median(two) / median(beside_two) >= AT_LEAST_MOLECULER


def loaded(url: str, token: str = "") -> float:
    """Searches a second."""
    load = wrk(url, connections=32, seconds=4, token=token)
    assert not load.failed
    return load.per_second


def in_turns(
    mine: Callable[[], float], theirs: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """What each measures, after a warm-up."""
    mine()
    theirs()
    rounds = [(mine(), theirs()) for _ in range(ROUNDS)]
    return [one for one, _ in rounds], [other for _, other in rounds]


def test_own_share_of_a_search(world):
    """One client, one request at a time: by HTTP, and by a `MeshClient` to the same node."""

    async def by_bus(times: int) -> list[float]:
        took = []
        async with world.live.connect() as client:
            for _ in range(times):
                began = time.perf_counter()
                assert (await client.search("hello world this is a query", cache=False)).count == 1
                took.append((time.perf_counter() - began) * 1000)
        return took

    http_ms, bus_ms = [], []
    for _ in range(3):
        http_ms += by_http(world, 400)[20:]
        bus_ms += uvloop.run(by_bus(400))[20:]
    share = median(http_ms) - median(bus_ms)
    sys.stdout.write(
        f"\nsearch through the gateway p50 {median(http_ms):.2f} ms, by a client on the "
        f"bus {median(bus_ms):.2f} ms: the gateway's share {share:.2f} ms\n"
    )
    assert share < OWN_SHARE_MS


def by_http(world, times: int, pause_s: float = 0.0) -> list[float]:
    """Milliseconds of each search over one kept connection."""
    place = urlsplit(world.search)
    headers = {"Authorization": f"Bearer {world.token}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=10)
    took = []
    for _ in range(times):
        began = time.perf_counter()
        connection.request("POST", place.path, BODY, headers)
        answer = connection.getresponse()
        answer.read()
        took.append((time.perf_counter() - began) * 1000)
        assert answer.status == 200
        if answer.will_close:
            connection.close()
        time.sleep(pause_s)
    connection.close()
    return took


class Crowd:
    """200 connections that say nothing and 50 that send a search at a byte a second."""

    def __init__(self, world) -> None:
        place = urlsplit(world.search)
        self._address = place.hostname, place.port
        head = f"POST {place.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.token}\r\n"
        self._request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY

    async def __aenter__(self):
        idle = [self._stay(idle=True) for _ in range(200)]
        slow = [self._stay(idle=False) for _ in range(50)]
        self._tasks = [asyncio.create_task(one) for one in (*idle, *slow)]
        await asyncio.sleep(1)
        return self

    async def __aexit__(self, *_exc):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _stay(self, *, idle: bool) -> None:
        """Come back whenever the gateway has had enough."""
        while True:
            reader, writer = await asyncio.open_connection(*self._address)
            try:
                if idle:
                    await reader.read(1)
                for byte in self._request:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(1)
            except OSError:
                pass
            finally:
                writer.close()


def test_slow_clients_hold_up_nobody(world):
    async def alone_and_in_the_crowd() -> tuple[list[float], list[float]]:
        alone, crowded = [], []
        await asyncio.to_thread(by_http, world, 200)
        for _ in range(ROUNDS):
            alone.append(_p99(await asyncio.to_thread(by_http, world, 1500, 0.001)))
            async with Crowd(world):
                crowded.append(_p99(await asyncio.to_thread(by_http, world, 1500, 0.001)))
        return alone, crowded

    alone, crowded = asyncio.run(alone_and_in_the_crowd())
    ratio = median(crowded) / median(alone)
    sys.stdout.write(
        f"\np99 alone {median(alone):.2f} ms, beside 200 idle and 50 slow clients "
        f"{median(crowded):.2f} ms: {ratio:.2f} x\n"
    )
    assert ratio <= SLOWED_AT_MOST


def _p99(took: list[float]) -> float:
    return statistics.quantiles(took, n=100)[98]


def test_memory_after_100_000_requests(world):
    gateway = psutil.Process(world.live.pid("gateway"))
    _load(world, 20_000)  # caches and pools have their size
    before = gateway.memory_info().rss
    done = _load(world, 100_000)
    after = gateway.memory_info().rss
    sys.stdout.write(
        f"\ngateway: {before / 2**20:.1f} MB before, {after / 2**20:.1f} MB after "
        f"{done:,} requests\n"
    )
    assert after <= before * (1 + GROWTH_AT_MOST)


def _load(world, requests: int) -> int:
    done = 0
    while done < requests:
        load = wrk(world.search, connections=32, seconds=5, token=world.token)
        assert not load.failed
        done += load.requests
    return done
