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
import secrets
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog
from uuid_utils import uuid7

from mesh.errors import (
    ActionFailedError,
    BadRequestError,
    ConflictError,
    DeadlineExceededError,
    InternalError,
    InterruptedActionError,
    InvalidError,
    MeshError,
    UnavailableError,
)
from mesh.ports import Clock, History, Journal, JournalEntry
from mesh.runtime.sdk import ActionContext, ActionSpec
from mesh.types import ActionState
from mesh.wire import codec
from mesh.wire.messages import ActionRequest, ActionResult, ErrorReply, HistoryRecord

log = structlog.get_logger()

_HISTORY_TIMEOUT_S = 3.0
_RETRY_FIRST_S, _RETRY_MOST_S = 0.1, 2.0
_MOST_PARAMS_BYTES = 4096
_MOST_RESULT_BYTES = 1_000_000
_LONGEST_ID = 200


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
        self._running: dict[str, asyncio.Task[HistoryRecord]] = {}
        self._digests: dict[str, str] = {}
        self._unrecorded = asyncio.Event()
        self._recorder: asyncio.Task[None] | None = None

    # -- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Deal with what a crash left behind, then keep history up to date."""
        for entry in await self._journal.unsettled():
            spec = self._actions.get(entry.request.action)
            begun = entry.state is not ActionState.ACCEPTED
            if spec is not None and (spec.builtin or spec.idempotent or not begun):
                log.info("mesh.action.run_again", id=entry.request.id, action=entry.request.action)
                self._launch(entry.request, spec, entry)
            else:
                await self._journal.settle(self._interrupted(entry))
        self._unrecorded.set()
        self._recorder = asyncio.create_task(self._record_leftovers())

    async def stop(self) -> None:
        """Cancel what still runs: it ends `interrupted` or runs again at the next start."""
        tasks: list[asyncio.Task[object]] = [*self._running.values()]
        if self._recorder is not None:
            tasks.append(self._recorder)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
        if len(request.id) > _LONGEST_ID or not request.id.isprintable():
            message = f"an id has 1 to {_LONGEST_ID} printable characters"
            raise InvalidError(message, fields={"id": [message]})
        check_params(spec, request.params)
        digest = digest_of(request)
        task = self._running.get(request.id)
        if task is not None:
            self._same(request, digest, self._digests[request.id])
        else:
            task = self._launch(request, spec, None, caller=caller, digest=digest)
        # The action goes on if this caller gives up: its outcome answers the next one.
        return reply_to(await asyncio.shield(task))

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
        attempt = 1
        known = await self._journal.find(request.id)
        if known is not None:
            self._same(request, digest, known.digest)
            if known.outcome is not None and known.outcome.state is not ActionState.CANCELLED:
                if not known.recorded:
                    await self._record(known.outcome)
                return known.outcome
            attempt = known.attempt + 1  # an earlier try was refused before it ran
            await self._journal.forget(request.id)
        now = self._clock.unix_ms()
        if request.deadline and now >= request.deadline:
            raise DeadlineExceededError("the request had expired before it began; nothing ran")
        who = request.on_behalf or caller
        accepted = self._record_of(request, digest, who, ActionState.ACCEPTED, now, attempt=attempt)
        await self._journal.accept(request, caller=who, digest=digest, accepted_at=now)
        try:
            await self._history.append(accepted, timeout_s=_HISTORY_TIMEOUT_S)
        except MeshError as error:
            await self._refuse(accepted)
            raise UnavailableError(
                f"the action history is away, so nothing was run: {error}", retry_after_ms=1000
            ) from error
        return await self._run(request, spec, accepted, attempt=attempt)

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
        if entry.attempt == 0 and deadline and self._clock.unix_ms() >= deadline:
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
        state, result, error = await self._attempt(request, spec, context)
        outcome = msgspec.structs.replace(
            accepted,
            state=state,
            at=self._clock.unix_ms(),
            attempt=attempt,
            duration_ms=round((self._clock.monotonic() - began) * 1000, 3),
            result=result,
            error=error,
        )
        return await self._settle(outcome)

    async def _settle(self, outcome: HistoryRecord) -> HistoryRecord:
        await self._journal.settle(outcome)
        await self._record(outcome)
        return outcome

    async def _attempt(
        self, request: ActionRequest, spec: ActionSpec, context: ActionContext
    ) -> tuple[ActionState, Any, ErrorReply | None]:
        timeout_s = spec.timeout_s or self._default_timeout_s
        failed, expired = ActionState.FAILED, ActionState.EXPIRED
        try:
            async with asyncio.timeout(timeout_s) as limit:
                params = codec.convert(request.params, spec.params)
                value = await spec.run(params, context)
            return ActionState.SUCCEEDED, _plain(value), None
        except TimeoutError as error:
            if limit.expired():
                late = DeadlineExceededError(f"{spec.name} did not finish within {timeout_s:g} s")
                return expired, None, codec.error_reply(late)
            return failed, None, codec.error_reply(_authors(error, context))
        except MeshError as error:
            return failed, None, codec.error_reply(error)
        except Exception as error:  # noqa: BLE001 (the author's code may raise anything)
            return failed, None, codec.error_reply(_authors(error, context))

    # -- history -----------------------------------------------------------------------------------

    async def _record(self, outcome: HistoryRecord) -> None:
        """Return once history has the outcome: the caller hears of it only then."""
        await self._store(outcome)
        await self._journal.recorded(outcome)

    async def _store(self, record: HistoryRecord) -> None:
        """As often as it takes."""
        delay = _RETRY_FIRST_S
        while True:
            try:
                await self._history.append(record, timeout_s=_HISTORY_TIMEOUT_S)
            except MeshError as error:
                log.warning("mesh.action.record_waiting", id=record.id, error=str(error))
                await self._clock.sleep(delay)
                delay = min(delay * 2, _RETRY_MOST_S)
            else:
                return

    async def _record_leftovers(self) -> None:
        """Outcomes nobody waits for any more: of refusals, interruptions and earlier lives."""
        while True:
            await self._unrecorded.wait()
            self._unrecorded.clear()
            try:
                for outcome in await self._journal.unrecorded():
                    if outcome.id in self._running:
                        continue  # whoever runs it records it
                    await self._record(outcome)
                    if outcome.state is ActionState.CANCELLED and outcome.id not in self._running:
                        await self._journal.forget(outcome.id)
            except MeshError as error:
                log.warning("mesh.action.leftovers_waiting", error=str(error))
                await self._clock.sleep(_RETRY_MOST_S)
                self._unrecorded.set()

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


