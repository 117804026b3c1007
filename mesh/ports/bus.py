"""The bus, as the runtime sees it."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable
from typing import NamedTuple, Protocol

from mesh.errors import MeshError


class Message(NamedTuple):
    """One message from the bus; `reply` is empty where no answer is asked for."""

    subject: str
    reply: str
    data: bytes


Handler = Callable[[Message], None]
"""Called in the read loop: quick, and free to raise (counted and logged, never fatal)."""


class Subscription(Protocol):
    """Interest in a subject, kept through reconnects."""

    async def unsubscribe(self) -> None:
        """Stop hearing; the broker knows when this returns."""
        ...


class Pending(Protocol):
    """A request on its way. Whoever has it must `forget` it, answered or not."""

    @property
    def future(self) -> Future[bytes]:
        """The reply, or what became of the request; see `Bus.ask`."""
        ...

    def forget(self) -> None:
        """Nobody waits any more. The request itself is not taken back."""
        ...


class Bus(Protocol):
    """One hardened connection to the broker, with an own request multiplexer."""

    @property
    def identity(self) -> str:
        """The token this connection speaks as: `<caller>` or `<node>` of section 3."""
        ...

    @property
    def connected(self) -> bool:
        """Whether the broker is there right now."""
        ...

    @property
    def reads(self) -> int:
        """How often something came from the broker. Whoever sees it grow knows that it is there."""
        ...

    def ask(
        self,
        subject: str,
        payload: bytes,
        *,
        responder: str,
        timeout_s: float,
        first_s: float = 0.0,
    ) -> Pending:
        """Send a request; its future ends in the one reply of `responder`, or as `request` does.
        With `first_s`, if nothing has come after so many seconds, `future` ends empty and is from
        then on another one, which ends as said: no task is needed to wait for so long only.

        Raises:
            DisconnectedError: The broker is away; nothing was sent.
            OverloadedError, TooLargeError: Nothing was sent either.
        """
        ...

    def abandon(self, responder: str, error: MeshError, *, older_than_s: float = 0.0) -> int:
        """Nothing will come of what was asked of `responder` so many seconds ago or before: each of
        these requests ends in `error`. How many there were.
        """
        ...

    async def until_connected(self, timeout_s: float) -> float:
        """Wait for the broker if it is away; what is left of the time.

        Raises:
            DisconnectedError: It was not there in time, or this connection was closed.
        """
        ...

    async def request(
        self, subject: str, payload: bytes, *, responder: str, timeout_s: float
    ) -> bytes:
        """Send and await the one reply of `responder`. While the broker is away the request waits
        for it within its own timeout, and is never sent after it.

        Raises:
            NoRespondersError: Nobody listens; known in about a millisecond.
            DeadlineExceededError: No reply within `timeout_s` seconds.
            DisconnectedError: The broker is or went away; a reply may have been lost.
            TooLargeError: `payload` is beyond what the broker takes.
        """
        ...

    def publish(self, subject: str, payload: bytes) -> None:
        """Send and forget.

        Raises:
            DisconnectedError: The broker is away; nothing is buffered for later.
            TooLargeError: `payload` is beyond what the broker takes.
        """
        ...

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """Hear `subject`; interest is known to the broker when this returns."""
        ...

    async def gather(
        self, subject: str, payload: bytes, *, responder: str, window_s: float
    ) -> list[bytes]:
        """Send to many and take every reply that comes within `window_s` seconds."""
        ...

    def on_connection(self, listener: Callable[[bool], None]) -> None:
        """Have `listener(connected)` called whenever the broker goes or comes."""
        ...

    async def flush(self, *, timeout_s: float = 5.0) -> None:
        """Return when the broker has processed everything sent so far.

        Raises:
            DeadlineExceededError, DisconnectedError
        """
        ...

    async def close(self) -> None:
        """Send what is pending, then hang up."""
        ...
