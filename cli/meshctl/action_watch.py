"""What becomes of actions: as the history tells, and as they tell of themselves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from cli.meshctl.action_outcome import goes_on
from cli.output import NOTHING
from mesh.errors import MeshError
from mesh.types import ActionState

if TYPE_CHECKING:
    from mesh import MeshClient, messages

LOOK_S = 1.0
_PAGE = 1000


class Watch:
    """One action, or all parts of a fan-out: where each stands, and how far it is."""

    def __init__(
        self, id_: str, changed: Callable[[], None], *, parts: Iterable[str] | None = None
    ) -> None:
        """Args:
        id_: Of the action or fan-out.
        changed: Called whenever there may be something new to show.
        parts: Ids of a fan-out's parts, as far as they are to be waited for; None: it is none.
        """
        self.records: dict[str, messages.HistoryRecord] = {}
        """By id of the part."""
        self.progress: dict[str, messages.ActionProgress] = {}
        self._id = id_
        self._changed = changed
        self._awaited = {id_} if parts is None else set(parts)
        self._prefix = "" if parts is None else f"{id_}."
        self._given_up: set[str] = set()

    def state(self, id_: str) -> str:
        """In a word."""
        record = self.records.get(id_)
        return NOTHING if record is None else record.state.value

    def note(self, id_: str) -> str:
        """How far it is; empty: it has not told, or has ended."""
        told, record = self.progress.get(id_), self.records.get(id_)
        if told is None or (record is not None and not goes_on(record)):
            return ""
        return progress_text(told)

    def _wanted(self, id_: str) -> bool:
        return id_ == self._id or bool(self._prefix and id_.startswith(self._prefix))

    @asynccontextmanager
    async def hearing(self, client: MeshClient) -> AsyncIterator[None]:
        """While the context is open, what actions tell of themselves is noted."""
        from mesh import bootstrap

        def heard(_node: str, told: messages.ActionProgress) -> None:
            if self._wanted(told.id):
                self.progress[told.id] = told
                self._changed()

        async with bootstrap.hear_progress(client, heard):
            yield

    async def until_ended(self, client: MeshClient) -> None:
        """Follow all that are awaited until they have ended."""
        changes = await self._following(client)
        try:
            await self._until_over(client, changes)
        finally:
            await changes.aclose()

    async def for_ever(self, client: MeshClient) -> None:
        """Follow until cancelled."""
        async for record in await self._following(client):
            self._note([record])

    async def _following(self, client: MeshClient) -> AsyncGenerator[messages.HistoryRecord, None]:
        """What changes from now on; how it stands now is noted."""
        one, several = ("", self._prefix) if self._prefix else (self._id, "")
        page = await client.history(action_id=one, id_prefix=several, limit=_PAGE)
        self._note(page.actions)
        return client.follow_actions(action_id=one, id_prefix=several, after=page.sequence)

    async def _until_over(
        self, client: MeshClient, changes: AsyncIterator[messages.HistoryRecord]
    ) -> None:
        import asyncio

        following = asyncio.ensure_future(anext(changes))
        try:
            while not self._over():
                done, _ = await asyncio.wait({following}, timeout=LOOK_S)
                if done:
                    self._note([following.result()])
                    following = asyncio.ensure_future(anext(changes))
                else:
                    await self._look_for_given_up(client)
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration, MeshError):
                await following

    def _note(self, records: Iterable[messages.HistoryRecord]) -> None:
        for record in records:
            if self._wanted(record.id):
                self.records[record.id] = record
                self._given_up.discard(record.id)
        self._changed()

    def _over(self) -> bool:
        return all(
            id_ in self.records
            and not goes_on(self.records[id_])
            and (id_ in self._given_up or not _may_be_repeated(self.records[id_]))
            for id_ in self._awaited
        )

    async def _look_for_given_up(self, client: MeshClient) -> None:
        """The queue tries again what failed in a way that may pass: it is over only when the queue
        does not hold it any more.
        """
        for id_ in self._awaited:
            record = self.records.get(id_)
            if record is None or goes_on(record) or not _may_be_repeated(record):
                continue
            with suppress(MeshError):
                first = (await client.queue(record.node, 1)).actions
                if not any(waiting.id == id_ for waiting in first):
                    self._given_up.add(id_)


def _may_be_repeated(record: messages.HistoryRecord) -> bool:
    return (
        record.mode == "queue"
        and record.state is ActionState.FAILED
        and record.error is not None
        and record.error.retryable
    )


def progress_text(told: messages.ActionProgress) -> str:
    """`40 % loading`."""
    share = "" if told.fraction is None else f"{told.fraction:.0%}"
    return " ".join(filter(None, [share, told.note]))
