"""What a client may ask the masters about nodes, calls and actions."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from mesh.runtime.history_api import HistoryApi
from mesh.types import Status
from mesh.wire import codec
from mesh.wire.messages import (
    BreakerList,
    BreakersQuery,
    BreakersReset,
    ExplainQuery,
    Explanation,
    NodeChange,
    NodeList,
    NodeName,
    NodeRecord,
    NodeRegister,
    NodeRegistered,
    NodesQuery,
    NodeStats,
    NodeUpdate,
    ReplicaList,
    ReplicasQuery,
    Request,
)

T = TypeVar("T")

_TIMEOUT_S = 5.0
_COPIES_TIMEOUT_S = 30.0


class RegistryApi(HistoryApi):
    """The registry's part of `MeshClient`. Every method raises UnavailableError or
    DeadlineExceededError where no master answers. `on_behalf` and `origin`: whom a gateway or
    bridge speaks for, and from which address, as the audit trail names them; nobody else is
    believed.
    """

    async def nodes(
        self,
        *,
        node: str = "",
        status: Status | None = None,
        type: str = "",  # noqa: A002
    ) -> NodeList:
        """Registered nodes with their live health.

        Raises:
            NotFoundError: `node` (slug or id) is none.
            UnavailableError: No master answers.
        """
        return await self._master(
            "nodes", NodesQuery(node=node, status=status, type=type), NodeList
        )

    async def register_node(
        self, node: NodeRegister, *, on_behalf: str = "", origin: str = ""
    ) -> NodeRegistered:
        """Register a node; its API key is in the answer, this once.

        Raises:
            ConflictError: The name is taken.
            InvalidError: A value that cannot be.
        """
        node = msgspec.structs.replace(
            node, on_behalf=on_behalf or node.on_behalf, origin=origin or node.origin
        )
        checked = codec.convert(msgspec.to_builtins(node), NodeRegister)
        return await self._master("register", checked, NodeRegistered)

    async def update_node(
        self, node: str, change: NodeUpdate, *, on_behalf: str = "", origin: str = ""
    ) -> NodeRecord:
        """Change a registered node.

        Raises:
            NotFoundError, InvalidError
        """
        checked = codec.convert(msgspec.to_builtins(change), NodeUpdate)
        request = NodeChange(node=node, change=checked, on_behalf=on_behalf, origin=origin)
        return await self._master("update", request, NodeRecord)

    async def remove_node(self, node: str, *, on_behalf: str = "", origin: str = "") -> NodeRecord:
        """Take a node out of the registry: its key and tokens open nothing, its connections are
        cut.

        Raises:
            NotFoundError
        """
        request = NodeName(node=node, on_behalf=on_behalf, origin=origin)
        return await self._master("remove", request, NodeRecord)

    async def probe_node(self, node: str) -> NodeRecord:
        """Have the master ping the node now and say what it thinks of it.

        Raises:
            NotFoundError
        """
        return await self._master("probe", NodeName(node=node), NodeRecord)

    async def drain_node(self, node: str, *, on_behalf: str = "", origin: str = "") -> NodeRecord:
        """Have a node take no new work and finish what runs, until `undrain_node` or its end.

        Raises:
            NotFoundError: No such node.
            UnavailableError: It is away.
        """
        request = NodeName(node=node, on_behalf=on_behalf, origin=origin)
        return await self._master("drain", request, NodeRecord)

    async def undrain_node(self, node: str, *, on_behalf: str = "", origin: str = "") -> NodeRecord:
        """Have a node take work again.

        Raises:
            NotFoundError, UnavailableError
        """
        request = NodeName(node=node, on_behalf=on_behalf, origin=origin)
        return await self._master("undrain", request, NodeRecord)

    async def breakers(self, node: str | None = None) -> BreakerList:
        """Breakers of which callers told in the last minute, as the masters see them; None: of all
        nodes.

        Raises:
            NotFoundError: `node` (slug or id) is none.
        """
        return await self._master("breakers", BreakersQuery(node=node or ""), BreakerList)

    async def reset_breakers(
        self, node: str, verb: str | None = None, *, on_behalf: str = "", origin: str = ""
    ) -> BreakerList:
        """Close a node's breakers at all callers; `verb` is `search`, `fetch`, `ping` or
        `act.<action>`, None: all. What they are now.

        Raises:
            NotFoundError: No such node.
            InvalidError: It offers no such verb.
        """
        request = BreakersReset(node=node, verb=verb or "", on_behalf=on_behalf, origin=origin)
        return await self._master("breakers-reset", request, BreakerList)

    async def explain(self, request_id: str) -> Explanation:
        """Why a request went where it went: one trace per node or shard that was asked.

        Raises:
            NotFoundError: The masters know, or remember, no such request.
            InvalidError: That is no id.
        """
        query = codec.convert({"request": request_id}, ExplainQuery)
        return await self._master("explain", query, Explanation)

    async def replicas(self, shard: str = "", *, hashes: bool = True) -> ReplicaList:
        """The copies of every shard that several nodes hold, or of one shard: how far each is, and
        with `hashes` a hash of the content of each collection.

        Raises:
            UnavailableError: No master answers.
        """
        query = ReplicasQuery(shard=shard, hashes=hashes)
        return await self._caller.master("replicas", query, ReplicaList, _COPIES_TIMEOUT_S)

    async def stats(self) -> NodeStats:
        """Nodes counted by status, health and type; calls of the last minute, as callers saw
        them.
        """
        return await self._master("stats", Request(), NodeStats)

    async def _master(self, verb: str, request: Request, kind: type[T]) -> T:
        return await self._caller.master(verb, request, kind, _TIMEOUT_S)
