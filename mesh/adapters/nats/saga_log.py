"""`mesh.ports.SagaLog` on a JetStream stream that keeps the newest record of each saga.

Every record is stored on condition that the one it was made from is still the newest of its
subject: two masters that believe they run one saga cannot both go on.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog

from mesh.adapters.nats.bus import NatsBus
from mesh.errors import (
    InternalError,
    MeshError,
    NoRespondersError,
    OverloadedError,
    UnavailableError,
)
from mesh.ports import Handler, OutdatedError, StoredSaga, Subscription
from mesh.wire import codec, subjects
from mesh.wire.messages import Saga

log = structlog.get_logger()

_STREAM = subjects.SAGA_STREAM
_NO_STREAM = 10059
_NO_MESSAGE = 10037
_NAME_TAKEN = 10058  # another master made it a moment ago
_OTHER_SEQUENCE = frozenset({10071, 10164})
_MADE_WITHIN_S = 10.0
_READ_WITHIN_S = 5.0
_PARALLEL_READS = 64
_DAY_NS = 24 * 3600 * 10**9
_MAX_BYTES = 1024**3
_FULL = 0.8
"""Share of it beyond which no saga is begun: those that run have the rest."""
_LOOK_EVERY_S = 5.0

_SETTINGS: dict[str, Any] = {
    "name": _STREAM,
    "subjects": [subjects.SAGA_SUBJECTS],
    "storage": "file",
    "retention": "limits",
    "discard": "new",
    "max_msgs_per_subject": 1,
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
    bytes: int = 0


class _Config(msgspec.Struct, frozen=True):
    max_age: int = 0


class _Kept(msgspec.Struct, frozen=True):
    seq: int
    data: str = ""


class _Answer(msgspec.Struct, frozen=True):
    """What of PubAcks and of the stream API's answers matters here."""

    error: _ApiError | None = None
    seq: int = 0
    state: _State = _State()
    config: _Config = _Config()
    message: _Kept | None = None


_ANSWERS = msgspec.json.Decoder(_Answer)


