"""A node's doors: which requests come in, and what answers them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import msgspec
import structlog

from mesh.config import NodeConfig, RateLimitConfig
from mesh.core.service_time import ServiceTime
from mesh.errors import (
    BadRequestError,
    DeadlineExceededError,
    DrainingError,
    ForbiddenError,
    MeshError,
)
from mesh.ports import Bus, Clock, Documents, Message, Subscription
from mesh.runtime.discovery import Endpoint
from mesh.runtime.executor import Executor
from mesh.runtime.node_search import NodeSearch
from mesh.runtime.replication import Replica
from mesh.runtime.sdk import ActionSpec
from mesh.runtime.serving import Responder, caller_of
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    ActionRequest,
    CancelRequest,
    CancelResult,
    ExportQuery,
    FetchRequest,
    FetchResult,
    NodeActions,
    NodeEvent,
    PingResult,
    SearchRequest,
    VerbStats,
)

log = structlog.get_logger()

T = TypeVar("T")

_TRUSTED = frozenset({"gateway", "master", "bridge"})
"""Whom a caller speaks for is believed of our own processes alone. Which caller it is, the subject
says, and the broker holds every login to its name.
"""
_MASTER = "master"
_TAKES_TIME = frozenset({"search", "fetch"})
_DRAINING_RETRY_MS = 1000
_AT = 10**15
"""Stands for the time in the greeting that every ping is answered with."""


class _Due(msgspec.Struct, frozen=True):
    """Of any request, how long somebody waits for it; of an action, which one it is, and whether it
    is to stop.
    """

    deadline: int = 0
    id: str = ""
    cancel: bool = False


_NOT_SAID = _Due()


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
        on_drain: Callable[[bool], None],
        rate_limit: RateLimitConfig | None = None,
        replica: Replica | None = None,
    ) -> None:
        """Args:
        bus: Where requests come from.
        clock: Time.
        config: How much is taken at a time.
        greeting: What a ping is answered with.
        search: Answers searches.
        documents: Answers fetches.
        executor: Runs actions.
        actions: Those that are offered.
        on_drain: A master asks the node to take no new work, or (False) to take it again.
        rate_limit: How often a caller may ask.
        replica: Hears what the other holders of the shard write, and shows them this copy; None:
            there never are any.
        """
        self._bus = bus
        self._clock = clock
        self._node = greeting.node
        self._greeting = greeting
        pong = codec.ok(msgspec.structs.replace(greeting, at=_AT))
        self._pong = tuple(pong.split(b"%d" % _AT))
        self._due = msgspec.json.Decoder(_Due)
        self._on_drain = on_drain
        self.draining = False
        """No new work is taken."""
        self._search = search
        self._documents = documents
        self._executor = executor
        self._actions = actions
        self._replica = replica
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
        self._pings = self.meters["rpc", "ping"]
        self.responder = Responder(
            bus,
            clock,
            name=self._node,
            max_parallel=config.max_parallel_requests,
            max_queued=config.max_queued_requests,
            rate_limit=rate_limit,
        )

    @property
    def expired(self) -> int:
        """Requests for which nothing was done, since nobody waited any more."""
        return self.responder.expired + self._executor.expired

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
        if verb == "ping":
            self._ping(message)
        elif verb in _TAKES_TIME:
            deadline = self._deadline(message)
            if not self._expired(message, deadline) and not self._refused(message):
                work = self._searched if verb == "search" else self._fetched
                self.responder.serve(
                    message, lambda _caller: work(message), deadline=deadline, kind=verb
                )
        elif verb == "cancel":
            self._cancel(message)
        elif verb == "describe":
            self._describe(message)
        elif verb in subjects.PEERS_VERBS and self._replica is not None:
            self._peer(message, self._replica, verb)
        elif verb in subjects.MASTERS_VERBS:
            self._drain(message, draining=verb == "drain")
        else:
            self.responder.refuse(message, _unknown_verb(verb))

    def _on_action(self, message: Message) -> None:
        if self._shut:
            return
        due = self._due_of(message)
        if self._expired(message, due.deadline):
            return
        if due.cancel:  # it must not wait for what it is to stop
            self.responder.serve(
                message, lambda caller: self._acted(message, caller), bypass=True, finishes=True
            )
        elif self.draining:
            self.responder.serve(
                message, lambda caller: self._repeated(message, caller), bypass=True, finishes=True
            )
        else:
            self.responder.serve(
                message,
                lambda caller: self._acted(message, caller),
                placed=self._needs_place(message, due),
                finishes=True,
                deadline=due.deadline,
            )

    def _needs_place(self, message: Message, due: _Due) -> bool:
        """Not what waits for something that runs already; nor actions that have places of their
        own: those that wait for one would keep searches out.
        """
        spec = self._actions.get(message.subject.split(".")[4])
        limits_itself = spec is not None and spec.concurrency > 0
        return not limits_itself and not self._executor.joins(due.id)

    def _deadline(self, message: Message) -> int:
        """Until when (unix ms) somebody waits; 0: for ever."""
        return self._due_of(message).deadline if b'"deadline"' in message.data else 0

    def _due_of(self, message: Message) -> _Due:
        try:
            return self._due.decode(message.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _NOT_SAID  # whoever reads the whole of it says what is wrong

    def _expired(self, message: Message, deadline: int) -> bool:
        """Whether nobody waits for it any more; then that is all that is done. It comes before
        everything else: after a pause there may be thousands.
        """
        if not deadline or self._clock.unix_ms() < deadline:
            return False
        self.responder.refuse(message, self.responder.too_late())
        return True

    def _refused(self, message: Message) -> bool:
        if self.draining:
            self.responder.refuse(message, self._no_new_work())
        return self.draining

    def _no_new_work(self) -> DrainingError:
        return DrainingError(
            f"{self._node} is being drained: it takes no new work",
            retry_after_ms=_DRAINING_RETRY_MS,
        )

    def _drain(self, message: Message, *, draining: bool) -> None:
        if caller_of(message) != _MASTER:
            refusal = ForbiddenError("only masters may ask that: `meshctl nodes drain|undrain`")
            self.responder.refuse(message, refusal)
        elif not self._expired(message, self._deadline(message)):
            self._on_drain(draining)
            self.responder.answer(
                message, codec.ok(NodeEvent(incarnation=self._greeting.incarnation))
            )

    def _describe(self, message: Message) -> None:
        """All actions in full, for the masters' catalogue; others ask the masters."""
        if caller_of(message) != _MASTER:
            refusal = ForbiddenError("only masters may ask that: `meshctl actions describe`")
            self.responder.refuse(message, refusal)
        elif not self._expired(message, self._deadline(message)):
            offered = NodeActions(actions=[spec.describe() for spec in self._actions.values()])
            self.responder.answer(message, codec.ok(offered))

    def _peer(self, message: Message, replica: Replica, verb: str) -> None:
        """Another replica, or for `export` a master; also of a node that is busy or drained: the
        copies must not fall apart.
        """
        caller = caller_of(message)
        if verb == "export":
            self.responder.serve(
                message, lambda caller: self._exported(message, replica, caller), bypass=True
            )
            return
        try:
            replica.heard(caller, message.data)
        except MeshError as error:
            self.responder.drop(message, str(error))

    async def _exported(self, message: Message, replica: Replica, caller: str) -> bytes:
        query = codec.decode(message.data, ExportQuery)
        peer = caller != _MASTER
        if peer and not replica.may_export(caller):
            raise ForbiddenError(f"only replicas of the same shard may copy {self._node}")
        if not peer and query.what not in {"state", "hashes"}:
            raise ForbiddenError("masters may ask for `state` and `hashes`")
        return await replica.export(query, peer=peer)

    def _ping(self, message: Message) -> None:
        """At once: a busy node answers too, and no task is worth so little work."""
        began = self._clock.monotonic()
        if not self._expired(message, self._deadline(message)):
            head, tail = self._pong
            self.responder.answer(message, b"%b%d%b" % (head, self._clock.unix_ms(), tail))
            self._pings.record((self._clock.monotonic() - began) * 1000)

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

    async def _searched(self, message: Message) -> bytes:
        with _Metered(self._clock, self.meters["rpc", "search"]):
            request = codec.decode(message.data, SearchRequest)
            if self._replica is not None:
                self._replica.refuse_if_behind()
            return codec.ok(
                await self._within(request.deadline, lambda: self._search.answer(request))
            )

    async def _fetched(self, message: Message) -> bytes:
        with _Metered(self._clock, self.meters["rpc", "fetch"]):
            request = codec.decode(message.data, FetchRequest)
            if self._replica is not None:
                self._replica.refuse_if_behind()
            found = await self._within(
                request.deadline,
                lambda: self._documents.fetch(request.collection, request.ids),
            )
            return codec.ok(FetchResult(documents=list(found)))

    async def _repeated(self, message: Message, caller: str) -> bytes:
        """Whoever asks again for what runs or has run gets its outcome, also of a draining node."""
        request = codec.decode(message.data, ActionRequest)
        if not await self._executor.repeats(request):
            raise self._no_new_work()
        return await self._acted(message, caller)

    async def _acted(self, message: Message, caller: str) -> bytes:
        named = message.subject.split(".")[4]
        with _Metered(self._clock, self._acting, self.meters.get(("act", named))):
            request = codec.decode(message.data, ActionRequest)
            if request.action != named:
                raise BadRequestError(
                    f"the subject says {named!r}, the message says {request.action!r}"
                )
            if request.deadline and self._clock.unix_ms() >= request.deadline:
                raise self.responder.too_late()
            if caller not in _TRUSTED and (request.on_behalf or request.mode != "sync"):
                request = msgspec.structs.replace(request, on_behalf="", mode="sync")
            if self._executor.joins(request.id):
                self.responder.give_up_place()
            return await self._executor.execute(request, caller)

    async def _within(self, deadline: int, work: Callable[[], Awaitable[T]]) -> T:
        """Nobody waits past the deadline (unix ms; 0: none), so nobody works past it. A thread or
        a LanceDB query that has begun may run on, but it no longer holds a slot of the node.
        """
        if not deadline:
            return await work()
        left_s = (deadline - self._clock.unix_ms()) / 1000
        if left_s <= 0:
            raise self.responder.too_late()
        try:
            async with asyncio.timeout(left_s) as limit:
                return await work()
        except TimeoutError:
            if not limit.expired():
                raise  # of the work itself
            raise DeadlineExceededError("nobody waits for this any more; it was ended") from None


def _unknown_verb(verb: str) -> BadRequestError:
    known = ", ".join(subjects.NODE_VERBS)
    return BadRequestError(f"unknown verb {verb!r}; nodes answer: {known}")


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
