"""300 nodes log in at once, as after a broker's restart."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest
from live_mesh import LiveMesh
from raw_login import try_logins

from mesh import messages

pytestmark = pytest.mark.bench

NODES = 300
LIMIT_S = 5.0


async def test_three_hundred_nodes_at_once(tmp_path):
    running = LiveMesh(tmp_path)
    running.start()
    try:
        async with running.connect() as client:
            logins = []
            for number in range(NODES):
                made = await client.register_node(messages.NodeRegister(name=f"node-{number}"))
                logins.append((made.node.slug, made.api_key))
        url = running.file()["nats_url"]
        took = []
        for _ in range(3):
            began = time.perf_counter()
            let_in = await try_logins(url, logins, at_once=NODES)
            took.append(time.perf_counter() - began)
            assert all(let_in)
            await asyncio.sleep(0.5)
    finally:
        running.stop()
    sys.stdout.write(f"\n{NODES} logins at once: {', '.join(f'{each:.2f} s' for each in took)}\n")
    assert min(took) < LIMIT_S
