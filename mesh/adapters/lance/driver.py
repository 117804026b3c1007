"""LanceDB's errors become ours here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from mesh.errors import StateError

_log = structlog.get_logger()


@contextmanager
def translated(doing: str, collection: str) -> Iterator[None]:
    """Turn what LanceDB raises into a StateError; the details go to the log, as they hold paths.

    Raises:
        StateError
    """
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        _log.error("mesh.documents.driver_failed", doing=doing, collection=collection, error=error)
        raise StateError(
            f"{doing} collection {collection!r} failed; the node's log says why "
            "(most often a full disk, or files changed by something else)"
        ) from error
