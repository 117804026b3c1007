"""The other end of test_multiplexer.py: echoes through our bus and through plain nats-py."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import nats
import uvloop

from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.state import read_credentials
from mesh.config import NatsConfig


async def main(url: str, credentials: str) -> None:
    login = read_credentials(Path(credentials))
    bus = await NatsBus.connect("echo", NatsConfig(servers=[url]), login=login)
    await bus.subscribe(
        "mesh.v1.rpc.echo.ping.*", lambda message: bus.publish(message.reply, message.data)
    )
    plain = await nats.connect(url, nkeys_seed_str=login.nkey)

    async def respond(message):
        await message.respond(message.data)

    await plain.subscribe("plain.echo", cb=respond)
    await plain.flush()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
