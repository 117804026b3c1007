"""`mesh.ports.History` on a JetStream stream, read by sequence number, written in groups.

What a node records in one turn of its loop goes out as one message for each subject, and is
acknowledged once: a single record as it is, several as an array. So a record's number is made of
its message's and its place in it.

No consumer: the reader keeps its place itself (in SQL, in one transaction with what it read), so
there is no acknowledgement to lose and nothing to re-create after a broker restart.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import secrets

import structlog

from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.streams import DAY_NS, AppendOnlyStream
from mesh.core.seldom import Seldom
from mesh.errors import BadRequestError, DeadlineExceededError, MeshError, UnavailableError
from mesh.wire import codec, subjects
from mesh.wire.messages import HistoryRecord

log = structlog.get_logger()

_PARALLEL_READS = 64


_subject = functools.lru_cache(maxsize=1024)(subjects.history)


_PLACE_BITS = 6
_MOST_IN_GROUP = 1 << _PLACE_BITS
_MOST_GROUP_BYTES = 256 * 1024
_Records = HistoryRecord | list[HistoryRecord]


class _Group:
    """Records that go out together."""

    __slots__ = ("ids", "records", "size", "timeout_s", "waiting")

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.ids: list[str] = []
        self.waiting: list[asyncio.Future[int]] = []
        self.size = 0
        self.timeout_s = 0.0

    def full(self, more_bytes: int) -> bool:
        return bool(self.records) and (
            len(self.records) == _MOST_IN_GROUP or self.size + more_bytes > _MOST_GROUP_BYTES
        )


class JetStreamHistory:
    """The stream `MESH_HISTORY`; anyone may append, masters make and read it."""

    def __init__(self, bus: NatsBus, *, days: float = 366.0, max_bytes: int = 4 * 1024**3) -> None:
        """Args:
        bus: Of whoever appends or reads.
        days: How long records stay; for who makes the stream.
        max_bytes: Beyond that the oldest go; likewise.
        """
        self._stream = AppendOnlyStream(
            bus,
            subjects.HISTORY_STREAM,
            subjects.HISTORY_SUBJECTS,
            about="the action history",
            max_age_ns=round(days * DAY_NS),
            max_bytes=max_bytes,
        )
        self._secret = secrets.token_bytes(16)
        """In every message's id: who could guess one would publish something of his own under it,
        and the broker would take ours for a repetition. So it knows our repetitions in this life
        alone; others are two records, which say the same.
        """
        self._groups: dict[str, _Group] = {}
        """By subject, what goes out at the end of this turn of the loop."""
        self._sending: set[asyncio.Task[None]] = set()
        self._seldom = Seldom()
        self.dropped = 0
        """Records that cannot be read, or that somebody else published."""

    async def prepare(self) -> None:
        await self._stream.prepare()

    async def append(self, record: HistoryRecord, *, timeout_s: float) -> int:
        subject = _subject(record.node, record.action, record.state)
        encoded = codec.encode(record)
        loop = asyncio.get_running_loop()
        if not self._groups:
            loop.call_soon(self._send_all)
        group = self._groups.get(subject)
        if group is None or group.full(len(encoded)):
            if group is not None:
                self._send(subject, group)
            group = self._groups[subject] = _Group()
        stored: asyncio.Future[int] = loop.create_future()
        group.records.append(encoded)
        group.ids.append(f"{record.node}/{record.id}/{record.attempt}/{record.state}")
        group.waiting.append(stored)
        group.size += len(encoded)
        group.timeout_s = max(group.timeout_s, timeout_s)
        return await stored

    def _send_all(self) -> None:
        groups, self._groups = self._groups, {}
        for subject, group in groups.items():
            self._send(subject, group)

    def _send(self, subject: str, group: _Group) -> None:
        task = asyncio.get_running_loop().create_task(self._stored(subject, group))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _stored(self, subject: str, group: _Group) -> None:
        """Publish them, and tell everybody who waits how that ended."""
        one = len(group.records) == 1
        payload = group.records[0] if one else b"[%b]" % b",".join(group.records)
        ids = "\n".join(group.ids).encode()
        failure: Exception | None = None
        sequence = 0
        try:
            sequence = await self._stream.append(
                subject,
                payload,
                message_id=hashlib.blake2b(ids, digest_size=16, key=self._secret).hexdigest(),
                timeout_s=group.timeout_s,
            )
        except DeadlineExceededError as error:
            failure = UnavailableError(f"the action history did not answer: {error}")
        except Exception as error:  # noqa: BLE001 (it is theirs who wait)
            failure = error
        for place, waiting in enumerate(group.waiting):
            if waiting.done():
                continue
            if failure is not None:
                waiting.set_exception(failure)
            else:
                waiting.set_result(_number(sequence, place))

    async def last_sequence(self, *, timeout_s: float = 2.0) -> int:
        return _last_of(await self._stream.last_sequence(timeout_s=timeout_s))

    async def read(
        self, after: int, limit: int, *, timeout_s: float = 5.0
    ) -> tuple[list[tuple[int, HistoryRecord]], int]:
        oldest, newest = await self._stream.bounds(timeout_s=timeout_s)
        # What is too old is not asked for one by one; of a message read in part, the rest.
        first = max((after + 1) >> _PLACE_BITS, min(oldest, newest + 1), 1)
        found: list[tuple[int, HistoryRecord]] = []
        upto = max(after, _last_of(min(first - 1, newest)))
        for start in range(first, min(newest, first + limit - 1) + 1, _PARALLEL_READS):
            stop = min(start + _PARALLEL_READS, newest + 1, first + limit)
            for records in await asyncio.gather(
                *(self._get(sequence, timeout_s) for sequence in range(start, stop))
            ):
                found += [one for one in records if one[0] > after]
            upto = _last_of(stop - 1)
            if len(found) >= limit:
                break
        return found, max(upto, after)

    async def _get(self, sequence: int, timeout_s: float) -> list[tuple[int, HistoryRecord]]:
        stored = await self._stream.get(sequence, timeout_s=timeout_s)
        if stored is None:
            return []
        try:
            read: _Records = codec.decode(stored.data, _Records)  # type: ignore[arg-type]
            records = [read] if isinstance(read, HistoryRecord) else read
            if len(records) > _MOST_IN_GROUP:
                raise BadRequestError(f"{len(records)} records in one message")
            for record in records:
                if subjects.history(record.node, record.action, record.state) != stored.subject:
                    raise BadRequestError(f"{record.node[:64]!r} did not publish it")
        except MeshError as error:
            self._drop(sequence, stored.subject, error)
            return []
        return [(_number(sequence, place), record) for place, record in enumerate(records)]

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


def _number(sequence: int, place: int) -> int:
    """Of a record; 0 is none."""
    return (sequence << _PLACE_BITS) + place


def _last_of(sequence: int) -> int:
    """The highest number that a record of that message can have."""
    return _number(sequence, _MOST_IN_GROUP - 1) if sequence else 0
