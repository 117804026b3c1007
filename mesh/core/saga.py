"""A saga: steps in order, and the way back.

The state is one record; events make the next one out of it, and what is to be done next follows
from the record alone. So whoever reads it, after whatever crash, goes on just where it stands.

    running ── every step succeeded ──────────────────────────────► succeeded
       │ a step failed, took too long, or somebody aborted
       ▼
    compensating ── everything undone, the last step first ───────► compensated
       │ a compensation failed for good
       └──────────────────────────────────────────────────────────► failed
    paused: whether the step (or its compensation) that was interrupted took effect is not known

Source: Garcia-Molina and Salem, Sagas (SIGMOD 1987); the final steps are the "pivot" and the
"retriable" transactions of Richardson, Microservices Patterns, chapter 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from mesh.core.saga_events import (
    Aborted,
    CutShort,
    Event,
    Failed,
    GivenUp,
    Interrupted,
    NeverSent,
    Outcome,
    Resumed,
    Succeeded,
    TakenOver,
    TimedOut,
)
from mesh.core.saga_record import ENDED, Change, active, doubted, past_return, tell
from mesh.core.saga_references import plain
from mesh.errors import CancelledActionError, ConflictError, InvalidError, TooLargeError
from mesh.types import SagaState, StepState
from mesh.wire import codec
from mesh.wire.messages import Saga, SagaCall

_MOST_RESULT_BYTES = 8 * 1024
"""Of a step's result that is kept."""

# -- what is next ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """Have this action run, or learn how it ended: as often as it takes, always under `id`."""

    step: int
    id: str
    call: SagaCall
    retry: int
    undo: bool
    stop: bool
    """Nobody wants it any more: stop it, and learn how it ended."""
    failures: int
    """Attempts of a compensation that have failed: it waits longer after each."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Take it over: it has not begun."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing, until somebody resumes or aborts it, or for ever: it has ended."""


Move = Ask | Begin | Rest


def next_move(saga: Saga) -> Move:
    """What is to be done now."""
    if saga.state in ENDED or saga.state is SagaState.PAUSED:
        return Rest()
    at = active(saga)
    if at is None:
        return Begin()
    step = saga.steps[at]
    undo = step.undo if step.state is StepState.UNDOING else None
    call = undo or step.call
    return Ask(
        step=at,
        id=f"{saga.id}.{step.name}{'.undo' if undo else ''}",
        call=msgspec.structs.replace(call, params=plain(call.params)),
        retry=step.retry,
        undo=undo is not None,
        stop=saga.stop and undo is None,
        failures=step.undo_attempts if undo else 0,
    )


def due_at(saga: Saga) -> tuple[int, str] | None:
    """When (unix ms) it has taken too long, and what to say then; None: it may take its time."""
    at = active(saga)
    if saga.state is not SagaState.RUNNING or saga.stop or at is None:
        return None
    step, due = saga.steps[at], []
    if step.timeout_s is not None:
        late = f"step {step.name!r} took longer than {step.timeout_s:g} s"
        due.append((step.began_at + round(step.timeout_s * 1000), late))
    if not past_return(saga):
        due.append((saga.deadline, "the saga took longer than it may"))
    return min(due, default=None)


# -- how it goes on --------------------------------------------------------------------------------


def after(saga: Saga, event: Event, *, now: int, most_attempts: int) -> Saga:
    """The next record; the same one where the event changes nothing.

    Args:
        saga: The record.
        event: What happened.
        now: Unix ms.
        most_attempts: Of a compensation.

    Raises:
        ConflictError: Aborted or resumed, which cannot be any more, or yet.
    """
    change = Change(saga, now)
    match event:
        case TakenOver(runner):
            change.fields["runner"] = runner
            if saga.state is SagaState.RUNNING and active(saga) is None:
                change.go_on()
        case TimedOut(reason):
            if due_at(saga) is None:
                return saga
            change.fields |= {"stop": True, "reason": reason}
        case Aborted(who):
            _abort(change, f"aborted by {who}")
        case GivenUp(who, step):
            _give_up(change, step, f"given up by {who}")
        case Resumed(who):
            _resume(change, who)
        case _:
            _ended(change, event, most_attempts)
    return change.made()


def _ended(change: Change, event: Outcome, most_attempts: int) -> None:
    """What was asked for last has ended."""
    at = active(change.saga)
    if at is None or change.saga.state is SagaState.PAUSED:
        return
    if change.steps[at].state is StepState.UNDOING:
        _undone(change, at, event, most_attempts)
    else:
        _done(change, at, event)


