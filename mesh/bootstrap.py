"""Wires adapters into the runtime; the only importer of `mesh.adapters`.

Drivers load late: a client never imports LanceDB or SQLAlchemy, a master never LanceDB.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import random
import secrets
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import structlog

import mesh.adapters.clock as clocks
from mesh.adapters.state import (
    MeshFile,
    held,
    keep_private,
    read_bytes,
    read_credentials,
    read_json,
    read_mesh,
)
from mesh.adapters.state import write_json as save_json
from mesh.config import MeshConfig, NatsConfig, SecurityConfig
from mesh.errors import MeshError, StateError, UnavailableError
from mesh.ports import History, Login
from mesh.types import VERSION
from mesh.wire.subjects import slug_of, token

if TYPE_CHECKING:
    from mesh.adapters.logs import configure_logs as configure_logs
    from mesh.adapters.nats.broker import EmbeddedBroker as EmbeddedBroker
    from mesh.adapters.nats.bus import NatsBus
    from mesh.adapters.nats.credentials import CredentialFiles
    from mesh.adapters.nats.keys import BrokerKeys as BrokerKeys
    from mesh.adapters.nats.keys import MasterCredentials
    from mesh.adapters.settings import load_settings as load_settings
    from mesh.adapters.sql.registry import SqlRegistry
    from mesh.adapters.state import StateFolder as StateFolder
    from mesh.adapters.state import write_json as write_json
    from mesh.core.backoff import Backoff as Backoff
    from mesh.core.rate_limit import RateLimiter as RateLimiter
    from mesh.core.scopes import allows as allows
    from mesh.core.scopes import allows_some_action as allows_some_action
    from mesh.core.scopes import allows_some_search as allows_some_search
    from mesh.core.scopes import readable_actions as readable_actions
    from mesh.core.scopes import searchable_collections as searchable_collections
    from mesh.runtime.audit import AuditTrail
    from mesh.runtime.caller import request_origin as request_origin
    from mesh.runtime.client import MeshClient
    from mesh.runtime.gatekeeper import Gatekeeper as Gatekeeper
    from mesh.runtime.joining import Joining
    from mesh.runtime.master import Master
    from mesh.runtime.node import NodeServer as NodeServer
    from mesh.runtime.sdk import Node
    from mesh.runtime.signing_keys import SigningKeys
    from mesh.wire.codec import decode as decode
    from mesh.wire.codec import invalid as invalid

_LAZY = {
    "Backoff": "mesh.core.backoff",
    "BrokerKeys": "mesh.adapters.nats.keys",
    "EmbeddedBroker": "mesh.adapters.nats.broker",
    "Gatekeeper": "mesh.runtime.gatekeeper",
    "RateLimiter": "mesh.core.rate_limit",
    "StateFolder": "mesh.adapters.state",
    "allows": "mesh.core.scopes",
    "allows_some_action": "mesh.core.scopes",
    "allows_some_search": "mesh.core.scopes",
    "configure_logs": "mesh.adapters.logs",
    "decode": "mesh.wire.codec",
    "invalid": "mesh.wire.codec",
    "load_settings": "mesh.adapters.settings",
    "readable_actions": "mesh.core.scopes",
    "request_origin": "mesh.runtime.caller",
    "searchable_collections": "mesh.core.scopes",
    "write_json": "mesh.adapters.state",
}

__all__ = [
    "Gateway",
    "MeshFile",
    "connect",
    "find_operator",
    "gateway",
    "load_app",
    "make_credentials",
    "master",
    "node",
    "read_broker_keys",
    "read_credentials",
    "read_documents",
    "read_master_credentials",
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
_KEY_FILE = "key.json"
_FORMER_KEYS = "signing-keys.json"
_PATIENCE_S = 10.0
"""How long a starting agent waits for a broker that may be starting as well."""


def resolve_nats(
    config: NatsConfig,
    *,
    url: str | None,
    state_dir: str | Path | None,
    credentials: str | None,
    role: str | None,
) -> NatsConfig:
    """Where the broker is and how to log in.

    An address given (`url`, or `nats.servers` set) is used as it is; otherwise the state folder's
    mesh.json says. Its credentials are for its own mesh alone: nobody else is shown them.

    Args:
        config: Settings so far.
        url: Address from a flag or `MESH_URL`.
        state_dir: Folder with a mesh.json.
        credentials: Credentials file from a flag or `MESH_CREDS`.
        role: Which of the folder's credentials to use: `operator`, `master` or `gateway`; None:
            none of them, a node has a key of its own.

    Raises:
        MeshError: Neither leads to a mesh; says what to do.
    """
    login = credentials or config.credentials
    servers = [url] if url else config.servers
    folder = Path(state_dir or DEFAULT_STATE_DIR)
    found = _mesh_at(folder, servers) if servers else read_mesh(folder)
    if found is not None:
        servers = servers or [found.nats_url]
        login = login or found.credentials.get(role or "", "")
        if config.tls_ca == config.tls_cert == "":
            config = msgspec.structs.replace(
                config, tls_ca=found.tls_ca, tls_cert=found.tls_cert, tls_key=found.tls_key
            )
    if role is not None and not login:
        whose = "" if found is None else f" of its {role!r}"
        raise StateError(
            f"no credentials{whose} for {', '.join(servers)}: give a file with --creds/MESH_CREDS"
            + ("" if found is None else f", or start the mesh in {folder} again")
        )
    return msgspec.structs.replace(config, servers=servers, credentials=login)


def _mesh_at(folder: Path, servers: Sequence[str]) -> MeshFile | None:
    """The state folder's mesh, if that is the one at this address."""
    try:
        found = read_mesh(folder)
    except MeshError:
        return None
    return found if found.nats_url in servers else None


