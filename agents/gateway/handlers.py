"""Litestar's handlers: the routes, their parameters and what is said of them in the docs.

`about` tells the edge who may come in. Everything else is the service's.
"""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Request, Response, delete, get, patch, post
from litestar.datastructures import State
from litestar.params import JSONBody, PathParameter, QueryParameter

from agents.gateway import bodies
from agents.gateway.edge import Exchange, bearer_of
from agents.gateway.route import ACTIONS, ANYBODY, NOBODY, about
from agents.gateway.service import Service
from mesh import messages
from mesh.errors import InvalidError, UnauthorizedError
from mesh.types import ActionState, Status

_Asked = Request[Any, Any, State]
_NAME = r"^[A-Za-z0-9_-]{1,64}(?!\n)$"
_JWKS_KEPT = "public, max-age=60"
"""Not longer: a key that was taken out of use without an overlap is to be forgotten."""
_NodeName = Annotated[str, PathParameter(description="Slug or id.", max_length=64, pattern=_NAME)]


def _service(request: _Asked) -> Service:
    service: Service = request.app.state.service
    return service


def _exchange(request: _Asked) -> Exchange:
    exchange: Exchange = request.scope["state"]["exchange"]
    return exchange


def _identity(request: _Asked) -> messages.Identity:
    identity = _exchange(request).identity
    if identity is None:
        raise UnauthorizedError
    return identity


def _named(request: _Asked, name: str, value: Any) -> None:
    """Litestar reads `null` in a query as nothing; it is no value of an enumeration."""
    if value is None and name in request.query_params:
        message = "cannot be 'null'; leave it out"
        raise InvalidError(f"{name}: {message}", fields={name: [message]})


# -- the gateway itself ----------------------------------------------------------------------------


@get("/livez", opt=about(NOBODY, limited=False), tags=["health"], sync_to_thread=False)
def livez() -> bodies.Probe:
    """Does the process run?"""
    return bodies.Probe(status="alive")


@get("/readyz", opt=about(NOBODY, limited=False), tags=["health"], sync_to_thread=False)
def readyz(request: _Asked) -> Response[bodies.Probe]:
    """Should it get requests? 503 while it stops, without a broker, and until it can judge
    tokens.
    """
    stopping = "the gateway stops" if request.app.state.edge.draining else ""
    reason = stopping or _service(request).not_ready()
    if reason:
        return Response(
            bodies.Probe(status="not_ready", reason=reason),
            status_code=503,
            headers={"Retry-After": "1"},
        )
    return Response(bodies.Probe(status="ready"))


@get(
    "/.well-known/jwks.json",
    opt=about(NOBODY, limited=False),
    tags=["health"],
    sync_to_thread=False,
)
def jwks(request: _Asked) -> Response[bodies.Jwks]:
    """The public keys of access tokens (RFC 7517), newest first, for whoever wants to check a
    token without asking. There are none where `security.jwt_secret` signs. 503 as long as no
    master has told them.
    """
    keys = _service(request).public_keys()
    return Response(bodies.Jwks(keys=keys), headers={"Cache-Control": _JWKS_KEPT})


@get("/health", opt=about(NOBODY, limited=False), tags=["health"], sync_to_thread=False)
def health(request: _Asked) -> bodies.HealthReport:
    """Is the mesh there, and what can it do?"""
    return _service(request).health()


# -- search and actions ----------------------------------------------------------------------------


@post(
    "/search",
    status_code=200,
    opt=about("search", internal="Search failed", search=True),
    tags=["search"],
)
async def search(request: _Asked, data: JSONBody[bodies.Search]) -> messages.SearchResult:
    """Search all nodes as if they were one index. What could not be searched is named in
    `shards`, and `partial` is true. The search ends when its client goes.
    """
    return await _service(request).search(data, _identity(request))


@post(
    "/actions",
    status_code=200,
    opt=about(ACTIONS, internal="Action failed", action=True),
    tags=["actions"],
)
async def run_action(
    request: _Asked, data: JSONBody[bodies.Action]
) -> bodies.ActionDone | bodies.ActionsDone:
    """Run an action on one node or several. It goes on when its client goes, and its outcome is
    in the history. For several nodes the answer is a 200 with `success_count` and
    `failure_count`, whatever became of it on each.
    """
    return await _service(request).act(data, _identity(request))


