"""A JetStream stream of things to do: what is done is deleted, by its sequence number."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec

from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.streams import AppendOnlyStream
from mesh.errors import InternalError, UnavailableError

_NO_MESSAGE = 10037  # JetStream error code: no message found
_DELETE_FAILED = 10057  # message delete failed, also because it was not there any more
_FULL = 10077  # maximum bytes exceeded
_FULL_MS = 1000
_DUPLICATES_NS = 10 * 60 * 10**9
_INFO_WITHIN_S = 5.0


class Letter(NamedTuple):
    """What was added, and what the broker says of it."""

    sequence: int
    subject: str
    stamp: str
    """RFC 3339: when it was stored."""
    data: bytes


class _Error(msgspec.Struct, frozen=True):
    code: int = 500
    err_code: int = 0
    description: str = ""


class _State(msgspec.Struct, frozen=True):
    first_seq: int = 0
    last_seq: int = 0
    messages: int = 0
    subjects: dict[str, int] = {}


class _Config(msgspec.Struct, frozen=True):
    max_age: int = 0
    max_bytes: int = 0
    subjects: list[str] = []


class _Info(msgspec.Struct, frozen=True):
    """What of the stream API's answers matters here."""

    error: _Error | None = None
    state: _State = _State()
    config: _Config = _Config()
    total: int = 0
    """Subjects that match, of which one answer may list a part."""


class WorkStream(AppendOnlyStream):
    """One stream, whose messages may be deleted one by one."""

    def __init__(
        self,
        bus: NatsBus,
        name: str,
        subjects: str,
        *,
        about: str,
        max_bytes: int,
        full: Literal["new", "old"],
        max_age_ns: int = 0,
    ) -> None:
        """Args:
        bus: Allowed to make streams, or another process has made it.
        name: Of the stream.
        subjects: What it takes, a pattern.
        about: Whose it is, for error messages: `the queue`.
        max_bytes: Of all of it.
        full: What has to go beyond that: the `new` one is refused, or the `old` ones go.
        max_age_ns: What is older goes; 0: nothing does.
        """
        super().__init__(
            bus, name, subjects, about=about, max_age_ns=max_age_ns, max_bytes=max_bytes
        )
        self._settings = self._settings | {
            "deny_delete": False,
            "discard": full,
            "duplicate_window": _DUPLICATES_NS,
        }

    async def prepare(self) -> None:
        """Make the stream, or give the one that is there the limits we want.

        Raises:
            UnavailableError: JetStream does not answer, or refuses.
        """
        await super().prepare()
        found = (await self._info(b"", timeout_s=_INFO_WITHIN_S)).config
        wanted = self._settings
        if (found.max_bytes, found.subjects) != (wanted["max_bytes"], wanted["subjects"]):
            await self._set("STREAM.UPDATE")

    async def next(self, pattern: str, start: int, *, timeout_s: float) -> Letter | None:
        """The first one at or after that sequence whose subject matches."""
        return await self._direct({"seq": start, "next_by_subj": pattern}, timeout_s)

    async def at(self, sequence: int, *, timeout_s: float) -> Letter | None:
        """What stands there; None: nothing any more."""
        return await self._direct({"seq": sequence}, timeout_s)

    async def span(self, *, timeout_s: float) -> tuple[int, int]:
        """The first and the last sequence there is."""
        state = (await self._info(b"", timeout_s=timeout_s)).state
        return state.first_seq, state.last_seq

    async def size(self, *, timeout_s: float) -> int:
        """How many there are."""
        return (await self._info(b"", timeout_s=timeout_s)).state.messages

    async def counts(self, pattern: str, *, timeout_s: float) -> dict[str, int]:
        """How many there are of each subject that matches."""
        found: dict[str, int] = {}
        while True:
            asked = msgspec.json.encode({"subjects_filter": pattern, "offset": len(found)})
            page = await self._info(asked, timeout_s=timeout_s)
            found |= page.state.subjects
            if not page.state.subjects or len(found) >= page.total:
                return found

    async def delete(self, sequence: int, *, timeout_s: float) -> bool:
        """Take it out; whether it was still there."""
        asked = msgspec.json.encode({"seq": sequence, "no_erase": True})
        answer = await self._api("STREAM.MSG.DELETE", asked, timeout_s=timeout_s)
        if answer.error is None:
            return True
        missing = answer.error.err_code in (_NO_MESSAGE, _DELETE_FAILED)
        if missing and await self.at(sequence, timeout_s=timeout_s) is None:
            return False
        raise self._refused(answer.error)

    async def _info(self, payload: bytes, *, timeout_s: float) -> _Info:
        reply = await self._bus.request_broker(
            f"$JS.API.STREAM.INFO.{self._name}", payload, timeout_s=timeout_s
        )
        try:
            info = msgspec.json.decode(reply.data, type=_Info)
        except msgspec.DecodeError as error:
            raise InternalError(f"JetStream answered with something unreadable: {error}") from error
        if info.error is not None:
            raise self._refused(info.error)
        return info

    async def _direct(self, asked: dict[str, Any], timeout_s: float) -> Letter | None:
        reply = await self._bus.request_broker(
            f"$JS.API.DIRECT.GET.{self._name}", msgspec.json.encode(asked), timeout_s=timeout_s
        )
        headers = reply.headers or b""
        if headers.startswith(b"NATS/1.0 404"):
            return None
        if headers.startswith((b"NATS/1.0 4", b"NATS/1.0 5")):
            raise UnavailableError(f"{self._about} cannot be read: {headers[9:60]!r}")
        said = _said(headers)
        try:
            sequence = int(said.get("Nats-Sequence", ""))
        except ValueError as error:
            raise InternalError("JetStream did not say which message this is") from error
        return Letter(
            sequence, said.get("Nats-Subject", ""), said.get("Nats-Time-Stamp", ""), reply.data
        )

    def _refused(self, error: Any) -> UnavailableError:
        refusal = super()._refused(error)
        if error.err_code == _FULL:
            refusal = UnavailableError(f"{self._about} is full; nothing was stored")
        refusal.retry_after_ms = _FULL_MS
        return refusal


def _said(headers: bytes) -> dict[str, str]:
    """The broker's own headers stand after the publisher's: the last one counts."""
    said = {}
    for line in headers.decode("utf-8", "replace").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            said[name] = value.strip()
    return said
