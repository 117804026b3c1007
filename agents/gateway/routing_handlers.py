"""Litestar's handlers of breakers, traces and caches, for administrators."""

from __future__ import annotations

from typing import Annotated

from litestar import delete, get, post
from litestar.params import JSONBody, PathParameter, QueryParameter

from agents.gateway import bodies
from agents.gateway.asked import Asked, identity_of, service_of
from agents.gateway.route import about
from mesh import messages

_ADMIN = about("admin")


@get("/breakers", opt=_ADMIN, tags=["routing"])
async def list_breakers(
    request: Asked,
    node: Annotated[
        str, QueryParameter(description="Slug or id; left out: all nodes.", max_length=64)
    ] = "",
) -> messages.BreakerList:
    """The breakers that calls went through lately, by node and verb, as all callers together see
    them.
    """
    return await service_of(request).mesh.breakers(node or None)


@post("/breakers/reset", status_code=200, opt=_ADMIN, tags=["routing"])
async def reset_breakers(
    request: Asked, data: JSONBody[bodies.BreakerReset]
) -> messages.BreakerList:
    """Close a node's breakers at every caller. They open again if calls go on to fail."""
    return await service_of(request).mesh.reset_breakers(
        data.node, data.verb, on_behalf=identity_of(request).subject
    )


@get("/explain/{request_id:str}", opt=_ADMIN, tags=["routing"])
async def explain(
    request: Asked,
    request_id: Annotated[
        str,
        PathParameter(description="`id` of a search or action.", min_length=1, max_length=200),
    ],
) -> messages.Explanation:
    """Why each node was chosen, skipped, retried or hedged for a request. Callers tell within a
    second; masters keep the last 10,000 calls since they started.
    """
    return await service_of(request).mesh.explain(request_id)


@get("/cache", opt=_ADMIN, tags=["routing"])
async def cache_stats(request: Asked) -> messages.CacheReports:
    """What each gateway of the mesh keeps of answers, and how often that was of use since it
    started. Takes 0.3 s: so long gateways may take to answer.
    """
    return await service_of(request).mesh.caches()


@delete("/cache", status_code=200, opt=_ADMIN, tags=["routing"])
async def clear_cache(request: Asked) -> messages.CacheReports:
    """Have every gateway of the mesh forget the answers it keeps. None of them is ever older than
    the last heartbeat, so nobody needs this for fresh answers.
    """
    return await service_of(request).mesh.caches(clear=True)


ROUTING = [list_breakers, reset_breakers, explain, cache_stats, clear_cache]
