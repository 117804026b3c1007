"""`mesh.ports.History` on a JetStream stream, read by sequence number.

No consumer: the reader keeps its place itself (in SQL, in one transaction with what it read), so
there is no acknowledgement to lose and nothing to re-create after a broker restart.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import NamedTuple

import structlog

from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.streams import DAY_NS, AppendOnlyStream
from mesh.core.seldom import Seldom
from mesh.errors import BadRequestError, MeshError
from mesh.wire import codec, subjects
from mesh.wire.messages import HistoryRecord

log = structlog.get_logger()

_PARALLEL_READS = 64
_MAX_AGE_NS = 366 * DAY_NS
_MAX_BYTES = 4 * 1024**3


class _Read(NamedTuple):
    sequence: int
    record: HistoryRecord | None


class JetStreamHistory:
    """The stream `MESH_HISTORY`; anyone may append, masters make and read it."""

    def __init__(self, bus: NatsBus) -> None:
        self._stream = AppendOnlyStream(
            bus,
            subjects.HISTORY_STREAM,
            subjects.HISTORY_SUBJECTS,
            about="the action history",
            max_age_ns=_MAX_AGE_NS,
            max_bytes=_MAX_BYTES,
        )
        self._seldom = Seldom()
        self.dropped = 0
        """Records that cannot be read, or that somebody else published."""

    async def prepare(self) -> None:
        await self._stream.prepare()

    async def append(self, record: HistoryRecord, *, timeout_s: float) -> int:
        message_id = f"{record.node}/{record.id}/{record.attempt}/{record.state}"
        return await self._stream.append(
            subjects.history(record.node, record.action, record.state),
            codec.encode(record),
            message_id=hashlib.sha256(message_id.encode()).hexdigest(),
            timeout_s=timeout_s,
        )

    async def last_sequence(self, *, timeout_s: float = 2.0) -> int:
        return await self._stream.last_sequence(timeout_s=timeout_s)

    async def read(
        self, after: int, limit: int, *, timeout_s: float = 5.0
    ) -> tuple[list[tuple[int, HistoryRecord]], int]:
        last = min(await self.last_sequence(timeout_s=timeout_s), after + limit)
        found: list[tuple[int, HistoryRecord]] = []
        for start in range(after + 1, last + 1, _PARALLEL_READS):
            stop = min(start + _PARALLEL_READS, last + 1)
            stored = await asyncio.gather(
                *(self._get(sequence, timeout_s) for sequence in range(start, stop))
            )
            found += [(sequence, record) for sequence, record in stored if record is not None]
        return found, max(last, after)

    async def _get(self, sequence: int, timeout_s: float) -> _Read:
        stored = await self._stream.get(sequence, timeout_s=timeout_s)
        if stored is None:
            return _Read(sequence, None)
        try:
            record = codec.decode(stored.data, HistoryRecord)
            if subjects.history(record.node, record.action, record.state) != stored.subject:
                raise BadRequestError(f"{record.node[:64]!r} did not publish it")
        except MeshError as error:
            self._drop(sequence, stored.subject, error)
            return _Read(sequence, None)
        return _Read(sequence, record)

    def _drop(self, sequence: int, subject: str, error: MeshError) -> None:
        self.dropped += 1
        more = self._seldom.turn(asyncio.get_running_loop().time())
        if more is not None:
            log.warning(
                "mesh.history.record_dropped",
                sequence=sequence,
                subject=subject[:200],
                error=str(error),
                more_before=more,
            )
