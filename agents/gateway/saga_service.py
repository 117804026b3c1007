"""What the routes of sagas do: each asks the mesh, and knows nothing of HTTP."""

from __future__ import annotations

from agents.gateway.saga_bodies import SagaAnswer, SagaAsked, SagaPage
from mesh import MeshClient, bootstrap, messages
from mesh.types import SagaState


class SagaService:
    """Sagas, for whoever may run every action of them and of the way back."""

    def __init__(self, mesh: MeshClient) -> None:
        self._mesh = mesh

    async def run(self, asked: SagaAsked, identity: messages.Identity) -> SagaAnswer:
        """Begin one and, if so asked, wait for its end.

        Raises:
            MeshError: See `SagasApi.run`.
        """
        saga = await self._mesh.sagas.run(
            asked.definition,
            wait=asked.wait,
            timeout_s=asked.wait_s,
            on_behalf=identity.subject,
            allowed=_allowed(identity),
        )
        return _answer(saga)

    async def page(
        self,
        identity: messages.Identity,
        *,
        state: SagaState | None,
        name: str,
        caller: str,
        since: int,
        limit: int,
        offset: int,
    ) -> SagaPage:
        """Those that the identity could have run itself."""
        found = await self._mesh.sagas.list(
            state=state,
            name=name,
            caller=caller,
            since=since,
            allowed=_allowed(identity),
            limit=limit,
            offset=offset,
        )
        return SagaPage(sagas=found.sagas, total=found.total, limit=limit, offset=offset)

    async def one(self, id: str, identity: messages.Identity) -> SagaAnswer:  # noqa: A002
        """Raises: NotFoundError: There is none, or one of actions that are none of theirs."""
        return _answer(await self._mesh.sagas.show(id, allowed=_allowed(identity)))

    async def resume(self, id: str, identity: messages.Identity) -> SagaAnswer:  # noqa: A002
        """Raises: NotFoundError; ConflictError: It does not wait for anybody."""
        return _answer(
            await self._mesh.sagas.resume(
                id, on_behalf=identity.subject, allowed=_allowed(identity)
            )
        )

    async def abort(
        self,
        id: str,  # noqa: A002
        identity: messages.Identity,
        give_up: str,
    ) -> SagaAnswer:
        """Raises: NotFoundError; ConflictError: There is no way back, or it is on it."""
        return _answer(
            await self._mesh.sagas.abort(
                id, give_up=give_up, on_behalf=identity.subject, allowed=_allowed(identity)
            )
        )


def _allowed(identity: messages.Identity) -> list[str] | None:
    names = bootstrap.readable_actions(identity.scopes)
    return None if names is None else sorted(names)


def _answer(saga: messages.Saga) -> SagaAnswer:
    return SagaAnswer(success=saga.state is SagaState.SUCCEEDED, saga=saga)
