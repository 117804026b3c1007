"""Making a copy of a shard equal to another node's: page by page, what differs and nothing else.

The place is kept after every page, so a crash costs a page. What the source writes meanwhile does
no harm: the copy then replays the log from where the source stood when this began.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import msgspec
import structlog

from mesh.core.replication import Position
from mesh.errors import ConflictError, InvalidError
from mesh.ports import Bus, Census, Documents, ReplicaState
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    AppliedPage,
    CollectionState,
    CopyPlace,
    CopyState,
    DocumentsPage,
    ExportQuery,
    IndexPage,
)

T = TypeVar("T")

log = structlog.get_logger()

_WITHIN_S = 20.0
_PAGE = 1000

Progress = Callable[[float | None, str], None]
"""Told the share that is done (0..1; None: not known), and where it is."""


class Copied(NamedTuple):
    """What a copy took."""

    position: Position
    """Of the source when it began."""
    collections: int
    compared: int
    fetched: int
    deleted: int


class Peer:
    """Another replica, to ask."""

    def __init__(self, bus: Bus, *, me: str, shard: str) -> None:
        self._bus = bus
        self._me = me
        self._shard = shard

    async def ask(
        self, node: str, query: ExportQuery, kind: type[T], *, timeout_s: float = _WITHIN_S
    ) -> T:
        """Raises MeshError: it does not answer, or refuses."""
        query = msgspec.structs.replace(query, shard=self._shard)
        reply = await self._bus.request(
            subjects.rpc(node, "export", self._me),
            codec.encode(query),
            responder=node,
            timeout_s=timeout_s,
        )
        return codec.result_of(reply, kind)


class Syncing:
    """Copies from other replicas; one at a time, and nothing else may write meanwhile."""

    def __init__(
        self,
        peer: Peer,
        shard: str,
        *,
        documents: Documents,
        state: ReplicaState,
        changed: Callable[[str], None],
    ) -> None:
        self._peer = peer
        self._shard = shard
        self._documents = documents
        self._state = state
        self._changed = changed

    async def run(
        self,
        source: str,
        scope: str = "",
        *,
        fit: Callable[[Position], Awaitable[bool]],
        begun: Callable[[Position], Awaitable[None]],
        progress: Progress = lambda _share, _note: None,
    ) -> Copied:
        """Copy all collections, or one, and go on where an earlier copy of the same was cut off.

        Args:
            source: The node to copy.
            scope: A collection; empty: all.
            fit: Whether the log has all that came after a place; an earlier copy is gone on with
                only then.
            begun: Told where the source stands, before anything is changed; may refuse.
            progress: Told how far it is.

        Raises:
            ConflictError: The source has no place in the order of writes itself.
            InvalidError: It has no such collection.
            MeshError: It went away; asked again, this goes on.
        """
        there = await self._peer.ask(source, ExportQuery(what="state"), CopyState)
        if not there.sequence:
            raise ConflictError(f"{source} has no place in the order of this shard's writes yet")
        wanted = [one for one in there.collections if not scope or one.name == scope]
        if scope and not wanted:
            message = f"{source} has no collection {scope[:128]!r}"
            raise InvalidError(message, fields={"collection": [message]})
        place = await self._state.place(self._shard)
        if (
            place is None
            or (place.source, place.scope, place.log) != (source, scope, there.log)
            or not await fit(Position(place.log, place.sequence))
        ):
            place = CopyPlace(source=source, scope=scope, log=there.log, sequence=there.sequence)
        elif place.done or place.collection:
            log.info("mesh.sync.resumed", source=source, compared=place.compared)
        log.info("mesh.sync.begun", source=source, collections=len(wanted))
        await begun(Position(place.log, place.sequence))
        await self._state.keep_place(self._shard, place)
        total = sum(one.rows for one in wanted)
        for one in wanted:
            if one.name not in place.done:
                place = await self._collection(one, place, total, progress)
        if not scope:
            await self._drop_others({one.name for one in wanted})
            await self._applied(source)  # whoever moves to where the source was ends the copy
        else:
            await self._state.keep_place(self._shard, None)
        log.info("mesh.sync.done", source=source, fetched=place.fetched, deleted=place.deleted)
        return Copied(
            Position(place.log, place.sequence),
            len(wanted),
            place.compared,
            place.fetched,
            place.deleted,
        )

    async def _collection(
        self, one: CollectionState, place: CopyPlace, total: int, progress: Progress
    ) -> CopyPlace:
        if place.collection != one.name:
            place = msgspec.structs.replace(place, collection=one.name, after="")
        mine = self._documents.columns(one.name)
        if not mine.items() <= one.columns.items():
            # It was never a copy of that one. Columns cannot be taken away.
            place = msgspec.structs.replace(place, after="")
            await self._state.keep_place(self._shard, place)
            await self._documents.drop(one.name)
        await self._documents.replace(one.name, columns=one.columns)
        census = await self._documents.census(one.name)
        more = True
        while more:
            page = await self._page(one.name, place)
            more = page.more and bool(page.ids)
            place = await self._level(one.name, census, page, place, last=not more)
            progress(min(1.0, place.compared / total) if total else None, one.name)
            self._changed(one.name)
        place = msgspec.structs.replace(
            place, collection="", after="", done=[*place.done, one.name]
        )
        await self._state.keep_place(self._shard, place)
        return place

    async def _page(self, collection: str, place: CopyPlace) -> IndexPage:
        query = ExportQuery(
            what="index",
            collection=collection,
            after=place.after,
            since=place.sequence,
            limit=_PAGE,
        )
        try:
            return await self._peer.ask(place.source, query, IndexPage)
        except InvalidError:
            return IndexPage()  # dropped meanwhile, as the log will tell

    async def _level(
        self, collection: str, census: Census, page: IndexPage, place: CopyPlace, *, last: bool
    ) -> CopyPlace:
        """Make one page's span of ids equal to the source's."""
        theirs = dict(zip(page.ids, page.hashes, strict=True))
        until = None if last else page.ids[-1]
        mine = _span(census, place.after, until)
        differing = [name for name, content in theirs.items() if mine.get(name) != content]
        surplus = [name for name in mine if name not in theirs]
        if surplus:
            await self._documents.replace(collection, deletes=surplus)
        fetched = await self._fetch(place.source, collection, differing)
        place = msgspec.structs.replace(
            place,
            after=page.ids[-1] if page.ids else place.after,
            compared=place.compared + len(theirs),
            fetched=place.fetched + fetched,
            deleted=place.deleted + len(surplus),
        )
        await self._state.keep_place(self._shard, place)
        return place

    async def _fetch(self, source: str, collection: str, ids: list[str]) -> int:
        fetched = 0
        while ids:
            query = ExportQuery(what="documents", collection=collection, ids=ids)
            try:
                page = await self._peer.ask(source, query, DocumentsPage)
            except InvalidError:
                return fetched
            if page.documents:
                await self._documents.replace(collection, puts=page.documents)
            fetched += len(page.documents)
            ids = ids[max(1, page.looked) :]
        return fetched

    async def _drop_others(self, wanted: set[str]) -> None:
        for info in self._documents.collections():
            if info.name not in wanted:
                await self._documents.drop(info.name)
                self._changed(info.name)

    async def _applied(self, source: str) -> None:
        """What became of actions: whoever asks for one again gets the same answer here."""
        after, more = "", True
        while more:
            query = ExportQuery(what="applied", after=after, limit=_PAGE)
            page = await self._peer.ask(source, query, AppliedPage)
            if page.writes:
                await self._state.remember(page.writes)
                after = page.writes[-1].id
            more = page.more and bool(page.writes)


def _span(census: Census, after: str, until: str | None) -> dict[str, str]:
    """Ids and hashes between the two; `until` is in it, None: to the end."""
    found: dict[str, str] = {}
    while page := census.page(after, _PAGE):
        for name, content in page:
            if until is not None and name > until:
                return found
            found[name] = content
        after = page[-1][0]
    return found
