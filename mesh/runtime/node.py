"""A running node: its life, from start to stop, and its word about itself."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import structlog

from mesh.config import MeshConfig
from mesh.errors import (
    ConflictError,
    DeadlineExceededError,
    DisconnectedError,
    MeshError,
    NoRespondersError,
)
from mesh.ports import (
    Bus,
    Clock,
    Documents,
    Embedder,
    History,
    Journal,
    Message,
    ReplicaState,
    Subscription,
    WriteLog,
)
from mesh.runtime.background import Background
from mesh.runtime.builtin_actions import builtin_actions
from mesh.runtime.discovery import Discovery
from mesh.runtime.executor import Executor
from mesh.runtime.heartbeat import HeartbeatThread
from mesh.runtime.node_doors import Doors
from mesh.runtime.node_search import NodeSearch
from mesh.runtime.replication import Replica
from mesh.runtime.sdk import ActionSpec, Node
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    ActionInfo,
    ActionProgress,
    ActionRequest,
    ActionResult,
    Changed,
    CollectionInfo,
    Heartbeat,
    NodeEvent,
    PingResult,
)

log = structlog.get_logger()

_NAME_CHECK_S = 0.5
_DAY_MS = 24 * 3600 * 1000
_PRUNE_EVERY_S = 3600.0


class Replication(NamedTuple):
    """What a node needs to hold a shard together with others."""

    log: WriteLog
    state: ReplicaState


class NodeServer:
    """One node on the bus. `start()` returns when it answers; `stop()` when nothing is left."""

    def __init__(
        self,
        node: Node,
        config: MeshConfig,
        *,
        slug: str,
        version: str,
        bus: Bus,
        connect_heartbeat: Callable[[], Awaitable[Bus]],
        documents: Documents,
        embedder: Embedder,
        journal: Journal,
        history: History,
        clock: Clock,
        incarnation: int,
        rng: random.Random,
        replication: Replication | None = None,
    ) -> None:
        self.slug = slug
        self._node = node
        self._config = config
        self._version = version
        self._bus = bus
        self._connect_heartbeat = connect_heartbeat
        self._documents = documents
        self._journal = journal
        self._clock = clock
        self._rng = rng
        self._incarnation = incarnation
        self._shard = config.node.shard or slug
        self._ending = False
        """It will never take work again: it stops, or a newer life has started."""
        self._drained = False
        """It takes no work, at an operator's word."""
        self._told_of = _identities(documents.collections())
        self._started: Subscription | None = None
        self._background = Background(clock)
        self._superseded = asyncio.Event()
        self._heartbeat: HeartbeatThread | None = None
        self._search = NodeSearch(
            slug,
            config,
            documents=documents,
            embedder=embedder,
            searches=node.searches,
            clock=clock,
        )
        self._replica = self._made_replica(replication)
        self.actions: Mapping[str, ActionSpec] = (
            builtin_actions(documents, changed=self._changed, replica=self._replica) | node.actions
        )
        self.executor = Executor(
            slug,
            self.actions,
            journal=journal,
            history=history,
            clock=clock,
            default_timeout_s=config.routing.request_timeout_s,
            on_progress=self._progressed,
        )
        self._doors = Doors(
            bus,
            clock,
            config.node,
            greeting=PingResult(node=slug, incarnation=self._incarnation, version=version),
            search=self._search,
            documents=documents,
            executor=self.executor,
            actions=self.actions,
            on_drain=self._drain,
            rate_limit=config.rate_limit,
            replica=self._replica,
        )
        started = dt.datetime.fromtimestamp(self._incarnation / 1000, tz=dt.UTC)
        self._discovery = Discovery(
            bus,
            node=slug,
            started=started.isoformat().replace("+00:00", "Z"),
            compose=self.describe,
            actions=self.actions,
            meters=self._doors.meters,
        )

    def _made_replica(self, replication: Replication | None) -> Replica | None:
        self._replication = replication
        if replication is None:
            return None
        return Replica(
            self.slug,
            self._shard,
            bus=self._bus,
            write_log=replication.log,
            state=replication.state,
            documents=self._documents,
            clock=self._clock,
            config=self._config.replicas,
            declared=bool(self._config.node.shard),
            keep_ms=round(self._config.node.outcome_days * _DAY_MS),
            changed=self._changed,
        )

    # -- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the doors; if that fails, nothing of it stays, and the ports are the caller's to
        close.

        Raises:
            ConflictError: A node of this name is already running.
        """
        await self._name_is_free()
        try:
            await self._start()
        except BaseException:
            await self._halt(grace_s=0)
            raise
        log.info("mesh.node.started", node=self.slug, incarnation=self._incarnation)

    async def _start(self) -> None:
        if self._replica is not None:
            await self._replica.start()
        await self.executor.start()
        started = subjects.event(self.slug, "started")
        self._started = await self._bus.subscribe(started, self._on_started)
        await self._name_is_free()  # whoever did not answer before may have come to
        self._bus.on_connection(self._connection_changed)
        # An older life hears of us before the first request that would run in both.
        self._tell("started")
        await self._doors.open()
        await self._discovery.start()
        heartbeat = HeartbeatThread(
            self._connect_heartbeat,
            self.describe,
            node=self.slug,
            interval_s=self._config.health.heartbeat_interval_s,
            clock=self._clock,
            rng=self._rng,
        )
        heartbeat.start()
        self._heartbeat = heartbeat
        self._background.repeat("prune", self._prune)
        if self._superseded.is_set():
            raise ConflictError(f"a newer node named {self.slug!r} has started meanwhile")

    async def stop(self) -> None:
        """Announce, take no new work, finish what runs, say goodbye. Every step is taken, whatever
        the others raise.
        """
        async with AsyncExitStack() as ending:  # what is pushed last is done first
            ending.push_async_callback(self._bus.close)
            ending.push_async_callback(self._journal.close)
            ending.push_async_callback(self._documents.close)
            if self._replication is not None:
                ending.push_async_callback(self._replication.state.close)
            ending.callback(self._tell, "stopped")
            ending.push_async_callback(self._halt, grace_s=self._config.node.stop_grace_s)
            ending.callback(self._tell_draining)
        log.info("mesh.node.stopped", node=self.slug)

    async def superseded(self) -> None:
        """Return when a newer life of this name has started: this one has closed its doors, and
        all that is left to do is to `stop` it.
        """
        await self._superseded.wait()

    async def _halt(self, *, grace_s: float) -> None:
        """End what `start` began, as far as it came."""
        self._ending = True
        async with AsyncExitStack() as ending:  # what is pushed last is done first
            if self._heartbeat is not None:
                ending.push_async_callback(self._heartbeat.stop)
            ending.push_async_callback(self._discovery.stop)
            ending.push_async_callback(self._background.stop)
            if self._replica is not None:
                ending.push_async_callback(self._replica.stop)
            ending.push_async_callback(self.executor.stop)
            ending.push_async_callback(self._finish, grace_s)
            ending.push_async_callback(self._close_doors)

    async def _finish(self, grace_s: float) -> None:
        """What came in, and what runs without a request: an earlier life's."""
        await asyncio.gather(self._doors.drain(grace_s), self.executor.drain(grace_s))

    async def _close_doors(self) -> None:
        started, self._started = self._started, None
        if started is not None:
            await started.unsubscribe()
        await self._doors.close()

    # -- one life at a time ------------------------------------------------------------------------

    def _connection_changed(self, connected: bool) -> None:
        if connected and not self._ending:
            self._tell("started")  # another life may have begun while we were away

    def _on_started(self, message: Message) -> None:
        other = codec.decode(message.data, NodeEvent).incarnation
        if other < self._incarnation and not self._ending:
            self._tell("started")  # an older life: it should know of us
        elif other > self._incarnation and not self._superseded.is_set():
            log.error(
                "mesh.node.superseded",
                node=self.slug,
                incarnation=self._incarnation,
                newer=other,
                hint="another node of this name has started; this one takes no more work",
            )
            self._ending = True
            self._superseded.set()
            self._doors.shut()
            self._background.spawn("retire", self._retire())

    async def _retire(self) -> None:
        """Callers and masters should see the newer life alone."""
        await self._close_doors()
        await self._discovery.stop()
        if self._heartbeat is not None:
            await self._heartbeat.stop()

    async def _name_is_free(self) -> None:
        try:
            reply = await self._bus.request(
                subjects.rpc(self.slug, "ping", self.slug),
                b"{}",
                responder=self.slug,
                timeout_s=_NAME_CHECK_S,
            )
        except (NoRespondersError, DeadlineExceededError):
            return  # nobody, or somebody who hangs and will give up when it hears of us
        except DisconnectedError:
            return  # whoever there is will hear of us when the broker is back
        other = codec.result_of(reply, PingResult)
        raise ConflictError(
            f"a node named {self.slug!r} is already running (started {other.incarnation}); "
            "stop it or choose another --name"
        )

    async def _prune(self) -> None:
        await self.executor.forget_old(round(self._config.node.outcome_days * _DAY_MS))
        await self._clock.sleep(_PRUNE_EVERY_S)

    async def run_own_action(
        self, action: str, params: Mapping[str, Any], action_id: str
    ) -> Mapping[str, Any]:
        """Run an action for the node itself, recorded like everybody's; its result.

        Raises:
            MeshError: As `Executor.execute`.
        """
        request = ActionRequest(id=action_id, action=action, params=dict(params))
        outcome = codec.result_of(await self.executor.execute(request, self.slug), ActionResult)
        return dict(outcome.result)

    # -- word about itself -------------------------------------------------------------------------

    def describe(self) -> Heartbeat:
        """The heartbeat as of now, without lag and sequence."""
        settings = self._config.node
        responder = self._doors.responder
        return Heartbeat(
            node=self.slug,
            name=self._node.name,
            incarnation=self._incarnation,
            sequence=0,
            version=self._version,
            type=settings.type,
            weight=settings.weight,
            capabilities=settings.capabilities,
            in_flight=responder.in_flight,
            queued=responder.queued,
            draining=self._ending or self._drained,
            overloaded=responder.refused_within(self._config.health.heartbeat_interval_s),
            verbs=self._doors.stats(),
            collections=list(self._collections()),
            actions=[
                ActionInfo(
                    name=spec.name,
                    description=spec.description,
                    idempotent=spec.idempotent,
                    builtin=spec.builtin,
                    digest=spec.digest,
                )
                for spec in self.actions.values()
            ],
            dropped=responder.dropped + self._discovery.dropped,
            expired=self._doors.expired,
            shard=self._shard,
        )

    def _collections(self) -> tuple[CollectionInfo, ...]:
        return (*self._documents.collections(), *self._search.custom())

    def _changed(self, collection: str) -> None:
        """A write happened: callers with cached answers should know before the next beat."""
        known = {info.name: info for info in self._documents.collections()}
        info = known.get(collection) or CollectionInfo(name=collection, shard=self.slug)
        event = Changed(
            incarnation=self._incarnation,
            collection=collection,
            shard=info.shard,
            data_version=info.data_version,
            rows=info.rows,
        )
        self._publish("changed", codec.encode(event))
        told_of = _identities(known.values())
        if told_of != self._told_of:
            # A collection is new, gone or embedded anew: nobody should wait a second.
            self._beat_now()
        self._told_of = told_of

    def _progressed(self, progress: ActionProgress) -> None:
        self._publish("progress", codec.encode(progress))

    def _drain(self, drained: bool) -> None:
        """At an operator's word, until he takes it back or this life ends."""
        if self._ending:
            return
        if drained is not self._drained:
            log.info("mesh.node.drained" if drained else "mesh.node.undrained", node=self.slug)
        self._drained = self._doors.draining = drained
        sequence = self._beat_now()
        if drained:
            self._tell("draining", sequence)

    def _tell_draining(self) -> None:
        self._ending = self._doors.draining = True
        self._tell("draining", self._beat_now())

    def _beat_now(self) -> int:
        return 0 if self._heartbeat is None else self._heartbeat.beat_now()

    def _tell(self, name: str, sequence: int = 0) -> None:
        event = NodeEvent(incarnation=self._incarnation, sequence=sequence)
        self._publish(name, codec.encode(event))

    def _publish(self, name: str, payload: bytes) -> None:
        try:
            self._bus.publish(subjects.event(self.slug, name), payload)
        except MeshError as error:
            log.info("mesh.node.event_lost", name=name, error=str(error))


def _identities(collections: Iterable[CollectionInfo]) -> set[tuple[str, str, bool]]:
    """What of collections only heartbeats tell."""
    return {(info.name, info.fingerprint, info.outdated) for info in collections}