def find_operator(servers: Sequence[str], state_dir: str | Path) -> Path | None:
    """The operator's credentials file of the state folder's mesh, if that is at `servers`."""
    found = _mesh_at(Path(state_dir), servers)
    file = found.credentials.get("operator") if found else None
    return Path(file) if file else None


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

    if login is None:
        if not config.credentials:
            raise StateError("no credentials: give a file with --creds/MESH_CREDS")
        login = read_credentials(Path(config.credentials))
    return await NatsBus.connect(identity or login.user, config, login=login, patience_s=patience_s)


def make_credentials(
    folder: Path, *, nodes: Sequence[str] = (), shared: bool = False
) -> CredentialFiles:
    """See that a folder has everybody's credentials: what is missing is made, the rest stays.

    Args:
        folder: Exists, and nobody else may enter it.
        nodes: Slugs of nodes that get a file of their own.
        shared: Whoever is given one of the files may read it.

    Raises:
        StateError: A file that cannot be read or written.
        InvalidError: Not the name of a node.
    """
    from mesh.adapters.nats.credentials import make

    mode = 0o444 if shared else 0o600
    return make(folder, nodes=nodes, mode=mode, save=save_json, read=read_bytes)


def read_master_credentials(file: Path) -> MasterCredentials:
    """Everything in `master.json`.

    Raises:
        StateError: It cannot be read, or is another file.
    """
    from mesh.adapters.nats.keys import MasterCredentials

    keep_private(file)
    return read_json(file, MasterCredentials, advice="give the master.json of the mesh")


