"""Ten replicas of a shard in one process, each with a connection and heartbeat of its own. A search
takes 4 to 6 ms; of the node whose name stands in the file, ten times as long.

Arguments: URL of the broker, state folder, file.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from pathlib import Path

import instant_node
import msgspec
import uvloop

import mesh
from mesh import bootstrap
from mesh.config import NatsConfig
from mesh.ports import Login
from mesh.wire import codec, subjects
from mesh.wire.messages import Candidates, CollectionInfo, Heartbeat, NodeRegister, PingResult

NODES = [f"replica-{number}" for number in range(10)]
SHARD = "notes"
FOUND = msgspec.structs.replace(instant_node.FOUND, shard=SHARD)


async def serve(name: str, url: str, login: Login, slow: Path) -> None:
    bus = await bootstrap.connect_bus(None, NatsConfig(servers=[url]), login=login)
    rng = random.Random(name)
    born, sequence = int(time.time() * 1000), 0
    answer = codec.ok(Candidates(node=name, terms=instant_node.TERMS, shards=[FOUND]))
    pong = codec.ok(PingResult(node=name, incarnation=born))
    tasks = set()

    def is_slow() -> bool:
        return slow.read_text() == name

    async def search(reply: str) -> None:
        took_s = rng.uniform(0.004, 0.006)
        await asyncio.sleep(took_s * 10 if is_slow() else took_s)
        bus.publish(reply, answer)

    def asked(message) -> None:
        verb = message.subject.split(".")[4]
        if verb == "search":
            task = asyncio.create_task(search(message.reply))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        elif message.reply:
            bus.publish(message.reply, pong)

    await bus.subscribe(f"{subjects.PREFIX}.rpc.{name}.*.*", asked)
    held = CollectionInfo(name="notes", shard=SHARD, rows=10, data_version=1, fingerprint="hash")
    beat = Heartbeat(node=name, name=name, incarnation=born, sequence=0, collections=[held])
    while True:
        sequence += 1
        told = msgspec.structs.replace(beat, sequence=sequence, in_flight=len(tasks))
        bus.publish(subjects.heartbeat(name), codec.encode(told))
        await asyncio.sleep(0.5)


async def main(url: str, state_dir: Path, slow: Path) -> None:
    logins = {}
    async with mesh.connect(url, state_dir=state_dir) as operator:
        for name in NODES:
            made = await operator.access.adopt(NodeRegister(name=name))
            logins[name] = Login(user=name, password=made.api_key)
    async with asyncio.TaskGroup() as group:
        for name, login in logins.items():
            group.create_task(serve(name, url, login, slow))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
