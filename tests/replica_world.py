"""Replicas of one shard in memory: their disks, the log, the messages between them, and crashes at
any step. A crashed replica's process writes nothing any more; its disk stays.
"""

from __future__ import annotations

import bisect
import hashlib
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from action_world import Crashed, Process

from mesh.config import ReplicasConfig
from mesh.core import documents as rules
from mesh.core.replication import Position, change_of, linked
from mesh.errors import (
    DeadlineExceededError,
    InvalidError,
    NoRespondersError,
    NotFoundError,
    UnavailableError,
)
from mesh.ports import MovedOnError, NotStoredError, Written
from mesh.runtime.replication import Replica
from mesh.runtime.shard_writes import Planned
from mesh.runtime.syncing import Peer
from mesh.wire import codec
from mesh.wire.messages import (
    AppliedWrite,
    Change,
    CollectionInfo,
    CopyPlace,
    Document,
    ExportQuery,
    LoggedWrite,
    RouteNode,
    StoredDocument,
    WriteEntry,
    WritesPage,
    WritesQuery,
)

SHARD = "crm"
NOWHERE = Position()
Contents = dict[str, dict[str, str]]
"""Collection → id → text."""


class MemoryCensus:
    """`mesh.ports.Census`."""

    def __init__(self, documents: dict[str, Document]):
        self._pairs = [
            (name, rules.content_hash(documents[name].content, documents[name].metadata))
            for name in sorted(documents)
        ]
        self.rows = len(self._pairs)

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self._pairs).encode()).hexdigest()

    def page(self, after: str, limit: int) -> list[tuple[str, str]]:
        start = bisect.bisect_right(self._pairs, after, key=lambda pair: pair[0]) if after else 0
        return self._pairs[start : start + limit]


@dataclass
class CopyDisk:
    """What outlives a crash of one replica."""

    collections: dict[str, dict[str, Document]] = field(default_factory=dict)
    version: int = 0
    position: Position = NOWHERE
    applied: dict[str, AppliedWrite] = field(default_factory=dict)
    place: CopyPlace | None = None

    def contents(self) -> Contents:
        return {
            name: {each.id: each.content for each in documents.values()}
            for name, documents in self.collections.items()
        }


class MemoryDocuments:
    """`mesh.ports.Documents`, as far as replication needs it."""

    def __init__(self, disk: CopyDisk, process: Process):
        self._disk, self._process = disk, process

    def collections(self):
        return tuple(
            CollectionInfo(name=name, shard=SHARD, rows=len(documents))
            for name, documents in sorted(self._disk.collections.items())
        )

    def columns(self, collection: str) -> dict[str, str]:
        return {}

    async def settled(self) -> None:
        pass

    async def would_index(self, collection: str, documents) -> int:
        known = self._disk.collections.get(collection, {})
        return sum(known.get(each.id) != each for each in documents)

    async def would_update(self, collection: str, id: str, fields):  # noqa: A002
        known = self._known(collection).get(id)
        if known is None:
            raise NotFoundError(id)
        new = rules.merged(known, fields)
        return new, new != known

    async def would_delete(self, collection: str, *, ids=(), filters=None):
        return tuple(name for name in ids if name in self._known(collection))

    async def replace(self, collection: str, *, puts=(), deletes=(), columns=None) -> Written:
        self._process.step()
        documents = self._disk.collections.setdefault(collection, {})
        for name in deletes:
            documents.pop(name, None)
        self._process.step()  # two commits
        documents.update({each.id: each for each in puts})
        self._disk.version += 1
        self._process.step()
        return Written((), self._disk.version)

    async def drop(self, collection: str) -> None:
        self._process.step()
        del self._disk.collections[collection]
        self._process.step()

    async def fetch(self, collection: str, ids):
        known = self._known(collection)
        return tuple(
            StoredDocument(id=name, content=known[name].content, metadata=known[name].metadata)
            for name in ids
            if name in known
        )

    async def census(self, collection: str) -> MemoryCensus:
        return MemoryCensus(self._known(collection))

    def _known(self, collection: str) -> dict[str, Document]:
        if collection not in self._disk.collections:
            raise InvalidError("unknown collection", fields={"collection": ["unknown"]})
        return self._disk.collections[collection]


