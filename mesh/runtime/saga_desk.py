"""Where sagas are asked for and asked about, at any master: what it decides is a record like any
other, and whoever runs the saga notices.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from mesh.core.saga import Rest, after, next_move
from mesh.core.saga_definition import digest_of
from mesh.core.saga_events import Aborted, Event, GivenUp, Resumed
from mesh.core.saga_record import actions_of
from mesh.errors import ConflictError, MeshError, NotFoundError
from mesh.ports import OutdatedError, SagaLog, SagaStore, StoredSaga, Verb
from mesh.runtime.issued_tokens import who
from mesh.runtime.parts import Surroundings
from mesh.runtime.saga_drive import newest_of
from mesh.runtime.saga_plan import Offers, plan
from mesh.wire.messages import (
    Request,
    Saga,
    SagaAbort,
    SagaDefinition,
    SagaList,
    SagaName,
    SagaRun,
    SagaShow,
    SagasQuery,
)

log = structlog.get_logger()

_FRESH_WITHIN_S = 2.0
_MOST_WAITING = 8
"""Requests that wait for a change at a time: each takes one of the places of this master."""
_TRIES = 10


class Reach(Protocol):
    """Waits until the copy has everything up to a sequence; False if that takes too long."""

    async def __call__(self, sequence: int, *, timeout_s: float) -> bool: ...


class SagaDesk:
    """The verbs of sagas."""

    def __init__(
        self,
        around: Surroundings,
        saga_log: SagaLog,
        store: SagaStore,
        *,
        offers: Offers,
        reach: Reach,
    ) -> None:
        """Args:
        around: Of the master.
        saga_log: The stream.
        store: The copy of it.
        offers: What nodes' actions are.
        reach: Brings the copy up to date.
        """
        self._around = around
        self._clock = around.clock
        self._config = around.config.sagas
        self._log = saga_log
        self._store = store
        self._offers = offers
        self._reach = reach
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self.verbs: Mapping[str, tuple[type[Request], Verb]] = {
            "saga-run": (SagaRun, self._run),
            "sagas": (SagasQuery, self._list),
            "saga-show": (SagaShow, self._show),
            "saga-resume": (SagaName, self._resume),
            "saga-abort": (SagaAbort, self._abort),
        }

    def heard(self, saga_id: str) -> None:
        """A saga has changed: whoever waits for that may look."""
        for waiting in self._waiting.get(saga_id, ()):
            waiting.set()

    async def _run(self, asked: SagaRun, caller: str) -> Saga:
        """Begin a saga, or join the one that has this id.

        Raises:
            ConflictError: The id is another saga's.
            MeshError: As `plan`.
        """
        definition = asked.saga
        if definition.id and (stored := await self._newest(definition.id)):
            return await self._joined(stored.saga, definition, asked)
        saga = await plan(
            definition,
            caller=asked.on_behalf or caller,
            now=self._clock.unix_ms(),
            timeout_s=self._config.timeout_s,
            nodes=self._around.membership.view.records(),
            offers=self._offers,
            allowed=asked.allowed,
        )
        try:
            await self._log.append(saga, after=0)
        except OutdatedError:
            if found := await self._newest(saga.id):
                return await self._joined(found.saga, definition, asked)
            raise
        log.debug("mesh.saga.accepted", id=saga.id, name=saga.name, caller=saga.caller)
        return await self._awaited(saga, saga.version, asked.wait_ms, to_end=True)

    async def _joined(self, saga: Saga, definition: SagaDefinition, asked: SagaRun) -> Saga:
        """Raises: ConflictError, NotFoundError."""
        if saga.digest != digest_of(definition):
            raise ConflictError(f"the id {saga.id!r} was used for another saga; choose a new one")
        _check_allowed(saga, asked.allowed)
        return await self._awaited(saga, saga.version, asked.wait_ms, to_end=True)

    async def _list(self, query: SagasQuery, _caller: str) -> SagaList:
        """Whoever has just seen a saga change finds it so."""
        try:
            newest = await self._log.last_sequence(timeout_s=_FRESH_WITHIN_S)
            await self._reach(newest, timeout_s=_FRESH_WITHIN_S)
        except MeshError as error:  # what is copied can be read without the stream
            log.warning("mesh.saga.freshness_unknown", error=str(error))
        sagas, total = await self._store.select(query)
        return SagaList(sagas=sagas, total=total)

    async def _show(self, asked: SagaShow, _caller: str) -> Saga:
        """Raises: NotFoundError."""
        try:
            stored = await self._newest(asked.saga)
            saga = None if stored is None else stored.saga
        except MeshError as error:
            log.warning("mesh.saga.freshness_unknown", error=str(error))
            saga = await self._store.find(asked.saga)
        if saga is None:
            raise _unknown(asked.saga)
        _check_allowed(saga, asked.allowed)
        return await self._awaited(saga, asked.after, asked.wait_ms, to_end=False)

    async def _resume(self, asked: SagaName, caller: str) -> Saga:
        """Raises: NotFoundError, ConflictError: It does not wait for anybody."""
        event = Resumed(asked.on_behalf or caller)
        saga = await self.change(asked.saga, lambda _: event, asked.allowed)
        actor = who(asked, caller)
        self._around.audit.note("saga-resumed", actor=actor, subject=saga.id, origin=asked.origin)
        return saga

    async def _abort(self, asked: SagaAbort, caller: str) -> Saga:
        """Raises: NotFoundError, ConflictError: It has ended, there is no way back, or it is on it
        already.
        """
        person = asked.on_behalf or caller
        event = GivenUp(person, asked.give_up) if asked.give_up else Aborted(person)
        saga = await self.change(asked.saga, lambda _: event, asked.allowed)
        actor = who(asked, caller)
        kind = "saga-step-given-up" if asked.give_up else "saga-aborted"
        subject = f"{saga.id}.{asked.give_up}" if asked.give_up else saga.id
        self._around.audit.note(kind, actor=actor, subject=subject, origin=asked.origin)
        return saga

    # -- records -----------------------------------------------------------------------------------

    async def _newest(self, saga_id: str) -> StoredSaga | None:
        return await newest_of(self._log, self._store, saga_id)

    async def change(
        self,
        saga_id: str,
        event: Callable[[Saga], Event],
        allowed: list[str] | None = None,
    ) -> Saga:
        """Store what follows from an event, whoever runs the saga: he notices.

        Raises:
            NotFoundError, ConflictError, UnavailableError
        """
        for _ in range(_TRIES):
            stored = await self._newest(saga_id)
            if stored is None:
                raise _unknown(saga_id)
            saga = stored.saga
            _check_allowed(saga, allowed)
            made = after(
                saga,
                event(saga),
                now=self._clock.unix_ms(),
                most_attempts=self._config.compensation_attempts,
            )
            if made is saga:
                return saga
            with contextlib.suppress(OutdatedError):
                await self._log.append(made, after=stored.sequence)
                return made
        raise ConflictError(f"the saga {saga_id!r} changes all the time; try again")

    async def _awaited(self, saga: Saga, version: int, wait_ms: int, *, to_end: bool) -> Saga:
        """`saga`, or what it is soon: beyond `version`, or (`to_end`) when it rests."""

        def enough(known: Saga) -> bool:
            if to_end:
                return isinstance(next_move(known), Rest)
            return known.version > version

        busy = sum(map(len, self._waiting.values())) >= _MOST_WAITING
        if not wait_ms or enough(saga) or busy:
            return saga
        changed = asyncio.Event()
        self._waiting.setdefault(saga.id, set()).add(changed)
        try:
            async with asyncio.timeout(wait_ms / 1000):
                while not enough(saga):
                    changed.clear()
                    stored = await self._newest(saga.id)
                    saga = saga if stored is None else stored.saga
                    if not enough(saga):
                        await changed.wait()
        except TimeoutError:
            pass
        except MeshError as error:
            log.info("mesh.saga.wait_ended", id=saga.id, error=str(error))
        finally:
            self._waiting[saga.id].discard(changed)
            if not self._waiting[saga.id]:
                del self._waiting[saga.id]
        return saga


def _unknown(saga_id: str) -> NotFoundError:
    return NotFoundError(f"no saga has the id {saga_id!r}")


def _check_allowed(saga: Saga, allowed: list[str] | None) -> None:
    """Raises: NotFoundError: It is of actions that are none of theirs."""
    if allowed is not None and not actions_of(saga) <= set(allowed):
        raise _unknown(saga.id)
