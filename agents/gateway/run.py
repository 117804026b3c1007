"""The gateway agent: a connection to the mesh, and HTTP in front of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from agents.gateway.access_log import AccessLog
from agents.gateway.app import create_app
from agents.gateway.server import serving
from agents.running import until_stopped
from mesh import bootstrap
from mesh.config import MeshConfig

log = structlog.get_logger()


def run(config: MeshConfig) -> int:
    """Run a gateway until it is told to stop; `config.nats` is resolved.

    Raises:
        StateError: The port is taken, or the address is not this machine's.
        DisconnectedError, UnauthorizedError: No broker there, or it refuses the login.
    """
    return until_stopped(gateway(config))


@asynccontextmanager
async def gateway(config: MeshConfig) -> AsyncIterator[str]:
    """A gateway that serves while the block runs; gives its URL. Raises as `run`."""
    async with bootstrap.gateway(config) as opened:
        access_log = AccessLog() if config.gateway.access_log else None
        edge = create_app(opened.client, opened.gatekeeper, config, access_log=access_log)
        try:
            async with serving(edge, config.gateway) as url:
                log.info("mesh.gateway.started", url=url, prefix=config.gateway.prefix)
                yield url
        finally:
            if access_log is not None:
                access_log.flush()
            log.info("mesh.gateway.stopped")
