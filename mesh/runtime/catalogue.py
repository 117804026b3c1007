"""What nodes offer, and whether an action could be run: checked before anything is sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mesh.core.targets import check_id
from mesh.errors import BadRequestError, InvalidError
from mesh.ports import Check, CompileSchema, DescriptionStore, Verb
from mesh.runtime.action_records import check_same, fingerprint_of
from mesh.runtime.descriptions import Descriptions
from mesh.runtime.parts import Surroundings
from mesh.wire import codec
from mesh.wire.messages import (
    ActionCheck,
    ActionDescription,
    ActionInfo,
    ActionRequest,
    ActionsQuery,
    HistoryRecord,
    NodeRecord,
    OfferedAction,
    OfferedActions,
    Request,
)

_MOST_PARAMS_BYTES = 256 * 1024
"""Longer ones are left to the node, in the queue too: others wait meanwhile, for a second and more
where 1 MB is all wrong.
"""
_TOLD = 3
"""Misfits in the message; the fields name them all."""

Known = Callable[[str, str], Awaitable[HistoryRecord | None]]
"""What is remembered of an action, by its id, on a node; raises MeshError at most."""


class Catalogue:
    """Answers `actions` and `action-check`; a part of a master."""

    def __init__(
        self,
        around: Surroundings,
        store: DescriptionStore,
        compile_schema: CompileSchema,
        *,
        known: Known,
    ) -> None:
        """Args:
        around: Of the master.
        store: Open.
        compile_schema: Makes checks of parameters.
        known: For ids that are used again.
        """
        self._around = around
        self._membership = around.membership
        self._known = known
        self._descriptions = Descriptions(around, store, compile_schema)
        self.verbs: Mapping[str, tuple[type[Request], Verb]] = {
            "actions": (ActionsQuery, self._offered),
            "action-check": (ActionCheck, self._checked),
        }

    async def start(self) -> None:
        """Look for news from now on."""
        self._around.background.repeat("catalogue", self._descriptions.round)

    async def stop(self) -> None:
        """The background is the master's to end."""

    def lead(self, epoch: int) -> None:
        """Every master knows it all."""

    def follow(self) -> None:
        """As `lead`."""

    # -- for other parts ---------------------------------------------------------------------------

    async def describe(self, node: str, action: str) -> ActionDescription | None:
        """An action of a node, by slug or id; None: not known, or not known yet.

        Raises:
            NotFoundError: No such node.
            UnavailableError: The database is away.
        """
        record = await self._membership.find(node)
        info = _info(record, action)
        if info is None:
            return None
        await self._descriptions.learn(record)
        return self._descriptions.get(record.slug, info)

    async def check(self, node: str, action: str, params: Mapping[str, Any]) -> None:
        """Whether a node, by slug or id, could run this. Of what is not known yet nothing is
        refused: the node checks it as well.

        Raises:
            NotFoundError: No such node.
            BadRequestError: It offers no such action.
            InvalidError: Parameters that do not fit; `fields` are named `params.…`.
            UnavailableError: The database is away.
        """
        record = await self._membership.find(node)
        info = _info(record, action)
        if info is None:
            if record.actions:
                raise BadRequestError(
                    f"unknown action {action[:80]!r}; {record.slug} offers: "
                    + ", ".join(sorted(one.name for one in record.actions))
                )
            return  # it has never been there
        await self._descriptions.learn(record)
        check = self._descriptions.check(record.slug, info)
        if check is not None and len(codec.encode(params)) <= _MOST_PARAMS_BYTES:
            _fit(action, params, check)

    # -- verbs -------------------------------------------------------------------------------------

    async def _checked(self, asked: ActionCheck, _caller: str) -> None:
        """Raises: as `check`; ConflictError: the id stands for something else there."""
        await self.check(asked.node, asked.action, asked.params)
        if not asked.action_id:
            return
        check_id(asked.action_id)
        slug = (await self._membership.find(asked.node)).slug
        request = ActionRequest(id=asked.action_id, action=asked.action, params=asked.params)
        known = await self._known(asked.action_id, slug)
        if known is not None and known.digest:
            check_same(request, asked.digest or fingerprint_of(request).digest, known.digest)

    async def _offered(self, query: ActionsQuery, _caller: str) -> OfferedActions:
        """Raises: NotFoundError."""
        if query.node:
            records = [await self._membership.find(query.node)]
        else:
            records = self._membership.view.records()
        await self._descriptions.learn(*records)
        offered: dict[bytes, OfferedAction] = {}
        for record in records:
            for info in record.actions:
                if query.action in ("", info.name):
                    action = self._descriptions.get(record.slug, info) or _told(info)
                    alike = offered.setdefault(
                        codec.encode(action), OfferedAction(nodes=[], action=action)
                    )
                    alike.nodes.append(record.slug)
        return OfferedActions(actions=sorted(offered.values(), key=_place))


def _info(record: NodeRecord, action: str) -> ActionInfo | None:
    return next((one for one in record.actions if one.name == action), None)


def _told(info: ActionInfo) -> ActionDescription:
    """As far as its node's heartbeat says."""
    return ActionDescription(
        name=info.name,
        description=info.description,
        idempotent=info.idempotent,
        builtin=info.builtin,
    )


def _place(offered: OfferedAction) -> tuple[bool, str, list[str]]:
    return (not offered.action.builtin, offered.action.name, offered.nodes)


def _fit(action: str, params: Mapping[str, Any], check: Check) -> None:
    """Raises InvalidError, as the node would."""
    misfits = check(params)
    if misfits:
        told = [f"{path or 'body'}: {texts[0]}" for path, texts in misfits.items()]
        more = f" (and {len(told) - _TOLD} more)" if len(told) > _TOLD else ""
        raise InvalidError(
            f"params of {action}: {'; '.join(told[:_TOLD])}{more}",
            fields={
                f"params.{path}" if path else "params": texts for path, texts in misfits.items()
            },
        )
