"""What the routes of actions do: each asks the mesh, and knows nothing of HTTP."""

from __future__ import annotations

from agents.gateway.action_bodies import (
    Action,
    ActionDone,
    ActionPage,
    ActionQueued,
    ActionRecord,
    ActionRecords,
    ActionsDone,
)
from agents.gateway.action_steering import parts_of
from mesh import MeshClient, bootstrap, messages
from mesh.errors import ForbiddenError, InvalidError
from mesh.types import ActionState

_PARALLEL = 10


class ActionService:
    """Actions, and what was done."""

    def __init__(self, mesh: MeshClient) -> None:
        self._mesh = mesh

    # -- doing -------------------------------------------------------------------------------------

    async def run(self, asked: Action, identity: messages.Identity) -> ActionDone | ActionsDone:
        """Run an action on one node or several and wait for its outcome.

        Raises:
            ForbiddenError: The identity may not run this action.
            InvalidError: Fields that do not go together.
            MeshError: See `MeshClient.run_action`.
        """
        _check(asked, identity)
        if asked.targets not in ([], ["node"]):
            return await self._on_several(asked, identity)
        done = await self._mesh.run_action(
            asked.action,
            asked.params,
            node=asked.node,
            id=asked.idempotency_key,
            timeout_s=asked.timeout_s,
            on_behalf=identity.subject,
        )
        return ActionDone(
            success=True,
            id=done.id,
            node=done.node,
            action=done.action,
            state=done.state,
            result=done.result,
            duration_ms=done.duration_ms,
        )

    async def queue(self, asked: Action, identity: messages.Identity) -> ActionQueued | ActionsDone:
        """Have an action kept until its node, or each of its nodes, has run it.

        Raises:
            ForbiddenError: The identity may not run this action.
            InvalidError: Fields that do not go together.
            MeshError: See `MeshClient.queue_action`.
        """
        _check(asked, identity)
        if asked.targets not in ([], ["node"]):
            return await self._on_several(asked, identity)
        kept = await self._mesh.queue_action(
            asked.action,
            asked.params,
            node=asked.node,
            id=asked.idempotency_key,
            expires_s=asked.expires_s,
            on_behalf=identity.subject,
        )
        return ActionQueued(
            success=True,
            id=kept.id,
            node=kept.node,
            action=kept.action,
            state=kept.state,
            expires=kept.expires,
        )

    async def _on_several(self, asked: Action, identity: messages.Identity) -> ActionsDone:
        done = await self._mesh.fan_out(
            asked.action,
            asked.params,
            nodes=asked.nodes,
            all=asked.all,
            collection=asked.collection,
            id=asked.idempotency_key,
            timeout_s=asked.timeout_s,
            parallel=asked.parallel or _PARALLEL,
            sequential=asked.sequential,
            on_failure=asked.on_failure,
            mode=asked.mode,
            expires_s=asked.expires_s,
            on_behalf=identity.subject,
        )
        return ActionsDone(
            success=done.success,
            id=done.id,
            action=done.action,
            success_count=done.success_count,
            failure_count=done.failure_count,
            results=done.results,
        )

    # -- looking -----------------------------------------------------------------------------------

    async def page(
        self,
        identity: messages.Identity,
        *,
        node: str,
        action: str,
        caller: str,
        state: ActionState | None,
        since: int,
        until: int,
        limit: int,
        offset: int,
    ) -> ActionPage:
        """A page of the history, newest first; empty arguments match all that the identity may run.

        Raises:
            ForbiddenError: It may not read of this action; or of several, and does not say which.
        """
        page = await self._mesh.history(
            node=node,
            action=_readable(action, identity),
            caller=caller,
            state=state,
            since=since,
            until=until,
            limit=limit,
            offset=offset,
        )
        return ActionPage(actions=page.actions, total=page.total, limit=limit, offset=offset)

    async def one(
        self,
        id: str,  # noqa: A002
        identity: messages.Identity,
    ) -> ActionRecords:
        """What became of an action, with every attempt; of one on several nodes, on each of them.

        Raises:
            NotFoundError: There is none; or one that the identity may not read of.
        """
        stories = await parts_of(self._mesh, id, identity)
        return ActionRecords(id=id, actions=[_told(story) for story in stories])

    async def waiting(self, node: str, limit: int, offset: int) -> messages.QueueList:
        """What is in the queue."""
        return await self._mesh.queue(await self._slug(node), limit, offset)

    async def dead(self, node: str, limit: int, offset: int) -> messages.QueueList:
        """What was in the queue and could not be done."""
        return await self._mesh.dead_letters(await self._slug(node), limit, offset)

    async def _slug(self, node: str) -> str:
        """Of a slug or id: a name that was mistyped must not look like an empty queue.

        Raises:
            NotFoundError
        """
        if not node or node in self._mesh.routes.nodes:
            return node
        return (await self._mesh.nodes(node=node)).nodes[0].slug

    async def catalogue(
        self, identity: messages.Identity, node: str, action: str
    ) -> messages.OfferedActions:
        """What nodes offer, as far as the identity may run it.

        Raises:
            NotFoundError: No such node.
        """
        names = bootstrap.readable_actions(identity.scopes)
        offered = await self._mesh.actions(node, action)
        return messages.OfferedActions(
            actions=[each for each in offered.actions if names is None or each.action.name in names]
        )


def _told(story: messages.ActionStory) -> ActionRecord:
    record = story.action
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    return ActionRecord(**fields, attempts=story.attempts)


def _check(asked: Action, identity: messages.Identity) -> None:
    """Raises: ForbiddenError, InvalidError."""
    needed = f"actions:{asked.action}"
    if not bootstrap.allows(identity.scopes, needed):
        raise ForbiddenError(f"this takes the scope {needed!r} (or 'actions')")
    if wrong := asked.misfits():
        said = "; ".join(f"{name}: {text}" for name, [text] in wrong.items())
        raise InvalidError(said, fields=wrong)


def _readable(action: str, identity: messages.Identity) -> str:
    """Which action to read of: that one, or the only one that the identity may run; empty: all."""
    names = bootstrap.readable_actions(identity.scopes)
    if names is None or action in names:
        return action
    if not action and len(names) == 1:
        return next(iter(names))
    raise ForbiddenError(
        f"your scopes show the history of {', '.join(sorted(names))} only: say which, ?action=name"
    )
