"""What a client does with actions: run one now or once its node is there, on one node or on
several; stop it, try it again, see what waits.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec
import structlog
from uuid_utils import uuid7

from mesh.config import MeshConfig
from mesh.core import targets
from mesh.core.route_table import RouteTable
from mesh.errors import (
    BadRequestError,
    ConflictError,
    InvalidError,
    MeshError,
    NotFoundError,
    UnavailableError,
)
from mesh.ports import Clock, QueueDoor
from mesh.runtime.action_records import fingerprint_of
from mesh.runtime.caller import Caller
from mesh.runtime.fan_out import OnFailure, fan_out
from mesh.runtime.own_writes import OwnWrite, own_write
from mesh.runtime.registry_api import RegistryApi
from mesh.runtime.routes import Routes
from mesh.types import Health, Status
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    ActionNamed,
    ActionRequest,
    ActionResult,
    FanOutItem,
    FanOutResult,
    HistoryRecord,
    Queued,
    QueueItem,
    QueueList,
    QueueQuery,
)

log = structlog.get_logger()

T = TypeVar("T")

_CHECK_S, _CHECK_MOST_S = 1.0, 5.0
"""For as many as are asked at once; for all."""
_CHECKS_AT_ONCE = 16
_PUT_S = 5.0
_STEER_S = 10.0
_DAY_S = 24 * 3600.0
_MOST_EXPIRES_S = 3650 * _DAY_S
_LISTED_S = 0.25
"""A new shard is in the table by then, or with one of the next heartbeats."""
_REFUSALS = (BadRequestError, ConflictError, InvalidError, NotFoundError)


class ActionsApi(RegistryApi):
    """The part of `MeshClient` that has to do with actions."""

    def __init__(
        self,
        caller: Caller,
        routes: Routes,
        queue: QueueDoor | None,
        *,
        identity: str,
        config: MeshConfig,
        clock: Clock,
        wrote: Callable[[str, OwnWrite], None] | None = None,
    ) -> None:
        """Args:
        caller: Sends.
        routes: Says who is there.
        queue: Keeps what cannot be sent now; None: there is none.
        identity: Whom the broker knows us as.
        config: Defaults.
        clock: Time.
        wrote: Told of every write that was sent, and to which node, when its outcome is there or
            not known. None: nobody is told.
        """
        super().__init__(caller)
        self._wrote = wrote
        self._routes = routes
        self._queue = queue
        self._identity = identity
        self._config = config
        self._clock = clock
        self._hopeful = (routes.table, routes.table)

    # -- now ---------------------------------------------------------------------------------------

    async def run_action(
        self,
        action: str,
        params: Mapping[str, Any] | None = None,
        *,
        node: str | None = None,
        id: str | None = None,  # noqa: A002
        timeout_s: float | None = None,
        retry: int = 0,
        on_behalf: str = "",
    ) -> ActionResult:
        """Run an action on a node and wait for its outcome.

        Args:
            action: Its name.
            params: JSON object; checked by the node against the action's type.
            node: Slug; None where, of all registered nodes, exactly one holds the collection in
                `params` or, if none does, exactly one offers the action. The replicas of a shard
                count as one.
            id: Idempotency key: the same id runs once, however often it is asked.
            timeout_s: How long to wait; the action itself goes on.
            retry: If its last attempt was this one and ended badly (`MeshError.attempt`), make
                another one; else its outcome is answered as ever.
            on_behalf: Whom a gateway, master or bridge speaks for: history names them instead of
                the caller. Nodes ignore it from anybody else.

        Raises:
            BadRequestError: Unknown action, or not exactly one node qualifies.
            NotFoundError: Unknown node.
            InvalidError: Parameters that do not fit.
            ConflictError: The id was used with other parameters.
            ActionFailedError: It ran and failed.
            CancelledActionError: Somebody stopped it.
            UnavailableError, DeadlineExceededError: It may or may not have run; ask again with
                the same id.
        """
        subjects.token(action, "action")
        body = dict(params or {})
        wait_s = self._action_timeout_s(timeout_s)
        began = self._clock.monotonic()
        target = await self._chosen(
            lambda: targets.one(self._routes.table, action, body, node), wait_s
        )
        request = ActionRequest(
            id=id or str(uuid7()), action=action, params=body, retry=retry, on_behalf=on_behalf
        )
        if self._routes.table.refusal(target):  # it cannot say itself that it would refuse this
            await self._check(action, body, {target: request.id})
        left_s = self._left_s(began, wait_s)
        return await self._act(target, request, left_s)

    async def _act(self, node: str, request: ActionRequest, timeout_s: float) -> ActionResult:
        done: ActionResult | None = None
        refused = False
        try:
            done = await self._caller.action(node, request.action, request, ActionResult, timeout_s)
        except _REFUSALS:
            refused = True
            raise
        finally:
            write = None if refused else own_write(request, done)
            if write is not None and self._wrote is not None:
                self._wrote(node, write)
        if write is not None and write.version is not None:
            await self._listed(node, write.collection, timeout_s)
        return done

    async def _listed(self, node: str, collection: str | None, timeout_s: float) -> None:
        """A write may make a shard. Searches go by the table: whoever wrote finds it from then on
        if the table has it, which takes masters some milliseconds.
        """

        def is_listed() -> bool:
            there = self._routes.table.node(node)
            return there is None or any(info.name == collection for info in there.collections)

        if collection is not None and self._routes.table.epoch:  # else nobody would tell
            await self._routes.until(is_listed, min(timeout_s, _LISTED_S))

    # -- once its node is there --------------------------------------------------------------------

    async def queue_action(
        self,
        action: str,
        params: Mapping[str, Any] | None = None,
        *,
        node: str | None = None,
        id: str | None = None,  # noqa: A002
        expires_s: float | None = None,
        on_behalf: str = "",
        check: bool = True,
    ) -> Queued:
        """Have the broker keep an action until its node has run it; a node runs what waits for it
        in the order in which it was queued, one after another. When this returns, it is stored.

        Args:
            action: Its name.
            params: JSON object.
            node: As in `run_action`, but whether the node is there does not matter.
            id: Idempotency key: the same id runs once, however often it is asked.
            expires_s: After so many seconds it is no longer begun; None: `actions.queue_days`.
            on_behalf: As in `run_action`.
            check: Have a master check it against what the node offers, if one answers within a
                second; else the node does, and what it refuses is a dead letter.

        Raises:
            BadRequestError: Unknown action, or not exactly one node qualifies.
            NotFoundError: Unknown node.
            InvalidError: Parameters that do not fit.
            ConflictError: The id was used with other parameters.
            UnavailableError: The queue is full or away; it may have been stored: ask again with
                the same id.
        """
        subjects.token(action, "action")
        body = dict(params or {})
        expires = self._expires(expires_s)
        target = await self._chosen(lambda: targets.one(self._all, action, body, node), _CHECK_S)
        item = _item(id or str(uuid7()), action, body, expires, on_behalf)
        targets.check_id(item.id)
        if check:
            await self._check(action, body, {target: item.id})
        return await self._put(target, item)

    async def fan_out(
        self,
        action: str,
        params: Mapping[str, Any] | None = None,
        *,
        nodes: Sequence[str] | None = None,
        all: bool = False,  # noqa: A002
        collection: str | None = None,
        id: str | None = None,  # noqa: A002
        timeout_s: float | None = None,
        parallel: int = 10,
        sequential: bool = False,
        on_failure: OnFailure = "continue",
        mode: Literal["sync", "queue"] = "sync",
        expires_s: float | None = None,
        on_behalf: str = "",
    ) -> FanOutResult:
        """Run an action on several nodes and wait for all of their outcomes: exactly one of
        `nodes`, `all` and `collection` says on which. A node that fails or is away is told of in
        its item of the result; whatever is raised was raised before anything was sent.

        Args:
            action: Its name.
            params: JSON object, the same for every node.
            nodes: Slugs; one that is named twice runs it once.
            all: Every registered, active node that offers the action.
            collection: Every node that holds it; of the replicas of a shard, one.
            id: Idempotency key: each node runs `<id>.<node>` once, however often it is asked.
            timeout_s: How long to wait for each node, from when it is asked.
            parallel: How many nodes are asked at a time.
            sequential: One after another, in the order of `nodes`, or of the slugs.
            on_failure: `stop`: once one has failed, no further node is asked; those that are left
                have an error of kind `skipped`. What runs already goes on.
            mode: `queue`: the broker keeps it for each node, as `queue_action` does; success is
                that it was stored.
            expires_s: Of `queue`, as in `queue_action`.
            on_behalf: As in `run_action`.

        Raises:
            InvalidError: Not exactly one of the three, an unknown collection, an id that is too
                long, parameters that do not fit.
            NotFoundError: Unknown node in `nodes`.
            BadRequestError: Nobody offers the action; or `index` by a collection that has several
                shards, which would store the same documents in each.
            ConflictError: The id was used with other parameters.
            UnavailableError: None of the nodes that offer it is active.
        """
        subjects.token(action, "action")
        if parallel < 1:
            message = "must be at least 1"
            raise InvalidError(f"parallel: {message}", fields={"parallel": [message]})
        wait_s = self._action_timeout_s(timeout_s)
        expires = self._expires(expires_s) if mode == "queue" else 0
        chosen = await self._chosen(
            lambda: targets.several(
                self._all if mode == "queue" else self._routes.table,
                action,
                nodes=nodes,
                all=all,
                collection=collection,
            ),
            wait_s,
        )
        body = dict(params or {})
        request = ActionRequest(
            id=id or str(uuid7()), action=action, params=body, on_behalf=on_behalf
        )
        ids = targets.ids(request.id, chosen)
        # Made into JSON once for all nodes, and before any of them is asked.
        encoded: Any = msgspec.Raw(codec.encode(body))
        request = msgspec.structs.replace(request, params=encoded)
        await self._check(action, body, {slug: ids[slug] for slug in chosen if not chosen[slug]})

        async def run(slug: str) -> FanOutItem:
            mine = msgspec.structs.replace(request, id=ids[slug])
            done = await self._act(slug, mine, wait_s)
            return FanOutItem(
                node=slug,
                success=True,
                id=mine.id,
                state=done.state,
                result=done.result,
                duration_ms=done.duration_ms,
            )

        async def keep(slug: str) -> FanOutItem:
            kept = await self._put(slug, _item(ids[slug], action, body, expires, on_behalf))
            return FanOutItem(node=slug, success=True, id=kept.id, state=kept.state)

        return await fan_out(
            request.id,
            action,
            chosen,
            run if mode == "sync" else keep,
            parallel=1 if sequential else parallel,
            on_failure=on_failure,
        )

    # -- what was asked for ------------------------------------------------------------------------

    async def cancel_action(
        self,
        id: str,  # noqa: A002
        *,
        node: str | None = None,
        on_behalf: str = "",
    ) -> HistoryRecord:
        """Take an action out of the queue, or have its node stop it. What it is now.

        Args:
            id: Of the action.
            node: Slug; None where only one node was to run it.
            on_behalf: As in `run_action`.

        Raises:
            NotFoundError: No such action.
            BadRequestError: Several nodes were to run it.
            ConflictError: It has ended.
            UnavailableError: No master answers; or its node does not, and may have begun it.
        """
        asked = ActionNamed(action_id=id, node=node or "", on_behalf=on_behalf)
        return await self._caller.master("action-cancel", asked, HistoryRecord, _STEER_S)

    async def retry_action(
        self,
        id: str,  # noqa: A002
        *,
        node: str | None = None,
        on_behalf: str = "",
    ) -> Queued:
        """Put an action that ended badly into the queue, for another attempt under the same id.

        Args:
            id: Of the action.
            node: Slug; None where only one node was to run it.
            on_behalf: As in `run_action`.

        Raises:
            NotFoundError: No such action.
            BadRequestError: Several nodes were to run it; or its parameters were not kept.
            ConflictError: It waits, runs, or has succeeded.
            UnavailableError: No master answers; or the queue is full or away.
        """
        asked = ActionNamed(action_id=id, node=node or "", on_behalf=on_behalf)
        return await self._caller.master("action-retry", asked, Queued, _STEER_S)

    async def queue(self, node: str = "", limit: int = 50, offset: int = 0) -> QueueList:
        """What waits, of a node (slug) or of all, in the order in which it will be done.

        Raises:
            UnavailableError: No master answers, or the queue is away.
        """
        asked = codec.convert({"node": node, "limit": limit, "offset": offset}, QueueQuery)
        return await self._caller.master("queue", asked, QueueList, _STEER_S)

    async def dead_letters(self, node: str = "", limit: int = 50, offset: int = 0) -> QueueList:
        """Queued actions that could not be done, of a node (slug) or of all, newest first.

        Raises:
            UnavailableError: No master answers, or they cannot be read.
        """
        asked = codec.convert({"node": node, "limit": limit, "offset": offset}, QueueQuery)
        return await self._caller.master("dead-letters", asked, QueueList, _STEER_S)

    # -- before anything is sent -------------------------------------------------------------------

    @property
    def _all(self) -> RouteTable:
        """The route table as if every node were there: the queue can wait."""
        table = self._routes.table
        if self._hopeful[0] is not table:
            there = {"status": Status.ACTIVE, "health": Health.HEALTHY}
            nodes = [msgspec.structs.replace(node, **there) for node in table.nodes.values()]
            hopeful = RouteTable(epoch=table.epoch, version=table.version, nodes=nodes)
            self._hopeful = table, hopeful
        return self._hopeful[1]

    async def _chosen(self, choose: Callable[[], T], within_s: float) -> T:
        """What `choose` gives, once more with the newest table if ours does not have it."""
        try:
            return choose()
        except (BadRequestError, NotFoundError, InvalidError) as error:
            if isinstance(error, InvalidError) and "collection" not in error.fields:
                raise
            await self._routes.learn(within_s)
            return choose()

    async def _check(self, action: str, params: Mapping[str, Any], ids: Mapping[str, str]) -> None:
        """Have a master check it for each node, by slug: the action's id there. Where none answers
        within a second, or a few for many nodes, the nodes do; a refusal that came counts.

        Raises:
            BadRequestError, ConflictError, InvalidError, NotFoundError
        """
        if not ids:
            return
        places = asyncio.Semaphore(_CHECKS_AT_ONCE)
        within_s = min(_CHECK_S * math.ceil(len(ids) / _CHECKS_AT_ONCE), _CHECK_MOST_S)

        async def one(node: str) -> None:
            async with places:
                await self.check_action(action, params, node=node, id=ids[node])

        tasks = [asyncio.ensure_future(one(node)) for node in ids]
        try:
            done, unknown = await asyncio.wait(tasks, timeout=within_s)
            for task in tasks:
                error = task.exception() if task in done else None
                if isinstance(error, _REFUSALS) or not isinstance(error, MeshError | None):
                    raise error
            if unknown:
                log.debug("mesh.client.unchecked", action=action, nodes=len(unknown))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _put(self, node: str, item: QueueItem) -> Queued:
        if self._queue is None:
            raise UnavailableError("this client has no queue")
        await self._queue.put(node, self._identity, item, timeout_s=_PUT_S)
        return Queued(id=item.id, node=node, action=item.action, expires=item.expires)

    def _expires(self, expires_s: float | None) -> int:
        """Unix ms."""
        if expires_s is None:
            expires_s = self._config.actions.queue_days * _DAY_S
        if not 0 < expires_s <= _MOST_EXPIRES_S:
            message = f"must be more than 0 and at most {_MOST_EXPIRES_S:.0f}"
            raise InvalidError(f"expires_s: {message}", fields={"expires_s": [message]})
        return self._clock.unix_ms() + round(expires_s * 1000)

    def _left_s(self, began: float, timeout_s: float) -> float:
        """Of a request that began then (monotonic s); never below 0."""
        return max(0.0, timeout_s - (self._clock.monotonic() - began))

    def _action_timeout_s(self, timeout_s: float | None) -> float:
        return self._config.routing.request_timeout_s if timeout_s is None else timeout_s


def _item(
    action_id: str, action: str, params: dict[str, Any], expires: int, on_behalf: str
) -> QueueItem:
    item = QueueItem(
        id=action_id, action=action, params=params, expires=expires, on_behalf=on_behalf
    )
    return msgspec.structs.replace(item, digest=fingerprint_of(item).digest)
