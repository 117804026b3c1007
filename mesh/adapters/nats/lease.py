"""`mesh.ports.Lease` in a JetStream KV bucket, as plain requests.

A bucket is a stream, so `nats kv get MESH_LEADER master` shows who leads. nats-py's KV would lose
the time to live at each renewal and take a lease that has run out for one that is held.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog

from mesh.adapters.nats.bus import NatsBus
from mesh.core.leadership import Holder, Seat, Standing
from mesh.errors import DisconnectedError, InternalError, NoRespondersError, UnavailableError
from mesh.ports.lease import TakenError

log = structlog.get_logger()

_STREAM = "KV_MESH_LEADER"
_KEY = "$KV.MESH_LEADER.master"
_MADE_WITHIN_S = 5.0
_NO_MESSAGE = 10037
_NO_STREAM = 10059
_NAME_TAKEN = 10058  # another master made it a moment ago
_OTHER_REVISION = frozenset({10071, 10164})
_GONE = (b"nats-marker-reason:", b"kv-operation:")
"""Headers of what stands where a record has run out, or was given back."""

_SETTINGS: dict[str, Any] = {
    "name": _STREAM,
    "subjects": ["$KV.MESH_LEADER.>"],
    "storage": "memory",
    "retention": "limits",
    "discard": "new",
    "num_replicas": 1,
    "max_msgs_per_subject": 1,
    "max_bytes": 1024**2,
    "allow_direct": True,
    "allow_rollup_hdrs": True,
    "deny_delete": True,
    "allow_msg_ttl": True,
    "subject_delete_marker_ttl": 5 * 10**9,
}


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is written."""

    id: str
    server: str = ""
    client: int = 0


class _ApiError(msgspec.Struct, frozen=True):
    err_code: int = 0
    description: str = ""


class _Kept(msgspec.Struct, frozen=True):
    seq: int
    hdrs: str = ""
    data: str = ""


class _Answer(msgspec.Struct, frozen=True):
    """What of PubAcks and of the stream API's answers matters here."""

    error: _ApiError | None = None
    seq: int = 0
    message: _Kept | None = None


_ANSWERS = msgspec.json.Decoder(_Answer)
_RECORDS = msgspec.json.Decoder(_Record)


class JetStreamLease:
    """The key `master` of the bucket `MESH_LEADER`, which lives in the broker's memory: after a
    restart it is made again, and the masters agree anew.
    """

    def __init__(self, bus: NatsBus) -> None:
        """Args:
        bus: Speaks as `master`; the lease is held over this connection.
        """
        self._bus = bus

    @property
    def identity(self) -> str:
        return self._bus.connection_id

    async def look(self, *, timeout_s: float) -> Standing:
        question = msgspec.json.encode({"last_by_subj": _KEY})
        answer = await self._ask(f"$JS.API.STREAM.MSG.GET.{_STREAM}", question, timeout_s)
        if answer.error is not None and answer.error.err_code == _NO_STREAM:
            await self._make()
            return Standing(0, None)
        if answer.error is not None and answer.error.err_code == _NO_MESSAGE:
            return Standing(0, None)
        message = _good(answer).message
        if message is None:
            raise InternalError("JetStream answered without the record of the leading master")
        return Standing(message.seq, _holder(message))

    async def write(self, revision: int, *, ttl_s: float, timeout_s: float) -> int:
        if not self._bus.connected:  # over the next connection our seat is another one
            raise DisconnectedError("the broker is away")
        server, client = self._bus.seat
        record = _Record(id=self.identity, server=server, client=client)
        # The broker counts whole seconds.
        headers = {"Nats-TTL": f"{math.ceil(ttl_s)}s"}
        return await self._replace(revision, msgspec.json.encode(record), headers, timeout_s)

    async def release(self, revision: int, *, timeout_s: float) -> None:
        await self._replace(revision, b"", {"KV-Operation": "DEL"}, timeout_s)

    async def _replace(
        self, revision: int, payload: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> int:
        expected = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        answer = await self._ask(_KEY, payload, timeout_s, {**headers, **expected})
        if answer.error is not None and answer.error.err_code in _OTHER_REVISION:
            raise TakenError("another master was quicker")
        return _good(answer).seq

    async def _make(self) -> None:
        """Raises: UnavailableError."""
        payload = msgspec.json.encode(_SETTINGS)
        answer = await self._ask(f"$JS.API.STREAM.CREATE.{_STREAM}", payload, _MADE_WITHIN_S)
        if answer.error is None:
            log.info("mesh.stream.made", stream=_STREAM)
        elif answer.error.err_code != _NAME_TAKEN:
            _good(answer)

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
        raise UnavailableError(
            f"the lease of the leading master: {answer.error.description} ({answer.error.err_code})"
        )
    return answer


def _holder(message: _Kept) -> Holder | None:
    """Raises: InternalError, if somebody else wrote there."""
    headers = base64.b64decode(message.hdrs).lower().split(b"\r\n")
    if any(line.startswith(_GONE) for line in headers):
        return None
    try:
        record = _RECORDS.decode(base64.b64decode(message.data))
    except msgspec.DecodeError as error:
        raise InternalError(f"the lease of the leading master is unreadable: {error}") from error
    return Holder(record.id, Seat(record.server, record.client))