def _done(change: Change, at: int, event: Outcome) -> None:
    """A step has ended."""
    step, name = change.steps[at], change.steps[at].name
    match event:
        case Succeeded(result, attempt):
            kept = result if len(codec.encode(result)) <= _MOST_RESULT_BYTES else None
            change.set(
                at,
                state=StepState.SUCCEEDED,
                attempt=attempt,
                ended_at=change.now,
                result=kept,
                error=None,
            )
            try:
                tell(change, at, result)
            except (InvalidError, TooLargeError) as error:
                change.give_up(min(at + 1, len(change.steps)), str(error))
                return
            if change.saga.stop and not step.final:
                change.turn_back()
            else:
                change.go_on()
        case Failed(error, attempt):
            change.set(
                at, state=StepState.FAILED, attempt=attempt, ended_at=change.now, error=error
            )
            change.give_up(at, f"step {name!r} failed: {error.message}")
        case CutShort(error, attempt) | Interrupted(error, attempt):
            change.set(
                at, state=StepState.UNCERTAIN, attempt=attempt, ended_at=change.now, error=error
            )
            why = f"step {name!r} ended in the middle: {error.message}"
            if step.final or (isinstance(event, Interrupted) and not change.saga.stop):
                change.pause(why)
            else:
                change.turn_back("" if change.saga.stop else why)
        case NeverSent():
            if change.saga.stop:
                change.set(at, state=StepState.WAITING, began_at=0)
                change.give_up(at, change.saga.reason)


def _undone(change: Change, at: int, event: Outcome, most_attempts: int) -> None:
    """A compensation has ended."""
    step = change.steps[at]
    match event:
        case Succeeded():
            change.set(at, state=StepState.UNDONE, undone_at=change.now, undo_error=None)
            change.turn_back()
        case Interrupted(error, attempt):
            change.set(at, retry=attempt, undo_error=error)
            change.pause(
                f"the compensation of step {step.name!r} ended in the middle: {error.message}"
            )
        case Failed(error, attempt) | CutShort(error, attempt):
            failed = step.undo_attempts + 1
            change.set(at, undo_attempts=failed, retry=attempt or step.retry, undo_error=error)
            if failed >= most_attempts:
                change.set(at, state=StepState.NOT_UNDONE)
                change.turn_back()


def _abort(change: Change, reason: str) -> None:
    """Raises: ConflictError."""
    saga = change.saga
    if saga.state in ENDED:
        raise ConflictError(f"the saga {saga.id!r} has ended: it is {saga.state.value}")
    if saga.state is SagaState.PAUSED:
        _decide(change, reason)
        return
    at = active(saga)
    if saga.state is SagaState.COMPENSATING and at is not None:
        raise ConflictError(
            f"the saga {saga.id!r} is being undone already; its step {saga.steps[at].name!r} can be"
            " given up (`give_up`): then it stays as it is"
        )
    if saga.stop and at is not None:
        raise ConflictError(
            f"the saga {saga.id!r} is being aborted already: it waits for the node"
            f" {saga.steps[at].call.node!r} to tell how the step {saga.steps[at].name!r} ended."
            " If that node never comes back, remove it"
        )
    if past_return(saga):
        raise ConflictError(
            f"the saga {saga.id!r} cannot be aborted: a final step of it has begun. If its node"
            " never comes back, remove it: then the saga waits for you"
        )
    if at is None:  # nobody has begun it
        change.turn_back(reason)
    else:
        change.fields |= {"stop": True, "reason": reason}


def _give_up(change: Change, name: str, reason: str) -> None:
    """Raises: ConflictError."""
    saga = change.saga
    at = next((at for at, step in enumerate(saga.steps) if step.name == name), None)
    if at is None or saga.steps[at].state is not StepState.UNDOING:
        raise ConflictError(
            f"no compensation of a step {name!r} of the saga {saga.id!r} is waited for"
        )
    error = saga.steps[at].undo_error or codec.error_reply(CancelledActionError(reason))
    change.set(at, state=StepState.NOT_UNDONE, undo_error=error)
    change.turn_back()


def _decide(change: Change, reason: str) -> None:
    """What it waits for a person with is not to be done again."""
    at = doubted(change.saga)
    step = change.steps[at]
    change.fields["stop"] = True
    if step.state is StepState.UNDOING:
        change.set(at, state=StepState.NOT_UNDONE)
        change.turn_back()
    elif step.final:  # it has no compensation: whoever aborts says that it did nothing
        change.set(at, state=StepState.FAILED)
        change.give_up(at, reason)
    else:
        change.turn_back(reason)


def _resume(change: Change, who: str) -> None:
    """Raises: ConflictError."""
    saga = change.saga
    if saga.state is not SagaState.PAUSED:
        raise ConflictError(
            f"the saga {saga.id!r} does not wait for anybody: it is {saga.state.value}"
        )
    at = doubted(saga)
    step = change.steps[at]
    change.fields["reason"] = f"resumed by {who}"
    if step.state is StepState.UNDOING:
        change.fields["state"] = SagaState.COMPENSATING
    else:
        change.set(
            at,
            state=StepState.RUNNING,
            retry=step.attempt,
            began_at=change.now,
            ended_at=0,
            error=None,
        )
        # The time for which it waited for a person does not count.
        deadline = saga.deadline + change.now - step.ended_at
        change.fields |= {"state": SagaState.RUNNING, "stop": False, "deadline": deadline}
