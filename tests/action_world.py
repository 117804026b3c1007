"""A node's disk and the history stream in memory, with crashes at any step.

Both pass the same contract tests as the real ones; a `Process` stands for one life of a node: once
it has crashed, nothing it does reaches disk or stream any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mesh.errors import NotFoundError, UnavailableError
from mesh.ports import JournalEntry
from mesh.types import ActionState
from mesh.wire.messages import ActionRequest, HistoryRecord


class Crashed(BaseException):
    """The process is gone; no `except Exception` may catch it."""


class Process:
    """Counts steps; crashes at the chosen one."""

    def __init__(self, crash_at: int | None = None):
        self.steps = 0
        self.crash_at = crash_at
        self.alive = True

    def step(self):
        if not self.alive:
            raise Crashed
        self.steps += 1
        if self.steps == self.crash_at:
            self.alive = False
            raise Crashed


@dataclass
class Disk:
    entries: dict[str, JournalEntry] = field(default_factory=dict)
    full: bool = False
    """Nothing can be written."""


@dataclass
class Stream:
    records: list[HistoryRecord] = field(default_factory=list)
    away: bool = False
    deaf: bool = False
    """Stores, but its acknowledgements are lost."""

    def outcomes(self, action_id: str) -> list[HistoryRecord]:
        return [
            record
            for record in self.records
            if record.id == action_id and record.state is not ActionState.ACCEPTED
        ]

    def accepted(self, action_id: str) -> bool:
        return any(record.id == action_id for record in self.records)


class MemoryHistory:
    """`mesh.ports.History`."""

    def __init__(self, stream: Stream | None = None, process: Process | None = None):
        self.stream = stream or Stream()
        self._process = process or Process()

    async def prepare(self) -> None:
        self._process.step()

    async def append(self, record: HistoryRecord, *, timeout_s: float) -> int:
        assert timeout_s > 0
        self._process.step()
        if self.stream.away:
            raise UnavailableError("away")
        same = (record.id, record.node, record.attempt, record.state)
        for sequence, known in enumerate(self.stream.records, start=1):
            if (known.id, known.node, known.attempt, known.state) == same:
                return sequence
        self.stream.records.append(record)
        if self.stream.deaf:
            raise UnavailableError("no acknowledgement")
        self._process.step()
        return len(self.stream.records)

    async def last_sequence(self, *, timeout_s: float = 2.0) -> int:
        assert timeout_s > 0
        if self.stream.away:
            raise UnavailableError("away")
        return len(self.stream.records)

    async def read(
        self, after: int, limit: int, *, timeout_s: float = 5.0
    ) -> tuple[list[tuple[int, HistoryRecord]], int]:
        last = min(await self.last_sequence(timeout_s=timeout_s), after + limit)
        found = [(at + 1, self.stream.records[at]) for at in range(after, last)]
        return found, max(last, after)


class MemoryJournal:
    """`mesh.ports.Journal`."""

    def __init__(self, disk: Disk | None = None, process: Process | None = None):
        self._disk = disk or Disk()
        self._entries = self._disk.entries
        self._process = process or Process()

    async def find(self, action_id: str) -> JournalEntry | None:
        self._process.step()
        return self._entries.get(action_id)

    async def accept(
        self,
        request: ActionRequest,
        *,
        caller: str,
        digest: str,
        accepted_at: int,
        attempts: int = 0,
        again: bool = False,
    ) -> JournalEntry | None:
        self._writing()
        known = self._entries.get(request.id)
        if known is not None and not (
            again and known.outcome is not None and known.attempt <= attempts
        ):
            return known
        self._entries[request.id] = JournalEntry(
            request=request,
            caller=caller,
            digest=digest,
            state=ActionState.ACCEPTED,
            accepted_at=accepted_at,
            attempt=attempts,
            outcome=None,
            recorded=False,
        )
        self._process.step()
        return None

    async def begin(self, action_id: str, attempt: int) -> None:
        self._writing()
        self._change(action_id, state=ActionState.RUNNING, attempt=attempt)
        self._process.step()

    async def settle(self, outcome: HistoryRecord) -> None:
        self._writing()
        if outcome.id not in self._entries:
            raise NotFoundError(outcome.id)
        self._change(
            outcome.id,
            state=outcome.state,
            attempt=outcome.attempt,
            outcome=outcome,
            recorded=False,
        )
        self._process.step()

    def recorded(self, outcome: HistoryRecord) -> None:
        """Written at once or, where the disk is full, never: the port promises no more."""
        if not self._process.alive or self._disk.full:
            return
        entry = self._entries.get(outcome.id)
        if entry is not None and entry.outcome is not None and entry.attempt == outcome.attempt:
            self._change(outcome.id, recorded=True)

    async def unrecorded(self, limit: int = 256) -> list[HistoryRecord]:
        self._process.step()
        return [
            entry.outcome
            for entry in self._ordered()
            if entry.outcome is not None and not entry.recorded
        ][:limit]

    async def unsettled(self) -> list[JournalEntry]:
        self._process.step()
        return [entry for entry in self._ordered() if entry.outcome is None]

    async def prune(self, before: int) -> int:
        old = [
            action_id
            for action_id, entry in self._entries.items()
            if entry.outcome is not None and entry.recorded and entry.outcome.at < before
        ]
        for action_id in old:
            del self._entries[action_id]
        return len(old)

    async def close(self) -> None:
        pass

    def _writing(self) -> None:
        self._process.step()
        if self._disk.full:
            raise UnavailableError("the disk is full")

    def _ordered(self) -> Sequence[JournalEntry]:
        return sorted(self._entries.values(), key=lambda entry: entry.accepted_at)

    def _change(self, action_id: str, **changes) -> None:
        entry = self._entries.get(action_id)
        if entry is not None:
            self._entries[action_id] = entry._replace(**changes)
