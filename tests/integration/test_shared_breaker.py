"""Several callers of a real mesh share their breakers through the masters: what opens at most of
them is open for all, few probes find out that it is over, an operator closes it, and every request
can be explained.
"""

from __future__ import annotations

import asyncio
import os
import textwrap
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from live_mesh import START_S, LiveMesh, health_of

from mesh.config import BreakerConfig, MeshConfig, RoutingConfig
from mesh.errors import CircuitOpenError, InvalidError, MeshError, NotFoundError
from mesh.types import BreakerState

APP = """
    import asyncio, os, time
    from pathlib import Path

    import mesh

    node = mesh.Node("crm")
    MODE, RUNS = Path(os.environ["MODE"]), Path(os.environ["RUNS"])
    running = 0


    @node.action("charge")
    async def charge(params: dict) -> str:
        global running
        running += 1
        try:
            with RUNS.open("a") as runs:
                runs.write(f"{time.time() * 1000:.0f} {running}\\n")
            mode, _, seconds = MODE.read_text().partition(" ")
            await asyncio.sleep(float(seconds or 0))
            if mode == "fail":
                raise RuntimeError("as the test wants it")
            return "charged"
        finally:
            running -= 1
"""
CALLERS = 12
CONFIG = MeshConfig(
    breaker=BreakerConfig(retry_timeout_s=1.0, failure_threshold=3),
    routing=RoutingConfig(max_attempts=1, outcome_interval_s=0.2),
)


class World(LiveMesh):
    def begin(self):
        (self.folder / "charge_app.py").write_text(textwrap.dedent(APP))
        self.mode("ok")
        self.start()
        self.add("crm", "--app", "charge_app:node", MODE=str(self._mode), RUNS=str(self._runs))

    @property
    def _mode(self) -> Path:
        return self.folder / "mode"

    @property
    def _runs(self) -> Path:
        return self.folder / "runs"

    def mode(self, mode):
        staged = self.folder / "mode.new"
        staged.write_text(mode)
        staged.replace(self._mode)

    def runs(self, *, since_ms=0):
        """Of each start: unix ms, and how many ran then."""
        lines = self._runs.read_text().splitlines() if self._runs.exists() else []
        pairs = [tuple(map(int, line.split())) for line in lines]
        return [pair for pair in pairs if pair[0] >= since_ms]


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    world = World(
        tmp_path_factory.mktemp("shared"),
        MESH_BREAKER__RETRY_TIMEOUT_S="1",
        MESH_BREAKER__FAILURE_THRESHOLD="3",
    )
    try:
        world.begin()
        yield world
    finally:
        world.stop()


@pytest_asyncio.fixture
async def clients(live):
    live.mode("ok")
    async with AsyncExitStack() as open_ones:
        opened = [
            await open_ones.enter_async_context(live.connect(config=CONFIG)) for _ in range(CALLERS)
        ]
        async with asyncio.timeout(START_S):
            while await health_of(opened[0], "crm") != "healthy":
                await asyncio.sleep(0.05)
            await opened[0].reset_breakers("crm")
            while not all("charge" in one.routes.nodes["crm"].actions for one in opened):
                await asyncio.sleep(0.02)
        yield opened


async def charge(client):
    try:
        await client.run_action("charge", {}, node="crm", timeout_s=5)
    except MeshError as error:
        return error
    return None


async def all_charge(clients, times=1):
    return [
        one
        for _ in range(times)
        for one in await asyncio.gather(*(charge(client) for client in clients))
    ]


async def state(client):
    listed = (await client.breakers("crm")).breakers
    return {one.verb: one.state for one in listed}.get("act.charge", BreakerState.CLOSED)


