"""Gateways' caches of answers, for administrators: each gateway answers for its own."""

from __future__ import annotations

import structlog

from mesh.errors import MeshError
from mesh.ports import Bus, Message, Subscription
from mesh.runtime.answer_cache import AnswerCache
from mesh.runtime.serving import caller_of
from mesh.wire import codec, subjects
from mesh.wire.messages import CacheReport, CacheReports, CacheRequest

log = structlog.get_logger()

_GATEWAY = "gateway"
_VERB = "cache"


class CacheDoor:
    """Answers `mesh.v1.rpc.gateway.cache.<caller>`; the broker lets administrators ask."""

    def __init__(self, bus: Bus, cache: AnswerCache, name: str) -> None:
        """Args:
        bus: A gateway's.
        cache: Of its client.
        name: Tells this gateway from others.
        """
        self._bus = bus
        self._cache = cache
        self._name = name
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Answer from now on."""
        subject = f"{subjects.PREFIX}.rpc.{_GATEWAY}.{_VERB}.*"
        self._subscription = await self._bus.subscribe(subject, self._asked)

    async def stop(self) -> None:
        """Answer no more."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()

    def _asked(self, message: Message) -> None:
        own = f"{subjects.PREFIX}.re.{_GATEWAY}.{caller_of(message)}."
        if not message.reply.startswith(own):  # a gateway may publish where its callers may not
            log.info("mesh.cache.reply_not_the_callers", subject=message.subject)
            return
        try:
            reply = codec.ok(self._report(codec.decode(message.data, CacheRequest)))
        except MeshError as error:
            reply = codec.encode(codec.error_reply(error))
        try:
            self._bus.publish(message.reply, reply)
        except MeshError as error:
            log.info("mesh.cache.report_lost", error=str(error))

    def _report(self, request: CacheRequest) -> CacheReport:
        cleared = self._cache.clear() if request.clear else None
        return CacheReport(gateway=self._name, stats=self._cache.stats(), cleared=cleared)


async def ask_caches(bus: Bus, *, clear: bool, window_s: float) -> CacheReports:
    """What every gateway that answers within `window_s` seconds says, by name.

    Raises:
        ForbiddenError: This identity is no administrator's.
        DisconnectedError: The broker is away.
    """
    subject = subjects.rpc(_GATEWAY, _VERB, bus.identity)
    request = codec.encode(CacheRequest(clear=clear))
    replies = await bus.gather(subject, request, responder=_GATEWAY, window_s=window_s)
    reports = [codec.result_of(reply, CacheReport) for reply in replies]
    return CacheReports(gateways=sorted(reports, key=lambda report: report.gateway))
