"""HTTPS: the certificate, and handshakes that are limited like everything else.

A server that leaves handshakes to asyncio learns of a connection when its handshake is over: those
that never end would be neither counted nor hung up on for a minute. Here connections are accepted
by ourselves, and counted and timed from then on.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Collection

import structlog

from agents.gateway.protocol import LimitedProtocol
from mesh.config import GatewayConfig
from mesh.errors import StateError

log = structlog.get_logger()

_PAUSE_S = 1.0
_POLITE = 32
"""Connections over the limit whose handshake is finished for the sake of a 503."""


def server_context(config: GatewayConfig) -> ssl.SSLContext:
    """What the gateway shows of itself: TLS 1.2 at least, HTTP/1.1.

    Raises:
        StateError: A file cannot be used; says which, and why.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    for setting, path in (
        ("gateway.tls_cert", config.tls_cert),
        ("gateway.tls_key", config.tls_key),
    ):
        try:
            with open(path, "rb"):  # noqa: PTH123 (to say of which file it is)
                pass
        except OSError as error:
            raise StateError(f"{setting}: {path} cannot be read: {error.strerror}") from error
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key, password=_no_password)
    except _EncryptedError:
        raise StateError(
            f"gateway.tls_key: {config.tls_key} is encrypted; nobody is there to type its password"
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            words = f"{config.tls_key} is not the key of {config.tls_cert}"
        else:
            words = (
                f"{config.tls_cert} and {config.tls_key} cannot be used "
                f"({error.reason or error}): a certificate and its key are expected, both PEM"
            )
        raise StateError(f"gateway.tls_cert, gateway.tls_key: {words}") from error
    return context


class _EncryptedError(Exception):
    """The key needs a password."""


def _no_password() -> str:
    raise _EncryptedError


class Handshakes:
    """Accepts connections and makes them speak TLS before they are anything else."""

    def __init__(
        self,
        connection: Callable[[], LimitedProtocol],
        connections: Collection[object],
        context: ssl.SSLContext,
        config: GatewayConfig,
    ) -> None:
        """Args:
        connection: Makes the protocol of one whose handshake is over.
        connections: Those there are.
        context: See `server_context`.
        config: The limits.
        """
        self._connection = connection
        self._connections = connections
        self._context = context
        self._limits = config
        self._running: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    def accept_from(self, listener: socket.socket) -> None:
        """Begin; `listener` listens already and stays the caller's to close."""
        listener.setblocking(False)
        self._accepting = asyncio.get_running_loop().create_task(self._accept(listener))
        self._accepting.add_done_callback(_report)

    async def stop_accepting(self) -> None:
        """What has been accepted goes on."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])

    def begin(self, accepted: socket.socket) -> None:
        """Speak TLS with one, or hang up where there are too many."""
        most = self._limits.max_connections + _POLITE
        if len(self._running) + len(self._connections) >= most:
            accepted.close()
            return
        task = asyncio.get_running_loop().create_task(self._upgrade(accepted))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(_report)

    async def settle(self, within_s: float) -> None:
        """Wait for those that have begun; after a while they are hung up on."""
        if self._running:
            await asyncio.wait(self._running, timeout=within_s)
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except OSError as error:  # no more files may be opened, or it was gone already
                log.warning("mesh.gateway.accept_failed", error=error.strerror or str(error))
                await asyncio.sleep(_PAUSE_S)
            else:
                self.begin(accepted)

    async def _upgrade(self, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._connection,
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.read_timeout_s,
                ssl_shutdown_timeout=self._limits.read_timeout_s,
            )
        except OSError as error:  # among them what is no TLS, such as plain HTTP; and too slow
            log.debug("mesh.gateway.handshake_failed", error=type(error).__name__)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("mesh.gateway.handshake_broken", exc_info=error)
