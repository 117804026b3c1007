"""The OpenAPI 3.1 document of the app.

Litestar knows paths, parameters and which type goes where; msgspec, which checks the bodies, says
what these types are; the edge adds what it does: logins, limits and errors.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, get_args

import msgspec
from litestar import Litestar, Response
from litestar.routes import HTTPRoute
from litestar.typing import FieldDefinition

from agents.gateway.errors import TITLES, Error
from agents.gateway.examples import ANSWERS, REQUESTS
from agents.gateway.route import NOBODY, Route, routes_of
from mesh.types import VERSION

Json = dict[str, Any]

_REFS = "#/components/schemas/{name}"
_DESCRIPTION = """One search and reliable actions over many nodes.

Log in with `Authorization: Bearer …`: an access token (`meshctl tokens issue`, `POST /register`)
or an API key. Every answer carries `X-Request-Id`; one you send is taken over.
"""
_INTEGER: Json = {"type": "integer", "minimum": 0}
_HEADERS: Json = {
    "X-Request-Id": ("Id of the request, yours or made here.", {"type": "string"}),
    "X-RateLimit-Limit": ("Requests per period to this route.", _INTEGER),
    "X-RateLimit-Remaining": ("Of these, what is left now.", _INTEGER),
    "X-RateLimit-Reset": ("Seconds until all of them are back.", _INTEGER),
    "Retry-After": ("Seconds until another try makes sense.", {"type": "integer", "minimum": 1}),
}
_LIMITED = ["X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"]
_RETRIED = (429, 503)
_NAMES_A_NODE = frozenset({"status", "list_breakers", "reset_breakers"})
"""Operations that name one elsewhere than in their path."""
_STEERS = frozenset({"cancel_action", "retry_action", "resume_saga", "abort_saga"})
"""Operations without a body that how things stand may contradict."""


def document(app: Litestar, prefix: str) -> Json:
    """The document, as built-in types.

    Args:
        app: Its routes.
        prefix: Of most of them.
    """
    made = app.openapi_schema.to_schema()
    types = _Types(app)
    paths: dict[str, Json] = {}
    for route in sorted(routes_of(app), key=lambda route: (route.template, route.method)):
        operation = made["paths"].get(route.template, {}).get(route.method.lower())
        if operation is not None:
            paths.setdefault(route.template, {})[route.method.lower()] = _operation(
                route, operation, types
            )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Nodemesh",
            "version": VERSION,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "search", "description": "Find."},
            {"name": "actions", "description": "Do, and read what was done."},
            {"name": "sagas", "description": "Several actions, or none of them."},
            {"name": "joining", "description": "For nodes: come in, stay in, see yourself."},
            {"name": "nodes", "description": f"The registry, under {prefix}/nodes."},
            {"name": "routing", "description": "Who is asked, who is not, and why."},
            {"name": "health", "description": "Without a login or a limit."},
        ],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(types.schemas.items())),
            "headers": {
                name: {"description": text, "schema": schema, "required": name == "X-Request-Id"}
                for name, (text, schema) in _HEADERS.items()
            },
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An access token or an API key.",
                },
                "joinToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A join token: `meshctl nodes join-token create`.",
                },
            },
        },
    }


_GIVEN = {
    "node": {"type": "string"},
    "nodes": {"type": "array"},
    "all": {"const": True},
    "collection": {"type": "string"},
}
_TWO_TARGETS: Json = {
    "anyOf": [
        {"required": list(pair), "properties": {name: _GIVEN[name] for name in pair}}
        for pair in itertools.combinations(_GIVEN, 2)
    ]
}
"""What an action's body is not: msgspec has no word for it, `Service.act` refuses it."""


class _Types:
    """Schemas of what handlers take and give, by their name and method."""

    def __init__(self, app: Litestar) -> None:
        self._bodies: dict[tuple[str, str], Json] = {}
        self._answers: dict[tuple[str, str], dict[int, Json]] = {}
        self.names: dict[tuple[str, str], str] = {}
        self.logins: dict[tuple[str, str], str] = {}
        wanted: list[Any] = [Error]
        places: list[tuple[dict[Any, Json], Any]] = []
        for key, handler in _handlers(app):
            self.names[key] = handler.fn.__name__
            self.logins[key] = handler.opt.get("login", "")
            answers = self._answers[key] = {}
            for status, kinds in _answers(handler).items():
                for kind in kinds:
                    wanted.append(kind)
                    places.append((answers, status))
            if (data := handler.parsed_data_field) is not None:
                wanted.append(data.annotation)
                places.append((self._bodies, key))
        (self.error, *found), self.schemas = msgspec.json.schema_components(
            wanted, ref_template=_REFS
        )
        for (schemas, place), schema in zip(places, found, strict=True):
            earlier = schemas.get(place)
            schemas[place] = {"anyOf": [earlier, schema]} if earlier else schema
        self.schemas["Action"]["not"] = _TWO_TARGETS
        for schema in self.schemas.values():
            if "description" in schema:
                schema["description"] = " ".join(schema["description"].split())

    def body(self, route: Route) -> Json | None:
        """Of the request."""
        return self._bodies.get((route.template, route.method))

    def answers(self, route: Route) -> dict[int, Json]:
        """Of success, by status."""
        return self._answers[route.template, route.method]


