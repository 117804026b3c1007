"""Pings nodes: one at a time per node, so that results come in the order of the questions.

However many ask at once, one ping runs and one more follows. A ping that runs when something has
happened to the node may be lost with what received it, so it is not waited for: the same question
is asked again, after a moment in which a good answer would have come.
"""

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

_PATIENCE_S = 0.005
"""With a ping that something overtook; doubles each time the same ping is overtaken, so that there
is an end of it however often the node is doubted.
"""


@dataclass(slots=True)
class _Turns:
    """Of one node."""

    lock: asyncio.Lock
    wanted: bool = False
    """A ping is to follow the one that runs, if one does."""
    running: asyncio.Timeout | None = None
    patience_s: float = _PATIENCE_S


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
        self._turns: dict[str, _Turns] = {}

    def request(self, node: str, *, again: bool = True) -> None:
        """Probe soon: at once, or as soon as the probe that runs has ended; unless it is the same
        question `again`, that one is hurried.
        """
        turns = self._turns_of(node)
        if not again and turns.running is not None and turns.running.when() is None:
            turns.running.reschedule(asyncio.get_running_loop().time() + turns.patience_s)
        if not turns.wanted:
            turns.wanted = True
            self._background.spawn(f"probe-{node}", self.probe(node, requested=True))

    async def probe(self, node: str, *, requested: bool = False) -> None:
        """Probe and report."""
        turns = self._turns_of(node)
        async with turns.lock:
            if requested:
                turns.wanted = False
            result = await self._answer(node, turns)
        if result is not None:
            self._report(result)

    def _turns_of(self, node: str) -> _Turns:
        turns = self._turns.get(node)
        if turns is None:
            turns = self._turns[node] = _Turns(asyncio.Lock())
        return turns

    def forget(self, node: str) -> None:
        """The node is registered no more."""
        self._turns.pop(node, None)

    async def _answer(self, node: str, turns: _Turns) -> ProbeResult | None:
        turns.patience_s = _PATIENCE_S
        while True:
            try:
                async with asyncio.timeout(None) as turns.running:
                    return await self._ask(node)
            except TimeoutError:  # overtaken: ask again
                turns.patience_s *= 2
            finally:
                turns.running = None

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
