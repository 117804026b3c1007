"""The app: Litestar inside the edge."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
from litestar import Litestar, Request, Response, Router
from litestar.datastructures import State
from litestar.openapi import OpenAPIConfig

from agents.gateway.access_log import AccessLog
from agents.gateway.action_handlers import ACTIONS
from agents.gateway.bodies import Search
from agents.gateway.checked_body import CheckedBody
from agents.gateway.docs import docs_handlers
from agents.gateway.edge import Edge
from agents.gateway.exchange import Exchange
from agents.gateway.handlers import AT_ROOT, UNDER_PREFIX
from agents.gateway.node_handlers import NODES
from agents.gateway.rag_handlers import RAG
from agents.gateway.reading import read
from agents.gateway.route import routes_of
from agents.gateway.routing_handlers import ROUTING
from agents.gateway.saga_handlers import SAGAS
from agents.gateway.service import Service
from mesh import MeshClient, bootstrap, messages
from mesh.config import MeshConfig
from mesh.types import VERSION

_encode = msgspec.json.Encoder().encode


def create_app(
    mesh: MeshClient,
    gatekeeper: bootstrap.Gatekeeper,
    config: MeshConfig,
    *,
    shortcut: bool = True,
    access_log: AccessLog | None = None,
) -> Edge:
    """The whole HTTP interface as one ASGI app.

    Args:
        mesh: What answers.
        gatekeeper: Says who comes.
        config: `gateway`, `rate_limit` and `search` count.
        shortcut: Searches go round Litestar (see `agents.gateway.edge`).
        access_log: None: nothing is logged.
    """
    service = Service(mesh, gatekeeper, config.search)
    litestar = create_litestar(config.gateway.prefix)

    async def answer(body: bytes, identity: messages.Identity, id: str) -> bytes:  # noqa: A002
        return _encode(await service.search(read(body, Search), identity, id))

    edge = Edge(
        litestar,
        routes_of(litestar),
        gatekeeper,
        config,
        shortcut=answer if shortcut else None,
        access_log=access_log,
    )
    edge.state.update(service=service, edge=edge)
    return edge


@functools.cache
def create_litestar(prefix: str) -> Litestar:
    """Routes, parameters and documentation; nothing is served without the edge. It has no state, so
    that one does for all apps of a process: it takes a fifth of a second to make.
    """
    docs_at_root, docs = docs_handlers(prefix)
    handlers: list[Any] = [*AT_ROOT, *docs_at_root]
    handlers.append(
        Router(
            prefix or "/",
            route_handlers=[*UNDER_PREFIX, *RAG, *ACTIONS, *SAGAS, *NODES, *ROUTING, *docs],
        )
    )
    return Litestar(
        handlers,
        dto=CheckedBody,
        return_dto=CheckedBody,
        exception_handlers={Exception: _failed},
        openapi_config=OpenAPIConfig("Nodemesh", VERSION, use_handler_docstrings=True),
        logging_config=None,
        debug=False,
    )


def _failed(request: Request[Any, Any, State], error: Exception) -> Response[bytes]:
    """The edge knows how a failure looks."""
    exchange: Exchange = request.scope["state"]["exchange"]
    shown = request.scope["state"]["edge"].render(exchange, error)
    return Response(
        shown.body,
        status_code=shown.status,
        media_type="application/json",
        headers={name.decode(): value.decode() for name, value in shown.headers},
    )
