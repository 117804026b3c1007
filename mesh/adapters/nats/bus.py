"""`mesh.ports.Bus` over NATS: one hardened connection that speaks as one identity."""

from __future__ import annotations

import asyncio
import functools
import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import nats.errors
import structlog

from mesh.adapters.nats.client import FastHandler, HardenedClient
from mesh.adapters.nats.multiplexer import Multiplexer, Reply
from mesh.config import NatsConfig
from mesh.errors import (
    DeadlineExceededError,
    DisconnectedError,
    InvalidError,
    MeshError,
    OverloadedError,
    TooLargeError,
    UnauthorizedError,
)
from mesh.ports import Handler, Message
from mesh.wire.subjects import PREFIX, token

log = structlog.get_logger()

_GONE = (OSError, nats.errors.UnexpectedEOF, nats.errors.StaleConnectionError)
_FIRST_RETRY_S = 0.05
_LAST_RETRY_S = 1.0
_FORGET_S = 1.0
_PAUSE_S = 0.2
"""nats-py's own pause before it tries a server again while connecting for the first time."""


class NatsSubscription:
    """`mesh.ports.Subscription`."""

    def __init__(self, bus: NatsBus, sid: int) -> None:
        self._bus = bus
        self._sid = sid

    async def unsubscribe(self) -> None:
        await self._bus.forget(self._sid)


