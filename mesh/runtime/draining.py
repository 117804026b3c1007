"""Taking a node out of use and back in, at an operator's word: the masters ask the node itself,
which announces it, finishes what runs and takes nothing new.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import structlog

from mesh.errors import DeadlineExceededError, NoRespondersError, UnavailableError
from mesh.ports import Audit, Bus, Clock, Verb
from mesh.runtime.issued_tokens import who
from mesh.types import Health
from mesh.wire import codec, subjects
from mesh.wire.messages import NodeEvent, NodeName, NodeRecord, Request

log = structlog.get_logger()

_TIMEOUT_S = 3.0
_SEEN_WITHIN_S = 1.5
"""Until the node's announcement is in the registry: it is on its way when the node has answered."""
_LOOK_EVERY_S = 0.01


class Draining:
    """The verbs `drain` and `undrain` of one master."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        *,
        find: Callable[[str], Awaitable[NodeRecord]],
        audit: Audit,
    ) -> None:
        """Args:
        bus: Speaks as `master`.
        clock: Time.
        find: The record of a slug or id: `Membership.find`.
        audit: Where it is written down.
        """
        self._bus = bus
        self._clock = clock
        self._find = find
        self._audit = audit
        self.verbs: Mapping[str, tuple[type[Request], Verb]] = {
            "drain": (NodeName, self._drain),
            "undrain": (NodeName, self._undrain),
        }

    async def _drain(self, asked: NodeName, caller: str) -> NodeRecord:
        return await self._ask("drain", asked, caller)

    async def _undrain(self, asked: NodeName, caller: str) -> NodeRecord:
        return await self._ask("undrain", asked, caller)

    async def _ask(self, verb: str, asked: NodeName, caller: str) -> NodeRecord:
        """Raises:
        NotFoundError: No such node.
        UnavailableError: It is away.
        """
        slug = (await self._find(asked.node)).slug
        await self._tell(slug, verb)
        by = who(asked, caller)
        self._audit.note(f"node-{verb}ed", actor=by, subject=slug, origin=asked.origin)
        log.info("mesh.node.drain_changed", node=slug, drained=verb == "drain", by=by)
        return await self._seen(slug, draining=verb == "drain")

    async def _tell(self, slug: str, verb: str) -> None:
        request = Request(deadline=self._clock.unix_ms() + round(_TIMEOUT_S * 1000))
        try:
            reply = await self._bus.request(
                subjects.rpc(slug, verb, self._bus.identity),
                codec.encode(request),
                responder=slug,
                timeout_s=_TIMEOUT_S,
            )
        except NoRespondersError as error:
            raise UnavailableError(f"node {slug!r} is away; nothing was changed") from error
        except DeadlineExceededError as error:
            raise UnavailableError(
                f"node {slug!r} did not answer; whether it will {verb} is not known"
            ) from error
        codec.result_of(reply, NodeEvent)

    async def _seen(self, slug: str, *, draining: bool) -> NodeRecord:
        """The record once its health tells of it, so that whoever asked sees what he did."""
        give_up = self._clock.monotonic() + _SEEN_WITHIN_S
        while True:
            record = await self._find(slug)
            is_seen = (record.health is Health.DRAINING) is draining
            if is_seen or self._clock.monotonic() >= give_up:
                return record
            await self._clock.sleep(_LOOK_EVERY_S)