def _handlers(app: Litestar) -> Iterator[tuple[tuple[str, str], Any]]:
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                if handler.resolve_include_in_schema() and "access" in handler.opt:
                    for method in set(handler.http_methods) - {"OPTIONS"}:
                        yield (_template(route), str(method)), handler


def _answers(handler: Any) -> dict[int, tuple[Any, ...]]:
    """The types of answers by status, each by itself: msgspec has no name for a union of untagged
    ones.
    """
    if "answers" in handler.opt:
        several: dict[int, tuple[Any, ...]] = handler.opt["answers"]
        return several
    answer: FieldDefinition = handler.parsed_return_field
    kinds = answer.args if answer.is_union else (answer.annotation,)
    if answer.is_subclass_of(Response):
        kinds = get_args(answer.annotation)
    return {handler.status_code: kinds}


def _template(route: HTTPRoute) -> str:
    return route.path_format.replace(":str", "")


def _operation(route: Route, given: Json, types: _Types) -> Json:
    key = (route.template, route.method)
    name = types.names[key]
    operation: Json = {
        "operationId": name,
        "tags": given["tags"],
        "summary": name.replace("_", " ").capitalize(),
        "description": " ".join(given.get("description", "").split()),
    }
    parameters = [_parameter(parameter) for parameter in given.get("parameters", [])]
    operation["parameters"] = [*parameters, _REQUEST_ID]
    body = types.body(route)
    if body is not None:
        content: Json = {"schema": body}
        if name in REQUESTS:
            content["examples"] = {
                title.replace(" ", "_"): {"summary": title, "value": value}
                for title, value in REQUESTS[name].items()
            }
        operation["requestBody"] = {"required": True, "content": {"application/json": content}}
    answers = types.answers(route)
    operation["responses"] = {}
    for status, answer in answers.items():
        content = {"schema": answer}
        example = ANSWERS.get(name if status == min(answers) else f"{name} {status}")
        if example is not None:
            content["example"] = example
        phrase = HTTPStatus(status).phrase
        operation["responses"][str(status)] = _response(route, status, phrase, content)
    not_ready = answers[HTTPStatus.OK] if name == "readyz" else None
    for code in _codes(route, body is not None, "{" in route.template, bool(parameters), name):
        schema = {"schema": not_ready if code == 503 and not_ready else types.error}  # noqa: PLR2004
        title = route.internal if code == HTTPStatus.INTERNAL_SERVER_ERROR else TITLES[code]
        operation["responses"][str(code)] = _response(route, code, title, schema)
    login = types.logins[key]
    if route.access == NOBODY:
        operation["security"] = [{"joinToken": []}] if login else []
    else:
        operation["security"] = [{"bearer": []}]
        operation["x-scope"] = route.access
    return operation


_REQUEST_ID: Json = {
    "name": "X-Request-Id",
    "in": "header",
    "required": False,
    "description": "Taken over where it is 1 to 64 of `A-Za-z0-9_.-`.",
    "schema": {"type": "string"},
}


def _parameter(given: Json) -> Json:
    kept: Json = {
        name: given[name] for name in ("name", "in", "required", "description") if name in given
    }
    schema = given["schema"]
    for alternative in schema.get("oneOf", []):
        if "$ref" in alternative:  # an enumeration that may be left out
            schema = alternative
    whole = {
        name: int(value) if isinstance(value, float) else value
        for name, value in schema.items()
        if name != "description"
    }
    return {**kept, "schema": whole}


def _codes(route: Route, body: bool, named: bool, parameters: bool, name: str) -> list[int]:
    codes = {431, 500, 503}
    if route.access != NOBODY or name == "register":
        codes |= {401, 403}
    if name == "refresh_token":
        codes.add(401)
    if route.limited:
        codes.add(429)
    if body:
        codes |= {400, 408, 413, 415, 422}
    if parameters:
        codes.add(422)
    if named or route.action or route.search or name in _NAMES_A_NODE:
        codes.add(404)
    if (body and not route.search and name != "reset_breakers") or name in _STEERS:
        codes.add(409)
    if route.access != NOBODY or body:
        codes |= {400, 502, 504}
    return sorted(codes)


def _response(route: Route, code: int, text: str, content: Json) -> Json:
    names = ["X-Request-Id"]
    if route.limited:
        names += _LIMITED
    if code in _RETRIED:
        names.append("Retry-After")
    return {
        "description": text,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
        "content": {"application/json": content},
    }
