"""The audit trail of one master: noted at once, in SQL a moment later, in the stream after that.

Whoever notes something pays for an append to a queue. One task writes the queue to SQL, another
publishes what SQL has and the stream has not: an entry waits in one of them while the database or
the broker is away. Masters share the table; what two of them publish, the stream keeps once.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple

import structlog
from uuid_utils import uuid7

from mesh.core.backoff import Backoff, BackoffPolicy
from mesh.core.redaction import HIDDEN, hide_secrets, names_secret
from mesh.core.tally import Key, Tallied, Tally
from mesh.errors import InvalidError, MeshError
from mesh.ports import Clock, Verb
from mesh.ports.trail import AuditStore, AuditStream
from mesh.runtime.background import Background
from mesh.wire.messages import AuditPage, AuditQuery, AuditRecord, Request

log = structlog.get_logger()

_MOST_QUEUED = 10_000
_BATCH = 256
_LINGER_S = 0.1
"""What is noted together is written together."""
_FLUSH_WITHIN_S = 2.0
_STOP_WITHIN_S = 5.0
_APPEND_WITHIN_S = 5.0
_LOOK_EVERY_S = 5.0
"""For what a master that is gone wrote and could not publish."""
_TALLY_EVERY_S = 1.0
_PRUNE_EVERY_S = 3600.0
_DAY_MS = 86_400_000
_RETRY = BackoffPolicy(first_s=0.1, limit_s=5.0)

_MOST_CHARS = 256
_MOST_READ_CHARS = 4096
_MOST_DETAILS = 16
_MOST_ITEMS = 32
_MOST_ITEM_CHARS = 64
_MOST_INT = 2**63 - 1
_NO_TOKEN = re.compile(r"[^A-Za-z0-9_-]")


class _Noted(NamedTuple):
    """As it was said; made presentable when it is written."""

    id: str
    at: int
    kind: str
    actor: str
    subject: str
    origin: str
    details: Mapping[str, Any]


class AuditTrail:
    """`mesh.ports.Trail`. The store and the stream are the caller's to open and close."""

    def __init__(
        self, store: AuditStore, stream: AuditStream, clock: Clock, *, audit_days: float
    ) -> None:
        """Args:
        store: Where entries can be asked for.
        stream: Where nobody can change them.
        clock: Time.
        audit_days: How long the store keeps them.
        """
        self._store = store
        self._stream = stream
        self._clock = clock
        self._keep_ms = round(audit_days * _DAY_MS)
        self._background = Background(clock)
        self._queue: deque[_Noted] = deque()
        self._tallies: dict[str, Tally] = {}
        """By kind: what is refused to many hides nothing of what is granted."""
        self._wake = asyncio.Event()
        self._written = asyncio.Event()
        self._writing = asyncio.Lock()
        self._unwritable = Backoff(_RETRY)
        self._unpublishable = Backoff(_RETRY)
        self._prepared = False
        self._unreported = 0
        self.overflowed = 0
        """Entries for which the queue had no room."""
        self.verbs: Mapping[str, tuple[type[Request], Verb]] = {"audit": (AuditQuery, self._page)}

    async def start(self) -> None:
        """Write and publish from now on, what was noted before too."""
        for name, step in (
            ("audit-write", self._write_round),
            ("audit-publish", self._publish_round),
            ("audit-tally", self._tally_round),
            ("audit-prune", self._prune_round),
        ):
            self._background.repeat(name, step)

    async def stop(self) -> None:
        """Write what is left. What cannot be written within 5 s goes to the log; what is not
        published yet, the next master publishes.
        """
        await self._background.stop()
        for kind, tally in self._tallies.items():
            for entry in tally.close():
                self._enter_tallied(kind, entry)
        try:
            async with asyncio.timeout(_STOP_WITHIN_S):
                await self._write()
        except (MeshError, TimeoutError) as error:
            log.error("mesh.audit.left_unwritten", error=str(error))  # noqa: TRY400 (no bug)
            for noted in self._queue:
                log.warning("mesh.audit.entry_unwritten", entry=_record(noted))

    # -- entering ----------------------------------------------------------------------------------

    def note(
        self,
        kind: str,
        *,
        actor: str,
        subject: str,
        origin: str = "",
        **details: str | int | list[str],
    ) -> None:
        self._enter(kind, actor, subject, origin, details)

    def tally(self, kind: str, *, actor: str, subject: str, origin: str = "") -> None:
        key = Key(actor[:_MOST_ITEM_CHARS], origin[:_MOST_ITEM_CHARS])
        tally = self._tallies.setdefault(kind, Tally())
        first = tally.count(key, subject[:_MOST_CHARS], self._clock.monotonic())
        if first is not None:
            self._enter(kind, first.key.actor, first.subject, first.key.origin, {})

    def _enter(
        self, kind: str, actor: str, subject: str, origin: str, details: Mapping[str, Any]
    ) -> None:
        if len(self._queue) >= _MOST_QUEUED:
            self.overflowed += 1
            self._unreported += 1
            return
        at = self._clock.unix_ms()
        self._queue.append(_Noted(str(uuid7()), at, kind, actor, subject, origin, details))
        self._wake.set()

    def _enter_tallied(self, kind: str, entry: Tallied) -> None:
        actor, origin = entry.key
        self._enter(kind, actor, entry.subject, origin, {"count": entry.times})

    async def _tally_round(self) -> None:
        await self._clock.sleep(_TALLY_EVERY_S)
        for kind, tally in self._tallies.items():
            for entry in tally.due(self._clock.monotonic()):
                self._enter_tallied(kind, entry)

    # -- writing -----------------------------------------------------------------------------------

    async def _write_round(self) -> None:
        await self._wake.wait()
        await self._clock.sleep(_LINGER_S)
        self._wake.clear()
        try:
            await self._write()
        except MeshError as error:
            self._wake.set()
            delay_s = self._unwritable.died(0.0)
            log.warning("mesh.audit.writing_waits", error=str(error), retry_s=delay_s)
            await self._clock.sleep(delay_s)
        else:
            self._unwritable = Backoff(_RETRY)

    async def _write(self) -> None:
        """All that is queued. An entry leaves the queue when it is in SQL: whoever is interrupted
        here has it written twice at worst, and a second time changes nothing.
        """
        async with self._writing:
            while self._queue:
                batch = [_record(noted) for noted in islice(self._queue, _BATCH)]
                try:
                    await self._store.add(batch)
                except InvalidError:
                    await self._write_singly(batch)
                for _ in batch:
                    self._queue.popleft()
                self._written.set()
                self._report_overflow()

    async def _write_singly(self, batch: list[AuditRecord]) -> None:
        """One entry that the database cannot hold must not keep out the others."""
        for record in batch:
            try:
                await self._store.add([record])
            except InvalidError as error:
                log.error(  # noqa: TRY400 (where it happened here tells nothing)
                    "mesh.audit.entry_unstorable", entry=record, error=str(error)
                )

    def _report_overflow(self) -> None:
        if self._unreported:
            lost, self._unreported = self._unreported, 0
            log.error("mesh.audit.overflowed", entries=lost)
            self._enter("audit-overflowed", "master", "audit", "", {"count": lost})

    # -- publishing --------------------------------------------------------------------------------

    async def _publish_round(self) -> None:
        self._written.clear()
        try:
            more = await self._publish()
        except MeshError as error:
            self._prepared = False  # the broker may have come back without its store
            delay_s = self._unpublishable.died(0.0)
            log.warning("mesh.audit.publishing_waits", error=str(error), retry_s=delay_s)
            await self._clock.sleep(delay_s)
            return
        self._unpublishable = Backoff(_RETRY)
        if not more:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._written.wait()

    async def _publish(self) -> bool:
        """The next batch, in order; True if there may be more at once."""
        if not self._prepared:
            await self._stream.prepare()
            self._prepared = True
        records = await self._store.unpublished(_BATCH)
        done: list[str] = []
        try:
            for record in records:
                await self._stream.append(record, timeout_s=_APPEND_WITHIN_S)
                done.append(record.id)
        finally:
            if done:
                await self._store.published(done)
        return len(records) == _BATCH

    async def _prune_round(self) -> None:
        try:
            gone = await self._store.prune(before=self._clock.unix_ms() - self._keep_ms)
        except MeshError as error:
            log.warning("mesh.audit.prune_failed", error=str(error))
        else:
            if gone:
                log.info("mesh.audit.pruned", entries=gone)
        await self._clock.sleep(_PRUNE_EVERY_S)

    # -- reading -----------------------------------------------------------------------------------

    async def last_origin(self, name: str) -> str:
        query = AuditQuery(kind="login-granted", subject=name, limit=1)
        entries, _ = await self._store.find(query)
        return entries[0].origin if entries else ""

    async def _page(self, query: AuditQuery, _caller: str) -> AuditPage:
        """Whoever has just done something finds it here."""
        try:
            async with asyncio.timeout(_FLUSH_WITHIN_S):
                await self._write()
        except (MeshError, TimeoutError) as error:  # what is written can be read
            log.warning("mesh.audit.freshness_unknown", error=str(error))
        entries, total = await self._store.find(query)
        return AuditPage(entries=entries, total=total)


def _record(noted: _Noted) -> AuditRecord:
    """Bounded, storable and without secrets, whatever was said."""
    details = islice(noted.details.items(), _MOST_DETAILS)
    return AuditRecord(
        id=noted.id,
        at=noted.at,
        kind=_NO_TOKEN.sub("-", noted.kind[:_MOST_ITEM_CHARS]) or "unknown",
        actor=_text(noted.actor),
        subject=_text(noted.subject),
        origin=_text(noted.origin, _MOST_ITEM_CHARS),
        details={_text(name, _MOST_ITEM_CHARS): _detail(name, value) for name, value in details},
    )


def _detail(name: str, value: Any) -> str | int | list[str]:
    match value:
        case bool():
            return "true" if value else "false"
        case int() if abs(value) <= _MOST_INT:
            return value
        case _ if names_secret(name):
            return HIDDEN
        case list() | tuple() | set() | frozenset():
            return [_text(item, _MOST_ITEM_CHARS) for item in islice(value, _MOST_ITEMS)]
        case _:
            return _text(value)


def _text(value: object, most: int = _MOST_CHARS) -> str:
    text = str(value)[:_MOST_READ_CHARS].replace("\0", "�")
    return hide_secrets(text.encode("utf-8", "replace").decode())[:most]
