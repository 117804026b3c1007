"""`mesh.ports.History` on a JetStream stream, read by sequence number.

No consumer: the reader keeps its place itself (in SQL, in one transaction with what it read), so
there is no acknowledgement to lose and nothing to re-create after a broker restart.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any, NamedTuple

import msgspec
import structlog

from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.multiplexer import Reply
from mesh.errors import InternalError, MeshError, UnavailableError
from mesh.wire import codec, subjects
from mesh.wire.messages import HistoryRecord

log = structlog.get_logger()

_STREAM = subjects.HISTORY_STREAM
_NOT_FOUND = 10059  # JetStream error code: stream not found
_PARALLEL_READS = 64
_YEAR_NS = 366 * 24 * 3600 * 10**9

_SETTINGS: dict[str, Any] = {
    "name": _STREAM,
    "subjects": [subjects.HISTORY_SUBJECTS],
    "storage": "file",
    "retention": "limits",
    "discard": "old",
    "max_age": _YEAR_NS,
    "max_bytes": 4 * 1024**3,
    "duplicate_window": 10 * 60 * 10**9,
    "num_replicas": 1,
    "allow_direct": True,
    "deny_delete": True,
    "deny_purge": True,
}


class _ApiError(msgspec.Struct, frozen=True):
    code: int = 500
    err_code: int = 0
    description: str = ""


class _State(msgspec.Struct, frozen=True):
    last_seq: int = 0


class _Answer(msgspec.Struct, frozen=True):
    """What of PubAcks, STREAM.INFO and STREAM.CREATE matters here."""

    error: _ApiError | None = None
    seq: int = 0
    state: _State = _State()


class _Stored(NamedTuple):
    sequence: int
    record: HistoryRecord | None


class JetStreamHistory:
    """The stream `MESH_HISTORY`; anyone may append, masters make and read it."""

    def __init__(self, bus: NatsBus) -> None:
        self._bus = bus

    async def prepare(self) -> None:
        answer = await self._api(f"STREAM.INFO.{_STREAM}", b"", timeout_s=5.0)
        if answer.error is None:
            return
        if answer.error.err_code != _NOT_FOUND:
            raise _refused(answer.error)
        made = await self._api(
            f"STREAM.CREATE.{_STREAM}", msgspec.json.encode(_SETTINGS), timeout_s=10.0
        )
        if made.error is not None:
            raise _refused(made.error)
        log.info("mesh.history.stream_made", stream=_STREAM)

    async def append(self, record: HistoryRecord, *, timeout_s: float) -> int:
        subject = subjects.history(record.node, record.action, record.state)
        message_id = f"{record.node}/{record.id}/{record.attempt}/{record.state}"
        reply = await self._bus.request_broker(
            subject,
            codec.encode(record),
            timeout_s=timeout_s,
            headers={"Nats-Msg-Id": hashlib.sha256(message_id.encode()).hexdigest()},
        )
        answer = _read_answer(reply)
        if answer.error is not None:
            raise _refused(answer.error)
        return answer.seq

    async def last_sequence(self, *, timeout_s: float = 2.0) -> int:
        answer = await self._api(f"STREAM.INFO.{_STREAM}", b"", timeout_s=timeout_s)
        if answer.error is not None:
            raise _refused(answer.error)
        return answer.state.last_seq

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

    async def _get(self, sequence: int, timeout_s: float) -> _Stored:
        reply = await self._bus.request_broker(
            f"$JS.API.DIRECT.GET.{_STREAM}", b'{"seq":%d}' % sequence, timeout_s=timeout_s
        )
        headers = reply.headers or b""
        if headers.startswith(b"NATS/1.0 404"):
            return _Stored(sequence, None)  # expired or lost
        if headers.startswith((b"NATS/1.0 4", b"NATS/1.0 5")):
            raise UnavailableError(f"the history cannot be read: {headers[9:60]!r}")
        try:
            return _Stored(sequence, codec.decode(reply.data, HistoryRecord))
        except MeshError as error:
            log.warning("mesh.history.record_unreadable", sequence=sequence, error=str(error))
            return _Stored(sequence, None)

    async def _api(self, verb: str, payload: bytes, *, timeout_s: float) -> _Answer:
        return _read_answer(
            await self._bus.request_broker(f"$JS.API.{verb}", payload, timeout_s=timeout_s)
        )


def _read_answer(reply: Reply) -> _Answer:
    try:
        return msgspec.json.decode(reply.data, type=_Answer)
    except msgspec.DecodeError as error:
        raise InternalError(f"JetStream answered with something unreadable: {error}") from error


def _refused(error: _ApiError) -> UnavailableError:
    return UnavailableError(f"the action history refuses: {error.description} ({error.err_code})")