class MemoryReplicaState:
    """`mesh.ports.ReplicaState`."""

    def __init__(self, disk: CopyDisk | None = None, process: Process | None = None):
        self._disk, self._process = disk or CopyDisk(), process or Process()

    async def load(self, shard: str):
        return True, self._disk.position

    async def set_logged(self, shard: str) -> None:
        pass

    async def advance(
        self, shard: str, position: Position, writes=(), *, copied: bool = False
    ) -> None:
        self._process.step()
        self._disk.position = position
        if copied:
            self._disk.place = None
        self._disk.applied.update({each.id: each for each in writes})
        self._process.step()

    async def remember(self, writes) -> None:
        self._process.step()
        self._disk.applied.update({each.id: each for each in writes})

    async def applied(self, action_id: str):
        self._process.step()
        return self._disk.applied.get(action_id)

    async def applied_after(self, action_id: str, limit: int):
        later = sorted(name for name in self._disk.applied if name > action_id)
        return [self._disk.applied[name] for name in later[:limit]]

    async def place(self, shard: str):
        return self._disk.place

    async def keep_place(self, shard: str, place) -> None:
        self._process.step()
        self._disk.place = place

    async def prune(self, before: int) -> int:
        return 0

    async def close(self) -> None:
        pass


@dataclass
class Log:
    """The broker's part. `everything` is what the test remembers, whatever has been dropped."""

    name: str = "log-1"
    everything: list[LoggedWrite] = field(default_factory=list)
    kept_from: int = 0
    away: bool = False
    deaf: bool = False
    """Stores, and its acknowledgement is lost."""
    unread: bool = False
    """No master answers."""

    @property
    def kept(self) -> list[LoggedWrite]:
        return [
            each
            for each in self.everything
            if each.log == self.name and each.sequence >= self.kept_from
        ]

    @property
    def position(self) -> Position:
        """Of the newest entry that ever was."""
        newest = self.everything[-1:]
        return Position(newest[0].log, newest[0].sequence) if newest else Position()

    def lose(self) -> None:
        """The broker comes back without it, and counts anew."""
        self.name, self.kept_from = f"{self.name}+", 0

    @property
    def last(self) -> int:
        return self.kept[-1].sequence if self.kept else 0

    def append(self, entry: WriteEntry, after: int) -> int:
        if self.away:
            raise NotStoredError("the log is away")
        if after != self.last:
            raise MovedOnError(self.last)
        newest = max(
            (each.sequence for each in self.everything if each.log == self.name), default=0
        )
        logged = LoggedWrite(sequence=newest + 2, entry=entry, log=self.name)  # others' between
        self.everything.append(logged)
        if self.deaf:
            raise DeadlineExceededError("no acknowledgement")
        return logged.sequence

    def page(self, after: int, limit: int) -> WritesPage:
        entries = [each for each in self.kept if each.sequence > after][: min(limit, 3)]
        if any(each.sequence == after for each in self.kept):
            entries = linked(entries, after)
        return WritesPage(log=self.name, last=self.last, entries=entries)

    def replay(self, upto: Position) -> Contents:
        """What a copy holds that has applied everything up to there, one after another."""
        found: Contents = {}
        if not upto.sequence:
            return found
        places = [(each.log, each.sequence) for each in self.everything]
        for logged in self.everything[: places.index(upto) + 1]:
            change = change_of(logged.entry)
            if change is None:
                continue
            if change.drop:
                found.pop(change.collection, None)
            if change.puts:
                found.setdefault(change.collection, {})
            for name in change.deletes:
                found.get(change.collection, {}).pop(name, None)
            for each in change.puts:
                found[change.collection][each.id] = each.content
        return found


class StillClock:
    """Time that only sleeping moves."""

    def __init__(self):
        self.now = 1_000.0
        self.ends = float("inf")
        """Whoever sleeps then is killed."""

    def monotonic(self) -> float:
        return self.now

    def unix_ms(self) -> int:
        return round(self.now * 1000)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now > self.ends:
            raise Crashed


class Wire:
    """`mesh.ports.Bus` between replicas: requests are answered at once, publications wait in the
    other's inbox.
    """

    def __init__(self, world: World, node: str, process: Process):
        self._world, self._node, self._process = world, node, process
        self.identity = node

    def on_connection(self, listener) -> None:
        pass

    def publish(self, subject: str, payload: bytes) -> None:
        self._process.step()
        _, _, _, to, verb, _ = subject.split(".")
        assert verb == "replicate"
        self._world.inboxes[to].append((self._node, payload))

    async def request(self, subject: str, payload: bytes, *, responder: str, timeout_s: float):
        self._process.step()
        if responder == "master":
            if self._world.log.unread:
                raise UnavailableError("no master answers")
            query = codec.decode(payload, WritesQuery)
            return codec.ok(self._world.log.page(query.after, query.limit))
        peer = self._world.alive.get(responder)
        if peer is None:
            raise NoRespondersError(f"{responder} is away")
        try:
            return await peer.export(codec.decode(payload, ExportQuery), peer=True)
        except Crashed:  # the other one's, not ours
            self._world.crash(responder)
            raise NoRespondersError(f"{responder} is away") from None


