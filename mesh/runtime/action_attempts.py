"""The attempts at one action, each after the other, until there is an outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import msgspec

from mesh.ports import Clock
from mesh.runtime import action_records as records
from mesh.runtime.action_context import ActionContext, Control
from mesh.runtime.action_ledger import Ledger
from mesh.runtime.action_run import Alarms, Run, Stoppable, StoppedError
from mesh.runtime.attempt import Ended, Work, check_params
from mesh.runtime.attempt import attempt as run_attempt
from mesh.runtime.sdk import ActionSpec
from mesh.runtime.turns import Turns
from mesh.types import ActionState
from mesh.wire.messages import ActionProgress, HistoryRecord

_LONGEST_BACKOFF_S = 60.0


class Attempts:
    """Of one node's actions."""

    def __init__(
        self,
        node: str,
        actions: Mapping[str, ActionSpec],
        *,
        ledger: Ledger,
        clock: Clock,
        default_timeout_s: float,
        on_progress: Callable[[ActionProgress], None],
        chance: Callable[[], float],
    ) -> None:
        """Args: as `Executor`."""
        self._node = node
        self._ledger = ledger
        self._clock = clock
        self._default_timeout_s = default_timeout_s
        self._on_progress = on_progress
        self._chance = chance
        self._turns = {
            spec.name: Turns(spec.concurrency) for spec in actions.values() if spec.concurrency
        }
        self._threads: dict[str, asyncio.Future[object]] = {}
        """By the id of the action, those that were still at work when their time was up."""
        self._alarms = Alarms()

    def still_at_work(self, action_id: str) -> bool:
        """Whether the thread of an attempt that has ended goes on: none may begin beside it."""
        return action_id in self._threads

    async def outcome(self, run: Run, work: Work, accepted: HistoryRecord) -> HistoryRecord:
        """That of the last one, as many as it takes and the action's author allows.

        Args:
            run: What runs.
            work: What the first one does.
            accepted: The first one, which the history knows of.
        """
        spec, left = work.spec, work.spec.retries
        while True:
            outcome, again = await self._attempt(run, work, accepted)
            if not again or not left or not await self._thread_ended(run, spec):
                return outcome
            left -= 1
            pause_s = self._pause_s(spec, tries=spec.retries - left)
            deadline = run.request.deadline
            if deadline and self._clock.unix_ms() + pause_s * 1000 >= deadline:
                return outcome  # nobody waits that long
            await self._ledger.store(msgspec.structs.replace(outcome, final=False))
            now = self._clock.unix_ms()
            accepted = msgspec.structs.replace(
                accepted, at=now, accepted_at=now, attempt=accepted.attempt + 1
            )
            try:
                with Stoppable(run):
                    await self._clock.sleep(pause_s)
            except StoppedError:
                return records.cancelled(accepted, self._clock.unix_ms(), run.cancelled_by)
            await self._ledger.store(accepted)
            # The attempt before may have changed what it was given.
            work = Work(spec, check_params(spec, run.request.params))

    async def _thread_ended(self, run: Run, spec: ActionSpec) -> bool:
        """Whether nothing is at work any more. A thread that was told that its time is up gets as
        long again to see it.
        """
        thread = self._threads.get(run.request.id)
        if thread is None:
            return True
        left_s = self._left(run)
        wait_s = spec.timeout_s or self._default_timeout_s
        try:
            with Stoppable(run):
                await asyncio.wait(
                    {thread}, timeout=wait_s if left_s is None else max(0.0, min(wait_s, left_s))
                )
        except StoppedError:
            return False
        return thread.done()

    async def _attempt(
        self, run: Run, work: Work, accepted: HistoryRecord
    ) -> tuple[HistoryRecord, bool]:
        """How it ended, and whether another one might end better."""
        turns = self._turns.get(work.spec.name)
        try:
            with Stoppable(run):
                waited = turns is None or await turns.take(self._clock, within_s=self._left(run))
        except StoppedError:
            return records.cancelled(accepted, self._clock.unix_ms(), run.cancelled_by), False
        if not waited:
            why = f"others of {work.spec.name} ran until it had expired"
            return records.too_late(accepted, self._clock.unix_ms(), why), False
        try:
            return await self._begin(run, work, accepted)
        finally:
            if turns is not None:
                thread = self._threads.get(run.request.id)
                if thread is None:
                    turns.leave()
                else:  # it is nobody else's turn yet
                    thread.add_done_callback(lambda _ended: turns.leave())

    async def _begin(
        self, run: Run, work: Work, accepted: HistoryRecord
    ) -> tuple[HistoryRecord, bool]:
        request, spec = run.request, work.spec
        await self._ledger.begin(accepted)
        loop = asyncio.get_running_loop()
        run.control = control = Control(
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
            _control=control,
        )
        began = self._clock.monotonic()
        timeout_s = spec.timeout_s or self._default_timeout_s
        run.late = False
        done = self._alarms.set(timeout_s, run.expire)
        try:
            ended = await run_attempt(run, work, context, timeout_s=timeout_s)
        finally:
            done()
            control.end()
            run.control = None
            if (thread := control.left_behind) is not None:
                self._threads[request.id] = thread
                thread.add_done_callback(lambda _ended: self._threads.pop(request.id))
        outcome = self._outcome(accepted, ended, self._clock.monotonic() - began)
        badly = ended.state in {ActionState.FAILED, ActionState.EXPIRED}
        return outcome, badly and not ended.for_good and not run.cancelled_by

    def _outcome(self, accepted: HistoryRecord, ended: Ended, took_s: float) -> HistoryRecord:
        return msgspec.structs.replace(
            accepted,
            state=ended.state,
            at=self._clock.unix_ms(),
            duration_ms=round(took_s * 1000, 3),
            result=ended.result,
            error=ended.error,
        )

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
