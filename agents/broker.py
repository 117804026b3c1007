"""The broker agent: nats-server with our configuration, where nothing of ours supervises it."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from mesh import bootstrap
from mesh.config import MeshConfig
from mesh.errors import StateError


def run(config: MeshConfig, *, state_dir: Path, host: str, port: int, secrets: Path | None) -> None:
    """Become nats-server: same process, so that signals and exit codes are its own.

    Args:
        config: For `broker` (its certificates) and `nats.sync_interval`.
        state_dir: JetStream's files are kept in `broker` of it; taken for this broker alone.
        host: Where it listens.
        port: 0 takes a free one.
        secrets: Folder with the `broker.json` of `mesh-agent credentials`; None: the state
            folder's credentials, made where they are missing.

    Raises:
        StateError: It cannot start; says why.
    """
    os.umask(0o077)
    with ExitStack() as held:
        state = held.enter_context(bootstrap.StateFolder(state_dir))
        if secrets is None:
            keys = bootstrap.make_credentials(state.credentials).broker
        else:
            keys = bootstrap.read_broker_keys(secrets / "broker.json")
        broker = bootstrap.EmbeddedBroker(
            store=state.broker,
            keys=keys,
            tls=config.broker,
            host=host,
            port=port,
            port_option="--listen",
            sync_interval=config.nats.sync_interval,
        )
        broker.prepare()
        state.keep_for_successor()
        _become(broker.command(), broker.environment())


def _become(command: list[str], environment: Mapping[str, str]) -> None:
    os.execve(command[0], command, os.environ | environment)  # noqa: S606 (no shell is the point)


def make_credentials(folder: Path, *, nodes: Sequence[str], shared: bool) -> list[Path]:
    """A file for each role, and for each of these nodes; what is there already stays as it is.

    Args:
        folder: Made for its owner alone where it is missing.
        nodes: Names of nodes whose keys the masters know from their start.
        shared: Whoever is given a file may read it, whoever he is: containers run as users of
            their own. The folder still keeps everybody else of this machine out.

    Raises:
        StateError: A file that cannot be read or written, or a folder that others may enter.
        InvalidError: Not a name.
    """
    slugs = [bootstrap.slug_of(name) for name in nodes]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(folder.stat().st_mode)
    except OSError as error:
        raise StateError(f"{folder} cannot be used: {error.strerror}") from error
    if shared and mode & 0o077:
        raise StateError(f"others may enter {folder}: `chmod 700 {folder}` first, or name another")
    made = bootstrap.make_credentials(folder, nodes=slugs, shared=shared)
    return sorted(made.files.values())