class KnownNeighbours:
    """`Neighbours` that the test knows."""

    def __init__(self, world: World, node: str):
        self._world, self._node = world, node
        self.known = True

    def others(self):
        return [
            RouteNode(slug=name, shard=SHARD) for name in self._world.disks if name != self._node
        ]

    def shares(self, slug: str) -> bool:
        return slug in self._world.disks

    def healthy(self) -> bool:
        return False

    def refresh(self) -> None:
        pass


class _Log:
    def __init__(self, log: Log, process: Process):
        self._log, self._process = log, process

    async def append(self, shard: str, entry: WriteEntry, *, after: int, timeout_s: float) -> int:
        self._process.step()
        sequence = self._log.append(entry, after)
        self._process.step()
        return sequence


class World:
    def __init__(self, names=("a", "b", "c")):
        self.log = Log()
        self.clock = StillClock()
        self.disks: dict[str, CopyDisk] = {}
        self.alive: dict[str, Replica] = {}
        self.processes: dict[str, Process] = {}
        self.inboxes: dict[str, deque[tuple[str, bytes]]] = {}
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        self.disks[name] = CopyDisk()
        self.inboxes[name] = deque()
        self.start(name)

    def start(self, name: str) -> None:
        """A new life on its old disk."""
        process = self.processes[name] = Process()
        disk = self.disks[name]
        replica = Replica(
            name,
            SHARD,
            bus=Wire(self, name, process),
            write_log=_Log(self.log, process),
            state=MemoryReplicaState(disk, process),
            documents=MemoryDocuments(disk, process),
            clock=self.clock,
            config=ReplicasConfig(),
            declared=True,
            keep_ms=1,
            changed=lambda _name: None,
        )
        replica._neighbours = replica._place._neighbours = KnownNeighbours(self, name)
        replica._writes._neighbours = replica._neighbours
        replica.logged, replica._copy.position = True, disk.position
        replica._copy._copying = disk.place is not None
        self.alive[name] = replica

    def crash(self, name: str) -> None:
        self.processes[name].alive = False
        self.alive.pop(name, None)
        self.inboxes[name].clear()

    def crash_in(self, name: str, steps: int) -> None:
        process = self.processes[name]
        process.crash_at = process.steps + steps

    async def run(self, name: str, work) -> Any:
        """What came of it; a crash of the replica ends it, and answers nothing."""
        try:
            return await work
        except Crashed:
            self.crash(name)
            raise

    async def look(self, name: str) -> None:
        replica = self.alive[name]
        async with replica._lock:
            await self.run(name, replica._place.look())

    async def hear(self, name: str) -> None:
        """The oldest message to it arrives."""
        sender, payload = self.inboxes[name].popleft()
        replica = self.alive.get(name)
        if replica is None:
            return
        replica.heard(sender, payload)
        async with replica._lock:
            await self.run(name, replica._place.apply_arrivals())

    async def write(self, name: str, action_id: str, action: str, **what: Any):
        replica = self.alive[name]
        documents = replica._copy._documents

        async def plan() -> Planned:
            collection = what["collection"]
            if action == "index":
                puts = [Document(id=each, content=what["text"]) for each in what["ids"]]
                changed = await documents.would_index(collection, puts)
                return Planned(Change(collection=collection, puts=puts), changed)
            if action == "update":
                new, different = await documents.would_update(
                    collection, what["ids"][0], {"content": what["text"]}
                )
                return Planned(Change(collection=collection, puts=[new]), int(different))
            if action == "delete":
                found = await documents.would_delete(collection, ids=what["ids"])
                return Planned(Change(collection=collection, deletes=list(found)), len(found))
            documents._known(collection)
            return Planned(Change(collection=collection, drop=True), 0)

        digest = repr((action, sorted(what.items())))
        return await self.run(name, replica.write(action_id, action, digest, plan))

    def peer(self, name: str) -> Peer:
        return self.alive[name]._peer


__all__ = ["Contents", "Crashed", "World"]
