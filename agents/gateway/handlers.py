"""Litestar's handlers: the routes, their parameters and what is said of them in the docs.

`about` tells the edge who may come in. Everything else is the service's.
"""

from __future__ import annotations

from typing import Annotated

from litestar import Response, get, post
from litestar.params import JSONBody, QueryParameter

from agents.gateway import bodies, reports
from agents.gateway.asked import Asked, exchange_of, identity_of, service_of
from agents.gateway.exchange import bearer_of
from agents.gateway.route import ANYBODY, NOBODY, about
from mesh import messages

_JWKS_KEPT = "public, max-age=60"
"""Not longer: a key that was taken out of use without an overlap is to be forgotten."""


# -- the gateway itself ----------------------------------------------------------------------------


@get("/livez", opt=about(NOBODY, limited=False), tags=["health"], sync_to_thread=False)
def livez() -> reports.Probe:
    """Does the process run?"""
    return reports.Probe(status="alive")


@get("/readyz", opt=about(NOBODY, limited=False), tags=["health"], sync_to_thread=False)
def readyz(request: Asked) -> Response[reports.Probe]:
    """Should it get requests? 503 while it stops, without a broker, and until it can judge
    tokens.
    """
    stopping = "the gateway stops" if request.scope["state"]["edge"].draining else ""
    reason = stopping or service_of(request).not_ready()
    if reason:
        return Response(
            reports.Probe(status="not_ready", reason=reason),
            status_code=503,
            headers={"Retry-After": "1"},
        )
    return Response(reports.Probe(status="ready"))


@get(
    "/.well-known/jwks.json",
    opt=about(NOBODY, limited=False),
    tags=["health"],
    sync_to_thread=False,
)
def jwks(request: Asked) -> Response[reports.Jwks]:
    """The public keys of access tokens (RFC 7517), newest first, for whoever wants to check a
    token without asking. There are none where `security.jwt_secret` signs. 503 as long as no
    master has told them.
    """
    keys = service_of(request).public_keys()
    return Response(reports.Jwks(keys=keys), headers={"Cache-Control": _JWKS_KEPT})


@get("/health", opt=about(NOBODY, limited=False), tags=["health"], sync_to_thread=False)
def health(request: Asked) -> reports.HealthReport:
    """Is the mesh there, and what can it do?"""
    return service_of(request).health()


# -- search ----------------------------------------------------------------------------------------


@post(
    "/search",
    status_code=200,
    opt=about("search", internal="Search failed", search=True, shortcut=True),
    tags=["search"],
)
async def search(request: Asked, data: JSONBody[bodies.Search]) -> messages.SearchResult:
    """Search all nodes as if they were one index. What could not be searched is named in
    `shards`, and `partial` is true. The search ends when its client goes.
    """
    return await service_of(request).search(
        data, identity_of(request), exchange_of(request).search_id
    )


# -- joining, tokens, own state --------------------------------------------------------------------


@post("/register", opt=about(NOBODY, login="join"), tags=["joining"])
async def register(request: Asked, data: JSONBody[bodies.Join]) -> bodies.Joined:
    """Register a node that shows a join token (`meshctl nodes join-token create`) as its bearer.
    The answer has its API key, with which it logs in to the broker, and tokens for this API.
    """
    token = bearer_of(exchange_of(request).authorization)
    return await service_of(request).nodes.join(token, data)


@post("/refresh-token", status_code=200, opt=about(NOBODY), tags=["joining"])
async def refresh_token(request: Asked, data: JSONBody[bodies.Refresh]) -> bodies.Refreshed:
    """Trade a refresh token for new tokens. It is good for one use: one that comes a second time
    ends all that came from it.
    """
    return await service_of(request).refresh(data.refresh_token)


@get("/status", opt=about(ANYBODY), tags=["joining"])
async def status(
    request: Asked,
    node: Annotated[
        str,
        QueryParameter(
            description="Slug or id of another node; takes the scope `admin`.", max_length=64
        ),
    ] = "",
) -> reports.OwnStatus:
    """How the mesh sees the node whose token or key this is."""
    return await service_of(request).nodes.status(identity_of(request), node)


AT_ROOT = [livez, readyz, jwks]
UNDER_PREFIX = [
    health,
    register,
    search,
    status,
    refresh_token,
]
