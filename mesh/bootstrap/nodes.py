"""A node, wired."""

from __future__ import annotations

import asyncio
import importlib
import json
import random
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import mesh.adapters.clock as clocks
from mesh.adapters.state import held, read_credentials, write_json
from mesh.bootstrap.clients import PATIENCE_S, connect_bus
from mesh.config import MeshConfig
from mesh.errors import StateError
from mesh.ports import Login
from mesh.types import VERSION
from mesh.wire.subjects import slug_of

if TYPE_CHECKING:
    from mesh.adapters.nats.bus import NatsBus
    from mesh.runtime.joining import Joining
    from mesh.runtime.node import NodeServer
    from mesh.runtime.sdk import Node


_KEY_FILE = "key.json"
_INCARNATION_FILE = "incarnation.json"


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
    from mesh.adapters.nats.write_log import JetStreamWriteLog
    from mesh.adapters.sql.journal import SqlJournal
    from mesh.adapters.sql.replica import SqlReplicaState
    from mesh.runtime.node import NodeServer, Replication

    slug = slug_of(declared.name)
    clock = clocks.SystemClock()
    async with AsyncExitStack() as stack:
        stack.enter_context(held(data_dir))
        joining = _joining(declared, config, data_dir, operator)
        # Seconds of work for a thread, while we may wait for a master.
        loading = asyncio.create_task(
            asyncio.to_thread(load_embedder, config.search.embedder, config.search)
        )
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
                hot_mb=config.search.hot_mb,
                node=slug,
            )
            opened.push_async_callback(documents.close)
            journal = await SqlJournal.open(data_dir / "journal.db")
            opened.push_async_callback(journal.close)
            state = await SqlReplicaState.open(data_dir / "journal.db")
            opened.push_async_callback(state.close)
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
                incarnation=_next_incarnation(data_dir / _INCARNATION_FILE, clock.unix_ms()),
                rng=random.Random(),  # noqa: S311 (jitter)
                replication=Replication(JetStreamWriteLog(bus), state),
            )
            await server.start()
            opened.pop_all()  # from here on `stop` closes all of it
        stack.push_async_callback(server.stop)
        yield server


def _next_incarnation(file: Path, now_ms: int) -> int:
    """Above the last one, also where the clock was set back since: masters and other lives of the
    node go by it.

    Raises:
        StateError: The file cannot be read or written.
    """
    try:
        last = int(json.loads(file.read_bytes()))
    except FileNotFoundError:
        last = 0
    except (OSError, TypeError, ValueError) as error:
        raise StateError(f"{file} cannot be read: {error}; remove it") from error
    incarnation = max(now_ms, last + 1)
    write_json(file, incarnation)
    return incarnation


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
                write=lambda login: write_json(kept, login),
            ),
            join_token=settings.join_token,
            operator=read_credentials(operator) if operator else None,
            request_approval=settings.request_approval,
        ),
        lambda login: connect_bus(None, nats, login=login, patience_s=PATIENCE_S),
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
