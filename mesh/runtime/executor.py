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
from collections.abc import Callable, Mapping

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
)
from mesh.ports import Clock, History, Journal, JournalEntry
from mesh.runtime import action_records as records
from mesh.runtime.action_context import ActionContext, Control
from mesh.runtime.action_ledger import Ledger
from mesh.runtime.action_run import Alarms, Run, Stoppable, StoppedError
from mesh.runtime.attempt import Ended, check_params
from mesh.runtime.attempt import attempt as run_attempt
from mesh.runtime.background import Background
from mesh.runtime.sdk import ActionSpec
from mesh.runtime.turns import Turns
from mesh.types import ActionState
from mesh.wire.messages import ActionProgress, ActionRequest, HistoryRecord

log = structlog.get_logger()

_LONGEST_BACKOFF_S = 60.0


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
        self._default_timeout_s = default_timeout_s
        self._on_progress = on_progress
        self._chance = chance or random.Random().random  # noqa: S311 (spreads retries)
        self.expired = 0
        """Requests that came in time, and were too late when they could begin."""
        self._running: dict[str, Run] = {}
        self._turns = {
            spec.name: Turns(spec.concurrency) for spec in actions.values() if spec.concurrency
        }
        self._alarms = Alarms()
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
            spec = self._actions.get(entry.request.action)
            if spec is not None and _may_run_again(spec, entry):
                log.info("mesh.action.run_again", id=entry.request.id, action=entry.request.action)
                self._launch(entry.request, spec, records.fingerprint_of(entry.request), entry)
            else:
                await self._journal.settle(self._interrupted(entry))
        self._ledger.leave()
        self._background.repeat(
            "record leftovers", lambda: self._ledger.record_leftovers(self._running)
        )

    async def stop(self) -> None:
        """Cancel what still runs: it ends `interrupted` or runs again at the next start."""
        tasks = [run.task for run in self._running.values() if run.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._background.stop()

    # -- requests ----------------------------------------------------------------------------------

    async def execute(self, request: ActionRequest, caller: str) -> bytes:
        """Run an action once, whoever asks how often; the encoded reply. With `cancel`, stop it.

        Raises:
            BadRequestError: No such action here.
            InvalidError: Parameters that do not fit; nothing ran.
            ConflictError: The id was used with other parameters; or it has ended, and cannot be
                stopped.
            NotFoundError: Nothing to stop.
            DeadlineExceededError: Expired before it began; nothing ran.
            UnavailableError: History cannot record it; nothing ran.
        """
        spec = self._actions.get(request.action)
        if spec is None:
            raise BadRequestError(
                f"unknown action {request.action!r}; {self._node} offers: "
                + ", ".join(sorted(self._actions))
            )
        who = request.on_behalf or caller
        if request.cancel:
            return await self._cancel(request, who)
        if not request.id:
            request = msgspec.structs.replace(request, id=str(uuid7()))
        check_id(request.id)
        params = check_params(spec, request.params)
        fingerprint = records.fingerprint_of(request)
        run = self._running.get(request.id)
        if run is not None:
            records.check_same(request, fingerprint.digest, run.fingerprint.digest)
        else:
            run = self._launch(request, spec, fingerprint, caller=who, params=params)
        return records.reply_to(await run.end())

    async def _cancel(self, request: ActionRequest, by: str) -> bytes:
        """Only what is of the same action: who may run that may stop it, and no other."""
        check_id(request.id)
        run = self._running.get(request.id)
        if run is not None and run.request.action == request.action:
            run.cancel(by)
            return records.reply_to(await run.end())
        known = await self._journal.find(request.id)
        if known is None or known.request.action != request.action:
            raise NotFoundError(f"{self._node} knows no {request.action} {request.id!r}")
        raise ConflictError(f"{request.action} {request.id!r} has ended: {known.state}")

    async def repeats(self, request: ActionRequest) -> bool:
        """Whether `execute` would run nothing new: it runs already, or has run, or is to stop.

        Raises:
            UnavailableError: The journal cannot be read.
        """
        if request.cancel or request.id in self._running:
            return True
        known = await self._journal.find(request.id) if request.id else None
        return (
            known is not None
            and known.outcome is not None
            and not records.was_refused(known)
            and not records.may_try_again(known, request)
        )

    def _launch(
        self,
        request: ActionRequest,
        spec: ActionSpec,
        fingerprint: records.Fingerprint,
        entry: JournalEntry | None = None,
        *,
        caller: str = "",
        params: object = None,
    ) -> Run:
        run = Run(request, spec, fingerprint)
        work = self._resume(run, entry) if entry else self._admit(run, caller, params)
        run.task = asyncio.get_running_loop().create_task(work)
        self._running[request.id] = run
        run.task.add_done_callback(lambda done: self._finished(run, done))
        return run

    def _finished(self, run: Run, task: asyncio.Task[HistoryRecord]) -> None:
        self._running.pop(run.request.id, None)
        run.ended(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Everyone who waits gets it; nobody may be waiting any more.
            log.debug("mesh.action.refused", id=run.request.id, error=str(error))

    # -- from request to outcome -------------------------------------------------------------------

    async def _admit(self, run: Run, caller: str, params: object) -> HistoryRecord:
        request = run.request
        now = self._clock.unix_ms()
        if request.deadline and now >= request.deadline:
            known = await self._journal.find(request.id)
            if known is None:
                raise self._late()
        else:
            accepted = self._accepted(run, caller, now, attempt=request.retry + 1)
            known = await self._ledger.accept(request, accepted)
            if known is None:
                return await self._attempts(run, accepted, params)
        records.check_same(request, run.fingerprint.digest, known.digest)
        return await self._again(run, caller, known)

    async def _again(self, run: Run, caller: str, known: JournalEntry) -> HistoryRecord:
        """An id that was used before: its outcome, the end of what was left half-way, or another
        attempt where that was asked for.
        """
        if known.outcome is None:
            if _may_run_again(run.spec, known):
                return await self._resume(run, known)
            return await self._ledger.settle(self._interrupted(known))
        if records.was_refused(known) or records.may_try_again(known, run.request):
            now, deadline = self._clock.unix_ms(), run.request.deadline
            if deadline and now >= deadline:
                raise self._late()
            attempt = max(known.attempt, run.request.retry) + 1
            accepted = self._accepted(run, caller, now, attempt=attempt)
            await self._ledger.accept(run.request, accepted, known=known)
            return await self._attempts(run, accepted, None)
        if not known.recorded:
            await self._ledger.record(known.outcome)
        return known.outcome

    async def _resume(self, run: Run, entry: JournalEntry) -> HistoryRecord:
        run.request = request = entry.request
        accepted = self._accepted(run, entry.caller, entry.accepted_at, attempt=entry.attempt + 1)
        await self._ledger.store(accepted)  # the crash may have come before it was
        begun = entry.state is not ActionState.ACCEPTED
        now = self._clock.unix_ms()
        if not begun and request.deadline and now >= request.deadline:
            why = "the node was down until it had expired"
            return await self._ledger.settle(records.too_late(accepted, now, why))
        return await self._attempts(run, accepted, None)

    async def _attempts(self, run: Run, accepted: HistoryRecord, params: object) -> HistoryRecord:
        """As many as it takes and its author allows; `params` are good for the first."""
        spec, left = run.spec, run.spec.retries
        while True:
            outcome, again = await self._attempt(run, accepted, params)
            if not again or not left:
                break
            left -= 1
            pause_s = self._pause_s(spec, tries=spec.retries - left)
            deadline = run.request.deadline
            if deadline and self._clock.unix_ms() + pause_s * 1000 >= deadline:
                break  # nobody waits that long
            await self._ledger.store(msgspec.structs.replace(outcome, final=False))
            accepted = self._accepted(
                run, accepted.caller, self._clock.unix_ms(), attempt=accepted.attempt + 1
            )
            try:
                with Stoppable(run):
                    await self._clock.sleep(pause_s)
            except StoppedError:
                now = self._clock.unix_ms()
                outcome = records.cancelled(accepted, now, run.cancelled_by)
                break
            await self._ledger.store(accepted)
            params = None
        return await self._ledger.settle(outcome)

    async def _attempt(
        self, run: Run, accepted: HistoryRecord, params: object
    ) -> tuple[HistoryRecord, bool]:
        """How it ended, and whether another one might end better."""
        turns = self._turns.get(run.spec.name)
        try:
            with Stoppable(run):
                waited = turns is None or await turns.take(self._clock, within_s=self._left(run))
        except StoppedError:
            return records.cancelled(accepted, self._clock.unix_ms(), run.cancelled_by), False
        if not waited:
            why = f"others of {run.spec.name} ran until it had expired"
            return records.too_late(accepted, self._clock.unix_ms(), why), False
        try:
            return await self._begin(run, accepted, params)
        finally:
            if turns is not None:
                turns.leave()

    async def _begin(
        self, run: Run, accepted: HistoryRecord, params: object
    ) -> tuple[HistoryRecord, bool]:
        request, spec = run.request, run.spec
        await self._ledger.begin(accepted)
        if params is None:
            params = check_params(spec, request.params)
        loop = asyncio.get_running_loop()
        run.control = Control(
            lambda fraction, note: self._tell(run, fraction, note),
            loop=loop,
            now=self._clock.monotonic,
        )
        context = ActionContext(
            id=request.id,
            node=self._node,
            caller=accepted.caller,
            attempt=accepted.attempt,
            deadline=request.deadline,
            action=request.action,
            _control=run.control,
        )
        began = self._clock.monotonic()
        timeout_s = spec.timeout_s or self._default_timeout_s
        run.late = False
        done = self._alarms.set(timeout_s, run.expire)
        try:
            ended = await run_attempt(run, params, context, timeout_s=timeout_s)
        finally:
            done()
            run.control.end()
            run.control = None
        outcome = self._outcome(accepted, ended, self._clock.monotonic() - began)
        badly = ended.state in {ActionState.FAILED, ActionState.EXPIRED}
        return outcome, badly and not ended.for_good and not run.cancelled_by

    # -- words -------------------------------------------------------------------------------------

    def _accepted(self, run: Run, caller: str, at: int, *, attempt: int) -> HistoryRecord:
        return records.record_of(
            run.request, run.fingerprint, node=self._node, caller=caller, at=at, attempt=attempt
        )

    def _outcome(self, accepted: HistoryRecord, ended: Ended, took_s: float) -> HistoryRecord:
        return msgspec.structs.replace(
            accepted,
            state=ended.state,
            at=self._clock.unix_ms(),
            duration_ms=round(took_s * 1000, 3),
            result=ended.result,
            error=ended.error,
        )

    def _interrupted(self, entry: JournalEntry) -> HistoryRecord:
        record = records.record_of(
            entry.request,
            records.fingerprint_of(entry.request),
            node=self._node,
            caller=entry.caller,
            at=entry.accepted_at,
            attempt=max(entry.attempt, 1),
        )
        return records.interrupted(record, self._clock.unix_ms())

    def _late(self) -> DeadlineExceededError:
        self.expired += 1
        why = "the request had expired before it began; nothing ran"
        return DeadlineExceededError(why, fields={"deadline": [why]})

    def _tell(self, run: Run, fraction: float | None, note: str) -> None:
        self._on_progress(
            ActionProgress(
                id=run.request.id,
                action=run.request.action,
                fraction=fraction,
                note=note,
                at=self._clock.unix_ms(),
            )
        )

    def _left(self, run: Run) -> float | None:
        """Seconds until nobody waits any more; None: somebody always does."""
        deadline = run.request.deadline
        return (deadline - self._clock.unix_ms()) / 1000 if deadline else None

    def _pause_s(self, spec: ActionSpec, *, tries: int) -> float:
        """Source: Brooker, "Exponential Backoff And Jitter" (2015), "Equal Jitter"."""
        most = min(_LONGEST_BACKOFF_S, spec.backoff_s * 2.0 ** (tries - 1))
        return most * (0.5 + self._chance() / 2)

    async def forget_old(self, older_than_ms: int) -> None:
        """Drop outcomes that no longer answer their ids."""
        with contextlib.suppress(MeshError):
            await self._journal.prune(self._clock.unix_ms() - older_than_ms)


def _may_run_again(spec: ActionSpec, entry: JournalEntry) -> bool:
    """It does no harm twice, or it has not begun."""
    return spec.builtin or spec.idempotent or entry.state is ActionState.ACCEPTED