class NatsBus:
    """One connection to the broker, speaking as `identity`."""

    def __init__(self, identity: str, config: NatsConfig) -> None:
        self._identity = token(identity, "identity")
        self._config = config
        self._connection_id = secrets.token_urlsafe(12)  # 96 bits: no two connections share replies
        self._replies = Multiplexer(self._identity, self._connection_id)
        self._listeners: list[Callable[[bool], None]] = []
        self._found = asyncio.Event()
        self._refused: asyncio.Future[Exception] | None = None
        self._rng = random.Random()  # noqa: S311 (spreads reconnects, guards nothing)
        self._client = HardenedClient(on_lost=self._lost, on_found=self._came_back)

    # -- life ----------------------------------------------------------------------------

    @classmethod
    async def connect(
        cls,
        identity: str,
        config: NatsConfig,
        *,
        user: str | None = None,
        password: str | None = None,
        patience_s: float = 0.0,
    ) -> NatsBus:
        """Log in.

        Args:
            identity: The token this connection speaks as.
            config: Where the broker is, and the limits.
            user: Login; None: none is sent.
            password: Its secret.
            patience_s: How long to go on trying while no server answers.

        Raises:
            DisconnectedError: No server answers.
            UnauthorizedError: The broker refuses the login.
        """
        attempt = 0
        clock = asyncio.get_running_loop()
        give_up = clock.time() + patience_s
        while True:
            bus = cls(identity, config)
            try:
                await bus._open(user, password)
            except DisconnectedError as error:
                if clock.time() >= give_up:
                    raise
                if attempt % 20 == 0:
                    log.warning("mesh.bus.broker_awaited", servers=config.servers, error=str(error))
                await asyncio.sleep(bus._delay(attempt))
                attempt += 1
            else:
                return bus

    async def _open(self, user: str | None, password: str | None) -> None:
        loop = asyncio.get_running_loop()
        self._refused = loop.create_future()
        opening = loop.create_task(
            self._client.connect(
                list(self._config.servers),
                name=self._identity,
                user=user,
                password=password,
                error_cb=self._on_error,
                reconnected_cb=self._client.found,
                connect_timeout=self._config.connect_timeout_s,  # type: ignore[arg-type]
                ping_interval=self._config.ping_interval_s,  # type: ignore[arg-type]
                max_outstanding_pings=self._config.max_outstanding_pings,
                reconnect_time_wait=_PAUSE_S,  # type: ignore[arg-type]
                reconnect_to_server_handler=self._next_server,
                max_reconnect_attempts=-1,
                pending_size=-1,  # fail fast: nothing is kept for after an outage
                inbox_prefix=f"{PREFIX}.re.js.{self._identity}.{self._connection_id}_lib",
            )
        )
        try:
            await self._opened(opening, self._refused)
            self._refused = None
            await self._subscribe(self._replies.subject, "", self._replies.on_message)
            await self.flush()
        except MeshError:
            await self._client.hang_up()
            raise
        except BaseException:
            await _end(opening)
            await self._client.hang_up()
            raise
        self._found.set()

    async def _opened(
        self, opening: asyncio.Task[None], refused: asyncio.Future[Exception]
    ) -> None:
        """nats-py would try for ever; the first refusal is an answer."""
        await asyncio.wait(
            (opening, refused),
            timeout=self._config.connect_timeout_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not opening.done():
            await _end(opening)
            raise self._connect_error(refused.result() if refused.done() else None)
        opening.result()

    def _connect_error(self, error: Exception | None) -> MeshError:
        servers = ", ".join(_without_login(server) for server in self._config.servers)
        if error is not None and "authorization" in str(error).lower():
            return UnauthorizedError(
                f"the broker at {servers} refused the login; check the credentials file"
            )
        why = f" ({error})" if error is not None and str(error) else ""
        return DisconnectedError(
            f"no broker answers at {servers}{why}; start a mesh with `mesh-agent up`, "
            "or say where it is with --url or MESH_URL"
        )

    async def _on_error(self, error: Exception) -> None:
        """nats-py's error_cb; must never raise, or the read loop is gone."""
        refused = self._refused
        if refused is not None:
            if not refused.done():
                refused.set_result(error)
            return
        # That the broker is gone is told once, by `_lost`; each try to find it is a detail.
        level = log.debug if isinstance(error, _GONE) else log.warning
        level("mesh.bus.error_reported", error=str(error) or type(error).__name__)

    def _next_server(self, pool: Sequence[Any], _info: Mapping[str, Any]) -> tuple[Any, float]:
        server = min(pool, key=lambda candidate: candidate.reconnects)
        return server, self._delay(server.reconnects)

    def _delay(self, attempt: int) -> float:
        """Full jitter over a doubling range, so that a restarted broker is not stormed."""
        most = min(_LAST_RETRY_S, _FIRST_RETRY_S * 2 ** min(attempt, 10))
        return self._rng.uniform(_FIRST_RETRY_S / 2, most)

    async def close(self) -> None:
        if self._client.is_connected:
            try:
                # Interest is withdrawn first: else the broker may still send us what nobody hears.
                await self._client.unsubscribe_all()
                await self.flush(timeout_s=2.0)
            except MeshError as error:
                log.debug("mesh.bus.flush_failed", error=str(error))
        self._replies.fail_all(DisconnectedError("this connection was closed"))
        await self._client.hang_up()

    # -- state ---------------------------------------------------------------------------

    @property
    def identity(self) -> str:
        return self._identity

    @property
    def connected(self) -> bool:
        return bool(self._client.is_connected)

    @property
    def connection_id(self) -> str:
        """The `<conn>` of this connection's reply subjects."""
        return self._connection_id

    def on_connection(self, listener: Callable[[bool], None]) -> None:
        self._listeners.append(listener)

    def _lost(self) -> None:
        self._found.clear()
        self._replies.fail_all(DisconnectedError("the connection to the broker was lost"))
        log.warning("mesh.bus.broker_lost", identity=self._identity)
        self._tell(connected=False)

    def _came_back(self) -> None:
        self._found.set()
        log.info("mesh.bus.broker_found", identity=self._identity)
        self._tell(connected=True)

    def _tell(self, *, connected: bool) -> None:
        for listener in self._listeners:
            try:
                listener(connected)
            except Exception:
                log.exception("mesh.bus.listener_failed")

    # -- sending -------------------------------------------------------------------------

    def publish(self, subject: str, payload: bytes) -> None:
        self._send(subject, b"", payload, b"")

    def _send(self, subject: str, reply: bytes, payload: bytes, headers: bytes) -> None:
        client = self._client
        if not client.is_connected:
            raise DisconnectedError("the broker is away")
        size = len(payload) + len(headers)
        if size > client.max_payload:
            raise TooLargeError(
                f"a message of {size} bytes is beyond the broker's limit of {client.max_payload}"
            )
        if client.congested(self._config.max_pending_bytes):
            raise OverloadedError("the connection to the broker is congested", retry_after_ms=200)
        target = b"%b %b" % (_checked(subject), reply) if reply else _checked(subject)
        if headers:
            command = b"HPUB %b %d %d\r\n%b%b\r\n" % (target, len(headers), size, headers, payload)
        else:
            command = b"PUB %b %d\r\n%b\r\n" % (target, size, payload)
        client.write(command)

    # -- requests ------------------------------------------------------------------------

    async def request(
        self, subject: str, payload: bytes, *, responder: str, timeout_s: float
    ) -> bytes:
        if not self._client.is_connected:
            timeout_s = await self._until_found(timeout_s)
        address, future = self._replies.expect(responder, timeout_s, subject)
        try:
            self._send(subject, address, payload, b"")
            return (await future).data
        finally:
            self._replies.forget(address)

    async def request_broker(
        self, subject: str, payload: bytes, *, timeout_s: float, headers: Mapping[str, str] = {}
    ) -> Reply:
        """Ask JetStream: a PubAck, or an answer of its API.

        Raises:
            As `request`.
        """
        if not self._client.is_connected:
            timeout_s = await self._until_found(timeout_s)
        address, future = self._replies.expect("js", timeout_s, subject)
        try:
            self._send(subject, address, payload, _header_block(headers))
            return await future
        finally:
            self._replies.forget(address)

    async def gather(
        self, subject: str, payload: bytes, *, responder: str, window_s: float
    ) -> list[bytes]:
        address, over, replies = self._replies.collect(responder, window_s)
        try:
            self._send(subject, address, payload, b"")
            await over
        finally:
            self._replies.forget(address)
        return replies

    async def _until_found(self, timeout_s: float) -> float:
        """Wait for the broker; what is left of the time."""
        began = asyncio.get_running_loop().time()
        if self._client.is_closed:
            raise DisconnectedError("this connection was closed")
        try:
            async with asyncio.timeout(timeout_s):
                await self._found.wait()
        except TimeoutError:
            raise DisconnectedError("the broker is away; nothing was sent") from None
        return timeout_s - (asyncio.get_running_loop().time() - began)

    # -- hearing -------------------------------------------------------------------------

    async def subscribe(
        self, subject: str, handler: Handler, *, queue: str = ""
    ) -> NatsSubscription:
        def heard(subject: bytes, reply: bytes, data: bytes, _headers: bytes | None) -> None:
            handler(Message(subject.decode(), reply.decode(), data))

        sid = await self._subscribe(subject, queue, heard)
        if self._client.is_connected:
            await self.flush()
        return NatsSubscription(self, sid)

    async def forget(self, sid: int) -> None:
        """End a subscription; the broker knows, if it is there and answers in time."""
        await self._client.unsubscribe_fast(sid)
        try:
            await self.flush(timeout_s=_FORGET_S)
        except (DisconnectedError, DeadlineExceededError) as error:
            log.debug("mesh.bus.flush_failed", error=str(error))

    async def _subscribe(self, subject: str, queue: str, handler: FastHandler) -> int:
        try:
            return await self._client.subscribe_fast(subject, queue, handler)
        except nats.errors.Error as error:
            raise DisconnectedError(f"cannot subscribe: {error}") from error

    async def flush(self, *, timeout_s: float = 5.0) -> None:
        if not self._client.is_connected:  # nats-py would return as if all had been sent
            raise DisconnectedError("the broker is away")
        try:
            self._client._flush_now()  # noqa: SLF001
            await self._client.flush(timeout=timeout_s)  # type: ignore[arg-type]
        except nats.errors.TimeoutError as error:
            raise DeadlineExceededError("the broker did not answer a ping in time") from error
        except nats.errors.Error as error:
            raise DisconnectedError(f"the broker is away: {error}") from error


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel until it heeds: Python 3.11's `wait_for`, in nats-py, can swallow a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=0.1)


@functools.lru_cache(maxsize=4096)
def _checked(subject: str) -> bytes:
    """A subject as bytes; one with blanks or control characters would be read as a command, and an
    empty one would be an error that costs the connection.
    """
    if not subject or " " in subject or not subject.isprintable():
        raise InvalidError(f"not a subject: {subject[:80]!r}")
    return subject.encode()


def _header_block(headers: Mapping[str, str]) -> bytes:
    if not headers:
        return b""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"NATS/1.0\r\n{lines}\r\n".encode()


def _without_login(server: str) -> str:
    scheme, found, rest = server.rpartition("://")
    return f"{scheme}{found}{rest.rpartition('@')[2]}"