class JetStreamSagaLog:
    """The stream `MESH_SAGAS`; masters alone read it and write to it."""

    def __init__(self, bus: NatsBus, *, days: float, max_bytes: int = _MAX_BYTES) -> None:
        """Args:
        bus: Of an account where masters alone can publish: JetStream acknowledges to whatever
            subject a publisher names, and an acknowledgement would replace a saga's record.
        days: How long a record that nobody replaces is kept.
        max_bytes: Beyond that nothing more is taken.
        """
        self._bus = bus
        self._max_bytes = max_bytes
        age = round(days * _DAY_NS)
        self._settings = _SETTINGS | {
            "max_age": age,
            "max_bytes": max_bytes,
            "duplicate_window": min(120 * 10**9, age),
        }
        self._bytes = 0
        self._looked_at = -_LOOK_EVERY_S
        self.dropped = 0
        """Records that cannot be read."""

    async def prepare(self) -> None:
        found = await self._api("STREAM.INFO", timeout_s=_READ_WITHIN_S)
        if found.error is not None:
            if found.error.err_code != _NO_STREAM:
                raise _refused(found.error)
            await self._set("STREAM.CREATE")
            log.info("mesh.stream.made", stream=_STREAM)
        elif found.config.max_age != self._settings["max_age"]:
            await self._set("STREAM.UPDATE")
            log.info("mesh.stream.changed", stream=_STREAM)

    async def follow(self, handler: Handler) -> Subscription:
        return await self._bus.subscribe(subjects.SAGA_SUBJECTS, handler)

    async def append(self, saga: Saga, *, after: int, timeout_s: float = 5.0) -> int:
        if after == 0:
            await self._check_room(timeout_s)
        answer = await self._ask(
            subjects.saga(saga.id),
            codec.encode(saga),
            timeout_s,
            {"Nats-Expected-Last-Subject-Sequence": str(after)},
        )
        if answer.error is not None and answer.error.err_code in _OTHER_SEQUENCE:
            raise OutdatedError(f"somebody else has changed the saga {saga.id!r}")
        return _good(answer).seq

    async def last(self, saga_id: str, *, timeout_s: float = 5.0) -> StoredSaga | None:
        # Of the stream's leader: in a cluster another server may not have the newest one yet.
        question = codec.encode({"last_by_subj": subjects.saga(saga_id)})
        answer = await self._api("STREAM.MSG.GET", question, timeout_s=timeout_s)
        if answer.error is not None and answer.error.err_code == _NO_MESSAGE:
            return None
        kept = _good(answer).message
        if kept is None:
            raise InternalError("JetStream answered without the record of a saga")
        try:
            return StoredSaga(kept.seq, codec.decode(base64.b64decode(kept.data), Saga))
        except MeshError as error:
            raise InternalError(f"the record of the saga {saga_id!r} is unreadable") from error

    async def last_sequence(self, *, timeout_s: float = 2.0) -> int:
        return _good(await self._api("STREAM.INFO", timeout_s=timeout_s)).state.last_seq

    async def read(self, after: int, limit: int) -> tuple[list[StoredSaga], int]:
        newest = await self.last_sequence()
        if newest <= after:
            return [], after
        # Most sequences are gone, replaced by later ones: begin with the next that is there.
        first = await self._get({"seq": after + 1, "next_by_subj": subjects.SAGA_SUBJECTS})
        if first is None:
            return [], newest
        begin = first[0]
        upto = min(newest, begin + limit - 1)
        found = [first]
        for start in range(begin + 1, upto + 1, _PARALLEL_READS):
            stop = min(start + _PARALLEL_READS, upto + 1)
            got = await asyncio.gather(*(self._get({"seq": at}) for at in range(start, stop)))
            found += [each for each in got if each is not None]
        return [stored for each in found if (stored := self._read(*each)) is not None], upto

    def _read(self, sequence: int, data: bytes) -> StoredSaga | None:
        try:
            return StoredSaga(sequence, codec.decode(data, Saga))
        except MeshError as error:
            self.dropped += 1
            log.warning("mesh.saga.record_dropped", sequence=sequence, error=str(error))
            return None

    async def _get(self, question: dict[str, Any]) -> tuple[int, bytes] | None:
        reply = await self._bus.request_broker(
            f"$JS.API.DIRECT.GET.{_STREAM}", codec.encode(question), timeout_s=_READ_WITHIN_S
        )
        headers = reply.headers or b""
        if headers.startswith(b"NATS/1.0 404"):
            return None
        if headers.startswith((b"NATS/1.0 4", b"NATS/1.0 5")):
            raise UnavailableError(f"the sagas cannot be read: {headers[9:60]!r}")
        return _sequence(headers), reply.data

    async def _check_room(self, timeout_s: float) -> None:
        """Raises: OverloadedError."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_at >= _LOOK_EVERY_S:
            answer = _good(await self._api("STREAM.INFO", timeout_s=timeout_s))
            self._bytes, self._looked_at = answer.state.bytes, now
        if self._bytes > self._max_bytes * _FULL:
            raise OverloadedError("there is no room for more sagas", retry_after_ms=10_000)

    async def _set(self, verb: str) -> None:
        payload = msgspec.json.encode(self._settings)
        answer = await self._api(verb, payload, timeout_s=_MADE_WITHIN_S)
        if answer.error is not None and answer.error.err_code != _NAME_TAKEN:
            raise _refused(answer.error)

    async def _api(self, verb: str, payload: bytes = b"", *, timeout_s: float) -> _Answer:
        return await self._ask(f"$JS.API.{verb}.{_STREAM}", payload, timeout_s)

    async def _ask(
        self, subject: str, payload: bytes, timeout_s: float, headers: Mapping[str, str] = {}
    ) -> _Answer:
        try:
            reply = await self._bus.request_broker(
                subject, payload, timeout_s=timeout_s, headers=headers
            )
        except NoRespondersError as error:
            raise UnavailableError("the broker's JetStream does not answer") from error
        try:
            return _ANSWERS.decode(reply.data)
        except msgspec.DecodeError as error:
            raise InternalError(f"JetStream answered with something unreadable: {error}") from error


def _good(answer: _Answer) -> _Answer:
    if answer.error is not None:
        raise _refused(answer.error)
    return answer


def _refused(error: _ApiError) -> UnavailableError:
    return UnavailableError(f"the sagas' stream refuses: {error.description} ({error.err_code})")


def _sequence(headers: bytes) -> int:
    for line in reversed(headers.split(b"\r\n")):
        name, _, value = line.partition(b":")
        if name == b"Nats-Sequence":
            return int(value)
    raise InternalError("JetStream answered without a sequence")
