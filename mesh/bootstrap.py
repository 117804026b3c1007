"""Wires adapters into the runtime; the only importer of `mesh.adapters`.

Drivers load late: a client never imports LanceDB or SQLAlchemy, a master never LanceDB.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import random
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import structlog

import mesh.adapters.clock as clocks
from mesh.adapters.state import MeshFile, held, read_credentials, read_mesh
from mesh.adapters.state import write_json as save_json
from mesh.config import MeshConfig, NatsConfig
from mesh.errors import StateError, UnavailableError
from mesh.ports import History
from mesh.types import VERSION
from mesh.wire.subjects import slug_of, token

if TYPE_CHECKING:
    from mesh.adapters.logs import configure_logs as configure_logs
    from mesh.adapters.nats.broker import EmbeddedBroker as EmbeddedBroker
    from mesh.adapters.nats.bus import NatsBus
    from mesh.adapters.settings import load_settings as load_settings
    from mesh.adapters.state import StateFolder as StateFolder
    from mesh.adapters.state import make_credentials as make_credentials
    from mesh.adapters.state import write_json as write_json
    from mesh.core.backoff import Backoff as Backoff
    from mesh.core.rate_limit import RateLimiter as RateLimiter
    from mesh.core.scopes import allows as allows
    from mesh.core.scopes import allows_some_action as allows_some_action
    from mesh.core.scopes import readable_actions as readable_actions
    from mesh.runtime.client import MeshClient
    from mesh.runtime.gatekeeper import Gatekeeper as Gatekeeper
    from mesh.runtime.master import Master
    from mesh.runtime.node import NodeServer as NodeServer
    from mesh.runtime.sdk import Node
    from mesh.wire.codec import decode as decode
    from mesh.wire.codec import invalid as invalid

_LAZY = {
    "Backoff": "mesh.core.backoff",
    "EmbeddedBroker": "mesh.adapters.nats.broker",
    "Gatekeeper": "mesh.runtime.gatekeeper",
    "RateLimiter": "mesh.core.rate_limit",
    "StateFolder": "mesh.adapters.state",
    "allows": "mesh.core.scopes",
    "allows_some_action": "mesh.core.scopes",
    "configure_logs": "mesh.adapters.logs",
    "decode": "mesh.wire.codec",
    "invalid": "mesh.wire.codec",
    "load_settings": "mesh.adapters.settings",
    "make_credentials": "mesh.adapters.state",
    "readable_actions": "mesh.core.scopes",
    "write_json": "mesh.adapters.state",
}

__all__ = [
    "Gateway",
    "MeshFile",
    "connect",
    "gateway",
    "load_app",
    "master",
    "node",
    "read_credentials",
    "read_documents",
    "read_mesh",
    "resolve_nats",
    "slug_of",
    "token",
]


def __getattr__(name: str) -> Any:
    try:
        module = _LAZY[name]
    except KeyError:
        raise AttributeError(name) from None
    return getattr(importlib.import_module(module), name)


DEFAULT_STATE_DIR = ".mesh"
_SIGNING_KEYS = "signing-keys.json"
_PATIENCE_S = 10.0
"""How long a starting agent waits for a broker that may be starting as well."""


def resolve_nats(
    config: NatsConfig,
    *,
    url: str | None,
    state_dir: str | Path | None,
    credentials: str | None,
    role: str,
) -> NatsConfig:
    """Where the broker is and how to log in.

    An address given (`url`, or `nats.servers` set) is used as it is; otherwise the state folder's
    mesh.json says.

    Args:
        config: Settings so far.
        url: Address from a flag or `MESH_URL`.
        state_dir: Folder with a mesh.json.
        credentials: Credentials file from a flag or `MESH_CREDS`.
        role: Which of the folder's credentials to use: `operator`, `node`, `master` or `gateway`.

    Raises:
        MeshError: Neither leads to a mesh; says what to do.
    """
    login = credentials or config.credentials
    if url:
        return msgspec.structs.replace(config, servers=[url], credentials=login)
    if config.servers:
        return msgspec.structs.replace(config, credentials=login)
    folder = Path(state_dir or DEFAULT_STATE_DIR)
    found = read_mesh(folder)
    login = login or found.credentials.get(role, "")
    if not login:
        raise StateError(
            f"mesh.json in {folder} names no credentials for {role!r}: start the mesh again, "
            "or give --creds/MESH_CREDS"
        )
    return msgspec.structs.replace(config, servers=[found.nats_url], credentials=login)


async def connect_bus(
    identity: str | None, config: NatsConfig, *, patience_s: float = 0.0
) -> NatsBus:
    """A connection that speaks as `identity`; None: as the login's user.

    Raises:
        DisconnectedError, UnauthorizedError, StateError
    """
    from mesh.adapters.nats.bus import NatsBus

    user: str | None = None
    password: str | None = None
    if config.credentials:
        login = read_credentials(Path(config.credentials))
        user, password = login.user, login.password
    return await NatsBus.connect(
        identity or user or "operator", config, user=user, password=password, patience_s=patience_s
    )


class connect:  # noqa: N801 (reads as a verb where it is used)
    """Connect to a mesh: `async with mesh.connect() as client`, or `client = await mesh.connect()`.

    Args:
        url: `nats://` address; None: from the state folder's mesh.json.
        state_dir: Folder of a mesh on this machine; None: `.mesh`.
        credentials: JSON file with `user` and `password`; None: the state folder's operator's.
        identity: Who the caller is, one subject token; None: the login's user.
        config: Settings; None: defaults.

    Raises:
        DisconnectedError: No broker there.
        UnauthorizedError: It refuses the login.
        StateError: No such state folder.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        state_dir: str | Path | None = None,
        credentials: str | Path | None = None,
        identity: str | None = None,
        config: MeshConfig | None = None,
    ) -> None:
        self._url = url
        self._state_dir = state_dir
        self._credentials = str(credentials) if credentials else None
        self._identity = identity
        self._config = config or MeshConfig()
        self._client: MeshClient | None = None

    async def _open(self) -> MeshClient:
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
        bus = await connect_bus(self._identity, nats)
        client = MeshClient(bus, self._config, clocks.SystemClock())
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


