"""The node agent: a node with its collections from files and its author's actions."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import structlog

import mesh
from agents.running import until_stopped
from mesh import bootstrap
from mesh.config import MeshConfig
from mesh.errors import ConfigError, ConflictError, MeshError

if TYPE_CHECKING:
    from mesh.bootstrap import NodeServer

log = structlog.get_logger()

Source = tuple[str, Path]
"""A collection and the file or folder it is loaded from."""

_RETRY_S = 5.0


def run(
    config: MeshConfig,
    *,
    state_dir: Path,
    data_dir: Path | None,
    collections: Sequence[Source],
    app: str | None,
    operator: Path | None,
) -> int:
    """Run a node until it is told to stop; `config.nats` is resolved.

    Args:
        config: Settings; `node.name` names the node unless the app does.
        state_dir: Its data and its key are kept in `nodes/<slug>` of it,
        data_dir: or here.
        collections: Loaded once it runs; a file that has not changed is not loaded again.
        app: `module:attribute` of a `mesh.Node`.
        operator: Credentials file with which a node without a key registers itself; None: the
            state folder's operator, if its mesh is the one meant.

    Raises:
        MeshError: It cannot start; says why.
    """
    if app is not None:
        sys.path.insert(0, str(Path.cwd()))
    declared = mesh.Node(config.node.name) if app is None else bootstrap.load_app(app)
    if config.node.name:
        declared.name = bootstrap.token(config.node.name)
    if not declared.name:
        raise ConfigError("a node needs a name: give --name or MESH_NODE__NAME")
    folder = data_dir or state_dir / "nodes" / bootstrap.slug_of(declared.name)
    operator = operator or bootstrap.find_operator(config.nats.servers, state_dir)
    opened = bootstrap.node(declared, config, data_dir=folder, operator=operator)
    return until_stopped(_LoadedNode(opened, folder, collections))


class _LoadedNode:
    """The node, and beside it the loading of its files: it serves from the first moment."""

    def __init__(
        self,
        opened: AbstractAsyncContextManager[NodeServer],
        folder: Path,
        sources: Sequence[Source],
    ) -> None:
        self._opened = opened
        self._memory = folder / "loaded.json"
        self._sources = sources
        self._loading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._superseded = False

    async def __aenter__(self) -> None:
        server = await self._opened.__aenter__()
        self._loading = asyncio.create_task(self._load_all(server))
        self._watching = asyncio.create_task(self._watch(server, asyncio.current_task()))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        beside = [task for task in (self._loading, self._watching) if task is not None]
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await self._opened.__aexit__(kind, error, trace)
        if self._superseded:
            raise ConflictError("a newer node of this name has started; this one has ended")

    async def _watch(self, server: NodeServer, owner: asyncio.Task[Any] | None) -> None:
        """End the agent when its node has been superseded."""
        await server.superseded()
        self._superseded = True
        if owner is not None:
            owner.cancel()

    async def _load_all(self, server: NodeServer) -> None:
        for collection, path in self._sources:
            try:
                while not await self._loaded(server, collection, path):  # noqa: ASYNC110 (a broker)
                    await asyncio.sleep(_RETRY_S)
            except Exception:
                log.exception("mesh.collection.not_loaded", collection=collection, path=str(path))

    async def _loaded(self, server: NodeServer, collection: str, path: Path) -> bool:
        """Whether there is nothing left to try."""
        try:
            await self._load(server, collection, path)
        except MeshError as error:
            why = str(error)
            log.warning("mesh.collection.not_loaded", collection=collection, error=why)
            return not error.retryable
        return True

    async def _load(self, server: NodeServer, collection: str, path: Path) -> None:
        """A file is loaded once, or a document deleted later would be back after a restart."""
        digest = await asyncio.to_thread(_digest, path)
        loaded = self._remembered()
        if loaded.get(collection) == digest:
            return

        async def index(params: Mapping[str, Any], action_id: str) -> Mapping[str, Any]:
            return await server.run_own_action("index", params, action_id)

        report = await mesh.import_documents(
            mesh.read_documents(path), index, collection=collection
        )
        memory = loaded | {collection: digest}
        await asyncio.to_thread(bootstrap.write_json, self._memory, memory)
        for bad in report.bad_lines:
            log.warning("mesh.collection.line_refused", **bad._asdict())
        log.info(
            "mesh.collection.loaded",
            collection=collection,
            documents=report.documents,
            changed=report.changed,
            bad=report.bad,
        )

    def _remembered(self) -> dict[str, str]:
        try:
            found = json.loads(self._memory.read_text())
        except (OSError, ValueError):
            return {}
        return dict(found) if isinstance(found, dict) else {}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as opened:
            while block := opened.read(1024 * 1024):
                digest.update(block)
    return digest.hexdigest()
