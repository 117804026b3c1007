"""A real node that is drained, stopped under load, or paused: nothing asked of it is lost, and
nothing runs for which nobody waits.
"""

from __future__ import annotations

import asyncio
import os
import signal
import textwrap
import time
from collections import Counter

import pytest
import pytest_asyncio
from live_mesh import START_S, LiveMesh, health_of
from processes import pause

from mesh import bootstrap
from mesh.config import NatsConfig
from mesh.errors import DrainingError, MeshError, NotFoundError, UnavailableError
from mesh.wire import codec
from mesh.wire.messages import ActionResult

APP = """
    import asyncio, os
    from pathlib import Path

    import mesh

    node = mesh.Node(os.environ["NAME"])
    RUNS = Path(os.environ["RUNS"])


    @node.action("work")
    async def work(params: dict) -> str:
        with RUNS.open("a") as runs:
            runs.write(params["what"] + "\\n")
        await asyncio.sleep(params.get("seconds", 0.005))
        return params["what"]
"""


class World(LiveMesh):
    def run(self, name):
        return self.add(
            name, "--app", "work_app:node", NAME=name, RUNS=str(self.folder / f"{name}.runs")
        )

    def runs(self, name):
        file = self.folder / f"{name}.runs"
        return Counter(file.read_text().split()) if file.exists() else Counter()

    async def bus(self):
        """A connection that asks without any of the caller's second tries."""
        file = self.file()
        config = NatsConfig(servers=[file["nats_url"]], credentials=file["credentials"]["operator"])
        return await bootstrap.connect_bus(None, config)


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("drain"))
    (world.folder / "work_app.py").write_text(textwrap.dedent(APP))
    try:
        world.start()
        for name in ("crm", "paused", "ending"):
            world.run(name)
        yield world
    finally:
        world.stop()


@pytest_asyncio.fixture
async def client(live):
    async with live.connect() as opened:
        async with asyncio.timeout(START_S):
            for name in live.nodes:
                while live.nodes[name].is_alive() and await health_of(opened, name) != "healthy":
                    await asyncio.sleep(0.05)
        yield opened


@pytest_asyncio.fixture
async def bus(live):
    opened = await live.bus()
    yield opened
    await opened.close()


async def work(bus, node, what, *, seconds=0.005, timeout_s=10.0, action_id=None):
    body = {
        "action": "work",
        "id": action_id or what,
        "params": {"what": what, "seconds": seconds},
        "deadline": round((time.time() + timeout_s) * 1000),
    }
    reply = await bus.request(
        f"mesh.v1.act.{node}.work.{bus.identity}",
        codec.encode(body),
        responder=node,
        timeout_s=timeout_s,
    )
    return codec.result_of(reply, ActionResult).result


async def test_an_operator_drains_a_node_and_takes_it_back(live, client, bus):
    running = asyncio.create_task(work(bus, "crm", "long", seconds=1.0))
    async with asyncio.timeout(10):
        while not live.runs("crm")["long"]:
            await asyncio.sleep(0.01)
    record = await client.drain_node("crm")
    assert record.health == "draining"
    with pytest.raises(DrainingError) as caught:
        await work(bus, "crm", "new")
    assert caught.value.retry_after_ms
    assert (await client.ping("crm"))[0].node == "crm"
    assert await running == "long"
    assert (await client.drain_node("crm")).health == "draining"
    assert (await client.undrain_node("crm")).health == "healthy"
    assert await work(bus, "crm", "after") == "after"
    assert live.runs("crm")["new"] == 0
    entries = (await client.access.audit(subject="crm")).entries
    kinds = [one.kind for one in entries if one.kind.startswith("node-")]
    assert kinds[:3] == ["node-undrained", "node-drained", "node-drained"]


async def test_a_node_that_is_not_there_cannot_be_drained(live, client):
    with pytest.raises(NotFoundError):
        await client.drain_node("nobody")
    live.nodes["crm"].end()
    with pytest.raises(UnavailableError, match="away"):
        await client.drain_node("crm")
    live.nodes["crm"].start()


async def test_a_node_that_was_paused_runs_nothing_that_has_expired(live, client, bus):
    """Expired requests do not even take a place: what is asked afterwards is answered."""
    node = live.nodes["paused"]
    assert await work(bus, "paused", "before") == "before"
    pause(node.pid)
    try:
        late = [
            asyncio.create_task(work(bus, "paused", f"late{number}", timeout_s=0.4))
            for number in range(300)
        ]
        ended = await asyncio.gather(*late, return_exceptions=True)
        assert all(isinstance(one, MeshError) for one in ended)
    finally:
        os.kill(node.pid, signal.SIGCONT)
    assert await work(bus, "paused", "after") == "after"
    assert live.runs("paused") == Counter({"before": 1, "after": 1})


async def test_every_request_to_a_node_that_is_stopped_has_an_end(live, client, bus):
    """Answered, pushed back, or never received by it: none is lost, and none ran unanswered."""
    node = live.nodes["ending"]
    ends = Counter()
    answered = set()
    stopping = False

    async def ask(number):
        try:
            answered.add(await work(bus, "ending", f"w{number}", timeout_s=8.0))
            ends["answered"] += 1
        except MeshError as error:
            ends[error.kind] += 1

    async def offer():
        number = 0
        while not stopping or node.is_alive():
            for _ in range(8):
                tasks.append(asyncio.create_task(ask(number)))
                number += 1
            await asyncio.sleep(0.004)

    tasks = []
    load = asyncio.create_task(offer())
    await asyncio.sleep(0.5)
    stopping = True
    assert await asyncio.to_thread(node.end, signal.SIGTERM) == 0
    await load
    await asyncio.gather(*tasks)
    assert set(ends) <= {"answered", "draining", "no_responders", "overloaded"}, ends
    assert ends["answered"] > 100
    assert ends["no_responders"]
    assert set(live.runs("ending")) == answered
    assert max(live.runs("ending").values()) == 1
