"""300 nodes log in at once, as after a broker's restart."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest
from live_mesh import LiveMesh
from raw_login import until_let_in

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
        took, most_tries = [], 0
        for _ in range(3):
            began = time.perf_counter()
            tries = await asyncio.gather(*(until_let_in(url, *login) for login in logins))
            took.append(time.perf_counter() - began)
            most_tries = max(most_tries, *tries)
            await asyncio.sleep(0.5)
    finally:
        running.stop()
    sys.stdout.write(
        f"\n{NODES} logins at once: {', '.join(f'{each:.2f} s' for each in took)}; "
        f"{most_tries} tries at most\n"
    )
    assert max(took) < LIMIT_S