@asynccontextmanager
async def node(declared: Node, config: MeshConfig, *, data_dir: Path) -> AsyncIterator[NodeServer]:
    """A node that runs while the block does.

    Args:
        declared: Name, actions and searches.
        config: With `nats` resolved (`resolve_nats`).
        data_dir: Folder of this node alone: collections, journal.

    Raises:
        ConflictError: A node of this name runs already.
        StateError: The folder is in use or not writable.
    """
    from mesh.adapters.embedders import load_embedder
    from mesh.adapters.lance import LanceDocuments
    from mesh.adapters.nats.history import JetStreamHistory
    from mesh.adapters.sql.journal import SqlJournal
    from mesh.runtime.node import NodeServer

    slug = slug_of(declared.name)
    clock = clocks.SystemClock()
    with held(data_dir):
        embedder = await asyncio.to_thread(load_embedder, config.search.embedder)
        async with AsyncExitStack() as opened:
            documents = await LanceDocuments.open(
                data_dir / "collections",
                embedder=embedder,
                shard=config.node.shard or slug,
                clock=clock,
                max_queries=config.search.max_queries,
            )
            opened.push_async_callback(documents.close)
            journal = await SqlJournal.open(data_dir / "journal.db")
            opened.push_async_callback(journal.close)
            bus = await connect_bus(slug, config.nats, patience_s=_PATIENCE_S)
            opened.push_async_callback(bus.close)
            server = NodeServer(
                declared,
                config,
                slug=slug,
                version=VERSION,
                bus=bus,
                connect_heartbeat=lambda: connect_bus(slug, config.nats),
                documents=documents,
                embedder=embedder,
                journal=journal,
                history=JetStreamHistory(bus),
                clock=clock,
                rng=random.Random(),  # noqa: S311 (jitter)
            )
            await server.start()
            opened.pop_all()  # from here on `stop` closes all of it
        try:
            yield server
        finally:
            await server.stop()


