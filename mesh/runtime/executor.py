"""Running actions so that nothing acknowledged is lost, doubled or unrecorded.

    journal accepted → history accepted (PubAck) → run → journal outcome → history outcome → answer

The node's own disk (journal) makes an id's outcome repeatable and tells after a crash what was
left half-way; the stream (history) is what everybody else sees. If history is away, the action is
refused before it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec
import structlog
from uuid_utils import uuid7

from mesh.core.targets import check_id
from mesh.errors import (
    BadRequestError,
    ConfigError,
    ConflictError,
    DeadlineExceededError,
    MeshError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from mesh.ports import Clock, History, Journal, JournalEntry
from mesh.runtime import action_records as records
from mesh.runtime.action_attempts import Attempts
from mesh.runtime.action_ledger import Ledger
from mesh.runtime.action_run import Run
from mesh.runtime.attempt import Work, check_params
from mesh.runtime.background import Background
from mesh.runtime.sdk import ActionSpec
from mesh.types import ActionState
from mesh.wire.messages import ActionProgress, ActionRequest, HistoryRecord

log = structlog.get_logger()

_MOST_WAITING = 256
"""For a turn of one action, beyond those that have theirs."""
_COME_BACK_MS = 1000
_MASTER = "master"


def _drops(_progress: ActionProgress) -> None:
    """Where nobody wants to know."""


class Executor:
    """One per node."""

    def __init__(
        self,
        node: str,
        actions: Mapping[str, ActionSpec],
        *,
        journal: Journal,
        history: History,
        clock: Clock,
        default_timeout_s: float,
        on_progress: Callable[[ActionProgress], None] = _drops,
        chance: Callable[[], float] | None = None,
    ) -> None:
        """Args:
        node: Its slug.
        actions: What it offers, by name.
        journal: The node's own disk.
        history: Everybody's.
        clock: Time.
        default_timeout_s: Of an action that does not say.
        on_progress: Hears what actions tell of themselves.
        chance: A number in [0, 1) each time; None: random.
        """
        self._node = node
        self._actions = actions
        self._journal = journal
        self._ledger = Ledger(journal, history, clock)
        self._clock = clock
        self._attempts = Attempts(
            node,
            actions,
            ledger=self._ledger,
            clock=clock,
            default_timeout_s=default_timeout_s,
            on_progress=on_progress,
            chance=chance or random.Random().random,  # noqa: S311 (spreads retries)
        )
        self.expired = 0
        """Requests that came in time, and were too late when they could begin."""
        self._running: dict[str, Run] = {}
        self._crowd: Counter[str] = Counter()
        """Of these, how many are of an action."""
        self._background = Background(clock)

    # -- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Deal with what a crash left behind, then keep history up to date.

        Raises:
            ConfigError: An action is to be undone by one that there is not.
        """
        for one in self._actions.values():
            if one.compensate and one.compensate not in self._actions:
                raise ConfigError(
                    f"action {one.name!r}: compensate={one.compensate!r} is no action of this "
                    "node; it offers: " + ", ".join(sorted(self._actions))
                )
        for entry in await self._journal.unsettled():
            end = self._end_of(entry)
            if end is not None:
                await self._journal.settle(end)
                continue
            log.info("mesh.action.run_again", id=entry.request.id, action=entry.request.action)
            run = Run(entry.request, records.fingerprint_of(entry.request))
            self._launch(run, self._resume(run, entry))
        self._ledger.leave()
        self._background.repeat(
            "record leftovers", lambda: self._ledger.record_leftovers(self._running)
        )

    async def drain(self, grace_s: float) -> None:
        """Let what runs end for so many seconds, also what nobody waits for any more."""
        give_up = self._clock.monotonic() + grace_s
        while running := self._tasks():
            left_s = give_up - self._clock.monotonic()
            if left_s <= 0:
                break
            await asyncio.wait(running, timeout=left_s)

    async def stop(self) -> None:
        """Cancel what still runs: it ends `interrupted` or runs again at the next start."""
        tasks = self._tasks()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._background.stop()

    def _tasks(self) -> list[asyncio.Task[HistoryRecord]]:
        return [run.task for run in self._running.values() if run.task is not None]

    # -- requests ----------------------------------------------------------------------------------

    async def execute(self, request: ActionRequest, caller: str) -> bytes:
        """Run an action once, whoever asks how often; the encoded reply. With `cancel`, stop it.
        What a known id has come to is answered whatever the node offers by now.

        Raises:
            BadRequestError: No such action here.
            InvalidError: Parameters that do not fit; nothing ran.
            ConflictError: The id was used with other parameters; or it has ended, and cannot be
                stopped; or `retry` is to follow an attempt that there has not been.
            NotFoundError: Nothing to stop.
            DeadlineExceededError: Expired before it began; nothing ran.
            OverloadedError: Too many wait for their turn; nothing ran.
            UnavailableError: History cannot record it, so nothing ran; or, as the message says,
                whether it will is not known.
        """
        who = request.on_behalf or caller
        if request.cancel:
            run = await self._stopped(request, caller, who)
            return records.reply_to(await run.end())
        if not request.id:
            request = msgspec.structs.replace(request, id=str(uuid7()))
        check_id(request.id)
        fingerprint = records.fingerprint_of(request)
        running = self._running.get(request.id)
        if running is not None:
            run = running
            known = run.fingerprint.digest
            records.check_same(request, fingerprint.digest, known, run.request.action)
        else:
            run = Run(request, fingerprint)
            self._launch(run, self._admit(run, who))
        return records.reply_to(await run.end())

    def joins(self, action_id: str) -> bool:
        """Whether a request with that id would wait for what runs."""
        return action_id in self._running

    async def repeats(self, request: ActionRequest) -> bool:
        """Whether `execute` would run nothing new: it runs already, or has run, or is to stop.

        Raises:
            ConflictError: `retry` is to follow an attempt that there has not been.
            UnavailableError: The journal cannot be read.
        """
        if request.cancel or request.id in self._running:
            return True
        known = await self._journal.find(request.id) if request.id else None
        return known is not None and known.outcome is not None and not _is_free(known, request)

    def _launch(self, run: Run, work: Coroutine[Any, Any, HistoryRecord]) -> None:
        run.task = asyncio.get_running_loop().create_task(work)
        self._running[run.request.id] = run
        self._crowd[run.request.action] += 1
        run.task.add_done_callback(lambda done: self._finished(run, done))

    def _finished(self, run: Run, task: asyncio.Task[HistoryRecord]) -> None:
        del self._running[run.request.id]
        self._crowd[run.request.action] -= 1
        run.ended(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Everyone who waits gets it; nobody may be waiting any more.
            log.debug("mesh.action.refused", id=run.request.id, error=str(error))

    # -- stopping ----------------------------------------------------------------------------------

    async def _stopped(self, request: ActionRequest, caller: str, by: str) -> Run:
        """What is being stopped. Only what is of the same action: who may run that may stop it, and
        no other.

        Masters alone can stop what has not come yet, and what they leave behind keeps it from
        running when it comes: they know that somebody has sent it. Anybody else could fill the
        journal with ids that nobody ever uses.
        """
        check_id(request.id)
        known = None
        run = self._running.get(request.id)
        if run is None:
            known = await self._journal.find(request.id)
            run = self._running.get(request.id)  # it may have come meanwhile
        there = run.request if run is not None else known.request if known is not None else None
        named = f"{request.action} {request.id!r}"
        if there is not None and there.action != request.action:
            raise NotFoundError(f"{self._node} knows no {named}")
        if run is None:
            if known is None and caller != _MASTER:
                raise NotFoundError(f"{self._node} knows no {named}")
            if known is not None and (caller != _MASTER or not _is_free(known, request)):
                raise ConflictError(f"{named} has ended: {known.state}")
            run = Run(msgspec.structs.replace(request, params={}), records.UNKNOWN)
            self._launch(run, self._forestall(run, by, known))
        run.cancel(by)
        return run

    async def _forestall(self, run: Run, by: str, known: JournalEntry | None) -> HistoryRecord:
        """The attempt that may yet be asked for has ended already."""
        attempts = max(known.attempt if known is not None else 0, run.request.retry)
        record = self._accepted(run, by, self._clock.unix_ms(), attempt=attempts + 1)
        found = await self._journal.accept(
            run.request,
            caller=by,
            digest=record.digest,
            accepted_at=record.at,
            attempts=attempts,
            again=known is not None,
        )
        if found is not None:
            raise ConflictError(f"{run.request.id!r} has come meanwhile: {found.state}")
        return await self._ledger.settle(records.cancelled(record, record.at, by))

    # -- from request to outcome -------------------------------------------------------------------

    async def _admit(self, run: Run, caller: str) -> HistoryRecord:
        request = run.request
        try:
            work = self._work(request)
            self._check_crowd(work.spec)
        except MeshError as refusal:
            known = await self._journal.find(request.id)
            if known is None:
                raise
            try:
                return await self._again(run, caller, known, refusal)
            except ConflictError:  # what is wrong with it comes before what else its id is
                raise refusal from None
        now = self._clock.unix_ms()
        if request.deadline and now >= request.deadline:
            known = await self._journal.find(request.id)
            if known is None:
                raise self._late()
        else:
            accepted = self._accepted(run, caller, now, attempt=request.retry + 1)
            known = await self._ledger.accept(request, accepted, run.tell)
            if known is None:
                return await self._outcome(run, work, accepted)
        return await self._again(run, caller, known, work)

    async def _again(
        self, run: Run, caller: str, known: JournalEntry, work: Work | MeshError
    ) -> HistoryRecord:
        """An id that was used before: its outcome, the end of what was left half-way, or another
        attempt where that was asked for, unless that cannot be made.
        """
        request = run.request
        records.check_same(request, run.fingerprint.digest, known.digest, known.request.action)
        if known.outcome is None:
            end = self._end_of(known)
            return await (self._resume(run, known) if end is None else self._ledger.settle(end))
        if not _is_free(known, request):
            if not known.recorded:
                await self._ledger.record(known.outcome)
            return known.outcome
        if isinstance(work, MeshError):
            never_ran = known.attempt <= 1 and records.was_refused(known)
            if never_ran or isinstance(work, OverloadedError):
                raise work
            return records.not_followed(known.outcome, work)
        now, deadline = self._clock.unix_ms(), request.deadline
        if deadline and now >= deadline:
            raise self._late()
        if self._attempts.still_at_work(request.id):
            raise UnavailableError(
                f"attempt {known.attempt} of {request.id!r} is still at work in its thread, though "
                "its time was up; no other one was begun",
                retry_after_ms=_COME_BACK_MS,
            )
        attempt = max(known.attempt, request.retry) + 1
        accepted = self._accepted(run, caller, now, attempt=attempt)
        found = await self._ledger.accept(request, accepted, run.tell, known=known)
        if found is not None:  # another life of this node was quicker
            return await self._again(run, caller, found, work)
        return await self._outcome(run, work, accepted)

    async def _resume(self, run: Run, entry: JournalEntry) -> HistoryRecord:
        """What was left half-way and may run; see `_end_of`."""
        run.request = request = entry.request
        accepted = self._accepted(run, entry.caller, entry.accepted_at, attempt=entry.attempt + 1)
        await self._ledger.store(accepted)  # the crash may have come before it was
        begun = entry.state is not ActionState.ACCEPTED
        now = self._clock.unix_ms()
        if not begun and request.deadline and now >= request.deadline:
            why = "the node was down until it had expired"
            return await self._ledger.settle(records.too_late(accepted, now, why))
        return await self._outcome(run, self._work(request), accepted)

    async def _outcome(self, run: Run, work: Work, accepted: HistoryRecord) -> HistoryRecord:
        return await self._ledger.settle(await self._attempts.outcome(run, work, accepted))

    def _end_of(self, entry: JournalEntry) -> HistoryRecord | None:
        """How what was left half-way ends without running (again); None: it may run."""
        begun, now = entry.state is not ActionState.ACCEPTED, self._clock.unix_ms()
        fingerprint = records.fingerprint_of(entry.request) if entry.digest else records.UNKNOWN
        record = self._accepted(
            Run(entry.request, fingerprint),
            entry.caller,
            entry.accepted_at,
            attempt=entry.attempt + (not begun),
        )
        if entry.request.cancel:
            return records.cancelled(record, now, entry.caller)
        try:
            spec = self._work(entry.request).spec
        except MeshError as refusal:
            if begun:
                return records.interrupted(record, now)
            return records.unfit(record, now, refusal)
        if begun and not (spec.builtin or spec.idempotent):
            return records.interrupted(record, now)
        return None

    # -- words -------------------------------------------------------------------------------------

    def _work(self, request: ActionRequest) -> Work:
        """Raises:
        BadRequestError: No such action here.
        InvalidError: Parameters that do not fit it.
        """
        spec = self._actions.get(request.action)
        if spec is None:
            raise BadRequestError(
                f"unknown action {request.action!r}; {self._node} offers: "
                + ", ".join(sorted(self._actions))
            )
        return Work(spec, check_params(spec, request.params))

    def _check_crowd(self, spec: ActionSpec) -> None:
        if spec.concurrency and self._crowd[spec.name] > spec.concurrency + _MOST_WAITING:
            raise OverloadedError(
                f"{_MOST_WAITING} wait for their turn of {spec.name} on {self._node} already",
                retry_after_ms=_COME_BACK_MS,
            )

    def _accepted(self, run: Run, caller: str, at: int, *, attempt: int) -> HistoryRecord:
        return records.record_of(
            run.request, run.fingerprint, node=self._node, caller=caller, at=at, attempt=attempt
        )

    def _late(self) -> DeadlineExceededError:
        self.expired += 1
        why = "the request had expired before it began; nothing ran"
        return DeadlineExceededError(why, fields={"deadline": [why]})

    async def forget_old(self, older_than_ms: int) -> None:
        """Drop outcomes that no longer answer their ids."""
        with contextlib.suppress(MeshError):
            await self._journal.prune(self._clock.unix_ms() - older_than_ms)


def _is_free(known: JournalEntry, request: ActionRequest) -> bool:
    """Whether what has ended is followed by another attempt if `request` comes.

    Raises:
        ConflictError: It is to follow an attempt that there has not been.
    """
    return records.may_try_again(known, request) or records.was_refused(known)
