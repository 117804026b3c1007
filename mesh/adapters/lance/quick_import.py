"""Half of what importing LanceDB takes, saved.

It imports the data classes of a catalogue service that nobody here talks to, and their package
imports its generated HTTP client first: 1.2 to 1.8 s of CPU in every node that starts. Only that
package's `__init__` is put off, until somebody asks it for a name; its submodules load as ever.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

_CLIENT = "lance_namespace_urllib3_client"


def put_off() -> None:
    """Before the first import of lancedb; does nothing after it, or where there is no such
    package.
    """
    if _CLIENT in sys.modules:
        return
    spec = importlib.util.find_spec(_CLIENT)
    if spec is None or spec.loader is None:
        return
    loader = spec.loader
    module = importlib.util.module_from_spec(spec)

    def load_and_get(name: str) -> Any:
        if vars(module).pop("__getattr__", None) is not None:
            loader.exec_module(module)
            return getattr(module, name)
        raise AttributeError(f"module {_CLIENT!r} has no attribute {name!r}")

    vars(module)["__getattr__"] = load_and_get
    sys.modules[_CLIENT] = module
