"""The masters' memory of actions: the index of the history, what is asked of it, and how long it
reaches back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import structlog

from mesh.core.targets import check_id
from mesh.errors import MeshError, NotFoundError, UnavailableError
from mesh.ports import ActionIndex, History, Verb
from mesh.runtime.history_index import HistoryIndex
from mesh.runtime.parts import Surroundings
from mesh.wire.messages import (
    ActionShow,
    ActionStories,
    ActionStory,
    HistoryPage,
    HistoryQuery,
    HistoryRecord,
    Request,
)

log = structlog.get_logger()

_FRESH_WITHIN_S = 2.0
_PRUNE_EVERY_S = 600.0
_PRUNED_AT_ONCE = 500
_PRUNE_PAUSE_S = 0.05
"""Between two transactions: others want to write as well."""
_DAY_MS = 24 * 3600 * 1000

FindQueued = Callable[[str, str], Awaitable[HistoryRecord | None]]
"""An action that waits in the queue, by its id, of a node, or (empty) of any."""


class ActionMemory:
    """Answers `history` and `action-show`; a part of a master."""

    def __init__(
        self,
        around: Surroundings,
        index: ActionIndex,
        history: History,
        *,
        find_queued: FindQueued | None = None,
        prune_every_s: float = _PRUNE_EVERY_S,
    ) -> None:
        """Args:
        around: Of the master.
        index: Open.
        history: The stream it follows.
        find_queued: Knows what was put into the queue a moment ago; raises MeshError at most.
        prune_every_s: How often the leader forgets what is too old or too much.
        """
        self._around = around
        self._clock = around.clock
        self._config = around.config.actions
        self._index = index
        self._history = history
        self._reader = HistoryIndex(around.bus, history, index, around.clock, around.background)
        self._find_queued = find_queued
        self._prune_every_s = prune_every_s
        self.verbs: Mapping[str, tuple[type[Request], Verb]] = {
            "history": (HistoryQuery, self._page),
            "action-show": (ActionShow, self._show),
        }

    @property
    def unstorable(self) -> int:
        """Records that the database cannot hold, passed over."""
        return self._reader.unstorable

    async def start(self) -> None:
        """Read the stream from now on."""
        await self._reader.start()
        self._around.background.repeat("history-prune", self._prune_round)

    async def stop(self) -> None:
        """Read no more."""
        await self._reader.stop()

    def lead(self, epoch: int) -> None:
        """Every master answers and reads; who prunes asks whether it leads."""

    def follow(self) -> None:
        """As `lead`."""

    # -- asking ------------------------------------------------------------------------------------

    async def _page(self, query: HistoryQuery, _caller: str) -> HistoryPage:
        """Whoever has just seen an action end finds it here."""
        await self._freshen()
        page = await self._index.page(query)
        if query.action_id and query.after is None and not page.total:
            queued = await self._queued(query.action_id, query.node)
            if queued is not None and _matches(query, queued):
                page = HistoryPage(actions=[queued], total=1, sequence=page.sequence)
        return page

    async def _show(self, asked: ActionShow, _caller: str) -> ActionStories:
        """Raises: InvalidError, NotFoundError."""
        check_id(asked.action_id)
        await self._freshen()
        stories = await self._index.stories(asked.action_id)
        if not stories:
            queued = await self._queued(asked.action_id, "")
            if queued is None:
                raise NotFoundError(f"no action {asked.action_id!r} in the history")
            stories = [ActionStory(action=queued, attempts=[])]
        return ActionStories(id=asked.action_id, stories=stories)

    async def known(self, action_id: str, node: str) -> HistoryRecord | None:
        """What the history, or else the queue, has of an action of a node; where the history cannot
        be read it may lag.

        Raises:
            UnavailableError: The database is away.
        """
        await self._freshen()
        page = await self._index.page(HistoryQuery(action_id=action_id, node=node, limit=1))
        return page.actions[0] if page.actions else await self._queued(action_id, node)

    async def known_now(self, action_id: str, node: str) -> HistoryRecord | None:
        """As `known`, and nothing that is stored lags: None is that nobody has begun it.

        Raises:
            UnavailableError, DeadlineExceededError: That cannot be told.
        """
        newest = await self._history.last_sequence(timeout_s=_FRESH_WITHIN_S)
        if not await self._reader.reach(newest, timeout_s=_FRESH_WITHIN_S):
            raise UnavailableError("the index of the history is behind")
        return await self.known(action_id, node)

    async def _queued(self, action_id: str, node: str) -> HistoryRecord | None:
        if self._find_queued is None:
            return None
        try:
            return await self._find_queued(action_id, node)
        except MeshError as error:
            log.warning("mesh.history.queue_unknown", error=str(error))
            return None

    async def _freshen(self) -> None:
        try:
            newest = await self._history.last_sequence(timeout_s=_FRESH_WITHIN_S)
            await self._reader.reach(newest, timeout_s=_FRESH_WITHIN_S)
        except MeshError as error:  # what is indexed can be read without the stream
            log.warning("mesh.history.freshness_unknown", error=str(error))

    # -- forgetting --------------------------------------------------------------------------------

    async def _prune_round(self) -> None:
        await self._clock.sleep(self._prune_every_s)
        if not self._around.leads():
            return
        try:
            forgotten = await self._prune()
        except MeshError as error:
            log.warning("mesh.history.prune_failed", error=str(error))
        else:
            if forgotten:
                log.info("mesh.history.pruned", actions=forgotten)

    async def _prune(self) -> int:
        """In small transactions, as long as this master leads."""
        before = self._clock.unix_ms() - round(self._config.history_days * _DAY_MS)
        forgotten = 0
        while self._around.leads():
            async with self._reader.writing:
                gone = await self._index.prune(
                    before=before, most_bytes=self._config.history_bytes, limit=_PRUNED_AT_ONCE
                )
            forgotten += gone
            if gone < _PRUNED_AT_ONCE:
                break
            await self._clock.sleep(_PRUNE_PAUSE_S)
        return forgotten


def _matches(query: HistoryQuery, record: HistoryRecord) -> bool:
    """As the index would say."""
    at = record.accepted_at or record.at
    return (
        query.node in ("", record.node)
        and query.action in ("", record.action)
        and query.caller in ("", record.caller)
        and query.state in (None, record.state)
        and record.id.startswith(query.id_prefix)
        and query.since <= at
        and (not query.until or at < query.until)
        and not query.offset
    )
