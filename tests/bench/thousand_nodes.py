"""A thousand nodes in one process: they beat once a second and answer pings, and the master cannot
tell them from real ones. Arguments: URL of the broker, the masters' credentials file, how many.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from pathlib import Path

import msgspec
import uvloop

from mesh import bootstrap
from mesh.config import NatsConfig
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    ActionInfo,
    CollectionInfo,
    Heartbeat,
    PingResult,
    VerbStats,
)

BATCHES = 50
"""A second; nodes beat all through it."""
ACTIONS = [
    ActionInfo(name=name, builtin=True, idempotent=True)
    for name in ("index", "update", "delete", "sync")
]


def slug(number: int) -> str:
    return f"node-{number:04}"


class Crowd:
    def __init__(self, bus, count: int) -> None:
        self._bus = bus
        self._born = int(time.time() * 1000)
        self._rng = random.Random(1)
        self._sequence = 0
        self._beats = [self._first(slug(number)) for number in range(count)]
        self._pongs = {
            beat.node: codec.ok(PingResult(node=beat.node, incarnation=self._born, version="1"))
            for beat in self._beats
        }

    def _first(self, name: str) -> Heartbeat:
        held = CollectionInfo(
            name="notes", shard=name, rows=100, data_version=3, fingerprint="wordllama/1/256"
        )
        return Heartbeat(
            node=name,
            name=name,
            incarnation=self._born,
            sequence=0,
            version="1",
            capabilities=["search", "actions"],
            collections=[held],
            actions=ACTIONS,
        )

    def answer(self, message) -> None:
        node = message.subject.split(".")[3]
        self._bus.publish(message.reply, self._pongs[node])

    async def beat(self) -> None:
        """As nodes with some work do: their figures are never quite the same."""
        due = time.monotonic()
        while True:
            self._sequence += 1
            for batch in range(BATCHES):
                for beat in self._beats[batch::BATCHES]:
                    self._bus.publish(subjects.heartbeat(beat.node), self._now(beat))
                due += 1 / BATCHES
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _now(self, beat: Heartbeat) -> bytes:
        took = VerbStats(
            count=self._sequence * 5,
            ewma_ms=round(self._rng.uniform(4.5, 5.5), 3),
            p50_ms=4.8,
            p95_ms=9.1,
            p99_ms=round(self._rng.uniform(10, 20), 3),
        )
        return codec.encode(
            msgspec.structs.replace(
                beat,
                sequence=self._sequence,
                lag_ms=round(self._rng.uniform(0.1, 3), 1),
                in_flight=self._rng.choice([0, 0, 0, 1]),
                verbs={"search": took, "fetch": took, "ping": took, "cancel": VerbStats()},
            )
        )


async def main(url: str, credentials: str, count: int) -> None:
    login = bootstrap.read_master_credentials(Path(credentials)).login()
    bus = await bootstrap.connect_bus("crowd", NatsConfig(servers=[url]), login=login)
    crowd = Crowd(bus, count)
    await bus.subscribe(f"{subjects.PREFIX}.rpc.*.ping.*", crowd.answer)
    await crowd.beat()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
