"""What masters keep of nodes' actions, in memory; passes the contract tests of the real one."""

from __future__ import annotations

from collections.abc import Mapping

from mesh.errors import UnavailableError
from mesh.ports import KnownAction


class MemoryDescriptions:
    """`mesh.ports.DescriptionStore`."""

    def __init__(self):
        self.nodes: dict[str, dict[str, KnownAction]] = {}
        self.away = False

    async def described(self, node: str) -> dict[str, KnownAction]:
        self._check()
        return dict(self.nodes.get(node, {}))

    async def describe(self, node: str, actions: Mapping[str, KnownAction]) -> None:
        self._check()
        self.nodes[node] = dict(actions)

    def _check(self) -> None:
        if self.away:
            raise UnavailableError("the database is away")
