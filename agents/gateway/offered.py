"""The actions that nodes offer right now, as schemas of the OpenAPI document."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from mesh import MeshClient, bootstrap, messages
from mesh.errors import MeshError

Json = dict[str, Any]

_KEPT_S = 5.0
"""The masters are not asked more often, whoever reads the document."""
_WAIT_S = 1.0
_OWN = "#/$defs/"


class Offered:
    """Asks the masters now and then."""

    def __init__(self, mesh: MeshClient) -> None:
        self._mesh = mesh
        self._asking = asyncio.Lock()
        self._fresh_until = 0.0
        self._answer = messages.OfferedActions(actions=[])

    async def to(self, identity: messages.Identity) -> Json:
        """Schemas, by the name of their component, of the actions that the identity may run.
        Without a master: those of before.
        """
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if now >= self._fresh_until:
                await self._ask()
                self._fresh_until = now + _KEPT_S
        names = bootstrap.readable_actions(identity.scopes)
        return components(
            each for each in self._answer.actions if names is None or each.action.name in names
        )

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(_WAIT_S):
                self._answer = await self._mesh.actions()
        except (MeshError, TimeoutError):
            return


def components(offered: Iterable[messages.OfferedAction]) -> Json:
    """`action.<name>.params` and `action.<name>.result`; where nodes offer different actions under
    one name, any of their schemas.
    """
    found: dict[str, list[Json]] = {}
    for each in offered:
        action = each.action
        on = f"On {', '.join(each.nodes)}."
        name = f"action.{action.name}"
        found.setdefault(f"{name}.params", []).append({"description": on, **action.params})
        if action.result is not None:
            found.setdefault(f"{name}.result", []).append({"description": on, **action.result})
    return {name: _joined(schemas, name) for name, schemas in sorted(found.items())}


def _joined(schemas: list[Json], name: str) -> Json:
    """One schema, whose references lead where its definitions now are."""
    base = f"#/components/schemas/{name}"
    if len(schemas) == 1:
        alone: Json = _referring(schemas[0], base)
        return alone
    return {"anyOf": [_referring(each, f"{base}/anyOf/{n}") for n, each in enumerate(schemas)]}


def _referring(value: Any, base: str) -> Any:
    match value:
        case {"$ref": str(target), **rest} if target.startswith(_OWN):
            others = {name: _referring(inner, base) for name, inner in rest.items()}
            return {"$ref": f"{base}/$defs/{target.removeprefix(_OWN)}", **others}
        case dict():
            return {name: _referring(inner, base) for name, inner in value.items()}
        case list():
            return [_referring(inner, base) for inner in value]
        case _:
            return value
