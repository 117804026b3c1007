"""Journal and history of a node's actions, in the order that makes the promises.

The journal is the node's own disk, the history what everybody else sees. An outcome is in the
journal before it is in the history, and in the history before anybody hears of it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Container

import structlog

from mesh.errors import ForbiddenError, MeshError, UnavailableError
from mesh.ports import Clock, History, Journal, JournalEntry
from mesh.runtime.action_records import lighter, refused
from mesh.wire.messages import ActionRequest, HistoryRecord

log = structlog.get_logger()

_HISTORY_TIMEOUT_S = 3.0
_RETRY_FIRST_S, _RETRY_MOST_S = 0.1, 1.0
_RETRY_MS = 1000
_OWN_FAULT = 500
_LEFTOVERS_AT_ONCE = 256

InDoubt = Callable[[MeshError], None]
"""Hears that an action was refused, and that this is not on the disk yet."""


class Ledger:
    """Both, for one node."""

    def __init__(self, journal: Journal, history: History, clock: Clock) -> None:
        self.journal = journal
        self._history = history
        self._clock = clock
        self._unrecorded = asyncio.Event()
        self._away = False
        """The history has refused an action, and has not taken anything since. What it refused is
        offered to it again and again: that is how its return is noticed.
        """

    async def accept(
        self,
        request: ActionRequest,
        accepted: HistoryRecord,
        in_doubt: InDoubt,
        *,
        known: JournalEntry | None = None,
    ) -> JournalEntry | None:
        """Make it known that the action is about to run; if its id is known already, what is known
        of it, and nothing is changed. `known`: how it ended before, to begin anew.

        Raises:
            UnavailableError: Journal or history cannot take it: nothing may run.
        """
        if self._away:  # no row for what is refused anyway: there would be no end of them
            found = None if known is not None else await self.journal.find(request.id)
            if found is None:
                self._unrecorded.set()
                raise _refusal("it has not come back yet")
            return found
        if known is not None and known.outcome is not None and not known.recorded:
            await self._announce(known.outcome)
            self.journal.recorded(known.outcome)
        found = await self.journal.accept(
            request,
            caller=accepted.caller,
            digest=accepted.digest,
            accepted_at=accepted.at,
            attempts=accepted.attempt - 1,
            again=known is not None,
        )
        if found is None:
            try:
                await self._announce(accepted)
            except MeshError:
                self._away = True
                await self._refuse(accepted, in_doubt)
                raise
        return found

    async def _announce(self, record: HistoryRecord) -> None:
        try:
            await self._append(record)
        except MeshError as error:
            raise _refusal(error) from error

    async def _append(self, record: HistoryRecord) -> None:
        await self._history.append(record, timeout_s=_HISTORY_TIMEOUT_S)
        self._away = False

    async def _refuse(self, accepted: HistoryRecord, in_doubt: InDoubt) -> None:
        """Until it is on the disk that nothing runs, the next life of this node would run it: so
        nobody may be told that before.
        """
        outcome = refused(accepted, self._clock.unix_ms())
        try:
            await self.journal.settle(outcome)
        except MeshError as error:
            in_doubt(
                UnavailableError(
                    "the action history is away and the node's disk is not well: it has not run, "
                    f"but it may yet, after a restart; ask again with the same id: {error}",
                    retry_after_ms=_RETRY_MS,
                )
            )
            await self._kept(outcome, error)
        self._unrecorded.set()

    async def begin(self, accepted: HistoryRecord) -> None:
        """From here on it may have had an effect; what was accepted is not given up for a disk that
        is full just now.
        """
        try:
            await self.journal.begin(accepted.id, accepted.attempt)
        except MeshError as error:
            await self._insist(
                "begun", accepted, error, lambda: self.journal.begin(accepted.id, accepted.attempt)
            )

    async def settle(self, outcome: HistoryRecord) -> HistoryRecord:
        """The effect has happened: its outcome is kept, as often as it takes, and as much of it as
        can be; what was.
        """
        try:
            await self.journal.settle(outcome)
        except MeshError as error:
            outcome = await self._kept(outcome, error)
        await self.record(outcome)
        return outcome

    async def _kept(self, outcome: HistoryRecord, error: MeshError) -> HistoryRecord:
        """What of it the journal holds in the end, after `error`."""
        return await self._lightened("kept", outcome, error, self._settle)

    async def _settle(self, outcome: HistoryRecord) -> None:
        await self.journal.settle(outcome)

    async def record(self, outcome: HistoryRecord) -> None:
        """Return once history has the outcome: the caller hears of it only then."""
        await self.store(outcome)
        self.journal.recorded(outcome)

    async def store(self, record: HistoryRecord) -> None:
        """In the history, as often as it takes; without its bulk if that is too much."""
        try:
            await self._append(record)
        except MeshError as error:
            await self._lightened("stored", record, error, self._append)

    def leave(self) -> None:
        """There are outcomes that nobody waits for: see `record_leftovers`."""
        self._unrecorded.set()

    async def record_leftovers(self, running: Container[str]) -> None:
        """Outcomes nobody waits for any more: of refusals, interruptions and earlier lives. Those
        of `running` ids are recorded by whoever runs them.
        """
        await self._unrecorded.wait()
        self._unrecorded.clear()
        told: set[tuple[str, int]] = set()
        try:
            while True:
                found = await self.journal.unrecorded(_LEFTOVERS_AT_ONCE)
                left = [
                    one
                    for one in found
                    if one.id not in running and (one.id, one.attempt) not in told
                ]
                if not left:
                    break
                await asyncio.gather(*(self.record(one) for one in left))
                told.update((one.id, one.attempt) for one in left)
            if not found:
                self._away = False  # nothing is offered to it any more: let the next one try
            elif len(found) == _LEFTOVERS_AT_ONCE:  # they may stand before others
                self._unrecorded.set()
                await self._clock.sleep(_RETRY_MOST_S)
        except BaseException:
            self._unrecorded.set()
            raise

    async def _lightened(
        self,
        what: str,
        record: HistoryRecord,
        error: MeshError,
        step: Callable[[HistoryRecord], Awaitable[None]],
    ) -> HistoryRecord:
        """Insist, after `error`, with less and less of it; what was taken in the end."""
        less = record
        for less in lighter(record):
            try:
                await self._insist(what, less, error, functools.partial(step, less))
            except MeshError as failure:
                error = UnavailableError(f"not like this: {failure}")
            else:
                return less
        log.error("mesh.action.record_lost", what=what, id=record.id, error=str(error))
        return less  # whoever waits hears of it all the same

    async def _insist(
        self,
        what: str,
        record: HistoryRecord,
        error: MeshError,
        step: Callable[[], Awaitable[object]],
    ) -> None:
        """Again and again, after `error`, until it is done.

        Raises:
            MeshError: One that no patience helps against.
        """
        delay = _RETRY_FIRST_S
        while error.code >= _OWN_FAULT or isinstance(error, ForbiddenError):
            log.warning("mesh.action.waiting", what=what, id=record.id, error=str(error))
            await self._clock.sleep(delay)
            delay = min(delay * 2, _RETRY_MOST_S)
            try:
                await step()
            except MeshError as failure:
                error = failure
            else:
                return
        raise error


def _refusal(why: object) -> UnavailableError:
    return UnavailableError(
        f"the action history is away, so nothing was run: {why}", retry_after_ms=_RETRY_MS
    )
