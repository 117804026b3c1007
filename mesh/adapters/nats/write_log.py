"""`mesh.ports.WriteLog` and `WriteLogArchive` on the JetStream stream `MESH_WRITES`.

Source: JetStream's expected last sequence of a subject filter, and direct get by subject (ADR-31).
"""

from __future__ import annotations

import asyncio
import re

import msgspec
import structlog

from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.multiplexer import Reply
from mesh.adapters.nats.streams import AppendOnlyStream
from mesh.core.replication import linked
from mesh.errors import (
    ForbiddenError,
    InternalError,
    MeshError,
    NoRespondersError,
    TooLargeError,
    UnavailableError,
)
from mesh.ports import Clock
from mesh.ports.write_log import MovedOnError, NotStoredError
from mesh.wire import codec, subjects
from mesh.wire.messages import LoggedWrite, WriteEntry, WritesPage

log = structlog.get_logger()

_WRONG_LAST = 10071  # JetStream error code: wrong last sequence
_DAY_MS = 24 * 3600 * 1000
_DAY_NS = _DAY_MS * 10**6
_MOST_PAGE_BYTES = 900_000
_MOST_AT_ONCE = 64
_FADES_FROM = 1000
"""Entries of other shards that the log must hold before it counts whose are the oldest."""
_LAST = re.compile(r"wrong last sequence: (\d+)")
_SEQUENCE = b"Nats-Sequence:"


class _ApiError(msgspec.Struct, frozen=True):
    err_code: int = 0
    description: str = ""


class _State(msgspec.Struct, frozen=True):
    first_seq: int = 0
    last_seq: int = 0


class _Answer(msgspec.Struct, frozen=True):
    error: _ApiError | None = None
    seq: int = 0
    created: str = ""
    state: _State = _State()


class JetStreamWriteLog:
    """Nodes append, each under its own name; the broker holds them to that."""

    def __init__(self, bus: NatsBus) -> None:
        self._bus = bus

    async def append(self, shard: str, entry: WriteEntry, *, after: int, timeout_s: float) -> int:
        headers = {
            "Nats-Expected-Last-Subject-Sequence": str(after),
            "Nats-Expected-Last-Subject-Sequence-Subject": subjects.write_filter(shard),
        }
        subject = subjects.write(shard, self._bus.identity)
        try:
            answer = _read(
                await self._bus.request_broker(
                    subject, codec.encode(entry), timeout_s=timeout_s, headers=headers
                )
            )
        except (NoRespondersError, ForbiddenError) as error:
            why = f"the log of writes takes nothing: {error}"
            raise NotStoredError(why, retry_after_ms=1000) from error
        if answer.error is None:
            return answer.seq
        if answer.error.err_code == _WRONG_LAST:
            found = _LAST.search(answer.error.description)
            raise MovedOnError(int(found.group(1)) if found else 0)
        raise _refused(answer.error)


