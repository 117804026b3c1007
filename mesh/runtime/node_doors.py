"""A node's doors: which requests come in, and what answers them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec
import structlog

from mesh.config import NodeConfig, RateLimitConfig
from mesh.core.service_time import ServiceTime
from mesh.errors import BadRequestError, DeadlineExceededError, MeshError
from mesh.ports import Bus, Clock, Documents, Message, Subscription
from mesh.runtime.discovery import Endpoint
from mesh.runtime.executor import Executor
from mesh.runtime.node_search import NodeSearch
from mesh.runtime.sdk import ActionSpec
from mesh.runtime.serving import Responder, caller_of
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    ActionRequest,
    CancelRequest,
    CancelResult,
    FetchRequest,
    FetchResult,
    PingResult,
    SearchRequest,
    VerbStats,
)

log = structlog.get_logger()

_TRUSTED = frozenset({"gateway", "master", "bridge"})
"""Whom a caller speaks for is believed of our own processes alone. Which caller it is, the subject
says, and the broker holds every login to its name.
"""


class Doors:
    """The request subjects of one node. `open` them, `close` them, then `drain` what came in."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        config: NodeConfig,
        *,
        greeting: PingResult,
        search: NodeSearch,
        documents: Documents,
        executor: Executor,
        actions: Mapping[str, ActionSpec],
        rate_limit: RateLimitConfig | None = None,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._node = greeting.node
        self._greeting = greeting
        self._search = search
        self._documents = documents
        self._executor = executor
        self._shut = False
        self._subscriptions: list[Subscription] = []
        self._acting = ServiceTime()
        self.meters: dict[Endpoint, ServiceTime] = {
            endpoint: ServiceTime()
            for endpoint in (
                *(("rpc", verb) for verb in subjects.NODE_VERBS),
                *(("act", action) for action in sorted(actions)),
            )
        }
        self.responder = Responder(
            bus,
            clock,
            name=self._node,
            max_parallel=config.max_parallel_requests,
            max_queued=config.max_queued_requests,
            rate_limit=rate_limit,
        )

    def stats(self) -> dict[str, VerbStats]:
        """Service time by verb; of all actions together as `action`."""
        return {verb: self.meters["rpc", verb].stats() for verb in subjects.NODE_VERBS} | {
            "action": self._acting.stats()
        }

    async def open(self) -> None:
        """Requests are served from now on."""
        for kind, handler in (("rpc", self._on_rpc), ("act", self._on_action)):
            subject = f"{subjects.PREFIX}.{kind}.{self._node}.*.*"
            self._subscriptions.append(await self._bus.subscribe(subject, handler))

    def shut(self) -> None:
        """At once, and for good: a newer life of this node answers what still comes in."""
        self._shut = True

    async def close(self) -> None:
        """Callers learn that nobody listens here; what was sent before is in when this returns."""
        doors, self._subscriptions = self._subscriptions, []
        await asyncio.gather(*(door.unsubscribe() for door in doors))
        try:
            await self._bus.flush(timeout_s=1.0)
        except MeshError as error:
            log.info("mesh.node.broker_away", error=str(error))

    async def drain(self, grace_s: float) -> None:
        """Let what came in finish for `grace_s` seconds, then cancel what is left."""
        await self.responder.drain(grace_s)

    def _on_rpc(self, message: Message) -> None:
        if self._shut:
            return
        verb = message.subject.split(".")[4]
        match verb:
            case "ping":
                self.responder.serve(message, self._ping, bypass=True)
            case "cancel":
                self._cancel(message)
            case "search":
                self.responder.serve(message, lambda _caller: self._searched(message))
            case "fetch":
                self.responder.serve(message, lambda _caller: self._fetched(message))
            case _:
                self.responder.serve(message, lambda _caller: _unknown_verb(verb))

    def _on_action(self, message: Message) -> None:
        if not self._shut:
            self.responder.serve(
                message, lambda caller: self._acted(message, caller), finishes=True
            )

    def _cancel(self, message: Message) -> None:
        """Most who cancel want no answer: they have gone."""
        if message.reply:
            self.responder.serve(
                message, lambda caller: self._cancelled(message, caller), bypass=True
            )
            return
        try:
            with _Metered(self._clock, self.meters["rpc", "cancel"]):
                request = codec.decode(message.data, CancelRequest)
                self.responder.cancel(caller_of(message), request.request)
        except MeshError as error:
            self.responder.drop(message, str(error))

    async def _cancelled(self, message: Message, caller: str) -> bytes:
        with _Metered(self._clock, self.meters["rpc", "cancel"]):
            request = codec.decode(message.data, CancelRequest)
            return codec.ok(CancelResult(cancelled=self.responder.cancel(caller, request.request)))

    async def _ping(self, _caller: str) -> bytes:
        with _Metered(self._clock, self.meters["rpc", "ping"]):
            return codec.ok(msgspec.structs.replace(self._greeting, at=self._clock.unix_ms()))

    async def _searched(self, message: Message) -> bytes:
        with _Metered(self._clock, self.meters["rpc", "search"]):
            request = codec.decode(message.data, SearchRequest)
            async with self._until(request.deadline):
                return codec.ok(await self._search.answer(request))

    async def _fetched(self, message: Message) -> bytes:
        with _Metered(self._clock, self.meters["rpc", "fetch"]):
            request = codec.decode(message.data, FetchRequest)
            async with self._until(request.deadline):
                found = await self._documents.fetch(request.collection, request.ids)
                return codec.ok(FetchResult(documents=list(found)))

    async def _acted(self, message: Message, caller: str) -> bytes:
        named = message.subject.split(".")[4]
        with _Metered(self._clock, self._acting, self.meters.get(("act", named))):
            request = codec.decode(message.data, ActionRequest)
            if request.action != named:
                raise BadRequestError(
                    f"the subject says {named!r}, the message says {request.action!r}"
                )
            if caller not in _TRUSTED and request.on_behalf:
                request = msgspec.structs.replace(request, on_behalf="")
            return await self._executor.execute(request, caller)

    @asynccontextmanager
    async def _until(self, deadline: int) -> AsyncIterator[None]:
        """Nobody waits past the deadline (unix ms; 0: none), so nobody works past it. A thread or
        a LanceDB query that has begun may run on, but it no longer holds a slot of the node.
        """
        left_s = (deadline - self._clock.unix_ms()) / 1000 if deadline else None
        if left_s is not None and left_s <= 0:
            raise DeadlineExceededError("nobody waits for this any more; nothing was done")
        try:
            async with asyncio.timeout(left_s) as limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise  # of the work itself
            raise DeadlineExceededError("nobody waits for this any more; it was ended") from None


async def _unknown_verb(verb: str) -> bytes:
    known = ", ".join(subjects.NODE_VERBS)
    raise BadRequestError(f"unknown verb {verb!r}; nodes answer: {known}")


class _Metered:
    """Measures one request, on each of the meters."""

    def __init__(self, clock: Clock, *meters: ServiceTime | None) -> None:
        self._meters = meters
        self._clock = clock
        self._began = clock.monotonic()

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, asyncio.CancelledError):
            return  # neither a success nor a failure, and its time says nothing
        took_ms = (self._clock.monotonic() - self._began) * 1000
        failed = isinstance(error, Exception) and getattr(error, "code", 500) >= 500  # noqa: PLR2004
        for meter in self._meters:
            if meter is not None:
                meter.record(took_ms, failed=failed)
