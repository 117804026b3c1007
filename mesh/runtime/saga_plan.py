"""From a saga as it was asked for to its first record: who does what, checked before any of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

from uuid_utils import uuid7

from mesh.core.saga_definition import check_definition, digest_of, refusal
from mesh.core.saga_references import is_known, plain
from mesh.errors import BadRequestError, ForbiddenError, InvalidError, MeshError, NotFoundError
from mesh.types import SagaState
from mesh.wire.messages import (
    ActionDescription,
    NodeRecord,
    Saga,
    SagaCall,
    SagaDefinition,
    SagaStep,
    SagaStepDefinition,
)

_SHOWN = 20


class Offers(Protocol):
    """What is known of the actions that nodes offer."""

    async def describe(self, node: str, action: str) -> ActionDescription | None:
        """As its author declared it; None: not known."""
        ...

    async def check(self, node: str, action: str, params: dict[str, Any]) -> None:
        """Whether it could be run so.

        Raises:
            InvalidError: `fields` are named `params.<path>`.
            BadRequestError: The node offers no such action.
        """
        ...


async def plan(
    definition: SagaDefinition,
    *,
    caller: str,
    now: int,
    timeout_s: float,
    nodes: Sequence[NodeRecord],
    offers: Offers,
    allowed: Collection[str] | None,
) -> Saga:
    """The record of a saga that has not begun.

    Args:
        definition: As it was asked for.
        caller: By whom.
        now: Unix ms.
        timeout_s: Where it does not say.
        nodes: All that are registered.
        offers: What their actions are.
        allowed: Actions that the caller may run; None: all.

    Raises:
        InvalidError: It makes no sense, a step has no compensation, parameters do not fit.
        BadRequestError: An action that nobody, or not this node, offers; not exactly one node.
        NotFoundError: Unknown node.
        ForbiddenError: An action that is not `allowed`.
    """
    check_definition(definition)
    planner = _Planner(nodes, offers, allowed)
    steps = [await planner.step(f"steps[{at}]", step) for at, step in enumerate(definition.steps)]
    if planner.wrong:
        raise refusal(planner.wrong)
    limit_s = definition.timeout_s or timeout_s
    return Saga(
        id=definition.id or str(uuid7()),
        name=definition.name,
        caller=caller,
        state=SagaState.RUNNING,
        version=1,
        digest=digest_of(definition),
        started_at=now,
        changed_at=now,
        deadline=now + round(limit_s * 1000),
        steps=steps,
    )


class _Planner:
    """Collects what does not fit, so that all of it is said at once."""

    def __init__(
        self, nodes: Sequence[NodeRecord], offers: Offers, allowed: Collection[str] | None
    ) -> None:
        self._nodes = {node.slug: node for node in nodes}
        self._ids = {node.id: node for node in nodes}
        self._offers = offers
        self._allowed = allowed
        self.wrong: dict[str, list[str]] = {}

    async def step(self, where: str, asked: SagaStepDefinition) -> SagaStep:
        call = await self._call(where, asked.action, asked.node, asked.params)
        undo = None if asked.final else await self._undo(where, asked, call)
        return SagaStep(
            name=asked.name, call=call, undo=undo, final=asked.final, timeout_s=asked.timeout_s
        )

    async def _undo(self, where: str, asked: SagaStepDefinition, call: SagaCall) -> SagaCall | None:
        given = asked.compensate
        if given is not None:
            return await self._call(
                f"{where}.compensate",
                given.action,
                given.node or call.node,
                call.params if given.params is None else given.params,
            )
        described = await self._offers.describe(call.node, call.action)
        if described is not None and described.compensate:
            return await self._call(
                f"{where}.compensate", described.compensate, call.node, call.params
            )
        lacking = f"{call.action!r} has no compensation: say what undoes it, or `final: true`"
        self.wrong[f"{where}.compensate"] = [lacking]
        return None

    async def _call(self, where: str, action: str, node: str, params: dict[str, Any]) -> SagaCall:
        chosen = self._named(where, node) if node else self._only(where, action, params)
        if self._allowed is not None and action not in self._allowed:
            raise ForbiddenError(
                f"{where}.action: this takes the scope 'actions:{action}' (or 'actions')"
            )
        offered = sorted(info.name for info in chosen.actions)
        # Of a node that has never been there, nobody knows what it offers.
        if offered and action not in offered:
            raise BadRequestError(
                f"{where}.action: unknown action {action!r}; {chosen.slug} offers: "
                + ", ".join(offered)
            )
        if is_known(params):
            await self._check(where, chosen.slug, action, params)
        return SagaCall(action=action, node=chosen.slug, params=params)

    async def _check(self, where: str, node: str, action: str, params: dict[str, Any]) -> None:
        try:
            await self._offers.check(node, action, plain(params))
        except InvalidError as error:
            for field, texts in error.fields.items():
                self.wrong.setdefault(f"{where}.{field}", []).extend(texts)
            if not error.fields:
                self.wrong.setdefault(f"{where}.params", []).append(str(error))
        except BadRequestError as error:
            raise BadRequestError(f"{where}.action: {error}") from error
        except MeshError:
            return  # it cannot be told now: the node checks what it is sent

    def _named(self, where: str, node: str) -> NodeRecord:
        found = self._nodes.get(node) or self._ids.get(node)
        if found is None:
            there = ", ".join(sorted(self._nodes)[:_SHOWN]) or "none"
            raise NotFoundError(f"{where}.node: unknown node {node!r}; there are: {there}")
        return found

    def _only(self, where: str, action: str, params: dict[str, Any]) -> NodeRecord:
        """The one that qualifies, whatever its health: a saga waits for it."""
        able = [
            node
            for node in self._nodes.values()
            if any(info.name == action for info in node.actions)
        ]
        if not able:
            offered = sorted({info.name for node in self._nodes.values() for info in node.actions})
            raise BadRequestError(
                f"{where}.action: no node offers {action!r}; actions: "
                + (", ".join(offered) or "none")
            )
        held = params.get("collection")
        holders = [node for node in able if any(info.name == held for info in node.collections)]
        choice = holders or able
        if len(choice) > 1 and not (holders and _one_shard(holders, held)):
            names = ", ".join(sorted(node.slug for node in choice)[:_SHOWN])
            what = f"hold {held!r}" if holders else f"offer {action!r}"
            raise BadRequestError(f"{where}.node: {len(choice)} nodes {what}; say which: {names}")
        return min(choice, key=lambda node: (node.health.value != "healthy", node.slug))


def _one_shard(holders: Sequence[NodeRecord], collection: object) -> bool:
    """Whether they hold the same documents: what one of them does reaches the others."""
    shards = {
        info.shard for node in holders for info in node.collections if info.name == collection
    }
    return len(shards) == 1
