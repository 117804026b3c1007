"""`mesh.ports.Bus` over NATS: one hardened connection that speaks as one identity."""

from __future__ import annotations

import asyncio
import functools
import random
import secrets
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import nats.errors
import structlog

import mesh.adapters.nats.login as logins
from mesh.adapters.nats.client import FastHandler, HardenedClient
from mesh.adapters.nats.denials import Denials
from mesh.adapters.nats.multiplexer import Multiplexer, Reply, Waiter
from mesh.config import NatsConfig
from mesh.errors import (
    DeadlineExceededError,
    DisconnectedError,
    ForbiddenError,
    InvalidError,
    MeshError,
    NoMasterError,
    OverloadedError,
    TooLargeError,
)
from mesh.ports import Handler, Login, Message
from mesh.wire.subjects import PREFIX, token

log = structlog.get_logger()

_GONE = (OSError, nats.errors.UnexpectedEOF, nats.errors.StaleConnectionError)
_FIRST_RETRY_S = 0.05
_LAST_RETRY_S = 1.0
_LAST_RETRY_WHERE_REFUSED_S = 3.0
_LAST_RETRY_OF_FEW_S = 0.1
"""Of those whom the broker knows by itself, masters above all: who logs in before they are back
waits for the broker's whole patience.
"""
_LOG_EVERY = 20
"""Tries."""
_FORGET_S = 1.0
_PAUSE_S = 0.2
"""nats-py's own pause before it tries a server again while connecting for the first time."""


class _Failure(NamedTuple):
    error: Exception
    took_s: float
    """Since the connection was begun."""


class NatsSubscription:
    """`mesh.ports.Subscription`."""

    def __init__(self, bus: NatsBus, sid: int) -> None:
        self._bus = bus
        self._sid = sid

    async def unsubscribe(self) -> None:
        await self._bus.forget(self._sid)


