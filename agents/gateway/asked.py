"""What every handler asks of its request."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Request
from litestar.datastructures import State
from litestar.params import PathParameter

from agents.gateway.exchange import Exchange
from agents.gateway.service import Service
from mesh import messages
from mesh.errors import InvalidError, UnauthorizedError

Asked = Request[Any, Any, State]
_NAME = r"^[A-Za-z0-9_-]{1,64}(?!\n)$"
NodeName = Annotated[str, PathParameter(description="Slug or id.", max_length=64, pattern=_NAME)]


def service_of(request: Asked) -> Service:
    """The mesh behind the app."""
    service: Service = request.scope["state"]["service"]
    return service


def exchange_of(request: Asked) -> Exchange:
    """The request as the edge has it."""
    exchange: Exchange = request.scope["state"]["exchange"]
    return exchange


def identity_of(request: Asked) -> messages.Identity:
    """Who asks.

    Raises:
        UnauthorizedError: Nobody that the edge let in.
    """
    identity = exchange_of(request).identity
    if identity is None:
        raise UnauthorizedError
    return identity


def refuse_null(request: Asked, name: str, value: Any) -> None:
    """Litestar reads `null` in a query as nothing; it is no value of an enumeration."""
    if value is None and name in request.query_params:
        message = "cannot be 'null'; leave it out"
        raise InvalidError(f"{name}: {message}", fields={name: [message]})
