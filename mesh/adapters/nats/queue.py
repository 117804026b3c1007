"""`mesh.ports.ActionQueue` on two JetStream streams, read and emptied by sequence number.

No consumer: what was delivered is known by its id to the node that ran it, so there is nothing to
acknowledge, and the order of a node's actions is that of its subjects in the stream.
"""

from __future__ import annotations

import asyncio
import hashlib
from datetime import datetime
from typing import Any

import msgspec
import structlog

from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.streams import DAY_NS
from mesh.adapters.nats.work_stream import Letter, WorkStream
from mesh.errors import (
    BadRequestError,
    DeadlineExceededError,
    MeshError,
    TooLargeError,
    UnavailableError,
)
from mesh.ports import Buried, Waiting
from mesh.wire import codec, subjects
from mesh.wire.messages import DeadLetter, QueueItem

log = structlog.get_logger()

_TIMEOUT_S = 5.0
_PARALLEL_READS = 64
_DEAD_BYTES = 512 * 1024**2
_AWAY_MS = 1000


class JetStreamQueue:
    """The streams `MESH_QUEUE` and `MESH_DEAD`; callers add to the first, masters do the rest."""

    def __init__(
        self,
        bus: NatsBus,
        apart: NatsBus | None = None,
        *,
        max_bytes: int = 1024**3,
        dead_letter_days: float = 30.0,
    ) -> None:
        """Args:
        bus: Callers' need to publish only.
        apart: Where only masters are, for dead letters: nobody else can put anything there. None:
            the same.
        max_bytes: Of what waits; more is refused.
        dead_letter_days: How long what could not be done is kept.
        """
        self._queue = WorkStream(
            bus,
            subjects.QUEUE_STREAM,
            subjects.QUEUE_SUBJECTS,
            about="the queue",
            max_bytes=max_bytes,
            full="new",
        )
        self._dead = WorkStream(
            apart or bus,
            subjects.DEAD_STREAM,
            subjects.DEAD_SUBJECTS,
            about="the stream of dead letters",
            max_bytes=_DEAD_BYTES,
            full="old",
            max_age_ns=round(dead_letter_days * DAY_NS),
        )
        self._has_dead = False

    async def prepare(self) -> None:
        """Where there is no room for dead letters, what can be done is done all the same."""
        await self._queue.prepare()
        try:
            await self._prepare_dead()
        except UnavailableError as error:
            log.warning("mesh.queue.dead_letters_waiting", error=str(error))

    async def _prepare_dead(self) -> None:
        if not self._has_dead:
            await self._dead.prepare()
            self._has_dead = True

    async def put(self, node: str, caller: str, item: QueueItem, *, timeout_s: float) -> int:
        subject = subjects.queue(node, item.action, caller)
        key = f"{node}/{item.id}/{item.digest}/{item.retry}/{item.requeued}"
        try:
            return await self._queue.append(
                subject, codec.encode(item), message_id=_hashed(key), timeout_s=timeout_s
            )
        except TooLargeError:
            raise
        except (UnavailableError, DeadlineExceededError) as error:
            raise UnavailableError(
                f"not known to be queued; ask again with the same id: {error}",
                retry_after_ms=error.retry_after_ms or _AWAY_MS,
            ) from error

    async def next(self, node: str, after: int) -> Waiting | None:
        pattern = f"{subjects.PREFIX}.queue.{subjects.token(node)}.>" if node else None
        found = await self._queue.next(
            pattern or subjects.QUEUE_SUBJECTS, after + 1, timeout_s=_TIMEOUT_S
        )
        return None if found is None else _waiting(found)

    async def read(self, sequence: int) -> Waiting | None:
        found = await self._queue.at(sequence, timeout_s=_TIMEOUT_S)
        return None if found is None else _waiting(found)

    async def waiting(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        by_subject = await self._queue.counts(subjects.QUEUE_SUBJECTS, timeout_s=_TIMEOUT_S)
        for subject, count in by_subject.items():
            node = subject.split(".")[3]
            counts[node] = counts.get(node, 0) + count
        return counts

    async def remove(self, sequence: int) -> bool:
        return await self._queue.delete(sequence, timeout_s=_TIMEOUT_S)

    async def bury(self, letter: DeadLetter, *, key: str) -> None:
        subject = subjects.dead(letter.node, letter.action)
        await self._prepare_dead()
        for kept in (letter, msgspec.structs.replace(letter, params=None, trace="")):
            try:
                await self._dead.append(
                    subject, codec.encode(kept), message_id=_hashed(key), timeout_s=_TIMEOUT_S
                )
            except TooLargeError:
                continue
            except MeshError:
                self._has_dead = False  # the broker may have come back without its store
                raise
            return

    async def dead(self, node: str, limit: int, offset: int) -> tuple[list[Buried], int]:
        """Read backwards: most who ask want the newest."""
        pattern = (
            f"{subjects.PREFIX}.dead.{subjects.token(node)}.>" if node else subjects.DEAD_SUBJECTS
        )
        total = sum((await self._dead.counts(pattern, timeout_s=_TIMEOUT_S)).values())
        found: list[Buried] = []
        first, last = await self._dead.span(timeout_s=_TIMEOUT_S)
        while last >= first and len(found) < min(offset + limit, total):
            start = max(first, last - _PARALLEL_READS + 1)
            read = await asyncio.gather(
                *(
                    self._dead.at(sequence, timeout_s=_TIMEOUT_S)
                    for sequence in range(last, start - 1, -1)
                )
            )
            found += [
                buried
                for each in read
                if each is not None
                and (buried := _buried(each)) is not None
                and node in ("", buried.letter.node)
            ]
            last = start - 1
        return found[offset : offset + limit], total

    async def exhume(self, sequence: int) -> None:
        await self._dead.delete(sequence, timeout_s=_TIMEOUT_S)


def _hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _waiting(found: Letter) -> Waiting:
    parts: Any = found.subject.split(".")[3:]
    node, action, caller = parts if len(parts) == 3 else ("", "", "")  # noqa: PLR2004
    item, flaw = None, ""
    try:
        item = codec.decode(found.data, QueueItem)
        if item.action != action:
            raise BadRequestError(f"the subject says {action!r}, the message {item.action!r}")
        if not item.id:
            raise BadRequestError("it has no id")
    except MeshError as error:
        item, flaw = None, str(error)
    return Waiting(found.sequence, node, action, caller, _unix_ms(found.stamp), item, flaw)


def _buried(found: Letter) -> Buried | None:
    try:
        return Buried(found.sequence, codec.decode(found.data, DeadLetter))
    except MeshError as error:
        log.warning("mesh.queue.letter_unreadable", sequence=found.sequence, error=str(error))
        return None


def _unix_ms(stamp: str) -> int:
    """0 where the broker does not say."""
    try:
        return round(datetime.fromisoformat(stamp).timestamp() * 1000)
    except ValueError:
        return 0
