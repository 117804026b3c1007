"""A lease without a broker, and what a broker tells of connections that end."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from mesh.core.leadership import Holder, Seat, Standing
from mesh.errors import UnavailableError
from mesh.ports import Departure, TakenError


class MemoryBucket:
    """What all `MemoryLease`s of a test compete for. It does not run out by itself."""

    def __init__(self) -> None:
        self.available = True
        self.standing = Standing(0, None)
        self.writes = 0
        self._identities = itertools.count(1)

    def lease(self) -> MemoryLease:
        return MemoryLease(self, f"m{next(self._identities)}")

    def replace(self, revision: int, holder: Holder | None) -> int:
        self.check()
        if revision != self.standing.revision:
            raise TakenError("another master was quicker")
        self.writes += 1
        self.standing = Standing(revision + 1, holder)
        return revision + 1

    def run_out(self) -> None:
        self.standing = Standing(self.standing.revision + 1, None)

    def check(self) -> None:
        if not self.available:
            raise UnavailableError("JetStream does not answer")


class MemoryLease:
    """`mesh.ports.Lease` of one master."""

    def __init__(self, bucket: MemoryBucket, identity: str) -> None:
        self.bucket = bucket
        self.identity = identity
        self.seat = Seat("broker", int(identity[1:]))

    async def look(self, *, timeout_s: float) -> Standing:
        self.bucket.check()
        return self.bucket.standing

    async def write(self, revision: int, *, ttl_s: float, timeout_s: float) -> int:
        return self.bucket.replace(revision, Holder(self.identity, self.seat))

    async def release(self, revision: int, *, timeout_s: float) -> None:
        self.bucket.replace(revision, None)


class MemoryDepartures:
    """`mesh.ports.Departures`: tells what a test says."""

    def __init__(self) -> None:
        self.dropped = 0
        self._heard: list[Callable[[Departure], None]] = []

    async def start(self, heard: Callable[[Departure], None]) -> None:
        self._heard.append(heard)

    async def stop(self) -> None:
        self._heard.clear()

    def tell(self, login: str, reason: str, seat: Seat) -> None:
        for heard in list(self._heard):
            heard(Departure(login, reason, seat.server, seat.client))
