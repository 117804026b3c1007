"""What a real broker tells of connections that end."""

from __future__ import annotations

import asyncio
import signal
import statistics
import subprocess
import sys
import time

import nats
import pytest
import pytest_asyncio
from processes import BrokerProcess

from mesh.adapters.clock import SystemClock
from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.callout import NatsDoorman
from mesh.adapters.nats.departures import NatsDepartures
from mesh.config import NatsConfig
from mesh.core import permissions
from mesh.ports import Departure, LoginGrant, Message

TWO_CONNECTIONS = """
import asyncio, sys, nats

async def main():
    for _ in range(2):
        await nats.connect(sys.argv[1], user=sys.argv[2], password="x", name="docs")
    print("in", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


class Watch:
    """Lets everybody in under `issued-<user>`, and notes who leaves."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.broker = broker
        self.left: list[tuple[float, Departure]] = []
        self.more = asyncio.Event()

    async def open(self) -> None:
        keys, config = self.broker.keys, NatsConfig(servers=[self.broker.url])
        self.auth, self.system = [
            await NatsBus.connect(login.user, config, login=login)
            for login in (keys.auth_login(), keys.sys_login())
        ]
        self.doorman = NatsDoorman(self.auth, keys, SystemClock())
        await self.doorman.start(self._judge)
        self.departures = NatsDepartures(self.system)
        await self.departures.start(self._heard)

    async def close(self) -> None:
        await self.departures.stop()
        await self.doorman.stop()
        await self.auth.close()
        await self.system.close()

    async def _judge(self, attempt):
        return LoginGrant(f"issued-{attempt.user}", permissions.of_node(attempt.user))

    def _heard(self, departure: Departure) -> None:
        self.left.append((time.monotonic(), departure))
        self.more.set()

    async def until(self, number: int) -> None:
        async with asyncio.timeout(5):
            while len(self.left) < number:
                self.more.clear()
                await self.more.wait()


@pytest_asyncio.fixture
async def watch(shared_broker):
    watch = Watch(shared_broker)
    await watch.open()
    yield watch
    await watch.close()


def two_connections(url: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", TWO_CONNECTIONS, url, "crm"]
    return subprocess.Popen(argv, stdout=subprocess.PIPE)


async def test_a_killed_process_is_told_of_under_the_name_it_was_given_within_milliseconds(watch):
    """Not under the name it calls itself: that one may be somebody else's."""
    delays = []
    for number in range(1, 4):
        process = two_connections(watch.broker.url)
        try:
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline)
            at = time.monotonic()
            process.send_signal(signal.SIGKILL)
            await watch.until(2 * number)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        delays += [heard_at - at for heard_at, _ in watch.left[-2:]]
    told = [departure for _, departure in watch.left]
    assert {(one.login, one.reason) for one in told} == {("issued-crm", "Client Closed")}
    assert len({(one.server, one.client) for one in told}) == 6
    sys.stdout.write(f"\nkill -9 to event: median {statistics.median(delays) * 1000:.1f} ms\n")
    assert statistics.median(delays) < 0.1


async def test_a_goodbye_is_told_of_too_and_a_connection_that_stays_is_not(watch):
    staying, leaving = [
        await nats.connect(watch.broker.url, user=user, password="x") for user in ("stays", "goes")
    ]
    await leaving.close()
    await watch.until(1)
    assert [departure.login for _, departure in watch.left] == ["issued-goes"]
    await staying.close()
    await watch.until(2)


async def test_masters_are_told_of_by_their_key_and_number(watch):
    """A master that leads is known by its connection: all masters have one key."""
    bus = await NatsBus.connect(
        "master", NatsConfig(servers=[watch.broker.url]), login=watch.broker.login()
    )
    client = bus._client._server_info["client_id"]
    await bus.close()
    await watch.until(1)
    ((_, departure),) = watch.left
    assert departure.login.startswith("U")
    assert departure.client == client


async def test_after_stop_nothing_is_heard(watch):
    await watch.departures.stop()
    client = await nats.connect(watch.broker.url, user="crm", password="x")
    await client.close()
    await asyncio.sleep(0.1)
    assert watch.left == []


@pytest.mark.parametrize(
    ("event", "dropped"),
    [
        (b"", 1),
        (b"\xff", 1),
        (b"[" * 100_000, 1),
        (b"{}", 1),
        (b'{"client":{"acc":"MESH"}}', 1),
        (b'{"client":{"acc":"MESH","user":"a.>"}}', 1),
        (b'{"client":{"acc":"MESH","user":"crm","id":-1}}', 1),
        (b'{"client":{"acc":"SYS","user":"crm"}}', 0),
    ],
    ids=["empty", "bytes", "deep", "bare", "nobody", "wildcard", "number", "elsewhere"],
)
async def test_what_cannot_be_an_event_is_dropped(watch, event, dropped):
    watch.departures._on_event(Message("$SYS.ACCOUNT.MESH.DISCONNECT", "", event))
    assert (watch.departures.dropped, watch.left) == (dropped, [])


async def test_a_long_reason_is_cut(watch):
    event = b'{"client":{"acc":"MESH","user":"crm"},"reason":"' + b"x" * 5000 + b'"}'
    watch.departures._on_event(Message("$SYS.ACCOUNT.MESH.DISCONNECT", "", event))
    ((_, departure),) = watch.left
    assert departure == Departure("crm", "x" * 200, "", 0)
