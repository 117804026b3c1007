"""One action on several nodes: each fares on its own, at most so many at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from mesh.core import targets
from mesh.errors import ActionFailedError, InterruptedActionError, MeshError
from mesh.runtime.caller import Caller
from mesh.types import ActionState
from mesh.wire import codec
from mesh.wire.messages import ActionRequest, ActionResult, FanOutItem, FanOutResult


async def fan_out(
    caller: Caller,
    request: ActionRequest,
    chosen: targets.Targets,
    *,
    timeout_s: float,
    parallel: int,
) -> FanOutResult:
    """Run `request` on all of `chosen`; a node that fails or is away costs the others nothing but
    its place among the `parallel` while it is waited for.

    Args:
        caller: Sends.
        request: Its id is the fan-out's; each node gets one of its own, made from it.
        chosen: Whom, by slug; with an error: that is the node's outcome, and it is not asked.
        timeout_s: For each node, from when it is asked.
        parallel: Nodes asked at a time, at least 1.

    Raises:
        InvalidError: The id leaves no room for a node's name; nothing was sent.
        TypeError: The parameters cannot be JSON; nothing was sent.
    """
    ids = targets.ids(request.id, chosen)
    # Made into JSON once for all nodes, and before any of them is asked.
    params: Any = msgspec.Raw(codec.encode(request.params))
    request = msgspec.structs.replace(request, params=params)
    places = asyncio.Semaphore(parallel)

    async def run(node: str, refused: MeshError | None) -> FanOutItem:
        mine = msgspec.structs.replace(request, id=ids[node])
        if refused is not None:
            return _failed(node, mine.id, refused)
        async with places:
            try:
                done = await caller.action(node, mine.action, mine, ActionResult, timeout_s)
            except MeshError as error:
                return _failed(node, mine.id, error)
        return FanOutItem(
            node=node,
            success=True,
            id=mine.id,
            state=done.state,
            result=done.result,
            duration_ms=done.duration_ms,
        )

    async with asyncio.TaskGroup() as group:
        tasks = {node: group.create_task(run(node, error)) for node, error in chosen.items()}
    results = {node: task.result() for node, task in tasks.items()}
    succeeded = sum(item.success for item in results.values())
    return FanOutResult(
        id=request.id,
        action=request.action,
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


def _state_after(error: MeshError) -> ActionState | None:
    """Where the action stands, if the error tells: most say only that it may not have run."""
    match error:
        case ActionFailedError():
            return ActionState.FAILED
        case InterruptedActionError():
            return ActionState.INTERRUPTED
        case _:
            return None