@asynccontextmanager
async def master(config: MeshConfig, *, data_dir: Path) -> AsyncIterator[Master]:
    """A master that runs while the block does.

    Args:
        config: With `nats` resolved (`resolve_nats`).
        data_dir: Where the keys that sign tokens are kept, and the registry unless
            `master.database` says otherwise.

    Raises:
        StateError: The folder or the database cannot be used.
    """
    from mesh.adapters.jwt import JwtSigner
    from mesh.adapters.nats.history import JetStreamHistory
    from mesh.adapters.sql.registry import SqlRegistry
    from mesh.runtime.master import Master

    clock = clocks.SystemClock()
    with held(data_dir):
        signer = JwtSigner.open(
            data_dir / _SIGNING_KEYS,
            issuer=config.security.issuer,
            audience=config.security.audience,
            at=clock.unix_ms(),
            save=save_json,
        )
        database = config.master.database or f"sqlite+aiosqlite:///{data_dir / 'registry.db'}"
        registry = await SqlRegistry.open(database)
        try:
            bus = await connect_bus("master", config.nats, patience_s=_PATIENCE_S)
            try:
                history = JetStreamHistory(bus)
                await _prepared(history)
                running = Master(
                    bus=bus,
                    registry=registry,
                    history=history,
                    clock=clock,
                    tokens=registry.tokens,
                    signer=signer,
                    health=config.health,
                    config=config.master,
                    security=config.security,
                    incarnation=clock.unix_ms(),
                )
                await running.start()
                try:
                    yield running
                finally:
                    await running.stop()
            finally:
                await bus.close()
        finally:
            await registry.close()


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
    """
    from mesh.adapters.jwt import JwtVerifier
    from mesh.runtime.client import MeshClient
    from mesh.runtime.gatekeeper import Gatekeeper

    clock = clocks.SystemClock()
    security = config.security
    verifier = JwtVerifier(
        issuer=security.issuer, audience=security.audience, leeway_s=security.clock_skew_s
    )
    bus = await connect_bus("gateway", config.nats, patience_s=_PATIENCE_S)
    client = MeshClient(bus, config, clock)
    gatekeeper = Gatekeeper(bus, client.access, verifier, clock)
    try:
        await client.start()
        await gatekeeper.start()
        yield Gateway(client, gatekeeper)
    finally:
        try:
            await gatekeeper.stop()
        finally:
            await client.close()


async def _prepared(history: History) -> None:
    """JetStream needs a moment after a broker's start."""
    delay_s = 0.1
    while True:
        try:
            return await history.prepare()
        except UnavailableError as error:
            structlog.get_logger().info("mesh.history.awaited", error=str(error))
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, 2.0)


def load_app(target: str) -> Node:
    """The `Node` named by `module:attribute`.

    Raises:
        StateError: No such module or attribute, or it is no Node.
    """
    from mesh.runtime.sdk import Node

    module, _, attribute = target.partition(":")
    if not module or not attribute:
        raise StateError(f"--app takes module:attribute, for example crm:node; not {target!r}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise StateError(f"--app {target}: {error}; is it on the Python path?") from error
    except AttributeError as error:
        raise StateError(f"--app {target}: {error}") from error
    if not isinstance(found, Node):
        raise StateError(f"--app {target} is a {type(found).__name__}, not a mesh.Node")
    return found


def read_documents(path: Path, **options: Any) -> Iterator[Any]:
    """Documents of a JSONL, CSV or Markdown file or folder, one by one; see the adapter."""
    from mesh.adapters.document_files import read_documents as read

    return read(path, **options)
