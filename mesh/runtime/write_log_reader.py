"""The masters' part in replication: they read the log for replicas, which may not, and tell how
equal the copies of a shard are. They decide nothing: the order is the log's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from mesh.errors import ForbiddenError, MeshError
from mesh.ports import Verb, WriteLogArchive
from mesh.runtime.neighbours import holds
from mesh.runtime.parts import Surroundings
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    CopyState,
    ExportQuery,
    ReplicaList,
    ReplicasQuery,
    Request,
    RouteNode,
    WritesPage,
    WritesQuery,
)

log = structlog.get_logger()

_PREPARE_AGAIN_S = 0.5
_READ_WITHIN_S = 5.0
_ASK_WITHIN_S = 10.0
_MASTER = "master"


class WriteLogReader:
    """A part of a master: verbs `writes` and `replicas`."""

    def __init__(self, around: Surroundings, archive: WriteLogArchive) -> None:
        self._bus = around.bus
        self._clock = around.clock
        self._background = around.background
        self._membership = around.membership
        self._archive = archive

    @property
    def verbs(self) -> Mapping[str, tuple[type[Request], Verb]]:
        return {
            "writes": (WritesQuery, self._writes),
            "replicas": (ReplicasQuery, self._replicas),
        }

    async def start(self) -> None:
        self._background.spawn("log of writes", self._prepare())

    async def _prepare(self) -> None:
        """JetStream needs a moment after a broker's start."""
        while True:
            try:
                return await self._archive.prepare()
            except MeshError as error:
                log.info("mesh.writes.awaited", error=str(error))
                await self._clock.sleep(_PREPARE_AGAIN_S)

    async def stop(self) -> None:
        pass

    def lead(self, epoch: int) -> None:
        pass

    def follow(self) -> None:
        pass

    async def _writes(self, query: WritesQuery, caller: str) -> WritesPage:
        """Raises:
        ForbiddenError: Whoever asks is no replica of that shard.
        UnavailableError: The log is away.
        """
        node = next((one for one in self._nodes() if one.slug == caller), None)
        if caller != _MASTER and (node is None or not holds(node, query.shard)):
            raise ForbiddenError(f"only replicas of shard {query.shard!r} may read its writes")
        return await self._archive.read(
            query.shard, query.after, query.limit, timeout_s=_READ_WITHIN_S
        )

    async def _replicas(self, query: ReplicasQuery, _caller: str) -> ReplicaList:
        asked = self._shared(query.shard)
        answers = await asyncio.gather(
            *(self._state(slug, shard, hashes=query.hashes) for slug, shard in asked)
        )
        return ReplicaList(
            copies=[one for one in answers if isinstance(one, CopyState)],
            away={
                slug: one
                for (slug, _), one in zip(asked, answers, strict=True)
                if isinstance(one, str)
            },
        )

    def _nodes(self) -> list[RouteNode]:
        return list(self._membership.view.routes())

    def _shared(self, shard: str) -> list[tuple[str, str]]:
        """Nodes and shards, of the shards that several hold or of the one that was named."""
        nodes = self._nodes()
        names = {shard} if shard else {one.shard for one in nodes if one.shard}
        found = []
        for name in sorted(names):
            holders = [(one.slug, name) for one in nodes if holds(one, name)]
            if shard or len(holders) > 1:
                found += holders
        return found

    async def _state(self, slug: str, shard: str, *, hashes: bool) -> CopyState | str:
        query = ExportQuery(what="hashes" if hashes else "state", shard=shard)
        try:
            reply = await self._bus.request(
                subjects.rpc(slug, "export", _MASTER),
                codec.encode(query),
                responder=slug,
                timeout_s=_ASK_WITHIN_S,
            )
            return codec.result_of(reply, CopyState)
        except MeshError as error:
            return str(error)
