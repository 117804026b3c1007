"""The mesh as a gateway sees it, wired."""

from __future__ import annotations

import os
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import mesh.adapters.clock as clocks
from mesh.bootstrap.clients import PATIENCE_S, connect_bus, embedder_of
from mesh.bootstrap.places import login_of
from mesh.config import MeshConfig
from mesh.errors import ConfigError

if TYPE_CHECKING:
    from mesh.runtime.client import MeshClient
    from mesh.runtime.gatekeeper import Gatekeeper


_GATEWAY = "gateway"


class Gateway(NamedTuple):
    """What an HTTP server in front of the mesh needs."""

    client: MeshClient
    gatekeeper: Gatekeeper


@asynccontextmanager
async def gateway(config: MeshConfig) -> AsyncIterator[Gateway]:
    """The mesh as the gateway sees it, while the block runs. It need not have a master yet:
    `gatekeeper.ready` tells when tokens can be judged.

    Args:
        config: With `nats` resolved (`resolve_nats`).

    Raises:
        DisconnectedError: No broker there.
        UnauthorizedError: It refuses the login.
        StateError: There is none, or its file cannot be read.
        ConfigError: It is somebody else's.
    """
    from mesh.adapters.jwt import token_verifier
    from mesh.adapters.nats.queue import JetStreamQueue
    from mesh.runtime.client import MeshClient
    from mesh.runtime.gatekeeper import Gatekeeper

    clock = clocks.SystemClock()
    security = config.security
    verifier = token_verifier(
        secret=security.jwt_secret,
        issuer=security.issuer,
        audience=security.audience,
        leeway_s=security.clock_skew_s,
    )
    login = login_of(config.nats)
    if login.user != _GATEWAY:
        raise ConfigError(
            f"{config.nats.credentials} is the login of {login.user!r}: gateways run with the "
            "mesh's gateway.json"
        )
    bus = await connect_bus(None, config.nats, login=login, patience_s=PATIENCE_S)
    client = MeshClient(bus, config, clock, queue=JetStreamQueue(bus), embedder=embedder_of(config))
    gatekeeper = Gatekeeper(bus, client.access, verifier, clock)
    door = client.cache_door(f"{platform.node()}:{os.getpid()}")
    try:
        await client.start()
        await gatekeeper.start()
        await door.start()
        yield Gateway(client, gatekeeper)
    finally:
        try:
            await gatekeeper.stop()
            await door.stop()
        finally:
            await client.close()
