"""The door under attack, and while nobody stands at it."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import psutil
import pytest
from live_mesh import LiveMesh, health_of
from processes import pause
from raw_login import flood, try_login, try_logins

import mesh
from mesh.errors import DisconnectedError

pytestmark = pytest.mark.chaos

BAD_LOGINS = 10_000
GROWTH_BYTES = 50 * 1024 * 1024
IN_AGAIN_S = 5.0
FLOOD_S = 6


@pytest.fixture
def running(tmp_path):
    started = LiveMesh(tmp_path)
    try:
        started.start()
        started.add("crm")
        yield started
    finally:
        started.stop()


async def until_healthy(client, slug: str) -> None:
    async with asyncio.timeout(60):
        while await health_of(client, slug) != "healthy":
            await asyncio.sleep(0.1)


async def searching(client, stop: asyncio.Event) -> tuple[int, int]:
    """How many searches went well, and how many did not, until told to stop."""
    good = bad = 0
    while not stop.is_set():
        try:
            answer = await client.search("anything", cache=False)
        except mesh.errors.MeshError:
            bad += 1
        else:
            failed = answer.partial or answer.shards.failed
            good, bad = (good, bad + 1) if failed else (good + 1, bad)
        await asyncio.sleep(0.02)
    return good, bad


async def test_ten_thousand_bad_logins_trouble_nobody(running):
    """Some come twice as fast as they can be judged: nobody waits for one answer before he
    tries again. Were the first come served first, all would be answered after the broker's 2 s, and
    nobody would get in.
    """
    url = running.file()["nats_url"]
    login = mesh.bootstrap.read_credentials(running.state / "credentials" / "operator.json")
    master = psutil.Process(running.pid("master"))
    async with running.connect() as client:
        await until_healthy(client, "crm")
        warm = [(f"warm-{number}", "nmk_" + "w" * 43) for number in range(500)]
        began = time.monotonic()
        await try_logins(url, warm, at_once=32)
        per_s = 2 * len(warm) / (time.monotonic() - began)
        before = master.memory_info().rss
        entries_before = (await client.access.audit(kind="login-refused")).total
        stop = asyncio.Event()
        search = asyncio.create_task(searching(client, stop))
        names = ["crm", "operator", "gateway", "*", "mesh.>", "x" * 500, ""]
        bad = [
            (names[number % 8] if number % 8 < len(names) else f"n{number}", f"nmk_{number:043}")
            for number in range(BAD_LOGINS)
        ]
        at_once = round(FLOOD_S * per_s)
        flooding = asyncio.create_task(flood(url, bad[:at_once], per_s=per_s))
        await asyncio.sleep(FLOOD_S / 2)
        entering = [asyncio.create_task(in_after(url, login, each / 30)) for each in range(30)]
        await asyncio.sleep(FLOOD_S / 2 - 0.5)
        assert sum(each.done() for each in entering) > 1, "some are in while it goes on"
        took_s = await asyncio.gather(*entering)
        assert max(took_s) < IN_AGAIN_S, took_s
        assert await flooding == 0
        assert not any(await try_logins(url, bad[at_once:], at_once=32))
        stop.set()
        good, failed = await search
        assert good > 20
        assert failed == 0
        assert running.pid("master") == master.pid
        assert master.memory_info().rss - before < GROWTH_BYTES
        entries = (await client.access.audit(kind="login-refused")).total - entries_before
        assert entries < BAD_LOGINS / 10, "ten thousand tries are not ten thousand entries"
        async with running.connect() as newcomer:  # and who has a key gets in
            assert (await newcomer.stats()).total == 1


async def in_after(url: str, login, later_s: float) -> float:
    """Seconds that somebody with a key takes to get in, who tries until he is."""
    await asyncio.sleep(later_s)
    began = time.monotonic()
    while not await try_login(url, login.user, login.password):
        await asyncio.sleep(0.2)
    return time.monotonic() - began


async def test_masters_away_keep_nobody_who_is_in_from_working(running):
    url = running.file()["nats_url"]
    operator = running.state / "credentials" / "operator.json"
    login = mesh.bootstrap.read_credentials(operator)
    async with running.connect() as client:
        await until_healthy(client, "crm")
        stop = asyncio.Event()
        search = asyncio.create_task(searching(client, stop))
        master = running.pid("master")
        pause(master)
        try:
            assert not await try_login(url, login.user, login.password)
            with pytest.raises(DisconnectedError, match="no master"):
                await running.connect()
            assert running.nodes["crm"].is_alive()
            newcomer = running.add("late")
            async with asyncio.timeout(60):
                while "no master" not in newcomer.log.read_text():
                    assert newcomer.is_alive(), newcomer.log.read_text()
                    await asyncio.sleep(0.1)
        finally:
            os.kill(master, signal.SIGCONT)
        back_at = time.monotonic()
        async with asyncio.timeout(IN_AGAIN_S):
            while await health_of(client, "late") != "healthy":
                await asyncio.sleep(0.05)
        assert time.monotonic() - back_at < IN_AGAIN_S
        stop.set()
        good, failed = await search
        assert good > 50
        assert failed == 0
