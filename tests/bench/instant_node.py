"""A node that costs nothing: it beats like any other and answers every search at once with one
document, so that what is measured is the caller's side. Arguments: URL of the broker, state folder.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import uvloop

import mesh
from mesh import bootstrap
from mesh.config import NatsConfig
from mesh.ports import Login
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    Candidate,
    Candidates,
    CollectionInfo,
    Heartbeat,
    NodeRegister,
    PingResult,
    ShardHits,
)

SLUG = "instant"
FOUND = ShardHits(
    collection="notes",
    shard=SLUG,
    rows=10,
    tokens=50,
    df=[3] * 7,
    fingerprint="hash",
    data_version=1,
    candidates=[
        Candidate(
            id="1",
            cosine=0.5,
            vector_hit=True,
            text_hit=True,
            length=5,
            tf=[1, 1, 0, 0, 0, 0, 0],
            hash="1",
            content="hello world, this is a document",
        )
    ],
)
TERMS = ["hello", "world", "this", "is", "a", "query", "x"]
ANSWER = codec.ok(Candidates(node=SLUG, terms=TERMS, shards=[FOUND]))


async def main(url: str, state_dir: Path) -> None:
    async with mesh.connect(url, state_dir=state_dir) as operator:
        made = await operator.access.adopt(NodeRegister(name=SLUG))
    login = Login(user=SLUG, password=made.api_key)
    bus = await bootstrap.connect_bus(None, NatsConfig(servers=[url]), login=login)
    born, sequence = int(time.time() * 1000), 0
    pong = codec.ok(PingResult(node=SLUG, incarnation=born))
    verbs = {"search": ANSWER, "ping": pong}

    def answer(message) -> None:
        verb = message.subject.split(".")[4]
        if message.reply:  # a cancel wants no answer
            bus.publish(message.reply, verbs.get(verb, pong))

    await bus.subscribe(f"{subjects.PREFIX}.rpc.{SLUG}.*.*", answer)
    held = CollectionInfo(name="notes", shard=SLUG, rows=10, data_version=1, fingerprint="hash")
    while True:
        sequence += 1
        beat = Heartbeat(
            node=SLUG, name=SLUG, incarnation=born, sequence=sequence, collections=[held]
        )
        bus.publish(subjects.heartbeat(SLUG), codec.encode(beat))
        await asyncio.sleep(0.5)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], Path(sys.argv[2])))
