"""Finding the mesh: options every command has, and the connection they lead to."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

import mesh
from mesh.errors import (
    ConfigError,
    DeadlineExceededError,
    MeshError,
    NoMasterError,
    NoRespondersError,
    StateError,
    UnavailableError,
)

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from mesh import MeshClient

T = TypeVar("T")

DEFAULT_STATE_DIR = ".mesh"
_MESH_TOML = Path("mesh.toml")
_OF_CALLS = ("MESH_NATS__", "MESH_ROUTING__", "MESH_BREAKER__", "MESH_SEARCH__")
"""What the environment says of this client; the rest of it is for agents."""


@dataclass(frozen=True)
class Options:
    """What stands before or after any command."""

    url: str | None = None
    """A `nats://` URL; None: the one in the state folder's `mesh.json`."""
    state_dir: str = DEFAULT_STATE_DIR
    credentials: str | None = None
    """Path of a credentials file."""
    as_json: bool = False
    debug: bool = False


class NotReachableError(UnavailableError):
    """There is no mesh where it was looked for."""

    kind: ClassVar[str] = "not_reachable"


def connect(options: Options) -> AbstractAsyncContextManager[MeshClient]:
    """The mesh that `options` name, over a connection as `MESH_NATS__…` say, with calls as the
    sections `routing`, `breaker` and `search` say; the seam where tests put a client of their own.

    Raises:
        ConfigError: A setting or a credentials file given that cannot be.
    """
    from mesh import bootstrap
    from mesh.config import MeshConfig

    theirs = {name: text for name, text in os.environ.items() if name.startswith(_OF_CALLS)}
    config = bootstrap.load_settings(toml=None, environ=theirs, flags={})
    if _MESH_TOML.is_file():  # its [nats] is how agents log in
        of_calls = bootstrap.load_settings(toml=_MESH_TOML, environ=theirs, flags={})
        config = MeshConfig(
            nats=config.nats,
            routing=of_calls.routing,
            breaker=of_calls.breaker,
            search=of_calls.search,
        )
    if file := options.credentials or config.nats.credentials:
        try:
            bootstrap.read_credentials(Path(file))
        except StateError as error:  # a mesh may well be there
            raise ConfigError(str(error)) from error
    return mesh.connect(
        options.url,
        state_dir=options.state_dir,
        credentials=options.credentials,
        config=config,
    )


async def ask_master(answer: Awaitable[T]) -> T:
    """Await something that only a master can tell.

    Raises:
        NoMasterError: Nobody answered.
    """
    try:
        return await answer
    except (NoRespondersError, DeadlineExceededError) as error:
        raise NoMasterError(f"no master answers on this mesh ({error})") from error


async def slug_of(client: MeshClient, node: str) -> str:
    """The slug of a node named by slug or id; a name that nobody knows comes back as it is, for
    whoever is asked next to refuse.
    """
    if node in client.routes.nodes:
        return node
    try:
        found = await client.nodes(node=node)
    except MeshError:
        return node
    return found.nodes[0].slug if found.nodes else node


def run(options: Options, work: Callable[[MeshClient], Awaitable[T]]) -> T:
    """Connect, do `work`, hang up.

    Raises:
        NotReachableError: No mesh there.
        NoMasterError: A broker with nothing on it, or nobody who could judge the login.
        MeshError: Of the login or the work.
    """
    _configure_logs(options)

    async def connected() -> T:
        async with AsyncExitStack() as stack:
            try:
                client = await stack.enter_async_context(connect(options))
            except NoMasterError:
                raise
            except (UnavailableError, DeadlineExceededError, StateError) as error:
                raise NotReachableError(str(error)) from error
            if not client.routes.nodes and not client.routes.epoch:
                raise NoMasterError("neither a master nor a node answers on this mesh")
            return await work(client)

    import asyncio  # a third of what --help would cost

    return asyncio.run(connected())


def _configure_logs(options: Options) -> None:
    """A command's words are its own; what libraries log is for `--debug`, on stderr."""
    if options.debug:
        from mesh.bootstrap import configure_logs

        configure_logs(debug=True)
        return
    import logging

    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.getLogger().addHandler(logging.NullHandler())
