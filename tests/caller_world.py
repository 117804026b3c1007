"""A caller, its replicas by script, and what they and the masters heard; in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random

import msgspec
from fakes import MemoryBroker
from virtual_time import LoopClock

from mesh.config import BreakerConfig, MeshConfig, RoutingConfig
from mesh.core.route_table import RouteTable
from mesh.errors import MeshError
from mesh.runtime.caller import Caller
from mesh.types import Health
from mesh.wire import codec
from mesh.wire.messages import Outcomes, PingResult, Request, RouteNode, SearchRequest

PONG = PingResult(node="x", incarnation=1)
HUNG = object()


def route(slug, *, incarnation=1, health=Health.HEALTHY, **fields):
    return RouteNode(slug=slug, health=health, incarnation=incarnation, **fields)


class CallerWorld:
    """`behave(slug, result | error | HUNG, after_s=…)` is how a node answers; one that was never
    told to behave does not listen.
    """

    def __init__(self, *slugs, breaker=None, **routing):
        self.broker = MemoryBroker()
        self.bus = self.broker.bus("ops")
        self.config = MeshConfig(
            routing=RoutingConfig(**routing), breaker=BreakerConfig(**(breaker or {}))
        )
        self.clock = LoopClock()
        self.caller = Caller(
            self.bus, self.clock, self.config, connection="c1", chance=random.Random(7).random
        )
        self.asked: list[tuple[str, str, dict]] = []
        """Slug, verb or action, body; without cancels."""
        self.cancelled: list[tuple[str, str]] = []
        """Slug, id of the request."""
        self._how: dict[str, tuple[object, float]] = {}
        self._listening = {}
        self._versions = itertools.count(1)
        self._tasks = set()
        self.slugs = slugs
        self.know(*map(route, slugs))
        self.group = self.caller.group(slugs, "ping")
        self.searches = self.caller.group(slugs, "search")

    def know(self, *nodes):
        self.caller.adopt(RouteTable(epoch=1, version=next(self._versions), nodes=nodes))

    def behave(self, slug, answer=PONG, *, after_s=0.0):
        self._how[slug] = answer, after_s
        if slug not in self._listening:
            bus = self._listening[slug] = self.broker.bus(slug)
            for kind in ("rpc", "act"):
                coroutine = bus.subscribe(
                    f"mesh.v1.{kind}.{slug}.*.*", lambda message: self._asked(slug, message)
                )
                with contextlib.suppress(StopIteration):
                    coroutine.send(None)

    def leave(self, slug):
        """Nobody listens there any more."""
        self._listening.pop(slug).subscriptions.clear()

    def _asked(self, slug, message):
        verb, body = message.subject.split(".")[4], msgspec.json.decode(message.data)
        if verb == "cancel":
            self.cancelled.append((slug, body["request"]))
            return
        self.asked.append((slug, verb, body))
        answer, after_s = self._how[slug]
        if answer is HUNG:
            return
        reply = (
            codec.encode(codec.error_reply(answer))
            if isinstance(answer, MeshError)
            else codec.ok(answer)
        )
        asyncio.get_running_loop().call_later(after_s, self._reply, slug, message.reply, reply)

    def _reply(self, slug, subject, reply):
        if slug in self._listening and self.broker.running:
            self._listening[slug].publish(subject, reply)

    def asked_slugs(self):
        return [slug for slug, _, _ in self.asked]

    async def ping(self, timeout_s=1.0):
        return (await self.caller.any(self.group, Request(), PingResult, timeout_s))[0]

    async def search(self, id="r1", timeout_s=1.0):  # noqa: A002
        request = SearchRequest(id=id, query="late")
        return (await self.caller.any(self.searches, request, PingResult, timeout_s))[0]

    def lane(self, slug, verb="ping"):
        return self.caller._peers.lane(slug, verb)

    def in_flight(self):
        peers = self.caller._peers._peers.values()
        return sum(lane.load.in_flight for peer in peers for lane in peer.lanes.values())

    def reports(self):
        return [
            codec.decode(message.data, Outcomes)
            for message in self.broker.sent
            if message.subject == "mesh.v1.outcome.ops"
        ]


async def raised(call):
    """The MeshError that it ends in."""
    try:
        answer = await call
    except MeshError as error:
        return error
    raise AssertionError(f"it was answered: {answer}")


def took(world, began):
    return round(world.clock.monotonic() - began, 3)
