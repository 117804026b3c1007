"""A running node: its doors on the bus, what stands behind them, its word about itself."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import structlog

from mesh.config import MeshConfig
from mesh.core.service_time import ServiceTime
from mesh.errors import (
    BadRequestError,
    ConflictError,
    DeadlineExceededError,
    DisconnectedError,
    MeshError,
    NoRespondersError,
)
from mesh.ports import Bus, Clock, Documents, Embedder, History, Journal, Message, Subscription
from mesh.runtime.builtin_actions import builtin_actions
from mesh.runtime.discovery import Discovery
from mesh.runtime.executor import Executor
from mesh.runtime.heartbeat import HeartbeatThread
from mesh.runtime.node_search import NodeSearch
from mesh.runtime.sdk import ActionSpec, Node
from mesh.runtime.serving import Responder
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    ActionInfo,
    ActionRequest,
    ActionResult,
    Changed,
    CollectionInfo,
    FetchRequest,
    FetchResult,
    Heartbeat,
    NodeEvent,
    PingResult,
    SearchRequest,
)

log = structlog.get_logger()

_NAME_CHECK_S = 0.5
_DAY_MS = 24 * 3600 * 1000
_PRUNE_EVERY_S = 3600.0


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
        rng: random.Random,
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
        self._incarnation = clock.unix_ms()
        self._draining = False
        self._told_of = {info.name for info in documents.collections()}
        self._meters = {verb: ServiceTime() for verb in ("search", "fetch", "action")}
        self._subscriptions: list[Subscription] = []
        self._pruner: asyncio.Task[None] | None = None
        self._heartbeat: HeartbeatThread | None = None
        self._search = NodeSearch(
            slug,
            config,
            documents=documents,
            embedder=embedder,
            searches=node.searches,
            clock=clock,
        )
        self.actions: Mapping[str, ActionSpec] = (
            builtin_actions(documents, changed=self._changed) | node.actions
        )
        self.executor = Executor(
            slug,
            self.actions,
            journal=journal,
            history=history,
            clock=clock,
            default_timeout_s=config.routing.request_timeout_s,
        )
        self._responder = Responder(
            bus,
            clock,
            name=slug,
            max_parallel=config.node.max_parallel_requests,
            max_queued=config.node.max_queued_requests,
        )
        started = dt.datetime.fromtimestamp(self._incarnation / 1000, tz=dt.UTC)
        self._discovery = Discovery(
            bus,
            node=slug,
            started=started.isoformat().replace("+00:00", "Z"),
            compose=self.describe,
            actions=self.actions,
        )

    # -- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the doors.

        Raises:
            ConflictError: A node of this name is already running.
        """
        await self._name_is_free()
        await self.executor.start()
        doors = {
            f"{subjects.PREFIX}.rpc.{self.slug}.*.*": self._on_rpc,
            f"{subjects.PREFIX}.act.{self.slug}.*.*": self._on_action,
        }
        for subject, handler in doors.items():
            self._subscriptions.append(await self._bus.subscribe(subject, handler))
        await self._discovery.start()
        self._heartbeat = HeartbeatThread(
            self._connect_heartbeat,
            self.describe,
            node=self.slug,
            interval_s=self._config.health.heartbeat_interval_s,
            clock=self._clock,
            rng=self._rng,
        )
        self._heartbeat.start()
        self._pruner = asyncio.create_task(self._prune())
        log.info("mesh.node.started", node=self.slug, incarnation=self._incarnation)

    async def stop(self) -> None:
        """Announce, take no new work, finish what runs, say goodbye."""
        grace_s = self._config.node.stop_grace_s
        self._draining = True
        self._tell("draining")
        if self._heartbeat is not None:
            self._heartbeat.beat_now()
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        try:
            await self._bus.flush(timeout_s=1.0)  # what was sent to us before is here now
        except MeshError as error:
            log.info("mesh.node.broker_away", error=str(error))
        await self._responder.drain(grace_s)
        await self.executor.stop()
        if self._pruner is not None:
            self._pruner.cancel()
        await self._discovery.stop()
        if self._heartbeat is not None:
            await self._heartbeat.stop()
        self._tell("stopped")
        await self._documents.close()
        await self._journal.close()
        await self._bus.close()
        log.info("mesh.node.stopped", node=self.slug)

    async def _name_is_free(self) -> None:
        try:
            reply = await self._bus.request(
                subjects.rpc(self.slug, "ping", self.slug),
                b"{}",
                responder=self.slug,
                timeout_s=_NAME_CHECK_S,
            )
        except (NoRespondersError, DeadlineExceededError):
            return  # nobody, or somebody who hangs and will be outdone by our newer incarnation
        except DisconnectedError:
            return
        other = codec.result_of(reply, PingResult)
        raise ConflictError(
            f"a node named {self.slug!r} is already running (started {other.incarnation}); "
            "stop it or choose another --name"
        )

    async def _prune(self) -> None:
        while True:
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

    # -- doors -------------------------------------------------------------------------------------

    def _on_rpc(self, message: Message) -> None:
        verb = message.subject.split(".")[4]
        match verb:
            case "ping":
                self._responder.serve(message, self._ping, bypass=True)
            case "search":
                self._responder.serve(message, lambda _caller: self._searched(message))
            case "fetch":
                self._responder.serve(message, lambda _caller: self._fetched(message))
            case _:
                self._responder.serve(message, lambda _caller: _unknown_verb(verb), bypass=True)

    def _on_action(self, message: Message) -> None:
        self._responder.serve(message, lambda caller: self._acted(message, caller))

    async def _ping(self, _caller: str) -> bytes:
        return codec.ok(
            PingResult(
                node=self.slug,
                incarnation=self._incarnation,
                version=self._version,
                at=self._clock.unix_ms(),
            )
        )

    async def _searched(self, message: Message) -> bytes:
        with _Metered(self._meters["search"], self._clock):
            request = codec.decode(message.data, SearchRequest)
            self._not_expired(request.deadline)
            return codec.ok(await self._search.answer(request))

    async def _fetched(self, message: Message) -> bytes:
        with _Metered(self._meters["fetch"], self._clock):
            request = codec.decode(message.data, FetchRequest)
            self._not_expired(request.deadline)
            found = await self._documents.fetch(request.collection, request.ids)
            return codec.ok(FetchResult(documents=list(found)))

    async def _acted(self, message: Message, caller: str) -> bytes:
        with _Metered(self._meters["action"], self._clock):
            named = message.subject.split(".")[4]
            request = codec.decode(message.data, ActionRequest)
            if request.action != named:
                raise BadRequestError(
                    f"the subject says {named!r}, the message says {request.action!r}"
                )
            # Whom a caller speaks for is believed of those the broker knows as our own processes.
            if caller not in _TRUSTED and request.on_behalf:
                request = msgspec.structs.replace(request, on_behalf="")
            return await self.executor.execute(request, caller)

    def _not_expired(self, deadline: int) -> None:
        if deadline and self._clock.unix_ms() >= deadline:
            raise DeadlineExceededError("nobody waits for this any more; nothing was done")

    # -- word about itself -------------------------------------------------------------------------

    def describe(self) -> Heartbeat:
        """The heartbeat as of now, without lag and sequence."""
        settings = self._config.node
        responder = self._responder
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
            draining=self._draining,
            overloaded=responder.refused_within(self._config.health.heartbeat_interval_s),
            verbs={name: meter.stats() for name, meter in self._meters.items()},
            collections=list(self._collections()),
            actions=[
                ActionInfo(
                    name=spec.name,
                    description=spec.description,
                    idempotent=spec.idempotent,
                    builtin=spec.builtin,
                )
                for spec in self.actions.values()
            ],
            dropped=responder.dropped + self._discovery.dropped,
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
        if self._heartbeat is not None and set(known) != self._told_of:
            self._heartbeat.beat_now()  # a collection is new or gone: nobody should wait a second
        self._told_of = set(known)

    def _tell(self, name: str) -> None:
        self._publish(name, codec.encode(NodeEvent(incarnation=self._incarnation)))

    def _publish(self, name: str, payload: bytes) -> None:
        try:
            self._bus.publish(subjects.event(self.slug, name), payload)
        except MeshError as error:
            log.info("mesh.node.event_lost", name=name, error=str(error))


_TRUSTED = frozenset({"gateway", "master", "bridge"})


async def _unknown_verb(verb: str) -> bytes:
    known = ", ".join(subjects.NODE_VERBS)
    raise BadRequestError(f"unknown verb {verb!r}; nodes answer: {known}")


class _Metered:
    """Measures one request of a verb."""

    def __init__(self, meter: ServiceTime, clock: Clock) -> None:
        self._meter = meter
        self._clock = clock
        self._began = clock.monotonic()

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        took_ms = (self._clock.monotonic() - self._began) * 1000
        failed = isinstance(error, Exception) and getattr(error, "code", 500) >= 500  # noqa: PLR2004
        self._meter.record(took_ms, failed=failed)
