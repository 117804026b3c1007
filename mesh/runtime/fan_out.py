"""One action on several nodes: each fares on its own, at most so many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

from mesh.core import targets
from mesh.errors import (
    ActionFailedError,
    CancelledActionError,
    InterruptedActionError,
    MeshError,
)
from mesh.types import ActionState
from mesh.wire import codec
from mesh.wire.messages import ErrorReply, FanOutItem, FanOutResult

OnFailure = Literal["continue", "stop"]

_SKIPPED = 424
"""HTTP's `Failed Dependency`. Source: RFC 4918, 11.4."""


async def fan_out(
    fan_out_id: str,
    action: str,
    chosen: targets.Targets,
    run: Callable[[str], Awaitable[FanOutItem]],
    *,
    parallel: int,
    on_failure: OnFailure,
) -> FanOutResult:
    """Have `run` do it for all of `chosen`; a node that fails or is away costs the others nothing
    but its place among the `parallel` while it is waited for.

    Args:
        fan_out_id: What each node's id was made from.
        action: Its name.
        chosen: Whom, by slug; with an error: that is the node's outcome, and it is not asked.
        run: Asks one node; a MeshError is that node's outcome.
        parallel: Nodes asked at a time, at least 1, in the order of `chosen`.
        on_failure: Whether those that are left are asked after one has failed.

    Raises:
        InvalidError: The id leaves no room for a node's name; nothing was sent.
    """
    ids = targets.ids(fan_out_id, chosen)
    places = asyncio.Semaphore(parallel)
    failed = ""

    async def one(node: str, refused: MeshError | None) -> FanOutItem:
        nonlocal failed
        async with places:
            if failed and on_failure == "stop":
                return _skipped(node, ids[node], failed)
            try:
                if refused is not None:
                    raise refused
                return await run(node)
            except MeshError as error:
                failed = failed or node
                return _failed(node, ids[node], error)

    async with asyncio.TaskGroup() as group:
        tasks = {node: group.create_task(one(node, error)) for node, error in chosen.items()}
    results = {node: task.result() for node, task in tasks.items()}
    succeeded = sum(item.success for item in results.values())
    return FanOutResult(
        id=fan_out_id,
        action=action,
        success=succeeded == len(results),
        success_count=succeeded,
        failure_count=len(results) - succeeded,
        results=results,
    )


def _failed(node: str, action_id: str, error: MeshError) -> FanOutItem:
    return FanOutItem(
        node=node,
        success=False,
        id=action_id,
        state=_state_after(error),
        error=codec.error_reply(error),
    )


def _skipped(node: str, action_id: str, failed: str) -> FanOutItem:
    error = ErrorReply(
        code=_SKIPPED, kind="skipped", message=f"not asked: {failed!r} had failed before"
    )
    return FanOutItem(node=node, success=False, id=action_id, error=error)


def _state_after(error: MeshError) -> ActionState | None:
    """Where the action stands, if the error tells: most say only that it may not have run."""
    match error:
        case ActionFailedError():
            return ActionState.FAILED
        case InterruptedActionError():
            return ActionState.INTERRUPTED
        case CancelledActionError():
            return ActionState.CANCELLED
        case _:
            return None
