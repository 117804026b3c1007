"""Litestar's handlers of the registry, for administrators."""

from __future__ import annotations

from typing import Annotated

from litestar import delete, get, patch, post
from litestar.params import JSONBody, QueryParameter

from agents.gateway import bodies
from agents.gateway.asked import Asked, NodeName, identity_of, refuse_null, service_of
from agents.gateway.route import about
from mesh import messages
from mesh.types import Status

_ADMIN = about("admin")


@get("/nodes", opt=_ADMIN, tags=["nodes"])
async def list_nodes(
    request: Asked,
    status_: Annotated[
        Status | None, QueryParameter(name="status", description="An operator's.")
    ] = None,
    type_: Annotated[str, QueryParameter(name="type", max_length=32)] = "",
) -> messages.NodeList:
    """Registered nodes with their live health, in order of their slugs."""
    refuse_null(request, "status", status_)
    return await service_of(request).mesh.nodes(status=status_, type=type_)


@get("/nodes/stats", opt=_ADMIN, tags=["nodes"])
async def node_stats(request: Asked) -> messages.NodeStats:
    """Registered nodes, counted."""
    return await service_of(request).mesh.stats()


@post("/nodes", opt=_ADMIN, tags=["nodes"])
async def register_node(request: Asked, data: JSONBody[bodies.NewNode]) -> messages.NodeRegistered:
    """Register a node for somebody else. Its API key is in the answer, this once."""
    return await service_of(request).nodes.register(data, identity_of(request))


@get("/nodes/{node:str}", opt=_ADMIN, tags=["nodes"])
async def show_node(request: Asked, node: NodeName) -> messages.NodeRecord:
    """One registered node."""
    return await service_of(request).nodes.node(node)


@patch("/nodes/{node:str}", opt=_ADMIN, tags=["nodes"])
async def change_node(
    request: Asked, node: NodeName, data: JSONBody[bodies.NodeChanges]
) -> messages.NodeRecord:
    """Change a registered node."""
    return await service_of(request).nodes.change(node, data, identity_of(request))


@delete("/nodes/{node:str}", status_code=200, opt=_ADMIN, tags=["nodes"])
async def remove_node(request: Asked, node: NodeName) -> messages.NodeRecord:
    """Take a node out of the registry. Its key and tokens are refused within a second."""
    return await service_of(request).mesh.remove_node(node, on_behalf=identity_of(request).subject)


@post("/nodes/{node:str}/rotate-key", status_code=200, opt=_ADMIN, tags=["nodes"])
async def rotate_key(
    request: Asked,
    node: NodeName,
    overlap_s: Annotated[
        int,
        QueryParameter(
            description="Seconds for which the old key stays good.", ge=0, le=366 * 86_400
        ),
    ] = 0,
) -> messages.NodeKey:
    """Give a node another API key, shown this once. Without an overlap the old one and the node's
    tokens are refused within a second, and its connections to the broker are cut.
    """
    return await service_of(request).mesh.access.rotate_key(
        node, overlap_s=overlap_s, on_behalf=identity_of(request).subject
    )


@post("/nodes/{node:str}/drain", status_code=200, opt=_ADMIN, tags=["nodes"])
async def drain_node(request: Asked, node: NodeName) -> messages.NodeRecord:
    """Give a node no new work, until it is undrained or started again. What runs on it goes on;
    `in_flight` and `queued` of `GET /nodes/{node}` say how much that is.
    """
    return await service_of(request).mesh.drain_node(node, on_behalf=identity_of(request).subject)


@post("/nodes/{node:str}/undrain", status_code=200, opt=_ADMIN, tags=["nodes"])
async def undrain_node(request: Asked, node: NodeName) -> messages.NodeRecord:
    """Let a drained node take work again."""
    return await service_of(request).mesh.undrain_node(node, on_behalf=identity_of(request).subject)


NODES = [
    list_nodes,
    node_stats,
    register_node,
    show_node,
    change_node,
    remove_node,
    rotate_key,
    drain_node,
    undrain_node,
]
