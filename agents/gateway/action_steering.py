"""Cancel and retry, of an action on one node or on several."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from agents.gateway.action_bodies import ActionQueued, ActionsDone, ActionStopped
from mesh import MeshClient, bootstrap, messages
from mesh.errors import ConflictError, MeshError, NotFoundError
from mesh.types import ActionState

_AT_ONCE = 10
_GOES_ON = frozenset({ActionState.QUEUED, ActionState.ACCEPTED, ActionState.RUNNING})

Stories = list[messages.ActionStory]


async def parts_of(
    mesh: MeshClient,
    id: str,  # noqa: A002
    identity: messages.Identity,
    node: str = "",
) -> Stories:
    """What became of an action on each of its nodes, or on that one.

    Raises:
        NotFoundError: There is none; or one that the identity may not run.
    """
    names = bootstrap.readable_actions(identity.scopes)
    stories = (await mesh.action(id)).stories
    found = [
        story
        for story in stories
        if (names is None or story.action.action in names) and node in {"", story.action.node}
    ]
    if not found:
        where = f" on {node}" if node else ""
        raise NotFoundError(f"no action has the id {id!r}{where}")
    return found


def going_on(stories: Stories) -> Stories:
    """Those that may still be stopped. One alone is asked for, whatever the history says: it may
    be behind.

    Raises:
        ConflictError: All of several have ended.
    """
    going = [story for story in stories if _may_go_on(story.action)]
    if not going and len(stories) > 1:
        raise ConflictError("it has ended on all of its nodes: there is nothing to cancel")
    return going or stories


def ended_badly(stories: Stories) -> Stories:
    """Those that may be done again; one alone is asked for in any case.

    Raises:
        ConflictError: All of several go on or succeeded.
    """
    ended = [
        story
        for story in stories
        if not _may_go_on(story.action) and story.action.state is not ActionState.SUCCEEDED
    ]
    if not ended and len(stories) > 1:
        raise ConflictError("it runs or has succeeded on all of its nodes: there is nothing to do")
    return ended or stories


def _may_go_on(record: messages.HistoryRecord) -> bool:
    return record.state in _GOES_ON or not record.final


async def cancel(
    mesh: MeshClient, stories: Stories, identity: messages.Identity
) -> ActionStopped | ActionsDone:
    """Stop an action, or all of its parts.

    Raises:
        MeshError: Of an action on one node; see `MeshClient.cancel_action`.
    """

    async def one(record: messages.HistoryRecord) -> messages.FanOutItem:
        now = await mesh.cancel_action(record.id, node=record.node, on_behalf=identity.subject)
        return messages.FanOutItem(
            node=now.node,
            success=now.state is ActionState.CANCELLED,
            id=now.id,
            state=now.state,
            duration_ms=now.duration_ms,
        )

    if len(stories) > 1:
        return await _each(stories, one)
    item = await one(stories[0].action)
    return ActionStopped(
        success=item.success,
        id=item.id,
        node=item.node,
        action=stories[0].action.action,
        state=item.state or ActionState.CANCELLED,
    )


async def retry(
    mesh: MeshClient, stories: Stories, identity: messages.Identity
) -> ActionQueued | ActionsDone:
    """Put an action, or all of its parts, into the queue for another attempt.

    Raises:
        MeshError: Of an action on one node; see `MeshClient.retry_action`.
    """

    async def again(record: messages.HistoryRecord) -> messages.Queued:
        return await mesh.retry_action(record.id, node=record.node, on_behalf=identity.subject)

    async def one(record: messages.HistoryRecord) -> messages.FanOutItem:
        kept = await again(record)
        return messages.FanOutItem(node=kept.node, success=True, id=kept.id, state=kept.state)

    if len(stories) > 1:
        return await _each(stories, one)
    kept = await again(stories[0].action)
    return ActionQueued(
        success=True,
        id=kept.id,
        node=kept.node,
        action=kept.action,
        state=kept.state,
        expires=kept.expires,
    )


async def _each(
    stories: Stories, do: Callable[[messages.HistoryRecord], Awaitable[messages.FanOutItem]]
) -> ActionsDone:
    places = asyncio.Semaphore(_AT_ONCE)

    async def one(record: messages.HistoryRecord) -> messages.FanOutItem:
        async with places:
            try:
                return await do(record)
            except MeshError as error:
                return messages.FanOutItem(
                    node=record.node,
                    success=False,
                    id=record.id,
                    state=record.state,
                    error=_reply(error),
                )

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(story.action)) for story in stories]
    results = {item.node: item for item in (task.result() for task in tasks)}
    succeeded = sum(item.success for item in results.values())
    record = stories[0].action
    return ActionsDone(
        success=succeeded == len(results),
        id=record.id.removesuffix(f".{record.node}"),
        action=record.action,
        success_count=succeeded,
        failure_count=len(results) - succeeded,
        results=results,
    )


def _reply(error: MeshError) -> messages.ErrorReply:
    return messages.ErrorReply(
        code=error.code,
        kind=error.kind,
        message=str(error),
        retryable=error.retryable,
        retry_after_ms=error.retry_after_ms,
        fields={name: list(said) for name, said in error.fields.items()},
        reference=error.reference,
    )