async def until(condition, within_s=10.0):
    async with asyncio.timeout(within_s):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_what_is_open_at_most_callers_is_open_for_all_and_few_find_out_that_it_is_over(
    live, clients
):
    await all_charge(clients)
    live.mode("fail")
    bystander, failing = clients[0], clients[1:]
    await all_charge(failing, times=3)
    await until(lambda: is_state(bystander, BreakerState.OPEN))

    async def refused():
        return isinstance(await charge(bystander), CircuitOpenError)

    await until(refused, within_s=2)
    asked = len(live.runs())
    began = time.perf_counter()
    errors = await all_charge(clients)
    assert (time.perf_counter() - began) / len(errors) < 0.05
    assert {type(error) for error in errors} == {CircuitOpenError}
    assert all(0 < error.retry_after_ms <= 10_000 for error in errors)
    assert len(live.runs()) == asked

    live.mode("ok 0.2")
    began_ms = round(time.time() * 1000)

    async def go_on_charging(client):
        while await state(bystander) is not BreakerState.CLOSED:
            await charge(client)
            await asyncio.sleep(0.02)

    async with asyncio.timeout(20):
        await asyncio.gather(*(go_on_charging(client) for client in clients))
    probes = live.runs(since_ms=began_ms)
    # Until the first probe has succeeded nobody else may call.
    first_ms = probes[0][0]
    assert sum(at < first_ms + 200 for at, _ in probes) <= CONFIG.breaker.success_threshold
    assert await all_charge(clients) == [None] * CALLERS


async def is_state(client, wanted):
    return await state(client) is wanted


async def test_never_more_than_two_probe_a_node_that_is_still_bad(live, clients):
    live.mode("fail")
    await all_charge(clients, times=3)
    await until(lambda: is_state(clients[0], BreakerState.OPEN))
    await asyncio.sleep(0.5)  # what was under way has ended
    live.mode("fail 0.3")
    began_ms = round(time.time() * 1000)
    end = time.monotonic() + 4
    while time.monotonic() < end:
        await all_charge(clients)
        await asyncio.sleep(0.02)
    probes = live.runs(since_ms=began_ms)
    assert probes
    assert max(running for _, running in probes) <= CONFIG.breaker.success_threshold
    assert len(probes) <= 3 * CONFIG.breaker.success_threshold


async def test_an_operator_closes_it_everywhere(live, clients):
    live.mode("fail")
    await all_charge(clients, times=3)
    await until(lambda: is_state(clients[0], BreakerState.OPEN))
    live.mode("ok")
    listed = await clients[0].reset_breakers("crm", "act.charge")
    assert [one.state for one in listed.breakers if one.verb == "act.charge"] == ["closed"]

    async def all_well():
        return await all_charge(clients) == [None] * CALLERS

    await until(all_well, within_s=2)
    (entry, *_) = (await clients[0].access.audit(kind="breakers-reset")).entries
    assert (entry.subject, entry.details["verb"]) == ("crm", "act.charge")
    with pytest.raises(InvalidError, match=r"act\.charge"):
        await clients[0].reset_breakers("crm", "act.nothing")


async def test_figures_and_explanations_are_of_what_callers_told(live, clients):
    request = f"explained-{os.getpid()}"
    for _ in range(5):
        await all_charge(clients)
    await clients[0].run_action("charge", {}, node="crm", id=request)

    async def told():
        stats = await clients[1].stats()
        figures = stats.verbs.get("act.charge")
        return figures is not None and figures.calls >= 5 * CALLERS and figures.p99_ms > 0

    await until(told)
    stats = await clients[1].stats()
    assert stats.callers == 1, "an identity, however many connections it has"
    assert stats.breakers["open"] == 0
    assert stats.verbs["act.charge"].p50_ms <= stats.verbs["act.charge"].p99_ms
    assert stats.verbs["act.charge"].per_s > 0

    async def explained():
        try:
            return bool((await clients[1].explain(request)).calls)
        except NotFoundError:
            return False

    await until(explained)
    (call,) = (await clients[1].explain(request)).calls
    assert (call.verb, call.outcome) == ("act.charge", "ok")
    assert {step.node for step in call.steps} >= {"crm"}
