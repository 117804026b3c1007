"""One attempt at an action: parameters in, an outcome out, whatever the author's code does."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from mesh.errors import (
    ActionFailedError,
    DeadlineExceededError,
    InternalError,
    InvalidError,
    MeshError,
)
from mesh.runtime.sdk import ActionContext, ActionSpec
from mesh.types import ActionState
from mesh.wire import codec
from mesh.wire.messages import ErrorReply

_MOST_RESULT_BYTES = 1_000_000


class Ended(NamedTuple):
    """How an attempt ended."""

    state: ActionState
    result: Any = None
    error: ErrorReply | None = None


async def attempt(
    spec: ActionSpec, params: Mapping[str, Any], context: ActionContext, *, timeout_s: float
) -> Ended:
    """Run `spec` once. Raises nothing but the cancellation of whoever waits for it."""
    try:
        async with asyncio.timeout(timeout_s) as limit:
            return Ended(ActionState.SUCCEEDED, await _run(spec, params, context))
    except TimeoutError as error:
        if limit.expired():
            late = DeadlineExceededError(f"{spec.name} did not finish within {timeout_s:g} s")
            return Ended(ActionState.EXPIRED, error=codec.error_reply(late))
        return _failed(_authors(error, context))
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # the node stops; it is not the action's doing
        return _failed(_authors(error, context))
    except MeshError as error:
        return _failed(error)
    except Exception as error:  # noqa: BLE001 (the author's code may raise anything)
        return _failed(_authors(error, context))


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


def _failed(error: MeshError) -> Ended:
    return Ended(ActionState.FAILED, error=codec.error_reply(error))


async def _run(spec: ActionSpec, params: Mapping[str, Any], context: ActionContext) -> Any:
    return _plain(await spec.run(codec.convert(params, spec.params), context))


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
