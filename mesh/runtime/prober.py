"""Pings nodes: one at a time per node, so that results come in the order of the questions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from mesh.errors import DisconnectedError, MeshError, NoRespondersError
from mesh.ports import Bus, Clock
from mesh.runtime.background import Background
from mesh.wire import codec, subjects
from mesh.wire.messages import PingRequest, PingResult

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Answered:
    """The node answered, as this life of it."""

    node: str
    incarnation: int
    took_ms: float


@dataclass(frozen=True, slots=True)
class Failed:
    """No answer, or none that counts."""

    node: str
    no_responders: bool


ProbeResult = Answered | Failed


class Prober:
    """Asks `ping`, and reports what comes of it."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        background: Background,
        *,
        timeout_s: float,
        report: Callable[[ProbeResult], None],
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._background = background
        self._timeout_s = timeout_s
        self._report = report
        self._turns: dict[str, asyncio.Lock] = {}
        self._requested: set[str] = set()

    def request(self, node: str) -> None:
        """Probe soon: at once, or as soon as the probe that runs has ended."""
        if node not in self._requested:
            self._requested.add(node)
            self._background.spawn(f"probe-{node}", self.probe(node, requested=True))

    async def probe(self, node: str, *, requested: bool = False) -> None:
        """Probe and report."""
        async with self._turns.setdefault(node, asyncio.Lock()):
            if requested:
                self._requested.discard(node)
            result = await self._ask(node)
        if result is not None:
            self._report(result)

    def forget(self, node: str) -> None:
        """The node is registered no more."""
        self._turns.pop(node, None)

    async def _ask(self, node: str) -> ProbeResult | None:
        """None: the broker is away, which says nothing about the node."""
        began = self._clock.monotonic()
        payload = codec.encode(
            PingRequest(deadline=self._clock.unix_ms() + round(self._timeout_s * 1000))
        )
        try:
            reply = await self._bus.request(
                subjects.rpc(node, "ping", self._bus.identity),
                payload,
                responder=node,
                timeout_s=self._timeout_s,
            )
            pong = codec.result_of(reply, PingResult)
        except NoRespondersError:
            return Failed(node, no_responders=True)
        except DisconnectedError:
            return None
        except MeshError as error:
            log.debug("mesh.probe.failed", node=node, error=str(error))
            return Failed(node, no_responders=False)
        if pong.node != node:
            log.warning("mesh.probe.answer_dropped", node=node, answered_as=pong.node[:64])
            return Failed(node, no_responders=False)
        return Answered(node, pong.incarnation, (self._clock.monotonic() - began) * 1000)
