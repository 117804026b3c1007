"""What a caller has written itself, by the actions it sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from mesh.wire.messages import ActionRequest, ActionResult

_WRITES = frozenset({"index", "update", "delete", "drop", "sync", "reembed"})


class OwnWrite(NamedTuple):
    """A write that was sent to a node."""

    collection: str | None
    """None: any."""
    version: int | None
    """The collection's data version after it; None: not told, or the write may have failed, or may
    still run.
    """


def own_write(request: ActionRequest, result: ActionResult | None) -> OwnWrite | None:
    """What an action wrote, or may have; None: nothing.

    Args:
        request: That was sent; its parameters may be JSON.
        result: None: nobody knows what came of it.
    """
    if request.action not in _WRITES:
        return None
    outcome = None if result is None else result.result
    version = outcome.get("data_version") if isinstance(outcome, Mapping) else None
    if not isinstance(version, int) or isinstance(version, bool):
        version = None
    return OwnWrite(_collection(request.params), version)


class _Params(msgspec.Struct):
    collection: str | None = None


_params = msgspec.json.Decoder(_Params)


def _collection(params: Any) -> str | None:
    if isinstance(params, msgspec.Raw):  # many documents, of which none is to be read
        try:
            return _params.decode(params).collection
        except msgspec.DecodeError:
            return None
    name = params.get("collection") if isinstance(params, Mapping) else None
    return name if isinstance(name, str) else None
