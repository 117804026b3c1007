"""The OpenAPI document and a page that shows it; nothing comes from outside."""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import Any

import msgspec
from litestar import Litestar, Request, Response, get
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from agents.gateway.asked import exchange_of, service_of
from agents.gateway.openapi import Json, document
from agents.gateway.route import KNOWN_OR_NOT, NOBODY, about
from mesh.errors import NotFoundError

_OPEN = about(NOBODY, limited=False)
_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui-standalone-preset.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
}
# Swagger UI sets style attributes and shows its icons from data: URLs.
_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Nodemesh HTTP API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{prefix}/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui" data-openapi="{prefix}/openapi.json"></div>
<script src="{prefix}/docs/swagger-ui-bundle.js"></script>
<script src="{prefix}/docs/swagger-ui-standalone-preset.js"></script>
<script src="{prefix}/docs/page.js"></script>
</body>
</html>
"""
_SCRIPT = """"use strict";
const place = document.getElementById("swagger-ui");
window.ui = SwaggerUIBundle({
  url: place.dataset.openapi,
  domNode: place,
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
  persistAuthorization: false,
});
"""


def docs_handlers(prefix: str) -> tuple[list[HTTPRouteHandler], list[HTTPRouteHandler]]:
    """Handlers at the root, and those under the prefix."""
    made: dict[int, tuple[Json, bytes]] = {}

    def rendered(app: Litestar, actions: Json) -> bytes:
        if id(app) not in made:
            described = document(app, prefix)
            made[id(app)] = described, msgspec.json.encode(described)
        described, encoded = made[id(app)]
        return msgspec.json.encode(_with(described, actions)) if actions else encoded

    @get("/openapi.json", opt=about(KNOWN_OR_NOT, limited=False), include_in_schema=False)
    async def openapi(request: Request[Any, Any, State]) -> Response[bytes]:
        identity = exchange_of(request).identity
        actions = {} if identity is None else await service_of(request).offered.to(identity)
        return Response(
            rendered(request.app, actions),
            media_type="application/json",
            headers={"Cache-Control": "no-cache", "Vary": "Authorization"},
        )

    @get("/docs", opt=_OPEN, include_in_schema=False, sync_to_thread=False)
    def page() -> Response[str]:
        return Response(
            _PAGE.replace("{prefix}", prefix),
            media_type="text/html",
            headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"},
        )

    @get("/docs/{asset:str}", opt=_OPEN, include_in_schema=False, sync_to_thread=False)
    def asset(asset: FromPath[str]) -> Response[bytes]:
        if asset not in _ASSETS:
            raise NotFoundError("the docs have no such file")
        return Response(
            _SCRIPT.encode() if asset == "page.js" else _installed(asset),
            media_type=_ASSETS[asset],
            headers={"Cache-Control": "max-age=3600"},
        )

    under_prefix = [openapi, page, asset]
    if not prefix:
        return [], under_prefix
    return [_moved("/docs", prefix), _moved("/openapi.json", prefix)], under_prefix


def _with(described: Json, actions: Json) -> Json:
    """The document, with the schemas of actions."""
    components = described["components"]
    schemas = dict(sorted((components["schemas"] | actions).items()))
    return {**described, "components": {**components, "schemas": schemas}}


@functools.cache
def _installed(asset: str) -> bytes:
    return files("litestar_offline_docs").joinpath("static", asset).read_bytes()


def _moved(path: str, prefix: str) -> HTTPRouteHandler:
    @get(path, opt=_OPEN, include_in_schema=False, sync_to_thread=False)
    def moved() -> Response[bytes]:
        return Response(
            b"", status_code=307, media_type="text/plain", headers={"Location": prefix + path}
        )

    return moved
