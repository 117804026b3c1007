"""What the edge has to know of a route before Litestar sees the request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from litestar import Litestar
from litestar.routes import HTTPRoute

from agents.gateway.errors import TITLES, MethodNotAllowedError
from mesh.errors import NotFoundError

NOBODY = ""
"""Access of a route that asks for no login."""
KNOWN_OR_NOT = "?"
"""Access of a route that tells those who log in more than others."""
ANYBODY = "*"
"""Access of a route for every identity there is."""
SEARCH = "search"
"""Access of a route for every identity that may search any collection."""
ACTIONS = "actions…"
"""Access of a route for every identity that may run any action."""


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path."""

    method: str
    template: str
    access: str
    """A scope, or one of the words above."""
    limited: bool
    """The rate limit counts."""
    body: bool
    """It takes one."""
    internal: str = TITLES[500]
    """Title of its 500."""
    action: bool = False
    """Its failures say `"success": false`."""
    search: bool = False
    """Nobody needs the outcome when the client is gone."""
    shortcut: bool = False
    """The edge may answer it itself, round Litestar."""


def about(access: str, *, limited: bool = True, **more: Any) -> dict[str, Any]:
    """The `opt` of a Litestar handler from which its `Route` is made."""
    return {"access": access, "limited": limited, **more}


class Routes:
    """All routes of an app, found by method and path."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._fixed: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Route]]] = []
        by_template: dict[str, dict[str, Route]] = {}
        for route in routes:
            by_template.setdefault(route.template, {})[route.method] = route
        for template, methods in by_template.items():
            if "{" not in template:
                self._fixed[template] = methods
            else:
                literal = re.split(r"\{[^}]*\}", template)
                pattern = "([^/]+)".join(map(re.escape, literal))
                self._patterns.append((re.compile(pattern), methods))

    def __iter__(self) -> Iterator[Route]:
        for methods in [*self._fixed.values(), *(methods for _, methods in self._patterns)]:
            yield from methods.values()

    def find(self, method: str, path: str) -> Route:
        """The route of a request; a slash at the end makes no difference, HEAD is a GET.

        Raises:
            NotFoundError: No such path.
            MethodNotAllowedError: Not this way.
        """
        methods = self._fixed.get(path) or self._methods(path.rstrip("/") or "/")
        try:
            return methods[method]
        except KeyError:
            if method == "HEAD" and "GET" in methods:
                return methods["GET"]
            allowed = ", ".join(sorted(methods))
            message = f"{method} is not for this path; it takes {allowed}"
            raise MethodNotAllowedError(message, allow=allowed) from None

    def methods(self, path: str) -> str:
        """What a path takes, in words.

        Raises:
            NotFoundError: No such path.
        """
        return ", ".join(sorted(self._methods(path.rstrip("/") or "/")))

    def _methods(self, path: str) -> dict[str, Route]:
        if found := self._fixed.get(path):
            return found
        for pattern, methods in self._patterns:
            if pattern.fullmatch(path):
                return methods
        raise NotFoundError("there is no such route; GET /docs shows those there are")


def routes_of(app: Litestar) -> Routes:
    """What the handlers of an app say about themselves."""
    found: list[Route] = []
    for route in app.routes:
        if not isinstance(route, HTTPRoute):
            continue
        template = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path_format)
        for handler in route.route_handlers:
            if "access" not in handler.opt:
                continue
            said = {name: handler.opt[name] for name in handler.opt if name in _OPTIONS}
            body = handler.parsed_data_field is not None
            found += [
                Route(method=str(method), template=template, body=body, **said)
                for method in sorted(set(handler.http_methods) - {"OPTIONS"})
            ]
    return Routes(found)


_OPTIONS = {"access", "limited", "internal", "action", "search", "shortcut"}