class NatsBus:
    """One connection to the broker, speaking as `identity`."""

    def __init__(self, identity: str, config: NatsConfig, login: Login | None = None) -> None:
        """Use `connect`."""
        self._identity = token(identity, "identity")
        logins.check(identity, login)
        self._config = config
        self._max_pending_bytes = config.max_pending_bytes
        self._login = login
        self._connection_id = secrets.token_urlsafe(12)  # 96 bits: no two connections share replies
        self._replies = Multiplexer(self._identity, self._connection_id)
        self._denials = Denials(self._identity, self._replies)
        self._listeners: list[Callable[[bool], None]] = []
        self._found = asyncio.Event()
        self._failed: asyncio.Future[_Failure] | None = None
        self._servers_away = 0
        self._logins_failed = 0
        self._turned_away = False
        self._rng = random.Random()  # noqa: S311 (spreads reconnects, guards nothing)
        self._client = HardenedClient(
            on_lost=self._lost, on_found=self._came_back, needs_tls=logins.needs_tls(config)
        )

    # -- life ----------------------------------------------------------------------------

    @classmethod
    async def connect(
        cls,
        identity: str,
        config: NatsConfig,
        *,
        login: Login | None = None,
        patience_s: float = 0.0,
    ) -> NatsBus:
        """Log in.

        Args:
            identity: The token this connection speaks as: the login's user; with the masters' key,
                anybody.
            config: Where the broker is, TLS, and the limits.
            login: None: no credentials are sent.
            patience_s: How long to go on trying while no broker, or no master, answers.

        Raises:
            DisconnectedError: No server answers; NoMasterError: no master, who could judge the
                login.
            UnauthorizedError: The login is refused, or the credentials are somebody else's;
                UntrustedError: TLS does not come about.
            StateError: A certificate that cannot be read.
        """
        attempt = 0
        clock = asyncio.get_running_loop()
        give_up = clock.time() + patience_s
        while True:
            bus = cls(identity, config, login)
            try:
                await bus._open()
            except DisconnectedError as error:
                if clock.time() >= give_up:
                    raise
                if attempt % _LOG_EVERY == 0:
                    master_away = isinstance(error, NoMasterError)
                    event = "mesh.bus.login_awaited" if master_away else "mesh.bus.broker_awaited"
                    log.warning(event, identity=identity, error=str(error))
                await asyncio.sleep(bus._delay(attempt, _LAST_RETRY_S))
                attempt += 1
            else:
                return bus

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        self._failed = loop.create_future()
        shown = logins.options(self._config, self._login)
        opening = loop.create_task(
            self._client.connect(
                list(self._config.servers),
                name=self._identity,
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
                **shown,
            )
        )
        try:
            await self._opened(opening, self._failed)
            self._failed = None
            await self._subscribe(self._replies.subject, "", self._replies.on_message)
            await self.flush()  # raises if the broker went away meanwhile
        except MeshError:
            await self._client.hang_up()
            raise
        except BaseException:
            await _end(opening)
            await self._client.hang_up()
            raise
        self._found.set()

    async def _opened(self, opening: asyncio.Task[None], failed: asyncio.Future[_Failure]) -> None:
        """nats-py would try for ever; the first refusal is an answer."""
        await asyncio.wait(
            (opening, failed),
            timeout=self._config.connect_timeout_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not opening.done():
            await _end(opening)
            raise self._explained(failed.result() if failed.done() else _Failure(OSError(), 0.0))
        try:
            opening.result()
        except nats.errors.Error as error:  # an address that is none
            raise self._explained(_Failure(error, 0.0)) from error

    def _explained(self, failure: _Failure) -> MeshError:
        return logins.explain(
            failure.error, took_s=failure.took_s, servers=self._config.servers, login=self._login
        )

    async def _on_error(self, error: Exception) -> None:
        """nats-py's error_cb; must never raise, or the read loop is gone."""
        failure = _Failure(error, self._client.login_took_s())
        if self._failed is not None:
            self._opening_failed(self._failed, failure)
        elif self._client.is_connected and self._denials.heard(str(error)):
            pass
        elif logins.refused(error):
            self._login_failed(failure)
        else:
            # That the broker is gone is told once, by `_lost`; each try to find it is a detail.
            level = log.debug if isinstance(error, _GONE) else log.warning
            level("mesh.bus.error_reported", error=str(error) or type(error).__name__)

    def _opening_failed(self, failed: asyncio.Future[_Failure], failure: _Failure) -> None:
        if isinstance(failure.error, OSError) and not isinstance(failure.error, ssl.SSLError):
            self._servers_away += 1  # of a cluster, another one may be there
            if self._servers_away < len(self._config.servers):
                return
        if not failed.done():
            failed.set_result(failure)

    def _login_failed(self, failure: _Failure) -> None:
        """We were in, and are not let in again; it may be a master that is missing, or that does
        not know us yet, so we go on trying.
        """
        told = self._explained(failure)
        self._turned_away = not isinstance(told, DisconnectedError)
        if self._logins_failed % _LOG_EVERY == 0:
            log.warning("mesh.bus.login_awaited", identity=self._identity, error=str(told))
        self._logins_failed += 1

    def _next_server(self, pool: Sequence[Any], _info: Mapping[str, Any]) -> tuple[Any, float]:
        server = min(pool, key=lambda candidate: candidate.reconnects)
        longest_s = _LAST_RETRY_WHERE_REFUSED_S if self._turned_away else _LAST_RETRY_S
        if self._login is not None and self._login.nkey:
            longest_s = _LAST_RETRY_OF_FEW_S
        return server, self._delay(server.reconnects, longest_s)

    def _delay(self, attempt: int, longest_s: float) -> float:
        """Full jitter over a doubling range, so that a restarted broker is not stormed."""
        most = min(longest_s, _FIRST_RETRY_S * 2 ** min(attempt, 10))
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
        return self._client.connected

    @property
    def connection_id(self) -> str:
        """The `<conn>` of this connection's reply subjects."""
        return self._connection_id

    @property
    def seat(self) -> tuple[str, int]:
        """Id of the broker's server, and the number that this connection has there now."""
        return self._client.seat

    @property
    def reads(self) -> int:
        return self._client.parser.reads

    def on_connection(self, listener: Callable[[bool], None]) -> None:
        self._listeners.append(listener)

    def _lost(self) -> None:
        self._found.clear()
        self._replies.fail_all(DisconnectedError("the connection to the broker was lost"))
        log.warning("mesh.bus.broker_lost", identity=self._identity)
        self._tell(connected=False)

    def _came_back(self) -> None:
        self._logins_failed = 0
        self._turned_away = False
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
        size = len(payload) + len(headers)
        if not client.takes(size, self._max_pending_bytes):
            raise self._refusal(size)
        if headers:
            target = b"%b %b" % (_checked(subject), reply) if reply else _checked(subject)
            command = b"HPUB %b %d %d\r\n%b%b\r\n" % (target, len(headers), size, headers, payload)
        else:
            command = b"PUB %b %b %d\r\n%b\r\n" % (_checked(subject), reply, size, payload)
        client.write(command)

    def _refusal(self, size: int) -> MeshError:
        """Why a message of that size cannot be sent now."""
        if not self.connected:
            return DisconnectedError("the broker is away")
        most = self._client.max_payload
        if size > most:
            return TooLargeError(
                f"a message of {size} bytes is beyond the broker's limit of {most}"
            )
        return OverloadedError("the connection to the broker is congested", retry_after_ms=200)

    # -- requests ------------------------------------------------------------------------

    def ask(
        self,
        subject: str,
        payload: bytes,
        *,
        responder: str,
        timeout_s: float,
        first_s: float = 0.0,
    ) -> Waiter:
        waiter = self._replies.expect(responder, timeout_s, subject, first_s=first_s)
        try:
            self._send(subject, waiter.address, payload, b"")
        except MeshError:
            waiter.forget()
            raise
        return waiter

    def abandon(self, responder: str, error: MeshError, *, older_than_s: float = 0.0) -> int:
        return self._replies.abandon(responder, error, older_than_s=older_than_s)

    async def request(
        self, subject: str, payload: bytes, *, responder: str, timeout_s: float
    ) -> bytes:
        if not self._client.is_connected:
            timeout_s = await self.until_connected(timeout_s)
        waiter = self.ask(subject, payload, responder=responder, timeout_s=timeout_s)
        try:
            reply: bytes = await waiter.future
        finally:
            waiter.forget()
        return reply

    async def request_broker(
        self, subject: str, payload: bytes, *, timeout_s: float, headers: Mapping[str, str] = {}
    ) -> Reply:
        """Ask JetStream: a PubAck, or an answer of its API.

        Raises:
            As `request`.
        """
        if not self._client.is_connected:
            timeout_s = await self.until_connected(timeout_s)
        waiter = self._replies.expect("js", timeout_s, subject, whole=True)
        try:
            self._send(subject, waiter.address, payload, _header_block(headers))
            reply: Reply = await waiter.future
        finally:
            waiter.forget()
        return reply

    async def gather(
        self,
        subject: str,
        payload: bytes,
        *,
        responder: str,
        window_s: float,
        heard: Callable[[bytes], object] = lambda _reply: None,
    ) -> list[bytes]:
        """Also calls `heard` with each reply as it comes."""
        replies: list[bytes] = []

        def keep(reply: bytes) -> None:
            replies.append(reply)
            heard(reply)

        waiter = self._replies.collect(responder, window_s, subject, keep)
        try:
            self._send(subject, waiter.address, payload, b"")
            await waiter.future
        finally:
            waiter.forget()
        return replies

    async def until_connected(self, timeout_s: float) -> float:
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

        return await self.subscribe_raw(subject, heard, queue=queue)

    async def subscribe_raw(
        self, subject: str, handler: FastHandler, *, queue: str = ""
    ) -> NatsSubscription:
        """As `subscribe`, with the headers as well, and everything as bytes.

        Raises:
            As `subscribe`.
        """
        return NatsSubscription(self, await self._subscribe(subject, queue, handler))

    async def forget(self, sid: int) -> None:
        """End a subscription; the broker knows, if it is there and answers in time. What it had
        sent before is heard: whoever sent it waits for an answer.
        """
        self._client.withdraw(sid)
        try:
            await self.flush(timeout_s=_FORGET_S)
        except (DisconnectedError, DeadlineExceededError) as error:
            log.debug("mesh.bus.flush_failed", error=str(error))
        finally:
            self._client.drop(sid)

    async def _subscribe(self, subject: str, queue: str, handler: FastHandler) -> int:
        """Returns when the broker knows, or at once while it is away."""
        with self._denials.trial(subject) as trial:
            try:
                sid = await self._client.subscribe_fast(subject, queue, handler)
            except nats.errors.Error as error:
                raise DisconnectedError(f"cannot subscribe: {error}") from error
            if self._client.is_connected:
                await self.flush()
        if trial.denied:
            self._client.drop(sid)
            raise ForbiddenError(f"the broker does not let this login subscribe to {subject}")
        return sid

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
