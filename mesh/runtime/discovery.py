"""Every node is a NATS service: `$SRV.PING`, `$SRV.INFO`, `$SRV.STATS`.

Source: NATS ADR-32. Answers go to `mesh.v1.re.srv.<asker>.…` alone, so ask with
`--inbox-prefix mesh.v1.re.srv.<you>`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from mesh.core.service_time import ServiceTime
from mesh.errors import MeshError
from mesh.ports import Bus, Message, Subscription
from mesh.runtime.sdk import ActionSpec
from mesh.types import Health
from mesh.wire import codec
from mesh.wire.messages import Heartbeat, RouteNode, VerbStats
from mesh.wire.subjects import PREFIX

_VERBS = ("PING", "INFO", "STATS")
_REPLIES = f"{PREFIX}.re.srv."
_TYPES = "io.nats.micro.v1"
_CARD = "mesh.node"

Endpoint = tuple[str, str]
"""What a node answers: (`rpc`, verb) or (`act`, action)."""


class _Info(msgspec.Struct, frozen=True):
    metadata: dict[str, str] = {}


class Discovery:
    """Answers `$SRV` requests for one node."""

    def __init__(
        self,
        bus: Bus,
        *,
        node: str,
        started: str,
        compose: Callable[[], Heartbeat],
        actions: Mapping[str, ActionSpec],
        meters: Mapping[Endpoint, ServiceTime],
    ) -> None:
        self._bus = bus
        self._node = node
        self._started = started
        self._compose = compose
        self._actions = actions
        self._meters = meters
        self._subscriptions: list[Subscription] = []
        self.dropped = 0

    async def start(self) -> None:
        """Begin to answer."""
        beat = self._compose()
        for verb in _VERBS:
            answer = getattr(self, f"_{verb.lower()}")
            for subject in (
                f"$SRV.{verb}",
                f"$SRV.{verb}.{self._node}",
                f"$SRV.{verb}.{self._node}.{_instance(beat)}",
            ):
                self._subscriptions.append(
                    await self._bus.subscribe(subject, self._handler(answer))
                )

    async def stop(self) -> None:
        """No longer answer."""
        await asyncio.gather(*(each.unsubscribe() for each in self._subscriptions))

    def _handler(self, answer: Callable[[], dict[str, Any]]) -> Callable[[Message], None]:
        def handle(message: Message) -> None:
            if not message.reply.startswith(_REPLIES):
                self.dropped += 1
                return
            try:
                self._bus.publish(message.reply, codec.encode(answer()))
            except MeshError:
                self.dropped += 1

        return handle

    def _who(self, kind: str, beat: Heartbeat) -> dict[str, Any]:
        return {
            "type": f"{_TYPES}.{kind}_response",
            "name": self._node,
            "id": _instance(beat),
            "version": beat.version or "0.0.0",
            "metadata": {},
        }

    def _ping(self) -> dict[str, Any]:
        return self._who("ping", self._compose())

    def _info(self) -> dict[str, Any]:
        beat = self._compose()
        metadata = {_CARD: codec.encode(beat).decode()}
        for offered in (spec.describe() for spec in self._actions.values()):
            metadata[f"mesh.action.{offered.name}"] = codec.encode(offered.params).decode()
            if offered.result is not None:
                metadata[f"mesh.action.{offered.name}.result"] = codec.encode(
                    offered.result
                ).decode()
        return self._who("info", beat) | {
            "description": f"nodemesh node {beat.name or self._node}",
            "metadata": metadata,
            "endpoints": [
                {"name": name, "subject": subject, "queue_group": "", "metadata": {}}
                for name, subject, _ in self._endpoints()
            ],
        }

    def _stats(self) -> dict[str, Any]:
        beat = self._compose()
        return self._who("stats", beat) | {
            "started": self._started,
            "endpoints": [
                {"name": name, "subject": subject, "queue_group": ""} | _figures(meter.stats())
                for name, subject, meter in self._endpoints()
            ],
        }

    def _endpoints(self) -> list[tuple[str, str, ServiceTime]]:
        return [
            (name, f"{PREFIX}.{kind}.{self._node}.{name}.*", meter)
            for (kind, name), meter in self._meters.items()
        ]


def route_of(info: bytes) -> RouteNode | None:
    """What a `$SRV.INFO` answer tells a caller; None if it is not a node of ours.

    This is how a caller finds the nodes when no master answers.
    """
    try:
        card = codec.decode(info, _Info).metadata.get(_CARD)
        beat = codec.decode(card.encode(), Heartbeat) if card else None
    except MeshError:
        return None
    return None if beat is None else route_of_beat(beat)


def route_of_beat(beat: Heartbeat) -> RouteNode:
    """The route of a node that has just spoken."""
    return RouteNode(
        slug=beat.node,
        name=beat.name,
        health=Health.DRAINING if beat.draining else Health.HEALTHY,
        incarnation=beat.incarnation,
        type=beat.type,
        weight=beat.weight,
        capabilities=beat.capabilities,
        collections=beat.collections,
        actions=[action.name for action in beat.actions],
    )


def _instance(beat: Heartbeat) -> str:
    return f"{beat.node}-{beat.incarnation}"


def _figures(stats: VerbStats) -> dict[str, Any]:
    total_ns = round(stats.ewma_ms * stats.count * 1e6)
    return {
        "num_requests": stats.count,
        "num_errors": stats.errors,
        "last_error": "",
        "processing_time": total_ns,
        "average_processing_time": round(stats.ewma_ms * 1e6),
    }