def read_broker_keys(file: Path) -> BrokerKeys:
    """The public keys in `broker.json`.

    Raises:
        StateError: It cannot be read, or is another file.
    """
    from mesh.adapters.nats.keys import BrokerKeys

    return read_json(file, BrokerKeys, advice="make it again with `mesh-agent credentials`")


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
async def node(
    declared: Node, config: MeshConfig, *, data_dir: Path, operator: Path | None = None
) -> AsyncIterator[NodeServer]:
    """A node that runs while the block does. One without a key gets one first; `mesh.runtime.
    joining` says how, and keeps it in `key.json` of the folder.

    Args:
        declared: Name, actions and searches.
        config: With `nats` resolved (`resolve_nats`); `nats.credentials` is the node's own.
        data_dir: Folder of this node alone: key, collections, journal.
        operator: Credentials file of somebody who may register it.

    Raises:
        ConflictError: A node of this name runs already, or another one is registered.
        UnauthorizedError: Its key, or what it should get one with, is no longer good.
        StateError: The folder is in use or not writable; or there is no way in.
    """
    from mesh.adapters.embedders import load_embedder
    from mesh.adapters.lance import LanceDocuments
    from mesh.adapters.nats.history import JetStreamHistory
    from mesh.adapters.sql.journal import SqlJournal
    from mesh.runtime.node import NodeServer

    slug = slug_of(declared.name)
    clock = clocks.SystemClock()
    async with AsyncExitStack() as stack:
        stack.enter_context(held(data_dir))
        joining = _joining(declared, config, data_dir, operator)
        # Seconds of work for a thread, while we may wait for a master.
        loading = asyncio.create_task(asyncio.to_thread(load_embedder, config.search.embedder))
        stack.callback(loading.cancel)
        login, bus = await joining.enter()
        async with AsyncExitStack() as opened:
            opened.push_async_callback(bus.close)
            embedder = await loading
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
            server = NodeServer(
                declared,
                config,
                slug=slug,
                version=VERSION,
                bus=bus,
                connect_heartbeat=lambda: connect_bus(None, config.nats, login=login),
                documents=documents,
                embedder=embedder,
                journal=journal,
                history=JetStreamHistory(bus),
                clock=clock,
                rng=random.Random(),  # noqa: S311 (jitter)
            )
            await server.start()
            opened.pop_all()  # from here on `stop` closes all of it
        stack.push_async_callback(server.stop)
        yield server


def _joining(
    declared: Node, config: MeshConfig, data_dir: Path, operator: Path | None
) -> Joining[NatsBus]:
    """How the node comes in.

    Raises:
        StateError: A key or credentials file cannot be read, or is somebody else's.
        InvalidError: The node cannot be called so.
    """
    from mesh.adapters.nats.keys import make_login
    from mesh.runtime.joining import Joining, KeyFile, Ways
    from mesh.wire.codec import convert
    from mesh.wire.messages import NodeRegister

    slug = slug_of(declared.name)
    settings, nats = config.node, config.nats
    given = None
    if nats.credentials:
        given = _own_key(Path(nats.credentials), slug)
    elif settings.api_key:
        given = Login(user=slug, password=settings.api_key)
    asked = {
        "name": declared.name,
        "type": settings.type,
        "weight": settings.weight,
        "capabilities": settings.capabilities,
    }
    kept = data_dir / _KEY_FILE
    return Joining(
        slug,
        convert(asked, NodeRegister),
        Ways(
            given=given,
            key_file=KeyFile(
                path=str(kept),
                read=lambda: _own_key(kept, slug) if kept.exists() else None,
                write=lambda login: save_json(kept, login),
            ),
            join_token=settings.join_token,
            operator=read_credentials(operator) if operator else None,
            request_approval=settings.request_approval,
        ),
        lambda login: connect_bus(None, nats, login=login, patience_s=_PATIENCE_S),
        clocks.SystemClock(),
        version=VERSION,
        random_name=lambda: f"join-{secrets.token_hex(16)}",
        new_key=lambda: make_login(slug),
    )


def _own_key(file: Path, slug: str) -> Login:
    """The node's login: from a credentials file, or from one with nothing but the key.

    Raises:
        StateError: It cannot be read, or is somebody else's.
    """
    login = read_credentials(file, user=slug)
    if login.user != slug:
        raise StateError(
            f"{file} is the login of {login.user!r}, and this node is {slug!r}: give its own key "
            "(--creds, MESH_CREDS or nats.credentials)"
        )
    return login


