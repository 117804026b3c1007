"""What a recorded action costs beside a bare publish that JetStream acknowledges.

An action that anybody relies on is two records in the history, each acknowledged, and four notes in
the node's journal, between a request and its reply. Everything is measured from Python, in turns,
on one broker: the bare publishes by our own connection (and, for comparison, by nats-py's), the
actions by a caller in a process of its own, on a node in another.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import nats
import pytest
import uvloop
from live_mesh import LiveMesh, health_of

from mesh import bootstrap
from mesh.adapters.nats.streams import DAY_NS, AppendOnlyStream
from mesh.adapters.state import read_credentials
from mesh.config import NatsConfig
from mesh.ports import Login
from mesh.types import ActionState
from mesh.wire import codec
from mesh.wire.messages import HistoryRecord

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

AT_LEAST = 0.3
"""Of the bare publishes; two records make 0.5 the most that could be."""
IN_FLIGHT = 64
SECONDS = 4.0
ROUNDS = 5

APP = """
from mesh import Node

node = Node("recorder")


@node.action("note")
async def note(params: dict) -> dict:
    return {"noted": params["key"]}
"""

CALLER = """
import asyncio, json, sys, time
from pathlib import Path
import uvloop
import mesh

async def main(state, seconds, in_flight):
    async with mesh.connect(state_dir=Path(state)) as client:
        done, last = 0, None
        async def one():
            nonlocal done, last
            while time.monotonic() < until:
                last = await client.run_action("note", {"key": f"{done}"}, node="recorder")
                done += 1
        for warm in (True, False):
            done, began = 0, time.monotonic()
            until = began + (1.0 if warm else seconds)
            await asyncio.gather(*(one() for _ in range(in_flight)))
            took = time.monotonic() - began
        print(json.dumps({"per_s": done / took, "state": last.state}))

uvloop.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "recorder_app.py").write_text(APP)
    (folder / "caller.py").write_text(CALLER)
    mesh = LiveMesh(folder)
    try:
        mesh.start()
        mesh.add(
            "recorder",
            *("--app", "recorder_app:node"),
            MESH_NODE__MAX_PARALLEL_REQUESTS=f"{IN_FLIGHT}",
        )
        asyncio.run(answers(mesh))
        yield mesh
    finally:
        mesh.stop()


async def answers(live) -> None:
    async with asyncio.timeout(60), live.connect() as client:
        while await health_of(client, "recorder") != "healthy":
            await asyncio.sleep(0.1)


def actions(live: LiveMesh) -> float:
    """A second."""
    done = subprocess.run(
        [sys.executable, live.folder / "caller.py", live.state, f"{SECONDS}", f"{IN_FLIGHT}"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    said = json.loads(done.stdout)
    assert said["state"] == "succeeded"
    return said["per_s"]


async def _publishing(publish) -> float:
    """`publish(number)` with 64 under way; how many a second."""
    done = 0

    async def one():
        nonlocal done
        while time.monotonic() < until:
            await publish(done)
            done += 1

    for seconds in (0.5, SECONDS):
        done, began = 0, time.monotonic()
        until = began + seconds
        await asyncio.gather(*(one() for _ in range(IN_FLIGHT)))
        took = time.monotonic() - began
    return done / took


def _record(number: int) -> HistoryRecord:
    """Of the size that the action's outcome has."""
    return HistoryRecord(
        id=f"0191e7c3-7a4e-7b4e-9d3e-{number:012}",
        node="recorder",
        action="note",
        state=ActionState.SUCCEEDED,
        caller="operator",
        at=1_790_000_000_000,
        duration_ms=0.012,
        params={"key": f"{number}"},
        digest="d" * 64,
        result={"noted": f"{number}"},
        accepted_at=1_790_000_000_000,
    )


def bare(live: LiveMesh) -> float:
    """Our connection, into a stream that nobody reads."""

    async def measure():
        bus = await bootstrap.connect_bus("master", nats_of(live), login=login_of(live))
        stream = AppendOnlyStream(
            bus,
            "BARE",
            "bare.>",
            about="the stream",
            max_age_ns=DAY_NS,
            max_bytes=-1,  # nothing is set aside for it
        )
        await stream.prepare()
        run = secrets.token_hex(8)
        try:
            return await _publishing(
                lambda number: stream.append(
                    "bare.recorder.note",
                    codec.encode(_record(number)),
                    message_id=f"{run}{number:016}",
                    timeout_s=10,
                )
            )
        finally:
            await bus.close()

    return uvloop.run(measure())


def by_nats_py(live: LiveMesh) -> float:
    """Its `js.publish`, into the same stream."""

    async def measure():
        client = await nats.connect(
            live.file()["nats_url"],
            nkeys_seed_str=login_of(live).nkey,
            inbox_prefix=b"mesh.v1.re.js.master",
        )
        stream = client.jetstream()
        run = secrets.token_hex(8)
        try:
            return await _publishing(
                lambda number: stream.publish(
                    "bare.recorder.note",
                    codec.encode(_record(number)),
                    headers={"Nats-Msg-Id": f"{run}{number:016}"},
                )
            )
        finally:
            await client.close()

    return uvloop.run(measure())


def nats_of(live: LiveMesh) -> NatsConfig:
    return NatsConfig(servers=[live.file()["nats_url"]])


def login_of(live: LiveMesh) -> Login:
    """The masters' own: nobody else makes streams."""
    return read_credentials(Path(live.state / "credentials" / "master.json"))


def test_recorded_action_beside_bare_publishes(live):
    found = [(bare(live), actions(live), by_nats_py(live)) for _ in range(ROUNDS)]
    ours, recorded, theirs = (sorted(column) for column in zip(*found, strict=True))
    ratios = sorted(action / publish for publish, action, _ in found)
    sys.stdout.write(
        f"\n{IN_FLIGHT} in flight, {ROUNDS} rounds: recorded actions {median(recorded):,.0f}/s "
        f"({recorded[0]:,.0f} to {recorded[-1]:,.0f}), bare publishes {median(ours):,.0f}/s "
        f"({ours[0]:,.0f} to {ours[-1]:,.0f}): {median(ratios):.2f} x ({ratios[0]:.2f} to "
        f"{ratios[-1]:.2f}); nats-py publishes {median(theirs):,.0f}/s, "
        f"{median(recorded) / median(theirs):.2f} x\n"
    )
    assert median(ratios) >= AT_LEAST