@get("/actions", opt=about(ACTIONS, action=True), tags=["actions"])
async def list_actions(  # noqa: PLR0917 (Litestar passes them by name)
    request: _Asked,
    node: Annotated[str, QueryParameter(description="Slug.", max_length=64)] = "",
    action: Annotated[str, QueryParameter(description="Name.", max_length=64)] = "",
    caller: Annotated[str, QueryParameter(description="Who asked for it.", max_length=64)] = "",
    state_: Annotated[
        ActionState | None, QueryParameter(name="state", description="Where it stands.")
    ] = None,
    since: Annotated[int, QueryParameter(description="Unix ms.", ge=0, le=2**53)] = 0,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 50,
    offset: Annotated[int, QueryParameter(ge=0, le=2**31 - 1)] = 0,
) -> bodies.ActionPage:
    """The history of actions, newest first, of all callers; every filter may be left out. Scopes
    for single actions show those alone; with several of them, `action` says which.
    """
    _named(request, "state", state_)
    return await _service(request).actions(
        _identity(request),
        node=node,
        action=action,
        caller=caller,
        state=state_,
        since=since,
        limit=limit,
        offset=offset,
    )


@get("/actions/{action_id:str}", opt=about(ACTIONS, action=True), tags=["actions"])
async def show_action(
    request: _Asked,
    action_id: Annotated[
        str, PathParameter(description="Id or idempotency key.", min_length=1, max_length=300)
    ],
) -> bodies.ActionRecords:
    """What became of an action; of one on several nodes, on each of them."""
    return await _service(request).action(action_id, _identity(request))


# -- joining, tokens, own state --------------------------------------------------------------------


@post("/register", opt=about(NOBODY, login="join"), tags=["joining"])
async def register(request: _Asked, data: JSONBody[bodies.Join]) -> bodies.Joined:
    """Register a node that shows a join token (`meshctl nodes join-token create`) as its bearer.
    The answer has its API key, with which it logs in to the broker, and tokens for this API.
    """
    token = bearer_of(_exchange(request).authorization)
    return await _service(request).join(token, data)


@post("/refresh-token", status_code=200, opt=about(NOBODY), tags=["joining"])
async def refresh_token(request: _Asked, data: JSONBody[bodies.Refresh]) -> bodies.Refreshed:
    """Trade a refresh token for new tokens. It is good for one use: one that comes a second time
    ends all that came from it.
    """
    return await _service(request).refresh(data.refresh_token)


@get("/status", opt=about(ANYBODY), tags=["joining"])
async def status(
    request: _Asked,
    node: Annotated[
        str,
        QueryParameter(
            description="Slug or id of another node; takes the scope `admin`.", max_length=64
        ),
    ] = "",
) -> bodies.OwnStatus:
    """How the mesh sees the node whose token or key this is."""
    return await _service(request).status(_identity(request), node)


# -- registry --------------------------------------------------------------------------------------

_ADMIN = about("admin")


@get("/nodes", opt=_ADMIN, tags=["nodes"])
async def list_nodes(
    request: _Asked,
    status_: Annotated[
        Status | None, QueryParameter(name="status", description="An operator's.")
    ] = None,
    type_: Annotated[str, QueryParameter(name="type", max_length=32)] = "",
) -> messages.NodeList:
    """Registered nodes with their live health, in order of their slugs."""
    _named(request, "status", status_)
    return await _service(request).mesh.nodes(status=status_, type=type_)


@get("/nodes/stats", opt=_ADMIN, tags=["nodes"])
async def node_stats(request: _Asked) -> messages.NodeStats:
    """Registered nodes, counted."""
    return await _service(request).mesh.stats()


@post("/nodes", opt=_ADMIN, tags=["nodes"])
async def register_node(request: _Asked, data: JSONBody[bodies.NewNode]) -> messages.NodeRegistered:
    """Register a node for somebody else. Its API key is in the answer, this once."""
    return await _service(request).register(data, _identity(request))


@get("/nodes/{node:str}", opt=_ADMIN, tags=["nodes"])
async def show_node(request: _Asked, node: _NodeName) -> messages.NodeRecord:
    """One registered node."""
    return await _service(request).node(node)


@patch("/nodes/{node:str}", opt=_ADMIN, tags=["nodes"])
async def change_node(
    request: _Asked, node: _NodeName, data: JSONBody[bodies.NodeChanges]
) -> messages.NodeRecord:
    """Change a registered node."""
    return await _service(request).change(node, data, _identity(request))


@delete("/nodes/{node:str}", status_code=200, opt=_ADMIN, tags=["nodes"])
async def remove_node(request: _Asked, node: _NodeName) -> messages.NodeRecord:
    """Take a node out of the registry. Its key and tokens are refused within a second."""
    return await _service(request).mesh.remove_node(node, on_behalf=_identity(request).subject)


@post("/nodes/{node:str}/rotate-key", status_code=200, opt=_ADMIN, tags=["nodes"])
async def rotate_key(
    request: _Asked,
    node: _NodeName,
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
    return await _service(request).mesh.access.rotate_key(
        node, overlap_s=overlap_s, on_behalf=_identity(request).subject
    )


AT_ROOT = [livez, readyz, jwks]
UNDER_PREFIX = [
    health,
    register,
    search,
    run_action,
    list_actions,
    show_action,
    status,
    refresh_token,
    list_nodes,
    node_stats,
    register_node,
    show_node,
    change_node,
    remove_node,
    rotate_key,
]
