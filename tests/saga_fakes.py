"""The log and the copy of sagas in memory; they pass the same contract tests as the real ones."""

from __future__ import annotations

import msgspec

from mesh.core.saga_record import ENDED, actions_of
from mesh.errors import UnavailableError
from mesh.ports import Bus, Handler, OutdatedError, StoredSaga, Subscription
from mesh.types import SagaState
from mesh.wire import codec, subjects
from mesh.wire.messages import Saga, SagaCall, SagaStep


def saga(saga_id: str = "x", **fields) -> Saga:
    call = SagaCall(action="do", node="shop", params={"n": 1})
    undo = SagaCall(action="undo", node="shop", params={"n": 1})
    known = {
        "id": saga_id,
        "caller": "ops",
        "state": SagaState.RUNNING,
        "version": 1,
        "started_at": 1000,
        "changed_at": 1000,
        "deadline": 10**15,
        "steps": [SagaStep(name=name, call=call, undo=undo) for name in ("a", "b")],
    }
    return Saga(**known | fields)


class MemorySagaLog:
    """`mesh.ports.SagaLog`."""

    def __init__(self, bus: Bus | None = None) -> None:
        """Args:
        bus: Carries what is stored, as a stream's subjects do.
        """
        self._bus = bus
        self.records: dict[str, tuple[int, bytes]] = {}
        self.sequence = 0
        self.away = False
        self.deaf = 0
        """So many appends are stored, and their acknowledgements are lost."""
        self.appended: list[Saga] = []

    async def prepare(self) -> None:
        self._check()

    async def follow(self, handler: Handler) -> Subscription:
        if self._bus is None:
            raise UnavailableError("nothing carries hints")
        return await self._bus.subscribe(subjects.SAGA_SUBJECTS, handler)

    async def append(self, saga: Saga, *, after: int, timeout_s: float = 5.0) -> int:
        self._check()
        if self.records.get(saga.id, (0, b""))[0] != after:
            raise OutdatedError("somebody else")
        self.sequence += 1
        self.records[saga.id] = (self.sequence, codec.encode(saga))
        self.appended.append(saga)
        if self._bus is not None:
            self._bus.publish(subjects.saga(saga.id), codec.encode(saga))
        if self.deaf:
            self.deaf -= 1
            raise UnavailableError("no acknowledgement")
        return self.sequence

    async def last(self, saga_id: str, *, timeout_s: float = 5.0) -> StoredSaga | None:
        self._check()
        found = self.records.get(saga_id)
        return found and StoredSaga(found[0], codec.decode(found[1], Saga))

    async def last_sequence(self, *, timeout_s: float = 2.0) -> int:
        self._check()
        return self.sequence

    async def read(self, after: int, limit: int) -> tuple[list[StoredSaga], int]:
        self._check()
        upto = min(self.sequence, after + limit)
        found = sorted(
            StoredSaga(sequence, codec.decode(data, Saga))
            for sequence, data in self.records.values()
            if after < sequence <= upto
        )
        return found, max(after, upto)

    def _check(self) -> None:
        if self.away:
            raise UnavailableError("away")


class MemorySagaStore:
    """`mesh.ports.SagaStore`."""

    def __init__(self) -> None:
        self.rows: dict[str, Saga] = {}
        self._cursor = 0

    async def cursor(self) -> int:
        return self._cursor

    async def save(self, sagas, *, cursor: int) -> None:
        self._cursor = cursor
        for each in sagas:
            if each.id not in self.rows or self.rows[each.id].version < each.version:
                self.rows[each.id] = each

    async def find(self, saga_id: str) -> Saga | None:
        return self.rows.get(saga_id)

    def _open(self) -> list[Saga]:
        found = [each for each in self.rows.values() if each.state not in ENDED]
        return sorted(found, key=lambda each: (each.started_at, each.id))

    async def open(self) -> list[str]:
        return [each.id for each in self._open() if each.state is not SagaState.PAUSED]

    async def stale(self, *, before: int) -> list[str]:
        return [each.id for each in self._open() if each.changed_at < before]

    async def select(self, query):
        found = [
            each
            for each in self.rows.values()
            if query.state in (None, each.state)
            and query.name in ("", each.name)
            and query.caller in ("", each.caller)
            and each.started_at >= query.since
            and (query.allowed is None or actions_of(each) <= set(query.allowed))
        ]
        found.sort(key=lambda each: (each.started_at, each.id), reverse=True)
        page = found[query.offset : query.offset + query.limit]
        return [brief(each) for each in page], len(found)

    async def prune(self, *, ended_before: int) -> int:
        old = [e.id for e in self.rows.values() if e.state in ENDED and e.ended_at < ended_before]
        for saga_id in old:
            del self.rows[saga_id]
        return len(old)


def brief(each: Saga) -> Saga:
    steps = [
        msgspec.structs.replace(
            step,
            call=msgspec.structs.replace(step.call, params={}),
            undo=step.undo and msgspec.structs.replace(step.undo, params={}),
            result=None,
        )
        for step in each.steps
    ]
    return msgspec.structs.replace(each, steps=steps)
