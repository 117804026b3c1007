"""The record of a saga: what can be read from it, and how the next one is made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec

from mesh.core.saga_references import fill, is_known
from mesh.errors import InvalidError, TooLargeError
from mesh.types import SagaState, StepState
from mesh.wire import codec
from mesh.wire.messages import Saga, SagaCall, SagaStep

ENDED = frozenset({SagaState.SUCCEEDED, SagaState.COMPENSATED, SagaState.FAILED})
_MOST_BYTES = 1_000_000
"""Of the whole record: the broker takes 2 MB."""
_DOUBTFUL = frozenset({StepState.SUCCEEDED, StepState.UNCERTAIN})
"""What such a step did, or may have done, is to be undone."""


def actions_of(saga: Saga) -> set[str]:
    """Every action that it runs, or may have to."""
    return {call.action for step in saga.steps for call in (step.call, step.undo) if call}


def active(saga: Saga) -> int | None:
    """The step that runs or is being undone: never more than one."""
    return next(_at(saga, StepState.RUNNING, StepState.UNDOING), None)


def doubted(saga: Saga) -> int:
    """Of a saga that is paused: with which step."""
    return next(_at(saga, StepState.UNDOING, StepState.UNCERTAIN))


def _at(saga: Saga, *states: StepState) -> Iterator[int]:
    return (at for at, step in enumerate(saga.steps) if step.state in states)


def past_return(saga: Saga) -> bool:
    """Whether a final step has begun."""
    return any(step.final and step.state is not StepState.WAITING for step in saga.steps)


class Change:
    """The record that is being made."""

    def __init__(self, saga: Saga, now: int) -> None:
        self.saga = saga
        self.now = now
        self.steps = list(saga.steps)
        self.fields: dict[str, Any] = {}

    def made(self) -> Saga:
        """The next record; the same one if nothing has changed."""
        if not self.fields and self.steps == self.saga.steps:
            return self.saga
        return msgspec.structs.replace(
            self.saga,
            steps=self.steps,
            version=self.saga.version + 1,
            changed_at=self.now,
            **self.fields,
        )

    def set(self, at: int, **fields: Any) -> None:
        """Of one step."""
        self.steps[at] = msgspec.structs.replace(self.steps[at], **fields)

    def go_on(self) -> None:
        """Begin the first step that waits; without one, all is done."""
        for at, step in enumerate(self.steps):
            if step.state is StepState.WAITING:
                self.set(at, state=StepState.RUNNING, began_at=self.now)
                self.fields |= {"state": SagaState.RUNNING, "stop": False}
                return
        self.end(SagaState.SUCCEEDED)

    def turn_back(self, reason: str = "") -> None:
        """Undo the last step that is not undone; without one, that was it."""
        if reason:
            self.fields["reason"] = reason
        for at in reversed(range(len(self.steps))):
            step = self.steps[at]
            if step.state not in _DOUBTFUL or step.final:
                continue
            if step.undo is not None and is_known(step.undo.params):
                self.set(at, state=StepState.UNDOING, retry=0)
                self.fields["state"] = SagaState.COMPENSATING
                return
            lacking = InvalidError("its compensation needs a part of a result that is not there")
            self.set(at, state=StepState.NOT_UNDONE, undo_error=codec.error_reply(lacking))
        left = [step.name for step in self.steps if step.state is StepState.NOT_UNDONE]
        if left:
            self.fields["reason"] = f"{self._reason}; not undone: {', '.join(left)}"
        self.end(SagaState.FAILED if left else SagaState.COMPENSATED)

    def give_up(self, at: int, reason: str) -> None:
        """A step that is final will not be done: the way back is open only before the first."""
        if any(step.final for step in self.steps[:at]):
            self.fields["reason"] = reason
            self.end(SagaState.FAILED)
        else:
            self.turn_back(reason)

    def pause(self, reason: str) -> None:
        """A person has to tell."""
        self.fields |= {"state": SagaState.PAUSED, "reason": reason}

    def end(self, state: SagaState) -> None:
        """It is over."""
        self.fields |= {"state": state, "ended_at": self.now, "stop": False}

    @property
    def _reason(self) -> str:
        reason: str = self.fields.get("reason", self.saga.reason)
        return reason


def tell(change: Change, at: int, result: Any) -> None:
    """Put what later steps, and the step's own compensation, need of a result in its place.

    Raises:
        InvalidError: It is not there.
        TooLargeError: It would make the record too large.
    """
    name, before = change.steps[at].name, list(change.steps)
    try:
        for each in range(at, len(change.steps)):
            step = change.steps[each]
            change.set(
                each,
                call=_filled(step.call, name, result) if each > at else step.call,
                undo=step.undo and _filled(step.undo, name, result),
            )
        _check_size(change.steps, name)
    except (InvalidError, TooLargeError):
        change.steps = list(before)
        # The way back is needed now; what it needs of the result may be there.
        undo = before[at].undo
        with contextlib.suppress(InvalidError, TooLargeError):
            change.set(at, undo=undo and _filled(undo, name, result))
            _check_size(change.steps, name)
            before = change.steps
        change.steps = before
        raise


def _check_size(steps: list[SagaStep], name: str) -> None:
    """Raises: TooLargeError: The record could not be stored."""
    if len(codec.encode(steps)) > _MOST_BYTES:
        raise TooLargeError(f"what later steps need of the result of {name!r} is too large")


def _filled(call: SagaCall, step: str, result: Any) -> SagaCall:
    return msgspec.structs.replace(call, params=fill(call.params, step, result))
