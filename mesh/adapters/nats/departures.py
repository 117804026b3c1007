"""`mesh.ports.Departures`: the broker's own events.

`client.user` is the name a master issued; `client.name` is whatever the client calls itself. The
event follows the end of a process in about 4 ms.

Source: nats-server, `events.go` (`$SYS.ACCOUNT.<account>.DISCONNECT`), `client.go` (reasons).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec
import structlog
from msgspec import Meta

from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.login_jwt import ACCOUNT
from mesh.ports import Departure, Message, Subscription

log = structlog.get_logger()

_SUBJECT = f"$SYS.ACCOUNT.{ACCOUNT}.DISCONNECT"
_MOST_REASON_CHARS = 200


class _Server(msgspec.Struct, frozen=True, kw_only=True):
    id: Annotated[str, Meta(max_length=256)] = ""


class _Client(msgspec.Struct, frozen=True, kw_only=True):
    acc: str
    user: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}(?!\n)$")]
    id: Annotated[int, Meta(ge=0)] = 0


class _Disconnected(msgspec.Struct, frozen=True, kw_only=True):
    client: _Client
    server: _Server = _Server()
    reason: str = ""


_EVENTS = msgspec.json.Decoder(_Disconnected)


class NatsDepartures:
    """Over a connection in the broker's system account."""

    def __init__(self, bus: NatsBus) -> None:
        """Args:
        bus: Logged in with `MasterCredentials.sys_login()`; stays the caller's to close.
        """
        self._bus = bus
        self._heard: Callable[[Departure], None] | None = None
        self._subscription: Subscription | None = None
        self.dropped = 0

    async def start(self, heard: Callable[[Departure], None]) -> None:
        self._heard = heard
        self._subscription = await self._bus.subscribe(_SUBJECT, self._on_event)

    async def stop(self) -> None:
        self._heard = None
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None

    def _on_event(self, message: Message) -> None:
        try:
            event = _EVENTS.decode(message.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.dropped += 1
            log.warning("mesh.departures.event_unreadable", error=str(error)[:_MOST_REASON_CHARS])
            return
        client = event.client
        if self._heard is not None and client.acc == ACCOUNT:
            reason = event.reason[:_MOST_REASON_CHARS]
            self._heard(Departure(client.user, reason, event.server.id, client.id))
