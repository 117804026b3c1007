"""Running actions so that nothing acknowledged is lost, doubled or unrecorded.

    journal accepted → history accepted (PubAck) → run → journal outcome → history outcome → answer

The node's own disk (journal) makes an id's outcome repeatable and tells after a crash what was
left half-way; the stream (history) is what everybody else sees. If history is away, the action is
refused before it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Mapping

import msgspec
import structlog
from uuid_utils import uuid7

from mesh.core.targets import check_id
from mesh.errors import (
    BadRequestError,
    ConflictError,
    DeadlineExceededError,
    InterruptedActionError,
    MeshError,
    TooLargeError,
    UnavailableError,
)
from mesh.ports import Clock, History, Journal, JournalEntry
from mesh.runtime.attempt import attempt as run_attempt
from mesh.runtime.attempt import check_params
from mesh.runtime.background import Background
from mesh.runtime.sdk import ActionContext, ActionSpec
from mesh.types import ActionState
from mesh.wire import codec
from mesh.wire.messages import ActionRequest, ActionResult, ErrorReply, HistoryRecord

log = structlog.get_logger()

_HISTORY_TIMEOUT_S = 3.0
_RETRY_FIRST_S, _RETRY_MOST_S = 0.1, 2.0
_MOST_PARAMS_BYTES = 4096


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
    ) -> None:
        self._node = node
        self._actions = actions
        self._journal = journal
        self._history = history
        self._clock = clock
        self._default_timeout_s = default_timeout_s
        self.expired = 0
        """Requests that came in time, and were too late when they could begin."""
        self._running: dict[str, asyncio.Task[HistoryRecord]] = {}
        self._digests: dict[str, str] = {}
        self._unrecorded = asyncio.Event()
        self._background = Background(clock)

    # -- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Deal with what a crash left behind, then keep history up to date."""
        for entry in await self._journal.unsettled():
            spec = self._actions.get(entry.request.action)
            if spec is not None and _may_run_again(spec, entry):
                log.info("mesh.action.run_again", id=entry.request.id, action=entry.request.action)
                self._launch(entry.request, spec, entry)
            else:
                await self._journal.settle(self._interrupted(entry))
        self._unrecorded.set()
        self._background.repeat("record leftovers", self._record_leftovers)

    async def stop(self) -> None:
        """Cancel what still runs: it ends `interrupted` or runs again at the next start."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._background.stop()

    # -- requests ----------------------------------------------------------------------------------

    async def execute(self, request: ActionRequest, caller: str) -> bytes:
        """Run an action once, whoever asks how often; the encoded reply.

        Raises:
            BadRequestError: No such action here.
            InvalidError: Parameters that do not fit; nothing ran.
            ConflictError: The id was used with other parameters.
            DeadlineExceededError: Expired before it began; nothing ran.
            UnavailableError: History cannot record it; nothing ran.
        """
        spec = self._actions.get(request.action)
        if spec is None:
            raise BadRequestError(
                f"unknown action {request.action!r}; {self._node} offers: "
                + ", ".join(sorted(self._actions))
            )
        if not request.id:
            request = msgspec.structs.replace(request, id=str(uuid7()))
        check_id(request.id)
        check_params(spec, request.params)
        digest = digest_of(request)
        task = self._running.get(request.id)
        if task is not None:
            self._same(request, digest, self._digests[request.id])
        else:
            task = self._launch(request, spec, None, caller=caller, digest=digest)
        # The action goes on if this caller gives up: its outcome answers the next one.
        return reply_to(await asyncio.shield(task))

    async def repeats(self, action_id: str) -> bool:
        """Whether `execute` under this id would run nothing new: it runs already, or has run.

        Raises:
            UnavailableError: The journal cannot be read.
        """
        if not action_id:
            return False
        if action_id in self._running:
            return True
        known = await self._journal.find(action_id)
        return (
            known is not None
            and known.outcome is not None
            and (known.state is not ActionState.CANCELLED)
        )

    def _launch(
        self,
        request: ActionRequest,
        spec: ActionSpec,
        entry: JournalEntry | None,
        *,
        caller: str = "",
        digest: str = "",
    ) -> asyncio.Task[HistoryRecord]:
        known = entry.digest if entry is not None else digest
        run = self._resume(spec, entry) if entry else self._admit(request, spec, caller, known)
        task = asyncio.get_running_loop().create_task(run)
        self._running[request.id] = task
        self._digests[request.id] = known
        task.add_done_callback(lambda done: self._finished(request.id, done))
        return task

    def _finished(self, action_id: str, task: asyncio.Task[HistoryRecord]) -> None:
        self._running.pop(action_id, None)
        self._digests.pop(action_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Everyone who waits gets it; nobody may be waiting any more.
            log.debug("mesh.action.refused", id=action_id, error=str(error))

    def _same(self, request: ActionRequest, digest: str, known: str) -> None:
        if digest != known:
            raise ConflictError(
                f"the id {request.id!r} was used for another action or other parameters; "
                "choose a new one"
            )

    async def _admit(
        self, request: ActionRequest, spec: ActionSpec, caller: str, digest: str
    ) -> HistoryRecord:
        earlier = 0
        known = await self._journal.find(request.id)
        if known is not None:
            self._same(request, digest, known.digest)
            if known.state is not ActionState.CANCELLED:
                return await self._again(spec, known)
            earlier = known.attempt  # refused before it ran
            await self._journal.forget(request.id)
        now = self._clock.unix_ms()
        if request.deadline and now >= request.deadline:
            self.expired += 1
            why = "the request had expired before it began; nothing ran"
            raise DeadlineExceededError(why, fields={"deadline": [why]})
        who = request.on_behalf or caller
        accepted = self._record_of(
            request, digest, who, ActionState.ACCEPTED, now, attempt=earlier + 1
        )
        await self._journal.accept(
            request, caller=who, digest=digest, accepted_at=now, attempts=earlier
        )
        try:
            await self._history.append(accepted, timeout_s=_HISTORY_TIMEOUT_S)
        except MeshError as error:
            await self._refuse(accepted)
            raise UnavailableError(
                f"the action history is away, so nothing was run: {error}", retry_after_ms=1000
            ) from error
        return await self._run(request, spec, accepted, attempt=earlier + 1)

    async def _again(self, spec: ActionSpec, known: JournalEntry) -> HistoryRecord:
        """An id that was used before: its outcome, or the end of what was left half-way."""
        if known.outcome is not None:
            if not known.recorded:
                await self._record(known.outcome)
            return known.outcome
        if _may_run_again(spec, known):
            return await self._resume(spec, known)
        return await self._settle(self._interrupted(known))

    async def _refuse(self, accepted: HistoryRecord) -> None:
        """It may be stored although its acknowledgement is missing: say that nothing ran."""
        await self._journal.settle(
            msgspec.structs.replace(
                accepted,
                state=ActionState.CANCELLED,
                at=self._clock.unix_ms(),
                error=ErrorReply(
                    code=503, kind="unavailable", message="refused: the history was away"
                ),
            )
        )
        self._unrecorded.set()

    async def _resume(self, spec: ActionSpec, entry: JournalEntry) -> HistoryRecord:
        accepted = self._record_of(
            entry.request,
            entry.digest,
            entry.caller,
            ActionState.ACCEPTED,
            entry.accepted_at,
            attempt=entry.attempt + 1,
        )
        await self._store(accepted)  # the crash may have come before it was
        deadline = entry.request.deadline
        begun = entry.state is not ActionState.ACCEPTED
        if not begun and deadline and self._clock.unix_ms() >= deadline:
            late = DeadlineExceededError("the node was down until it had expired; nothing ran")
            outcome = msgspec.structs.replace(
                accepted,
                state=ActionState.EXPIRED,
                at=self._clock.unix_ms(),
                error=codec.error_reply(late),
            )
            return await self._settle(outcome)
        return await self._run(entry.request, spec, accepted, attempt=entry.attempt + 1)

    # -- running -----------------------------------------------------------------------------------

    async def _run(
        self, request: ActionRequest, spec: ActionSpec, accepted: HistoryRecord, *, attempt: int
    ) -> HistoryRecord:
        await self._journal.begin(request.id, attempt)
        context = ActionContext(
            id=request.id,
            node=self._node,
            caller=accepted.caller,
            attempt=attempt,
            deadline=request.deadline,
            log=log.bind(action=request.action, id=request.id),
        )
        began = self._clock.monotonic()
        timeout_s = spec.timeout_s or self._default_timeout_s
        ended = await run_attempt(spec, request.params, context, timeout_s=timeout_s)
        outcome = msgspec.structs.replace(
            accepted,
            state=ended.state,
            at=self._clock.unix_ms(),
            attempt=attempt,
            duration_ms=round((self._clock.monotonic() - began) * 1000, 3),
            result=ended.result,
            error=ended.error,
        )
        return await self._settle(outcome)

    async def _settle(self, outcome: HistoryRecord) -> HistoryRecord:
        """The effect has happened: its outcome is kept, as often as it takes."""
        await self._insist("kept", outcome.id, lambda: self._journal.settle(outcome))
        await self._record(outcome)
        return outcome

    # -- history -----------------------------------------------------------------------------------

    async def _record(self, outcome: HistoryRecord) -> None:
        """Return once history has the outcome: the caller hears of it only then."""
        await self._store(outcome)
        await self._insist("recorded", outcome.id, lambda: self._journal.recorded(outcome))

    async def _store(self, record: HistoryRecord) -> None:
        """In the history, as often as it takes; without its bulk if that is too much."""

        async def append() -> None:
            try:
                await self._history.append(record, timeout_s=_HISTORY_TIMEOUT_S)
            except TooLargeError:
                bare = msgspec.structs.replace(record, params=None, result=None, trace="")
                await self._history.append(bare, timeout_s=_HISTORY_TIMEOUT_S)

        await self._insist("stored", record.id, append)

    async def _insist(self, what: str, action_id: str, step: Callable[[], Awaitable[None]]) -> None:
        delay = _RETRY_FIRST_S
        while True:
            try:
                return await step()
            except UnavailableError as error:
                log.warning("mesh.action.waiting", what=what, id=action_id, error=str(error))
            await self._clock.sleep(delay)
            delay = min(delay * 2, _RETRY_MOST_S)

    async def _record_leftovers(self) -> None:
        """Outcomes nobody waits for any more: of refusals, interruptions and earlier lives."""
        await self._unrecorded.wait()
        self._unrecorded.clear()
        try:
            for outcome in await self._journal.unrecorded():
                if outcome.id in self._running:
                    continue  # whoever runs it records it
                await self._record(outcome)
                if outcome.state is ActionState.CANCELLED:
                    await self._journal.forget(outcome.id)
        except BaseException:
            self._unrecorded.set()
            raise

    def _record_of(
        self,
        request: ActionRequest,
        digest: str,
        caller: str,
        state: ActionState,
        at: int,
        *,
        attempt: int,
    ) -> HistoryRecord:
        short = len(codec.encode(request.params)) <= _MOST_PARAMS_BYTES
        return HistoryRecord(
            id=request.id,
            node=self._node,
            action=request.action,
            state=state,
            caller=caller,
            at=at,
            attempt=attempt,
            params=request.params if short else None,
            digest=digest,
            accepted_at=at,
            trace=request.trace,
        )

    def _interrupted(self, entry: JournalEntry) -> HistoryRecord:
        why = InterruptedActionError(
            "the node stopped while the action ran; whether it took effect is not known"
        )
        record = self._record_of(
            entry.request,
            entry.digest,
            entry.caller,
            ActionState.INTERRUPTED,
            entry.accepted_at,
            attempt=max(entry.attempt, 1),
        )
        return msgspec.structs.replace(
            record, at=self._clock.unix_ms(), error=codec.error_reply(why)
        )

    async def forget_old(self, older_than_ms: int) -> None:
        """Drop outcomes that no longer answer their ids."""
        with contextlib.suppress(MeshError):
            await self._journal.prune(self._clock.unix_ms() - older_than_ms)


def _may_run_again(spec: ActionSpec, entry: JournalEntry) -> bool:
    """It does no harm twice, or it has not begun."""
    return spec.builtin or spec.idempotent or entry.state is ActionState.ACCEPTED


def digest_of(request: ActionRequest) -> str:
    """Equal for equal action and parameters, whatever the order of keys."""
    canonical = msgspec.json.encode([request.action, request.params], order="deterministic")
    return hashlib.sha256(canonical).hexdigest()


def reply_to(outcome: HistoryRecord) -> bytes:
    """The reply that an outcome stands for, today as on the first day."""
    if outcome.error is not None:
        return codec.encode(outcome.error)
    return codec.ok(
        ActionResult(
            id=outcome.id,
            node=outcome.node,
            action=outcome.action,
            state=outcome.state,
            result=outcome.result,
            duration_ms=outcome.duration_ms or 0.0,
            attempt=outcome.attempt,
        )
    )
