"""Stand-ins for where the audit trail is kept; the store passes the contract tests of the real."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mesh.errors import DeadlineExceededError, InvalidError, UnavailableError
from mesh.wire.messages import AuditQuery, AuditRecord


class MemoryAuditStore:
    """`mesh.ports.trail.AuditStore` in a dict; `available` is whether the database answers."""

    def __init__(self) -> None:
        self.available = True
        self.records: dict[str, AuditRecord] = {}
        self.in_stream: set[str] = set()
        self.refuses = ""
        """Kind of entries that this database cannot hold."""

    def _check(self) -> None:
        if not self.available:
            raise UnavailableError("the database is not available")

    async def add(self, records: Sequence[AuditRecord]) -> None:
        self._check()
        await asyncio.sleep(0)  # others have a turn meanwhile
        if self.refuses and any(record.kind == self.refuses for record in records):
            raise InvalidError("the database cannot hold such a value")
        self.records = {record.id: record for record in records} | self.records

    async def find(self, query: AuditQuery) -> tuple[list[AuditRecord], int]:
        self._check()
        wanted = [
            record
            for record in self.records.values()
            if query.kind in ("", record.kind)
            and query.actor in ("", record.actor)
            and query.subject in ("", record.subject)
            and record.at >= query.since
            and (not query.until or record.at <= query.until)
            and record.id > query.after
        ]
        if query.after:
            wanted.sort(key=lambda record: record.id)
        else:
            wanted.sort(key=lambda record: (record.at, record.id), reverse=True)
        return wanted[query.offset :][: query.limit], len(wanted)

    async def unpublished(self, limit: int) -> list[AuditRecord]:
        self._check()
        return [self.records[id_] for id_ in sorted(self.records.keys() - self.in_stream)][:limit]

    async def published(self, ids: Sequence[str]) -> None:
        self._check()
        self.in_stream.update(ids)

    async def prune(self, *, before: int) -> int:
        self._check()
        kept = {id_: record for id_, record in self.records.items() if record.at >= before}
        gone = len(self.records) - len(kept)
        self.records = kept
        return gone


class MemoryAuditStream:
    """`mesh.ports.trail.AuditStream` in a list that has each id once."""

    def __init__(self) -> None:
        self.available = True
        self.loses_acks = False
        """It stores, and its word gets lost."""
        self.prepared = False
        self.room: int | None = None
        """How many more it takes before it goes away; None: as many as come."""
        self.stored: list[AuditRecord] = []
        self.asked = 0

    async def prepare(self) -> None:
        if not self.available:
            raise UnavailableError("JetStream is away")
        self.prepared = True

    async def append(self, record: AuditRecord, *, timeout_s: float) -> int:
        self.asked += 1
        if not self.available or not self.prepared:
            raise UnavailableError("JetStream is away, or has no such stream")
        if self.room is not None:
            self.available = self.room > 1
            self.room -= 1
        if record not in self.stored:
            self.stored.append(record)
        if self.loses_acks:
            raise DeadlineExceededError("no answer in time")
        return self.stored.index(record) + 1


class SteppedClock:
    """Stands still until told; whoever sleeps wakes at his own time, one after the other."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        return self.now

    def unix_ms(self) -> int:
        return round(self.now * 1000)

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, woken))
        await woken

    async def step(self, seconds: float) -> None:
        """Let time pass."""
        await settled()  # who was woken goes to sleep first
        end = self.now + seconds
        while due := [one for one in self._sleepers if one[0] <= end]:
            at, woken = min(due, key=lambda one: one[0])
            self.now = max(self.now, at)
            self._sleepers.remove((at, woken))
            if not woken.done():
                woken.set_result(None)
                await settled()
        self.now = end


async def settled() -> None:
    """All that can go on without time passing has done so."""
    for _ in range(40):
        await asyncio.sleep(0)
