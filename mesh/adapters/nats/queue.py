"""`mesh.ports.ActionQueue` on two JetStream streams, read and emptied by sequence number.

No consumer: what was delivered is known by its id to the node that ran it, so there is nothing to
acknowledge, and the order of a node's actions is that of its subjects in the stream.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from datetime import datetime

import msgspec
import structlog

from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.streams import DAY_NS
from mesh.adapters.nats.work_stream import Letter, WorkStream
from mesh.core import delivery
from mesh.errors import (
    BadRequestError,
    DeadlineExceededError,
    InvalidError,
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
_MOST_READS = 20_000
"""Of one list of dead letters."""
_MOST_OF_ONE_ID = 100
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
        self.strays = 0
        """Messages thrown away that stood where no action can wait."""

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
        # A number nobody can guess, and new each time: what JetStream takes for a duplicate it
        # acknowledges and drops, also if the first one was taken out meanwhile.
        message_id = secrets.token_hex(16)
        try:
            return await self._queue.append(
                subject, codec.encode(item), message_id=message_id, timeout_s=timeout_s
            )
        except TooLargeError:
            raise
        except (UnavailableError, DeadlineExceededError) as error:
            raise UnavailableError(
                f"not known to be queued; ask again with the same id: {error}",
                retry_after_ms=error.retry_after_ms or _AWAY_MS,
            ) from error

    async def next(self, node: str, after: int) -> Waiting | None:
        subjects.token(node, "node")
        return await self._next(f"{subjects.PREFIX}.queue.{node}.*.*", after)

    async def next_of_all(self, after: int) -> Waiting | None:
        return await self._next(f"{subjects.PREFIX}.queue.>", after)

    async def _next(self, pattern: str, after: int) -> Waiting | None:
        while True:
            found = await self._queue.next(pattern, after + 1, timeout_s=_TIMEOUT_S)
            if found is None or (waiting := _waiting(found)) is not None:
                return None if found is None else waiting
            self.strays += 1
            log.warning("mesh.queue.stray", subject=found.subject[:200], sequence=found.sequence)
            await self.remove(found.sequence)
            after = found.sequence

    async def read(self, sequence: int) -> Waiting | None:
        found = await self._queue.at(sequence, timeout_s=_TIMEOUT_S)
        return None if found is None else _waiting(found)

    async def waiting(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        by_subject = await self._queue.counts(subjects.QUEUE_SUBJECTS, timeout_s=_TIMEOUT_S)
        for subject, count in by_subject.items():
            if (place := _place(subject)) is not None:
                counts[place[0]] = counts.get(place[0], 0) + count
        return counts

    async def remove(self, sequence: int) -> bool:
        return await self._queue.delete(sequence, timeout_s=_TIMEOUT_S)

    async def bury(self, letter: DeadLetter, *, key: str) -> None:
        subject = subjects.dead(letter.node, letter.action, _hashed(letter.id))
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
        if node:
            pattern = f"{subjects.PREFIX}.dead.{subjects.token(node, 'node')}.>"
            total = sum((await self._dead.counts(pattern, timeout_s=_TIMEOUT_S)).values())
        else:
            total = await self._dead.size(timeout_s=_TIMEOUT_S)
        found: list[Buried] = []
        first, last = await self._dead.span(timeout_s=_TIMEOUT_S)
        first = max(first, last - _MOST_READS + 1)
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

    async def letter(self, action_id: str, node: str) -> Buried | None:
        whose = subjects.token(node, "node") if node else "*"
        pattern = f"{subjects.PREFIX}.dead.{whose}.*.{_hashed(action_id)}"
        newest, after = None, 0
        for _ in range(_MOST_OF_ONE_ID):
            found = await self._dead.next(pattern, after + 1, timeout_s=_TIMEOUT_S)
            if found is None:
                break
            newest, after = _buried(found) or newest, found.sequence
        return newest

    async def exhume(self, sequence: int) -> None:
        await self._dead.delete(sequence, timeout_s=_TIMEOUT_S)


def _hashed(key: str) -> str:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _place(subject: str) -> tuple[str, str, str] | None:
    """Node, action and caller that a subject of the queue names; None: it names none."""
    try:
        _queue, node, action, caller = subjects.parts(subject)
    except (InvalidError, ValueError):
        return None
    return node, action, caller


def _waiting(found: Letter) -> Waiting | None:
    """None: it stands where no action can wait."""
    place = _place(found.subject)
    if place is None:
        return None
    node, action, caller = place
    item, flaw = None, ""
    try:
        item = delivery.as_trusted(codec.decode(found.data, QueueItem), caller)
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
