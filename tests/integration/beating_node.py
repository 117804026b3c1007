"""A node with nothing but a pulse, for tests that kill it: it beats on one connection and answers
pings on another, as real ones do. Arguments: URL of the broker, its name, the interval in seconds.
"""

from __future__ import annotations

import asyncio
import sys
import time

from mesh.adapters.nats.bus import NatsBus
from mesh.config import NatsConfig
from mesh.ports import Login
from mesh.wire import codec, subjects
from mesh.wire.messages import Heartbeat, PingResult


async def main(url: str, slug: str, interval_s: float) -> None:
    config, login = NatsConfig(servers=[url]), Login(user=slug, password="any")
    main_bus, beats = [
        await NatsBus.connect(slug, config, login=login, patience_s=10) for _ in range(2)
    ]
    born = int(time.time() * 1000)
    pong = codec.ok(PingResult(node=slug, incarnation=born))
    await main_bus.subscribe(
        f"{subjects.PREFIX}.rpc.{slug}.ping.*",
        lambda message: main_bus.publish(message.reply, pong),
    )
    sequence = 0
    while True:
        sequence += 1
        if beats.connected:
            beat = Heartbeat(node=slug, incarnation=born, sequence=sequence)
            beats.publish(subjects.heartbeat(slug), codec.encode(beat))
        await asyncio.sleep(interval_s)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
