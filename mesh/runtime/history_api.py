"""What a client may ask the masters about actions: what became of them, and what nodes offer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec
import structlog

from mesh.core.backoff import Backoff, BackoffPolicy
from mesh.errors import InvalidError, MeshError
from mesh.runtime.caller import Caller
from mesh.types import ActionState
from mesh.wire import codec
from mesh.wire.messages import (
    ActionCheck,
    ActionShow,
    ActionsQuery,
    ActionStories,
    HistoryPage,
    HistoryQuery,
    HistoryRecord,
    OfferedActions,
)

log = structlog.get_logger()

_TIMEOUT_S = 5.0
_HISTORY_TIMEOUT_S = 10.0
_CHECK_TIMEOUT_S = 1.0
_LIST_AT_ONCE = 500
_MOST_LAST = 1000
_POLL_S = 0.5
_RETRY = BackoffPolicy(first_s=0.1, limit_s=2.0)


class HistoryApi:
    """The part of `MeshClient` that asks about actions. Every method raises UnavailableError or
    DeadlineExceededError where no master answers.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def history(
        self,
        *,
        action_id: str = "",
        id_prefix: str = "",
        node: str = "",
        action: str = "",
        caller: str = "",
        state: ActionState | None = None,
        since: int = 0,
        until: int = 0,
        after: int | None = None,
        limit: int = 50,
        offset: int = 0,
    ) -> HistoryPage:
        """The action history, newest first: each action in its latest state.

        Args:
            action_id: Of one action, on whichever nodes.
            id_prefix: Ids that begin so.
            node: Slug.
            action: Its name.
            caller: Who asked for it.
            state: Its latest.
            since: Accepted not before, unix ms.
            until: Accepted before, unix ms; 0: no end.
            after: Only what changed after this `HistoryPage.sequence`, oldest change first.
            limit: 1..1000.
            offset: How many to pass over.

        Raises:
            InvalidError: A value that cannot be.
        """
        query = {
            "action_id": action_id,
            "id_prefix": id_prefix,
            "node": node,
            "action": action,
            "caller": caller,
            "state": state,
            "since": since,
            "until": until,
            "after": after,
            "limit": limit,
            "offset": offset,
        }
        return await self._history(codec.convert(query, HistoryQuery))

    async def action(self, action_id: str) -> ActionStories:
        """Where an action stands, and every attempt of it; of a fan-out: each of its parts.

        Raises:
            NotFoundError: The masters know, or remember, no such action.
            InvalidError: That is no id.
        """
        request = ActionShow(action_id=action_id)
        return await self._caller.master("action-show", request, ActionStories, _HISTORY_TIMEOUT_S)

    async def follow_actions(
        self,
        *,
        action_id: str = "",
        id_prefix: str = "",
        node: str = "",
        action: str = "",
        caller: str = "",
        state: ActionState | None = None,
        since: int = 0,
        until: int = 0,
        after: int | None = None,
        last: int = 0,
        poll_s: float = _POLL_S,
    ) -> AsyncGenerator[HistoryRecord, None]:
        """Actions as they change, each in its latest state, without end: no change is missed, or
        told twice, though broker and masters may come and go meanwhile. What changes several
        times within `poll_s` is told of once.

        Args:
            action_id: As for `history`, like those that follow.
            id_prefix: As there.
            node: As there.
            action: As there.
            caller: As there.
            state: As there.
            since: As there.
            until: As there.
            after: Begin after this `HistoryPage.sequence`; None: now.
            last: How many of the newest to begin with, 0..1000; where `after` is not given.
            poll_s: How often the masters are asked, seconds.

        Raises:
            InvalidError: A value that cannot be.
            UnavailableError, DeadlineExceededError: No master answers at the start.
        """
        if not 0 <= last <= _MOST_LAST:
            message = f"must be 0 to {_MOST_LAST}"
            raise InvalidError(f"last: {message}", fields={"last": [message]})
        filters = {
            "action_id": action_id,
            "id_prefix": id_prefix,
            "node": node,
            "action": action,
            "caller": caller,
            "state": state,
            "since": since,
            "until": until,
        }
        query = codec.convert(filters | {"after": after, "limit": _LIST_AT_ONCE}, HistoryQuery)
        begun: set[tuple[str, str, int, str]] = set()
        if after is None:
            page = await self._history(msgspec.structs.replace(query, limit=max(last, 1)))
            after = page.sequence
            for record in reversed(page.actions[:last]):
                begun.add(_step(record))
                yield record
        while True:
            page = await self._changes(msgspec.structs.replace(query, after=after))
            after = page.sequence
            for record in page.actions:
                if _step(record) not in begun:
                    yield record
            if len(page.actions) < _LIST_AT_ONCE:
                await asyncio.sleep(poll_s)

    async def actions(self, node: str = "", action: str = "") -> OfferedActions:
        """What nodes offer, as their authors declared it; with parameters as JSON Schema.

        Raises:
            NotFoundError: `node` (slug or id) is none.
        """
        query = ActionsQuery(node=node, action=action)
        return await self._caller.master("actions", query, OfferedActions, _TIMEOUT_S)

    async def check_action(
        self,
        action: str,
        params: Mapping[str, Any] | None = None,
        *,
        node: str,
        id: str = "",  # noqa: A002
        digest: str = "",
    ) -> None:
        """Whether a node could run this, as far as the masters know; nothing is run.

        Args:
            action: Its name.
            params: JSON object.
            node: Slug or id.
            id: Idempotency key that it would have.
            digest: Of action and parameters, where the caller has it already.

        Raises:
            BadRequestError: The node offers no such action.
            NotFoundError: No such node.
            InvalidError: Parameters that do not fit.
            ConflictError: The id was used with other parameters.
        """
        request = ActionCheck(
            action=action, node=node, params=dict(params or {}), action_id=id, digest=digest
        )
        await self._caller.master("action-check", request, type(None), _CHECK_TIMEOUT_S)

    async def _history(self, query: HistoryQuery) -> HistoryPage:
        return await self._caller.master("history", query, HistoryPage, _HISTORY_TIMEOUT_S)

    async def _changes(self, query: HistoryQuery) -> HistoryPage:
        """Once a master can be asked."""
        backoff = Backoff(_RETRY)
        while True:
            try:
                return await self._history(query)
            except MeshError as error:
                if not error.retryable:
                    raise
                log.info("mesh.history.following_waits", error=str(error))
            await asyncio.sleep(backoff.died(0.0))


def _step(record: HistoryRecord) -> tuple[str, str, int, str]:
    return (record.id, record.node, record.attempt, record.state)
