"""Connections: of programs to the mesh, and of anybody to the broker."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

import mesh.adapters.clock as clocks
from mesh.bootstrap.places import login_of, resolve_nats
from mesh.config import MeshConfig, NatsConfig
from mesh.ports import Embedder, Login

if TYPE_CHECKING:
    from mesh.adapters.nats.bus import NatsBus
    from mesh.runtime.client import MeshClient


PATIENCE_S = 10.0
"""How long a starting agent waits for a broker that may be starting as well."""


async def connect_bus(
    identity: str | None,
    config: NatsConfig,
    *,
    login: Login | None = None,
    patience_s: float = 0.0,
) -> NatsBus:
    """A connection to the broker.

    Args:
        identity: Whom it speaks as; None: the login's user, as the broker wants it of all but
            masters.
        config: Where the broker is.
        login: None: of `config.credentials`.
        patience_s: How long to go on trying while nobody answers.

    Raises:
        DisconnectedError: No broker there; NoMasterError: no master could judge the login.
        UnauthorizedError: The login is refused.
        StateError: There is none, or its file cannot be read.
    """
    from mesh.adapters.nats.bus import NatsBus

    login = login or login_of(config)
    return await NatsBus.connect(identity or login.user, config, login=login, patience_s=patience_s)


def embedder_of(config: MeshConfig) -> Callable[[], Embedder]:
    """Loads the embedder of the configuration; nothing of it is imported before."""

    def load() -> Embedder:
        from mesh.adapters.embedders import load_embedder

        return load_embedder(config.search.embedder, config.search)

    return load


class connect:  # noqa: N801 (reads as a verb where it is used)
    """Connect to a mesh: `async with mesh.connect() as client`, or `client = await mesh.connect()`.

    Args:
        url: `nats://` address; None: from the state folder's mesh.json.
        state_dir: Folder of a mesh on this machine; None: `.mesh`.
        credentials: Credentials file: who logs in is who speaks. None: the state folder's
            operator, if its mesh is the one at `url`.
        config: Settings; None: defaults.

    Raises:
        DisconnectedError: No broker there, or no master that could judge the login.
        UnauthorizedError: The login is refused.
        StateError: No such state folder, or no credentials.
        ConfigError: `url` is no address of a broker.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        state_dir: str | Path | None = None,
        credentials: str | Path | None = None,
        config: MeshConfig | None = None,
    ) -> None:
        self._url = url
        self._state_dir = state_dir
        self._credentials = str(credentials) if credentials else None
        self._config = config or MeshConfig()
        self._client: MeshClient | None = None

    async def _open(self) -> MeshClient:
        from mesh.adapters.nats.queue import JetStreamQueue
        from mesh.runtime.client import MeshClient

        if not structlog.is_configured():  # the application's choice, where it made one
            structlog.configure(
                wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
                logger_factory=structlog.PrintLoggerFactory(sys.stderr),
            )
        nats = resolve_nats(
            self._config.nats,
            url=self._url,
            state_dir=self._state_dir,
            credentials=self._credentials,
            role="operator",
        )
        bus = await connect_bus(None, nats)
        client = MeshClient(
            bus,
            self._config,
            clocks.SystemClock(),
            queue=JetStreamQueue(bus),
            embedder=embedder_of(self._config),
        )
        try:
            await client.start()
        except BaseException:
            await client.close()
            raise
        return client

    def __await__(self) -> Any:
        return self._open().__await__()

    async def __aenter__(self) -> MeshClient:
        self._client = await self._open()
        return self._client

    async def __aexit__(self, *_exc: object) -> None:
        if self._client is not None:
            await self._client.close()
