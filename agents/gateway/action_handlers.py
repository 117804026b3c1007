"""Litestar's handlers of actions: run, queue, look, stop, do again."""

from __future__ import annotations

from typing import Annotated

from litestar import Response, get, post
from litestar.params import JSONBody, PathParameter, QueryParameter

from agents.gateway import action_steering
from agents.gateway.action_bodies import (
    Action,
    ActionDone,
    ActionPage,
    ActionQueued,
    ActionRecords,
    ActionsDone,
    ActionStopped,
)
from agents.gateway.asked import Asked, identity_of, refuse_null, service_of
from agents.gateway.route import ACTIONS as SOME_ACTION
from agents.gateway.route import about
from mesh import messages
from mesh.types import ActionState

_TAGS = ["actions"]
_SOME = about(SOME_ACTION, action=True)
_ALL = about("actions", action=True)

_Id = Annotated[
    str, PathParameter(description="Id or idempotency key.", min_length=1, max_length=300)
]
_Slug = Annotated[str, QueryParameter(description="Slug.", max_length=64)]
_Part = Annotated[
    str, QueryParameter(description="Slug; of an action on several nodes: this one.", max_length=64)
]
_Limit = Annotated[int, QueryParameter(ge=1, le=1000)]
_Offset = Annotated[int, QueryParameter(ge=0, le=2**31 - 1)]


@post(
    "/actions",
    status_code=200,
    opt=about(
        SOME_ACTION,
        internal="Action failed",
        action=True,
        answers={200: (ActionDone, ActionsDone), 202: (ActionQueued, ActionsDone)},
    ),
    tags=_TAGS,
)
async def run_action(
    request: Asked, data: JSONBody[Action]
) -> Response[ActionDone | ActionsDone | ActionQueued]:
    """Run an action on one node or several, now or (`mode` `queue`) as soon as its node is there.
    It goes on when its client goes, and its outcome is in the history. For several nodes the answer
    is a 200 with `success_count` and `failure_count`, whatever became of it on each. In the queue
    the actions of a node are run one after another, in the order in which they came.
    """
    actions, identity = service_of(request).actions, identity_of(request)
    if data.mode == "queue":
        return Response(await actions.queue(data, identity), status_code=202)
    return Response(await actions.run(data, identity))


@get("/actions", opt=_SOME, tags=_TAGS)
async def list_actions(  # noqa: PLR0917 (Litestar passes them by name)
    request: Asked,
    node: _Slug = "",
    action: Annotated[str, QueryParameter(description="Name.", max_length=64)] = "",
    caller: Annotated[str, QueryParameter(description="Who asked for it.", max_length=64)] = "",
    state_: Annotated[
        ActionState | None, QueryParameter(name="state", description="Where it stands.")
    ] = None,
    since: Annotated[
        int, QueryParameter(description="Unix ms; accepted then or later.", ge=0, le=2**53)
    ] = 0,
    until: Annotated[
        int, QueryParameter(description="Unix ms; accepted before; 0: no end.", ge=0, le=2**53)
    ] = 0,
    limit: _Limit = 50,
    offset: _Offset = 0,
) -> ActionPage:
    """The history of actions, newest first, of all callers; every filter may be left out. Scopes
    for single actions show those alone; with several of them, `action` says which.
    """
    refuse_null(request, "state", state_)
    return await service_of(request).actions.page(
        identity_of(request),
        node=node,
        action=action,
        caller=caller,
        state=state_,
        since=since,
        until=until,
        limit=limit,
        offset=offset,
    )


@get("/actions/catalogue", opt=_SOME, tags=_TAGS)
async def list_offered(
    request: Asked,
    node: _Slug = "",
    action: Annotated[str, QueryParameter(description="Name.", max_length=64)] = "",
) -> messages.OfferedActions:
    """The actions that nodes offer and your scopes cover, with the JSON Schema of their parameters
    and results. Nodes that offer one alike are named together.
    """
    return await service_of(request).actions.catalogue(identity_of(request), node, action)


@get("/actions/queue", opt=_ALL, tags=_TAGS)
async def list_queue(
    request: Asked, node: _Slug = "", limit: _Limit = 50, offset: _Offset = 0
) -> messages.QueueList:
    """What is kept for nodes, of each in the order in which it will be done; `waiting` counts it
    by node.
    """
    return await service_of(request).actions.waiting(node, limit, offset)


@get("/actions/dead-letters", opt=_ALL, tags=_TAGS)
async def list_dead_letters(
    request: Asked, node: _Slug = "", limit: _Limit = 50, offset: _Offset = 0
) -> messages.QueueList:
    """What was in the queue and could not be done, newest first, with the reason. It stays until
    it is done after all (`POST /actions/{id}/retry`) or too old.
    """
    return await service_of(request).actions.dead(node, limit, offset)


@get("/actions/{action_id:str}", opt=_SOME, tags=_TAGS)
async def show_action(request: Asked, action_id: _Id) -> ActionRecords:
    """What became of an action, with every attempt; of one on several nodes, on each of them."""
    return await service_of(request).actions.one(action_id, identity_of(request))


@post("/actions/{action_id:str}/cancel", status_code=200, opt=_SOME, tags=_TAGS)
async def cancel_action(
    request: Asked, action_id: _Id, node: _Part = ""
) -> ActionStopped | ActionsDone:
    """Stop an action: one in the queue is not begun any more, one that runs is stopped. 409 where
    it has ended. What it did before it was stopped stays done.
    """
    service, identity = service_of(request), identity_of(request)
    stories = await action_steering.parts_of(service.mesh, action_id, identity, node)
    chosen = action_steering.going_on(stories)
    return await action_steering.cancel(service.mesh, chosen, identity)


@post("/actions/{action_id:str}/retry", status_code=202, opt=_SOME, tags=_TAGS)
async def retry_action(
    request: Asked, action_id: _Id, node: _Part = ""
) -> ActionQueued | ActionsDone:
    """Do an action that failed, expired, was cancelled or interrupted once more, through the queue:
    another attempt under the same id. 409 where it runs or has succeeded.
    """
    service, identity = service_of(request), identity_of(request)
    stories = await action_steering.parts_of(service.mesh, action_id, identity, node)
    chosen = action_steering.ended_badly(stories)
    return await action_steering.retry(service.mesh, chosen, identity)


ACTIONS = [
    run_action,
    list_actions,
    list_offered,
    list_queue,
    list_dead_letters,
    show_action,
    cancel_action,
    retry_action,
]
