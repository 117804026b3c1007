"""Nodemesh: one search, actions that are never lost and one picture of health over many apps.

Light to import: drivers load only when something that needs them is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mesh import errors
from mesh.errors import MeshError
from mesh.types import VERSION

if TYPE_CHECKING:
    from mesh.bootstrap import connect as connect
    from mesh.bootstrap import read_documents as read_documents
    from mesh.runtime.action_context import ActionContext as ActionContext
    from mesh.runtime.client import MeshClient as MeshClient
    from mesh.runtime.importing import ImportReport as ImportReport
    from mesh.runtime.importing import import_documents as import_documents
    from mesh.runtime.sdk import Node as Node
    from mesh.wire import messages as messages
    from mesh.wire.messages import Document as Document
    from mesh.wire.messages import SearchRequest as SearchRequest


__version__ = VERSION

_LAZY = {
    "ActionContext": "mesh.runtime.action_context",
    "Document": "mesh.wire.messages",
    "MeshClient": "mesh.runtime.client",
    "Node": "mesh.runtime.sdk",
    "SearchRequest": "mesh.wire.messages",
    "ImportReport": "mesh.runtime.importing",
    "connect": "mesh.bootstrap",
    "import_documents": "mesh.runtime.importing",
    "read_documents": "mesh.bootstrap",
}

__all__ = [
    "ActionContext",
    "Document",
    "ImportReport",
    "MeshClient",
    "MeshError",
    "Node",
    "SearchRequest",
    "__version__",
    "connect",
    "errors",
    "import_documents",
    "messages",
    "read_documents",
]


def __getattr__(name: str) -> Any:
    if name == "messages":
        return importlib.import_module("mesh.wire.messages")
    try:
        module = _LAZY[name]
    except KeyError:
        raise AttributeError(name) from None
    return getattr(importlib.import_module(module), name)
