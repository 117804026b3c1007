"""Journal and history of a node's actions, in the order that makes the promises.

The journal is the node's own disk, the history what everybody else sees. An outcome is in the
journal before it is in the history, and in the history before anybody hears of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container

import msgspec
import structlog

from mesh.errors import ForbiddenError, MeshError, TooLargeError, UnavailableError
from mesh.ports import Clock, History, Journal, JournalEntry
from mesh.runtime.action_records import refused
from mesh.wire.messages import ActionRequest, HistoryRecord

log = structlog.get_logger()

_HISTORY_TIMEOUT_S = 3.0
_RETRY_FIRST_S, _RETRY_MOST_S = 0.1, 2.0
_OWN_FAULT = 500


class Ledger:
    """Both, for one node."""

    def __init__(self, journal: Journal, history: History, clock: Clock) -> None:
        self.journal = journal
        self._history = history
        self._clock = clock
        self._unrecorded = asyncio.Event()

    async def accept(
        self, request: ActionRequest, accepted: HistoryRecord, *, known: JournalEntry | None = None
    ) -> JournalEntry | None:
        """Make it known that the action is about to run; if its id is known already, what is known
        of it, and nothing is changed. `known`: how it ended before, to begin anew.

        Raises:
            UnavailableError: Journal or history cannot take it: nothing may run.
        """
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
                await self.journal.settle(refused(accepted, self._clock.unix_ms()))
                self._unrecorded.set()
                raise
        return found

    async def _announce(self, record: HistoryRecord) -> None:
        try:
            await self._history.append(record, timeout_s=_HISTORY_TIMEOUT_S)
        except MeshError as error:
            raise UnavailableError(
                f"the action history is away, so nothing was run: {error}", retry_after_ms=1000
            ) from error

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
        """The effect has happened: its outcome is kept, as often as it takes."""
        try:
            await self.journal.settle(outcome)
        except MeshError as error:
            await self._insist("kept", outcome, error, lambda: self.journal.settle(outcome))
        await self.record(outcome)
        return outcome

    async def record(self, outcome: HistoryRecord) -> None:
        """Return once history has the outcome: the caller hears of it only then."""
        await self.store(outcome)
        self.journal.recorded(outcome)

    async def store(self, record: HistoryRecord) -> None:
        """In the history, as often as it takes; without its bulk if that is too much."""
        try:
            await self._history.append(record, timeout_s=_HISTORY_TIMEOUT_S)
        except MeshError as error:
            if isinstance(error, TooLargeError):
                record = msgspec.structs.replace(record, params=None, result=None, trace="")
                error = UnavailableError(f"without its bulk: {error}")
            await self._insist(
                "stored",
                record,
                error,
                lambda: self._history.append(record, timeout_s=_HISTORY_TIMEOUT_S),
            )

    def leave(self) -> None:
        """There are outcomes that nobody waits for: see `record_leftovers`."""
        self._unrecorded.set()

    async def record_leftovers(self, running: Container[str]) -> None:
        """Outcomes nobody waits for any more: of refusals, interruptions and earlier lives. Those
        of `running` ids are recorded by whoever runs them.
        """
        await self._unrecorded.wait()
        self._unrecorded.clear()
        try:
            for outcome in await self.journal.unrecorded():
                if outcome.id not in running:
                    await self.record(outcome)
        except BaseException:
            self._unrecorded.set()
            raise

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