@asynccontextmanager
async def master(config: MeshConfig, *, data_dir: Path) -> AsyncIterator[Master]:
    """A master that runs while the block does.

    Args:
        config: With `nats` resolved (`resolve_nats`); `nats.credentials` is the masters' file.
        data_dir: Where the registry is kept unless `master.database` says otherwise.

    Raises:
        StateError: The folder, the database or the credentials cannot be used.
        DisconnectedError: No broker there.
        UnauthorizedError: It does not know these masters.
    """
    from mesh.adapters.addresses import check_url
    from mesh.adapters.nats.audit import JetStreamAudit
    from mesh.adapters.nats.bouncer import NatsBouncer
    from mesh.adapters.nats.callout import NatsDoorman
    from mesh.adapters.nats.history import JetStreamHistory
    from mesh.adapters.sql.registry import SqlRegistry
    from mesh.runtime.audit import AuditTrail
    from mesh.runtime.master import Master

    clock = clocks.SystemClock()
    nats, security = config.nats, config.security
    if not nats.credentials:
        raise StateError("a master needs its credentials (master.json): give --creds/MESH_CREDS")
    async with AsyncExitStack() as stack:
        stack.enter_context(held(data_dir))
        own = read_master_credentials(Path(nats.credentials))
        database = config.master.database or f"sqlite+aiosqlite:///{data_dir / 'registry.db'}"
        registry = await SqlRegistry.open(database)
        stack.push_async_callback(registry.close)
        buses = []
        for login in (own.login(), own.auth_login(), own.sys_login()):
            bus = await connect_bus(None, nats, login=login, patience_s=_PATIENCE_S)
            stack.push_async_callback(bus.close)
            buses.append(bus)
        bus, of_logins, of_system = buses
        history = JetStreamHistory(bus)
        await _prepared(history)
        audit = AuditTrail(
            registry.audit,
            JetStreamAudit(bus, days=security.audit_days),
            clock,
            audit_days=security.audit_days,
        )
        running = Master(
            bus,
            registry,
            history,
            clock,
            tokens=registry.tokens,
            logins=registry.logins,
            doorman=NatsDoorman(of_logins, own, clock),
            bouncer=NatsBouncer(of_system),
            signing=_signing(
                security,
                registry=registry,
                bus=bus,
                issuer_seed=own.issuer_nkey,
                audit=audit,
                former=data_dir / _FORMER_KEYS,
            ),
            audit=audit,
            check_url=check_url(security),
            seedlings=own.seedlings,
            health=config.health,
            config=config.master,
            security=security,
            rate_limit=config.rate_limit,
            incarnation=clock.unix_ms(),
        )
        await running.start()
        stack.push_async_callback(running.stop)
        yield running


def _signing(
    security: SecurityConfig,
    *,
    registry: SqlRegistry,
    bus: NatsBus,
    issuer_seed: str,
    audit: AuditTrail,
    former: Path,
) -> SigningKeys:
    """What signs access tokens: a secret of the settings, or the masters' own ring of keys."""
    from mesh.adapters.former_keys import FormerKeyFile
    from mesh.adapters.jwt import Ed25519Mint, SecretSigner
    from mesh.adapters.sealing import SeedSealer
    from mesh.runtime.signing_keys import KeyRing, SharedSecret

    names = {"issuer": security.issuer, "audience": security.audience}
    if security.jwt_secret:
        return SharedSecret(SecretSigner(security.jwt_secret, **names))
    return KeyRing(
        registry.signing_keys,
        bus,
        clocks.SystemClock(),
        mint=Ed25519Mint(**names),
        sealer=SeedSealer(issuer_seed),
        audit=audit,
        former=FormerKeyFile(former),
    )


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
    from mesh.adapters.jwt import token_verifier
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
    bus = await connect_bus(None, config.nats, patience_s=_PATIENCE_S)
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
