"""A client, nodes that say how often they were asked, and the masters' word on routes; in virtual
time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import msgspec
from fakes import MemoryBroker
from virtual_time import LoopClock

from mesh.config import MeshConfig, SearchConfig
from mesh.errors import MeshError, TooLargeError
from mesh.runtime.client import MeshClient
from mesh.types import ActionState, Health
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    ActionRequest,
    ActionResult,
    Candidate,
    Candidates,
    Changed,
    CollectionInfo,
    FetchRequest,
    FetchResult,
    RouteNode,
    RouteUpdate,
    SearchRequest,
    ShardHits,
    StoredDocument,
)

NOTES = "notes"


class ScriptedNode:
    """Holds one collection; its one document says the data version."""

    def __init__(self, slug, *, shard="", version=1, fingerprint="f", capabilities=()):
        self.slug = slug
        self.shard = shard or slug
        self.version = version
        self.label = None
        """Data version that its answers tell; None: the true one."""
        self.fingerprint = fingerprint
        self.capabilities = list(capabilities)
        self.health = Health.HEALTHY
        self.after_s = 0.01
        self.hung = False
        self.empty = False
        """It has no collection yet."""
        self.long = False
        """Its text does not come along."""
        self.mute = False
        """It gives no text when it is fetched."""
        self.most_texts = 1000
        """More of them do not fit into a message."""
        self.fetches = 0
        self.error: MeshError | None = None
        self.searches: list[SearchRequest] = []
        self.cancels = 0
        self.told = True
        """Its answers to actions tell the data version."""

    def route(self):
        info = CollectionInfo(
            name=NOTES,
            shard=self.shard,
            rows=1,
            data_version=self.version,
            fingerprint=self.fingerprint,
        )
        return RouteNode(
            slug=self.slug,
            health=self.health,
            incarnation=1,
            collections=[] if self.empty else [info],
            actions=["index"],
            capabilities=self.capabilities,
        )

    def found(self):
        candidate = Candidate(
            id=self.slug,
            cosine=0.5,
            vector_hit=True,
            text_hit=True,
            length=1,
            tf=[1],
            hash=self.slug,
            content=None if self.long else f"version {self.version}",
            metadata={"of": self.slug},
        )
        hits = ShardHits(
            collection=NOTES,
            shard=self.shard,
            rows=1,
            tokens=1,
            df=[1],
            fingerprint=self.fingerprint,
            data_version=self.version if self.label is None else self.label,
            candidates=[candidate],
        )
        return Candidates(node=self.slug, terms=["late"], shards=[hits])


class SearchWorld:
    """`start` it; `publish` is what the masters do within a heartbeat of a change."""

    def __init__(self, *nodes, config=None, **search):
        self.broker = MemoryBroker()
        self.nodes = {node.slug: node for node in nodes}
        self.clock = LoopClock()
        self.bus = self.broker.bus("ops")
        self.client = MeshClient(
            self.bus, config or MeshConfig(search=SearchConfig(**search)), self.clock
        )
        self._versions = itertools.count(1)
        self._serving = self.broker.bus("everybody")
        self.listed_after_s = 0.02
        """So long masters take to tell of a new shard."""

    async def __aenter__(self):
        prefix = subjects.PREFIX
        await self._serving.subscribe(f"{prefix}.rpc.*.*.*", self._asked)
        await self._serving.subscribe(f"{prefix}.act.*.*.*", self._acted)
        await self._serving.subscribe(subjects.master("routes", "ops"), self._routes)
        await self.client.start()
        return self

    async def __aexit__(self, *_exc):
        await self.client.close()
        await self._serving.close()
        assert self.broker.handler_failures == 0

    # -- nodes and masters -------------------------------------------------------------------------

    def _asked(self, message):
        _, slug, verb, _ = subjects.parts(message.subject)
        node = self.nodes[slug]
        if verb == "cancel":
            node.cancels += 1
        elif verb == "fetch":
            ids = codec.decode(message.data, FetchRequest).ids
            texts = [StoredDocument(id=name, content=f"version {node.version}") for name in ids]
            node.fetches += 1
            reply = codec.ok(FetchResult(documents=texts))
            if len(ids) > node.most_texts:
                reply = codec.encode(codec.error_reply(TooLargeError("too much for one message")))
            if not node.mute:
                self._later(0.001, message.reply, reply)
        elif verb == "search":
            node.searches.append(codec.decode(message.data, SearchRequest))
            reply = (
                codec.encode(codec.error_reply(node.error))
                if node.error
                else codec.ok(node.found())
            )
            if not node.hung:
                self._later(node.after_s, message.reply, reply)

    def _acted(self, message):
        slug = subjects.parts(message.subject)[1]
        request = codec.decode(message.data, ActionRequest)
        node = self.nodes[slug]
        if node.empty:
            node.empty = False
            asyncio.get_running_loop().call_later(self.listed_after_s, self._publish)
        else:
            node.version += 1
        done = ActionResult(
            id=request.id,
            node=slug,
            action=request.action,
            state=ActionState.SUCCEEDED,
            result={"data_version": node.version} if node.told else {},
        )
        self._later(0.001, message.reply, codec.ok(done))

    def _later(self, after_s, subject, payload):
        def publish():
            with contextlib.suppress(MeshError):
                self._serving.publish(subject, payload)

        asyncio.get_running_loop().call_later(after_s, publish)

    def _routes(self, message):
        self._serving.publish(message.reply, codec.ok(self._table()))

    def _table(self):
        return RouteUpdate(
            epoch=1,
            version=next(self._versions),
            nodes=[node.route() for node in self.nodes.values()],
        )

    async def publish(self):
        """Tell of the routes as they are."""
        self._publish()
        await asyncio.sleep(0.001)

    def _publish(self):
        self._serving.publish(subjects.ROUTES, codec.encode(self._table()))

    async def tell(self, node):
        """Tell of a write, as the node does."""
        event = Changed(
            incarnation=1,
            collection=NOTES,
            shard=node.shard,
            data_version=node.version,
            rows=1,
        )
        self._serving.publish(subjects.event(node.slug, "changed"), codec.encode(event))
        await asyncio.sleep(0.001)

    # -- the client --------------------------------------------------------------------------------

    async def search(self, query="late", **options):
        return await self.client.search(query, **options)

    async def write(self, node):
        params = {"collection": NOTES, "documents": []}
        return await self.client.run_action("index", params, node=node.slug)

    @property
    def asked(self):
        """How many searches reached nodes."""
        return sum(len(node.searches) for node in self.nodes.values())

    @property
    def stats(self):
        return self.client.cache_stats()


def versions(answer):
    """Data version by node, as the hits tell it."""
    return {hit.node: int(hit.content.removeprefix("version ")) for hit in answer.results}


def but_own(answer):
    """What two searches that share an answer have in common."""
    return msgspec.structs.replace(answer, id="", duration_ms=0, cached=False)
