"""uvicorn, started and stopped by us: no signal handlers of its own, a port that is known, and a
stop at which no request that was sent is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import socket
import ssl
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from typing import cast

import structlog
import uvicorn

from agents.gateway.edge import Edge
from agents.gateway.protocol import LimitedProtocol, limited
from agents.gateway.tls import Handshakes, server_context
from mesh.config import GatewayConfig
from mesh.errors import StateError

log = structlog.get_logger()

_BACKLOG = 2048
_DRAIN_S = 0.5
"""How long a stopping gateway takes connections while `/readyz` says that it stops."""
_START_S = 20.0


@asynccontextmanager
async def serving(edge: Edge, config: GatewayConfig) -> AsyncIterator[str]:
    """Serve while the block runs; gives the URL.

    At its end: `/readyz` says 503 and every answer closes its connection; after a moment nothing
    new is accepted; what has begun ends within `stop_grace_s`.

    Raises:
        StateError: The address cannot be listened on, or the certificate not be used; or the
            server ended by itself, which ends the block.
    """
    context = server_context(config) if config.tls_cert else None
    listener = _listen(config)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    with listener, listener.dup() as spare:
        server = _Server(edge, config, spare, context)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await _started(server, task)
            with _ended_by(task):
                yield f"{'https' if context else 'http'}://{shown}:{port}"
        finally:
            await _stop(server, edge, task)


async def _started(server: _Server, task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(_START_S):
        while not server.started:
            if task.done():
                await task
                raise StateError("the HTTP server ended as it started; the log says why")
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def _ended_by(task: asyncio.Task[None]) -> Generator[None, None, None]:
    """Whoever serves by a server that is dead is no gateway."""
    block = cast("asyncio.Task[object]", asyncio.current_task())
    died = False

    def end(_: object) -> None:
        nonlocal died
        died = True
        block.cancel()

    task.add_done_callback(end)
    try:
        yield
    except asyncio.CancelledError:
        if not died or block.uncancel():
            raise
        cause = None if task.cancelled() else task.exception()
        raise StateError("the HTTP server ended; the log says why") from cause
    finally:
        task.remove_done_callback(end)


async def _stop(server: _Server, edge: Edge, task: asyncio.Task[None]) -> None:
    edge.draining = True
    if task.done():
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        return
    if server.server_state.connections:
        log.info("mesh.gateway.draining", connections=len(server.server_state.connections))
        await asyncio.sleep(_DRAIN_S)
    server.should_exit = True
    await task


def _listen(config: GatewayConfig) -> socket.socket:
    """Raises: StateError."""
    try:
        found = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if config.reuse_port:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        where = f"port {config.port} on {config.host}"
        if error.errno == errno.EADDRINUSE:
            raise StateError(
                f"{where} is taken: choose another with gateway.port in mesh.toml or "
                "MESH_GATEWAY__PORT (0: a free one)"
            ) from error
        raise StateError(
            f"the gateway cannot listen on {where} (gateway.host, gateway.port): "
            f"{error.strerror or error}"
        ) from error
    return listener


class _Server(uvicorn.Server):
    """Stops without losing what has connected."""

    def __init__(
        self,
        edge: Edge,
        config: GatewayConfig,
        listener: socket.socket,
        context: ssl.SSLContext | None,
    ) -> None:
        self._protocol = limited(config, refuse_head=edge.refuse_head)
        super().__init__(
            uvicorn.Config(
                edge,
                http=self._protocol,
                ws="none",
                lifespan="off",
                loop="none",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=max(1, round(config.keep_alive_s)),
                timeout_graceful_shutdown=math.ceil(config.stop_grace_s),
            )
        )
        self._handshakes = (
            Handshakes(self._connection, self.server_state.connections, context, config)
            if context
            else None
        )
        self._listener = listener
        """Another handle of the listening socket: it listens until this one is closed too."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals are the business of whoever runs the gateway."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """TLS is not for uvicorn to begin."""
        if self._handshakes is None:
            await super().startup(sockets=sockets)
            return
        await super().startup(sockets=[])
        for listening in sockets or []:
            self._handshakes.accept_from(listening)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """What the kernel has accepted already is served as well."""
        for server in self.servers:
            server.close()
        if self._handshakes is not None:
            await self._handshakes.stop_accepting()
        for listening in sockets or []:
            listening.close()
        await asyncio.sleep(0)
        last = self._accept_rest()
        loop = asyncio.get_running_loop()
        for connection in last:
            if self._handshakes is None:
                await loop.connect_accepted_socket(self._connection, connection)
            else:
                self._handshakes.begin(connection)
        if self._handshakes is not None:
            await self._handshakes.settle(_DRAIN_S)
        await super().shutdown()

    def _accept_rest(self) -> list[socket.socket]:
        last = []
        self._listener.setblocking(False)
        self._listener.listen(0)
        with contextlib.suppress(OSError):  # none is left; or no more files may be opened
            while True:
                last.append(self._listener.accept()[0])
        self._listener.close()
        for connection in last:
            connection.setblocking(False)
        return last

    def _connection(self) -> LimitedProtocol:
        return self._protocol(self.config, self.server_state, {})