def check_params(spec: ActionSpec, params: Mapping[str, object]) -> None:
    """Raises InvalidError with `fields` named `params.<field>`."""
    try:
        codec.convert(params, spec.params)
    except InvalidError as error:
        named = {
            "params" if field == "body" else f"params.{field}": messages
            for field, messages in error.fields.items()
        }
        raise InvalidError(f"params of {spec.name}: {error}", fields=named) from error


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


def _plain(value: object) -> Any:
    """A result as whoever asks again gets it: what its JSON says."""
    try:
        encoded = codec.encode(value)
    except (TypeError, ValueError) as error:
        raise ActionFailedError(f"the action's result is not JSON: {error}") from error
    if len(encoded) > _MOST_RESULT_BYTES:
        raise ActionFailedError(
            f"the action's result has {len(encoded)} bytes, more than {_MOST_RESULT_BYTES}"
        )
    return msgspec.json.decode(encoded)


def _authors(error: Exception, context: ActionContext) -> MeshError:
    """An author's ValueError and the like are messages for the caller; the rest is a bug."""
    if isinstance(error, (ValueError, LookupError, PermissionError, TimeoutError)):
        return ActionFailedError(f"{type(error).__name__}: {error}")
    reference = secrets.token_hex(8)
    context.log.error("mesh.action.crashed", reference=reference, exc_info=error)
    return InternalError(f"{type(error).__name__} in the action", reference=reference)
