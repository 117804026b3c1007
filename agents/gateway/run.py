"""The gateway agent: a connection to the mesh, and HTTP in front of it."""

from __future__ import annotations

import contextlib
import gc
import resource
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

_OWN_FILES = 64
"""More than the gateway opens besides connections."""


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
    allow_connections(config.gateway.max_connections)
    async with bootstrap.gateway(config) as opened:
        access_log = AccessLog() if config.gateway.access_log else None
        edge = create_app(opened.client, opened.gatekeeper, config, access_log=access_log)
        try:
            async with serving(edge, config.gateway) as url:
                _spare_the_collector()
                log.info("mesh.gateway.started", url=url, prefix=config.gateway.prefix)
                yield url
        finally:
            if access_log is not None:
                access_log.flush()
            log.info("mesh.gateway.stopped")


def _spare_the_collector() -> None:
    """What is there by now stays: looking through it for garbage again and again costs a search a
    quarter of its CPU (BENCHMARKS.md). Garbage in cycles is rare here, so it may wait a little.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def allow_connections(wanted: int) -> None:
    """Let the process open as many files as it may; each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS says unlimited and means less
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    if soft not in {resource.RLIM_INFINITY, -1} and soft < wanted + _OWN_FILES:
        log.warning("mesh.gateway.files_limited", files=soft, max_connections=wanted)
