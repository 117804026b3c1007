"""One attempt at an action: parameters in, an outcome out, whatever the author's code does."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from mesh.errors import (
    ActionFailedError,
    CancelledActionError,
    DeadlineExceededError,
    InternalError,
    InvalidError,
    MeshError,
)
from mesh.runtime.action_context import ActionContext
from mesh.runtime.action_run import Run, Stoppable, StoppedError, TimeIsUpError
from mesh.runtime.sdk import ActionSpec
from mesh.types import ActionState
from mesh.wire import codec
from mesh.wire.messages import ErrorReply

_MOST_RESULT_BYTES = 1_000_000
_PASSING = 500
_ANY_PARAMS = dict[str, Any]


class Ended(NamedTuple):
    """How an attempt ended."""

    state: ActionState
    result: Any = None
    error: ErrorReply | None = None
    for_good: bool = False
    """Its author says that another attempt would be no use."""


class Work(NamedTuple):
    """What an attempt does."""

    spec: ActionSpec
    params: Any
    """Of the type that the action wants."""


async def attempt(run: Run, work: Work, context: ActionContext, *, timeout_s: float) -> Ended:
    """Run it once. Raises nothing but the cancellation of whoever waits for it.

    Args:
        run: What runs; its `control` is the context's.
        work: What it does.
        context: For the action's code.
        timeout_s: Then somebody calls `Run.expire`.
    """
    try:
        ended = Ended(ActionState.SUCCEEDED, _plain(await _called(run, work, context)))
    except StoppedError:
        return _cancelled(run)
    except TimeIsUpError:
        return Ended(ActionState.EXPIRED, error=codec.error_reply(_late(run, work, timeout_s)))
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            if run.control is not None:
                run.control.stop()
            raise  # the node stops; it is not the action's doing
        ended = _failed(_authors(error, context))
    except MeshError as error:
        ended = _failed(error)
        ended = ended._replace(for_good=error.code < _PASSING and not error.retryable)
    except Exception as error:  # noqa: BLE001 (the author's code may raise anything)
        ended = _failed(_authors(error, context))
    if run.cancelled_by and run.control is not None and run.control.noticed:
        return _cancelled(run, ended)
    return ended


def _late(run: Run, work: Work, timeout_s: float) -> DeadlineExceededError:
    why = f"{work.spec.name} did not finish within {timeout_s:g} s"
    if run.control is not None and run.control.left_behind is not None:
        why += ": its thread still ran when its time was up; whether it took effect is not known"
    return DeadlineExceededError(why)


async def _called(run: Run, work: Work, context: ActionContext) -> Any:
    """A thread cannot be stopped: what it does is done, so its end is waited for, unless its time
    is up.
    """
    threaded = work.spec.threaded
    with Stoppable(run, stops=not threaded, expires=True):
        try:
            return await work.spec.run(work.params, context)
        finally:
            if run.hits and not threaded and run.control is not None:
                run.control.stopped()  # it heard, whatever it made of it


def _cancelled(run: Run, ended: Ended | None = None) -> Ended:
    """It knew that it should stop when it ended: its result, if any, may be half of one."""
    why = f"cancelled by {run.cancelled_by}"
    if ended is not None and ended.error is not None:
        why = f"{why}; it ended with {ended.error.message}"
    error = codec.error_reply(CancelledActionError(why))
    return Ended(ActionState.CANCELLED, None if ended is None else ended.result, error)


def check_params(spec: ActionSpec, params: Mapping[str, object]) -> Any:
    """Parameters as the type that the action wants.

    Raises:
        InvalidError: `fields` are named `params.<field>`.
    """
    if spec.params == _ANY_PARAMS:
        return params  # what every request has
    try:
        return codec.convert(params, spec.params)
    except InvalidError as error:
        named = {
            "params" if field == "body" else f"params.{field}": messages
            for field, messages in error.fields.items()
        }
        raise InvalidError(f"params of {spec.name}: {error}", fields=named) from error


def _failed(error: MeshError) -> Ended:
    return Ended(ActionState.FAILED, error=codec.error_reply(error))


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


def _authors(error: BaseException, context: ActionContext) -> MeshError:
    """An author's ValueError and the like are messages for the caller; the rest is a bug."""
    if isinstance(error, (ValueError, LookupError, PermissionError, TimeoutError)):
        return ActionFailedError(f"{type(error).__name__}: {error}")
    reference = secrets.token_hex(8)
    context.log.error("mesh.action.crashed", reference=reference, exc_info=error)
    return InternalError(f"{type(error).__name__} in the action", reference=reference)