class JetStreamWriteArchive:
    """Masters make the stream and read it."""

    def __init__(self, bus: NatsBus, clock: Clock, *, days: float, max_bytes: int) -> None:
        self._bus = bus
        self._clock = clock
        self._fades_ms = days * _DAY_MS / 2
        self._stream = AppendOnlyStream(
            bus,
            subjects.WRITES_STREAM,
            subjects.WRITES_SUBJECTS,
            about="the log of writes",
            max_age_ns=round(days * _DAY_NS),
            max_bytes=max_bytes,
        )

    async def prepare(self) -> None:
        await self._stream.prepare()

    async def read(
        self, shard: str, after: int, limit: int, *, timeout_s: float = 5.0
    ) -> WritesPage:
        filtered = subjects.write_filter(shard)
        info = await self._info(timeout_s)
        # Before the entries: a page that names a last one must not seem to have none before it.
        last = await self._get({"last_by_subj": filtered}, timeout_s)
        entries: list[LoggedWrite] = []
        size = 0
        for logged, taken in await self._after(filtered, after, limit, timeout_s):
            if entries and size + taken > _MOST_PAGE_BYTES:
                break
            entries.append(logged)
            size += taken
        whole = bool(entries and after) and await self._is_there(filtered, after, timeout_s)
        if entries and (await self._info(timeout_s)).created != info.created:
            raise UnavailableError("the log of writes was made anew", retry_after_ms=1000)
        return WritesPage(
            log=info.created,
            last=max([last[0].sequence if last else 0, *(one.sequence for one in entries[-1:])]),
            entries=linked(entries, after) if whole else entries,
            fading=last is not None and self._fading(last[0], info.state),
        )

    async def _is_there(self, filtered: str, sequence: int, timeout_s: float) -> bool:
        """Whether that is an entry of the shard still: the log forgets the oldest first, so then
        none of those after it is gone.
        """
        found = await self._get({"seq": sequence, "next_by_subj": filtered}, timeout_s)
        return found is not None and found[0].sequence == sequence

    def _fading(self, last: LoggedWrite, state: _State) -> bool:
        older, newer = last.sequence - state.first_seq, state.last_seq - last.sequence
        if newer > max(older, _FADES_FROM):
            return True
        at = last.entry.at
        return bool(at) and self._clock.unix_ms() - at > self._fades_ms

    async def _after(
        self, filtered: str, after: int, limit: int, timeout_s: float
    ) -> list[tuple[LoggedWrite, int]]:
        """A busy shard's entries stand close together: look for many at once, and for one at a time
        where they are far apart.
        """
        found: dict[int, tuple[LoggedWrite, int]] = {}
        at_once, size = 1, 0
        while len(found) < limit and size <= _MOST_PAGE_BYTES:
            gets = [
                self._get({"seq": after + place, "next_by_subj": filtered}, timeout_s)
                for place in range(1, at_once + 1)
            ]
            answers = await asyncio.gather(*gets)
            # One that found nothing may have been asked before the others' entries were there.
            answers = answers[: answers.index(None)] if None in answers else answers
            window = {one[0].sequence: one for one in answers if one}
            if not window:
                break
            found |= window
            size = sum(taken for _, taken in found.values())
            after = max(window)
            dense = len(window) > at_once // 2
            at_once = min(at_once * 2, _MOST_AT_ONCE) if dense else 1
        return [found[sequence] for sequence in sorted(found)][:limit]

    async def _get(self, which: object, timeout_s: float) -> tuple[LoggedWrite, int] | None:
        """The entry and its size; None: there is none."""
        reply = await self._bus.request_broker(
            f"$JS.API.DIRECT.GET.{subjects.WRITES_STREAM}",
            codec.encode(which),
            timeout_s=timeout_s,
        )
        headers = reply.headers or b""
        if headers.startswith(b"NATS/1.0 404"):
            return None
        if headers.startswith((b"NATS/1.0 4", b"NATS/1.0 5")):
            raise UnavailableError(f"the log of writes cannot be read: {headers[9:60]!r}")
        return LoggedWrite(sequence=_sequence(headers), entry=_entry(reply.data)), len(reply.data)

    async def _info(self, timeout_s: float) -> _Answer:
        subject = f"$JS.API.STREAM.INFO.{subjects.WRITES_STREAM}"
        answer = _read(await self._bus.request_broker(subject, b"", timeout_s=timeout_s))
        if answer.error is not None:
            raise _refused(answer.error)
        return answer


def _sequence(headers: bytes) -> int:
    """The broker's own headers stand after the publisher's: the last one counts."""
    found = b"0"
    for line in headers.split(b"\r\n"):
        if line.startswith(_SEQUENCE):
            found = line[len(_SEQUENCE) :].strip()
    return int(found)


def _entry(data: bytes) -> WriteEntry:
    try:
        return codec.decode(data, WriteEntry)
    except MeshError as error:
        log.warning("mesh.writes.unreadable", error=str(error))  # no node of ours writes such
        return WriteEntry(prev=0)


def _refused(error: _ApiError) -> MeshError:
    if "maximum message size" in error.description:
        return TooLargeError("this write is too large for the log of its shard")
    return NotStoredError(
        f"the log of writes refuses: {error.description} ({error.err_code})", retry_after_ms=1000
    )


def _read(reply: Reply) -> _Answer:
    try:
        return msgspec.json.decode(reply.data, type=_Answer)
    except msgspec.DecodeError as error:
        raise InternalError(f"JetStream answered with something unreadable: {error}") from error
