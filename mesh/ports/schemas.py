"""Whether values fit a JSON Schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Misfits = dict[str, list[str]]
"""Messages by the path of what does not fit, e.g. `lines[2].cents`; empty path: the whole."""

Check = Callable[[Mapping[str, Any]], Misfits]
"""What does not fit; empty where all does."""

CompileSchema = Callable[[Mapping[str, Any]], Check]
"""Makes a check of a JSON Schema (2020-12).

Raises:
    InvalidError: It is no schema, or one that cannot be checked here.
"""
