"""Routes that callers can read: one that they could not would cost them all the others."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from mesh.core.route_table import MAX_PAGE_BYTES
from mesh.errors import MeshError
from mesh.wire import codec
from mesh.wire.messages import RouteNode

log = structlog.get_logger()


class ReadableRoutes:
    """Leaves out routes that are too large for a page, or that no caller could decode."""

    def __init__(self) -> None:
        self._flaws: dict[str, tuple[RouteNode, str]] = {}
        """By slug: the route as it was last, and what is wrong with it."""

    def of(self, routes: Iterable[RouteNode]) -> list[RouteNode]:
        """Those of `routes` that are good; of the others there is a warning when they turn bad."""
        good, flaws = [], {}
        for route in routes:
            last, flaw = self._flaws.get(route.slug, (None, ""))
            if last is not route:
                before, flaw = flaw, _flaw(route)
                if flaw and flaw != before:
                    log.warning("mesh.routes.node_left_out", node=route.slug[:64], reason=flaw)
            flaws[route.slug] = route, flaw
            if not flaw:
                good.append(route)
        self._flaws = flaws
        return good


def _flaw(route: RouteNode) -> str:
    try:
        payload = codec.encode(route)
        if len(payload) > MAX_PAGE_BYTES:
            return f"it takes more than the {MAX_PAGE_BYTES} bytes of a page"
        codec.decode(payload, RouteNode)
    except (MeshError, ValueError, OverflowError) as error:
        return str(error)[:300]
    return ""
