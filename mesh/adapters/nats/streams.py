"""A JetStream stream that things are only ever added to: nobody can delete from it or purge it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import structlog

from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.multiplexer import Reply
from mesh.errors import InternalError, UnavailableError

log = structlog.get_logger()

_NOT_FOUND = 10059  # JetStream error code: stream not found
_TAKEN = 10058  # stream name already in use: another master made it a moment ago
_INFO_WITHIN_S = 5.0
_MADE_WITHIN_S = 10.0
_DUPLICATES_NS = 10 * 60 * 10**9
_SUBJECT = b"Nats-Subject:"
DAY_NS = 24 * 3600 * 10**9

_SETTINGS: dict[str, Any] = {
    "storage": "file",
    "retention": "limits",
    "discard": "old",
    "num_replicas": 1,
    "allow_direct": True,
    "deny_delete": True,
    "deny_purge": True,
}
_LIMITS = ("max_age", "max_bytes")


class Stored(NamedTuple):
    """What was added."""

    subject: str
    """Where it was published: the broker knows who may, whatever `data` says."""
    data: bytes


class _ApiError(msgspec.Struct, frozen=True):
    code: int = 500
    err_code: int = 0
    description: str = ""


class _State(msgspec.Struct, frozen=True):
    first_seq: int = 0
    last_seq: int = 0


class _Config(msgspec.Struct, frozen=True):
    max_age: int = 0
    max_bytes: int = 0


class _Answer(msgspec.Struct, frozen=True):
    """What of PubAcks and of the stream API's answers matters here."""

    error: _ApiError | None = None
    seq: int = 0
    state: _State = _State()
    config: _Config = _Config()


class AppendOnlyStream:
    """One stream, made where the broker has none yet."""

    def __init__(
        self, bus: NatsBus, name: str, subjects: str, *, about: str, max_age_ns: int, max_bytes: int
    ) -> None:
        """Args:
        bus: Allowed to make streams, or another process has made it.
        name: Of the stream.
        subjects: What it takes, a pattern.
        about: Whose it is, for error messages: `the action history`.
        max_age_ns: What is older goes.
        max_bytes: Beyond that the oldest goes.
        """
        self._bus = bus
        self._name = name
        self._about = about
        self._settings = _SETTINGS | {
            "name": name,
            "subjects": [subjects],
            "max_age": max_age_ns,
            "max_bytes": max_bytes,
            "duplicate_window": min(_DUPLICATES_NS, max_age_ns),
        }

    async def prepare(self) -> None:
        """Make the stream, or give the one that is there the limits we want.

        Raises:
            UnavailableError: JetStream does not answer, or refuses.
        """
        found = await self._api("STREAM.INFO", b"", timeout_s=_INFO_WITHIN_S)
        if found.error is not None:
            if found.error.err_code != _NOT_FOUND:
                raise self._refused(found.error)
            await self._set("STREAM.CREATE")
            log.info("mesh.stream.made", stream=self._name)
        elif any(getattr(found.config, name) != self._settings[name] for name in _LIMITS):
            await self._set("STREAM.UPDATE")
            log.info("mesh.stream.changed", stream=self._name)

    async def append(
        self, subject: str, payload: bytes, *, message_id: str, timeout_s: float
    ) -> int:
        """Its sequence number, once it is stored. The same `message_id` again within ten minutes
        stores nothing, and gives the number of before.

        Raises:
            UnavailableError, DeadlineExceededError: It may or may not be stored.
        """
        return self._good(
            await self._ask(subject, payload, timeout_s, {"Nats-Msg-Id": message_id})
        ).seq

    async def last_sequence(self, *, timeout_s: float) -> int:
        """Of what was added last; 0: nothing ever was."""
        return (await self.bounds(timeout_s=timeout_s))[1]

    async def bounds(self, *, timeout_s: float) -> tuple[int, int]:
        """Sequence numbers of the oldest that is still there and of what was added last."""
        state = self._good(await self._api("STREAM.INFO", b"", timeout_s=timeout_s)).state
        return state.first_seq, state.last_seq

    async def get(self, sequence: int, *, timeout_s: float) -> Stored | None:
        """What stands there; None: it is too old, or lost."""
        reply = await self._bus.request_broker(
            f"$JS.API.DIRECT.GET.{self._name}", b'{"seq":%d}' % sequence, timeout_s=timeout_s
        )
        headers = reply.headers or b""
        if headers.startswith(b"NATS/1.0 404"):
            return None
        if headers.startswith((b"NATS/1.0 4", b"NATS/1.0 5")):
            raise UnavailableError(f"{self._about} cannot be read: {headers[9:60]!r}")
        return Stored(_subject(headers), reply.data)

    async def _set(self, verb: str) -> None:
        payload = msgspec.json.encode(self._settings)
        answer = await self._api(verb, payload, timeout_s=_MADE_WITHIN_S)
        if answer.error is not None and answer.error.err_code != _TAKEN:
            raise self._refused(answer.error)

    async def _api(self, verb: str, payload: bytes, *, timeout_s: float) -> _Answer:
        return await self._ask(f"$JS.API.{verb}.{self._name}", payload, timeout_s)

    async def _ask(
        self, subject: str, payload: bytes, timeout_s: float, headers: Mapping[str, str] = {}
    ) -> _Answer:
        return _read(
            await self._bus.request_broker(subject, payload, timeout_s=timeout_s, headers=headers)
        )

    def _good(self, answer: _Answer) -> _Answer:
        if answer.error is not None:
            raise self._refused(answer.error)
        return answer

    def _refused(self, error: _ApiError) -> UnavailableError:
        return UnavailableError(f"{self._about} refuses: {error.description} ({error.err_code})")


def _subject(headers: bytes) -> str:
    """Empty where the broker does not say. Its own headers stand after the publisher's: the last
    one counts.
    """
    found = ""
    for line in headers.split(b"\r\n"):
        if line.startswith(_SUBJECT):
            found = line[len(_SUBJECT) :].strip().decode("ascii", "replace")
    return found


def _read(reply: Reply) -> _Answer:
    try:
        return msgspec.json.decode(reply.data, type=_Answer)
    except msgspec.DecodeError as error:
        raise InternalError(f"JetStream answered with something unreadable: {error}") from error
