"""Litestar's handlers of sagas."""

from __future__ import annotations

from typing import Annotated

from litestar import Response, get, post
from litestar.params import JSONBody, PathParameter, QueryParameter

from agents.gateway.asked import Asked, identity_of, refuse_null, service_of
from agents.gateway.route import ACTIONS, about
from agents.gateway.saga_bodies import SagaAnswer, SagaAsked, SagaPage
from mesh.types import SagaState

_SOME = about(ACTIONS, action=True)
_TAGS = ["sagas"]
_Id = Annotated[
    str,
    PathParameter(
        description="Of the saga.", max_length=64, pattern=r"^[A-Za-z0-9_-]{1,64}(?!\n)$"
    ),
]


@post(
    "/sagas",
    status_code=200,
    opt=about(
        ACTIONS,
        internal="Saga failed",
        action=True,
        answers={200: (SagaAnswer,), 202: (SagaAnswer,)},
    ),
    tags=_TAGS,
)
async def run_saga(request: Asked, data: JSONBody[SagaAsked]) -> Response[SagaAnswer]:
    """Run several actions so that all of them are done or, where one fails, those before it are
    undone. It goes on when its client goes. 200 once it has ended, whatever its end: `success`
    and `saga.state` tell; 202 if it has not, or waits for a person. The same `id` again joins the
    saga of before.
    """
    done = await service_of(request).sagas.run(data, identity_of(request))
    return Response(done, status_code=200 if done.saga.ended_at else 202)


@get("/sagas", opt=_SOME, tags=_TAGS)
async def list_sagas(  # noqa: PLR0917 (Litestar passes them by name)
    request: Asked,
    state_: Annotated[
        SagaState | None, QueryParameter(name="state", description="Where it stands.")
    ] = None,
    name: Annotated[str, QueryParameter(description="What it is called.", max_length=200)] = "",
    caller: Annotated[str, QueryParameter(description="Who asked for it.", max_length=64)] = "",
    since: Annotated[
        int, QueryParameter(description="Unix ms; it was not started before.", ge=0, le=2**53)
    ] = 0,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 50,
    offset: Annotated[int, QueryParameter(ge=0, le=2**31 - 1)] = 0,
) -> SagaPage:
    """Sagas, newest first, of all callers; every filter may be left out. Scopes for single actions
    show those sagas that need no others.
    """
    refuse_null(request, "state", state_)
    return await service_of(request).sagas.page(
        identity_of(request),
        state=state_,
        name=name,
        caller=caller,
        since=since,
        limit=limit,
        offset=offset,
    )


@get("/sagas/{saga_id:str}", opt=_SOME, tags=_TAGS)
async def show_saga(request: Asked, saga_id: _Id) -> SagaAnswer:
    """A saga with every step."""
    return await service_of(request).sagas.one(saga_id, identity_of(request))


@post("/sagas/{saga_id:str}/resume", status_code=200, opt=_SOME, tags=_TAGS)
async def resume_saga(request: Asked, saga_id: _Id) -> SagaAnswer:
    """Do the step that was interrupted once more, and go on: somebody found that this is right.
    409 if the saga does not wait for anybody.
    """
    return await service_of(request).sagas.resume(saga_id, identity_of(request))


@post("/sagas/{saga_id:str}/abort", status_code=200, opt=_SOME, tags=_TAGS)
async def abort_saga(
    request: Asked,
    saga_id: _Id,
    give_up: Annotated[
        str,
        QueryParameter(
            description="A step whose compensation is not to be waited for any more: it stays as it"
            " is, and the saga ends `failed` when the others are undone.",
            pattern=r"^[A-Za-z0-9_-]{0,64}(?!\n)$",
        ),
    ] = "",
) -> SagaAnswer:
    """Begin no further step, and undo what was done; it is not undone yet when this is answered.
    409 if the saga has ended, is being undone already, or a final step has begun.
    """
    return await service_of(request).sagas.abort(saga_id, identity_of(request), give_up)


SAGAS = [run_saga, list_sagas, show_saga, resume_saga, abort_saga]
