"""Membership over a real broker and real processes that die: how soon, and what is no death."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest_asyncio
from processes import pause

from mesh.adapters.clock import SystemClock
from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.callout import NatsDoorman
from mesh.adapters.nats.departures import NatsDepartures
from mesh.adapters.sql.registry import SqlRegistry
from mesh.config import HealthConfig, NatsConfig
from mesh.core import health_events, permissions
from mesh.ports import SHUT_DOWN, LoginGrant
from mesh.runtime.background import Background
from mesh.runtime.membership import Membership
from mesh.types import Health
from mesh.wire.messages import NodeRecord

INTERVAL = 1.0
NAMES = ("crm", "docs", "shop")


class World:
    """A master's eyes and ears, without the rest of it."""

    def __init__(self, broker, folder: Path) -> None:
        self.broker = broker
        self.folder = folder
        self.health = HealthConfig(heartbeat_interval_s=INTERVAL)
        self.told: list[tuple[float, str, Health, str]] = []
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.changed = asyncio.Event()

    async def open(self) -> None:
        self.registry = await SqlRegistry.open(f"sqlite+aiosqlite:///{self.folder}/mesh.db")
        for name in NAMES:
            record = NodeRecord(id=f"id-{name}", slug=name, name=name)
            await self.registry.register(record, api_key_hash=name)
        keys, config = self.broker.keys, NatsConfig(servers=[self.broker.url])
        self.auth, self.system = [
            await NatsBus.connect(login.user, config, login=login)
            for login in (keys.auth_login(), keys.sys_login())
        ]
        self.doorman = NatsDoorman(self.auth, keys, SystemClock())
        await self.doorman.start(self._judge)
        await self.start_master()

    async def start_master(self) -> None:
        config = NatsConfig(servers=[self.broker.url])
        self.bus = await NatsBus.connect("master", config, login=self.broker.login())
        self.background = Background(SystemClock())
        self.membership = Membership(
            self.bus,
            self.registry,
            SystemClock(),
            self.background,
            self.health,
            incarnation=int(time.time() * 1000),
            on_change=self._on_change,
        )
        await self.membership.start()
        self.departures = NatsDepartures(self.system)
        await self.departures.start(lambda one: self.membership.departed(one.login, one.reason))

    async def stop_master(self) -> None:
        await self.departures.stop()
        await self.background.stop()
        with contextlib.suppress(Exception):
            await self.membership.stop()
        await self.bus.close()

    async def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        await self.stop_master()
        await self.doorman.stop()
        for bus in (self.auth, self.system):
            await bus.close()
        await self.registry.close()

    async def _judge(self, attempt):
        return LoginGrant(attempt.user, permissions.of_node(attempt.user))

    def _on_change(self) -> None:
        for record in self.membership.view:
            last = next((one for one in reversed(self.told) if one[1] == record.slug), None)
            if last is None or last[2:] != (record.health, record.reason):
                self.told.append((time.monotonic(), record.slug, record.health, record.reason))
        self.changed.set()

    def start(self, *names: str) -> None:
        script = str(Path(__file__).with_name("beating_node.py"))
        for name in names:
            argv = [sys.executable, script, self.broker.url, name, str(INTERVAL)]
            with (self.folder / f"{name}.log").open("ab") as log:
                self.processes[name] = subprocess.Popen(argv, stdout=log, stderr=log)

    def kill(self, name: str) -> float:
        """When."""
        process = self.processes.pop(name)
        at = time.monotonic()
        process.kill()
        process.wait()
        return at

    def of(self, name: str) -> Health:
        return self.membership.view.find(name).health

    async def until(self, name: str, *wanted: Health, within_s: float = 15.0) -> float:
        """When."""
        async with asyncio.timeout(within_s):
            while self.of(name) not in wanted:
                self.changed.clear()
                await self.changed.wait()
        return time.monotonic()

    async def all_healthy(self, within_s: float = 15.0) -> float:
        return max([await self.until(name, Health.HEALTHY, within_s=within_s) for name in NAMES])


@pytest_asyncio.fixture
async def world(broker, tmp_path):
    world = World(broker, tmp_path)
    await world.open()
    yield world
    await world.close()
    assert world.background.failures == 0


async def test_a_killed_process_is_unreachable_within_milliseconds(world):
    world.start(*NAMES)
    await world.all_healthy()
    delays = []
    for name in NAMES:
        killed_at = world.kill(name)
        delays.append(await world.until(name, Health.UNREACHABLE) - killed_at)
        assert world.membership.view.find(name).reason == health_events.NOBODY_LISTENS
    sys.stdout.write(
        f"\nkill -9 to unreachable: {', '.join(f'{one * 1000:.1f}' for one in delays)} ms\n"
    )
    assert statistics.median(delays) < 0.25


async def test_callers_who_find_nobody_make_the_master_look(world):
    """Without a word from the broker."""
    world.start("crm")
    await world.until("crm", Health.HEALTHY)
    await world.departures.stop()
    world.kill("crm")
    await asyncio.sleep(0.1)  # callers find nobody once the broker has noticed
    doubted_at = time.monotonic()
    world.membership.doubt("crm")
    world.membership.doubt("nobody")
    gone_at = await world.until("crm", Health.UNREACHABLE, within_s=1.0)
    assert gone_at - doubted_at < 0.25


async def test_doubts_and_departures_of_a_node_that_answers_change_nothing(world):
    world.start("crm")
    await world.until("crm", Health.HEALTHY)
    told = len(world.told)
    for _ in range(200):
        world.membership.doubt("crm")
        world.membership.departed("crm", "Client Closed")
        world.membership.departed("crm", SHUT_DOWN)
        world.membership.departed("stranger", "Client Closed")
    await asyncio.sleep(0.3)
    assert world.of("crm") is Health.HEALTHY
    assert world.membership.view.find("crm").failures == 0
    assert len(world.told) == told


async def test_a_paused_process_is_suspect_then_unreachable_in_three_beats(world):
    world.start("crm")
    await world.until("crm", Health.HEALTHY)
    pid = world.processes["crm"].pid
    pause(pid)
    paused_at = time.monotonic()
    try:
        suspect_at = await world.until("crm", Health.SUSPECT)
        gone_at = await world.until("crm", Health.UNREACHABLE)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert suspect_at - paused_at < 2.2 * INTERVAL
    assert 1.9 * INTERVAL < gone_at - paused_at < 3.7 * INTERVAL
    await world.until("crm", Health.HEALTHY)


async def test_a_broker_that_restarts_is_nobodys_death(world):
    world.start(*NAMES)
    await world.all_healthy()
    for end in (world.broker.kill, world.broker.stop):
        world.told.clear()
        await asyncio.to_thread(end)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(world.broker.start)
        until = time.monotonic() + 2 * INTERVAL
        while time.monotonic() < until:
            for name in NAMES:  # callers, who are back sooner, find nobody
                world.membership.doubt(name)
            await asyncio.sleep(0.05)
        await world.all_healthy()
    assert [one for one in world.told if one[2] is Health.UNREACHABLE] == []


async def test_a_master_that_comes_back_knows_everybody_within_three_seconds(world):
    world.start(*NAMES)
    await world.all_healthy()
    await world.stop_master()
    began = time.monotonic()
    await world.start_master()
    async with asyncio.timeout(3.0):
        while not world.membership.settled:
            await asyncio.sleep(0.01)
        settled_at = time.monotonic()
        await world.all_healthy()
    sys.stdout.write(
        f"\na master's start to routes that are good: {settled_at - began:.2f} s, "
        f"to everybody healthy: {time.monotonic() - began:.2f} s\n"
    )
