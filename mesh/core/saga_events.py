"""What can happen to a saga: events, by the names they have everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mesh.wire.messages import ErrorReply


@dataclass(frozen=True, slots=True)
class TakenOver:
    """Somebody runs it from now on; one that had not begun begins."""

    runner: str


@dataclass(frozen=True, slots=True)
class Succeeded:
    """What was asked for last, a step or a compensation, was done."""

    result: Any = None
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Failed:
    """It was not done. `attempt` 0: it was refused."""

    error: ErrorReply
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class CutShort:
    """It was ended in the middle, by its time limit or a cancel: it may have been done."""

    error: ErrorReply
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Its node stopped in the middle: it may have been done, and a person can tell."""

    error: ErrorReply
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class NeverSent:
    """It is to be stopped, and nobody has ever been asked for it."""


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The saga, or its step, took too long."""

    reason: str


@dataclass(frozen=True, slots=True)
class Aborted:
    """Somebody does not want it any more."""

    who: str


@dataclass(frozen=True, slots=True)
class GivenUp:
    """Somebody will wait no longer for the compensation of a step."""

    who: str
    step: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """Somebody found that what was interrupted may be done again."""

    who: str


Outcome = Succeeded | Failed | CutShort | Interrupted | NeverSent
Event = TakenOver | Outcome | TimedOut | Aborted | GivenUp | Resumed
