"""What the routes of actions do: each asks the mesh, and knows nothing of HTTP."""

from __future__ import annotations

from agents.gateway import bodies
from mesh import MeshClient, bootstrap, messages
from mesh.errors import ForbiddenError, InvalidError, NotFoundError
from mesh.types import ActionState

_PAGE = 1000
"""Records of the history that are asked for at once."""


class ActionService:
    """Actions, and what was done."""

    def __init__(self, mesh: MeshClient) -> None:
        self._mesh = mesh

    async def run(
        self, asked: bodies.Action, identity: messages.Identity
    ) -> bodies.ActionDone | bodies.ActionsDone:
        """Run an action on one node or several and wait for its outcome.

        Raises:
            ForbiddenError: The identity may not run this action.
            InvalidError: More than one kind of target.
            MeshError: See `MeshClient.run_action`.
        """
        needed = f"actions:{asked.action}"
        if not bootstrap.allows(identity.scopes, needed):
            raise ForbiddenError(f"this takes the scope {needed!r} (or 'actions')")
        targets = asked.targets
        if len(targets) > 1:
            message = f"not more than one of them: {', '.join(targets)}"
            raise InvalidError(message, fields={name: [message] for name in targets})
        if targets in ([], ["node"]):
            return await self._run_on_one(asked, identity)
        done = await self._mesh.fan_out(
            asked.action,
            asked.params,
            nodes=asked.nodes,
            all=asked.all,
            collection=asked.collection,
            id=asked.idempotency_key,
            timeout_s=asked.timeout_s,
            on_behalf=identity.subject,
        )
        return bodies.ActionsDone(
            success=done.success,
            id=done.id,
            action=done.action,
            success_count=done.success_count,
            failure_count=done.failure_count,
            results=done.results,
        )

    async def _run_on_one(
        self, asked: bodies.Action, identity: messages.Identity
    ) -> bodies.ActionDone:
        done = await self._mesh.run_action(
            asked.action,
            asked.params,
            node=asked.node,
            id=asked.idempotency_key,
            timeout_s=asked.timeout_s,
            on_behalf=identity.subject,
        )
        return bodies.ActionDone(
            success=True,
            id=done.id,
            node=done.node,
            action=done.action,
            state=done.state,
            result=done.result,
            duration_ms=done.duration_ms,
        )

    async def page(
        self,
        identity: messages.Identity,
        *,
        node: str,
        action: str,
        caller: str,
        state: ActionState | None,
        since: int,
        limit: int,
        offset: int,
    ) -> bodies.ActionPage:
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
            limit=limit,
            offset=offset,
        )
        return bodies.ActionPage(actions=page.actions, total=page.total, limit=limit, offset=offset)

    async def one(
        self,
        id: str,  # noqa: A002
        identity: messages.Identity,
    ) -> bodies.ActionRecords:
        """What became of an action; of one on several nodes, on each of them.

        Raises:
            NotFoundError: There is none; or one that the identity may not read of.
        """
        found = (await self._mesh.history(action_id=id)).actions or await self._parts(id)
        names = bootstrap.readable_actions(identity.scopes)
        found = [record for record in found if names is None or record.action in names]
        if not found:
            raise NotFoundError(f"no action has the id {id!r}")
        return bodies.ActionRecords(id=id, actions=found)

    async def _parts(self, id: str) -> list[messages.HistoryRecord]:  # noqa: A002
        """Of an action on several nodes."""
        seen: list[messages.HistoryRecord] = []
        while True:
            page = await self._mesh.history(id_prefix=f"{id}.", limit=_PAGE, offset=len(seen))
            seen += page.actions
            if not page.actions or len(seen) >= page.total:
                return [record for record in seen if record.id == f"{id}.{record.node}"]


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
