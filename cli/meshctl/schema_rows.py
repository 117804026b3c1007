"""A JSON Schema as rows for people: one for each field, those of inner objects below their own.

Source: JSON Schema 2020-12, as msgspec writes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

Json = Mapping[str, Any]

_DEEPEST = 8
"""A type may hold itself."""
_BOUNDS = (
    ("minimum", "≥ {}"),
    ("exclusiveMinimum", "> {}"),
    ("maximum", "≤ {}"),
    ("exclusiveMaximum", "< {}"),
    ("multipleOf", "multiple of {}"),
    ("minLength", "≥ {} characters"),
    ("maxLength", "≤ {} characters"),
    ("pattern", "/{}/"),
    ("format", "{}"),
    ("minItems", "≥ {} items"),
    ("maxItems", "≤ {} items"),
    ("minProperties", "≥ {} fields"),
    ("maxProperties", "≤ {} fields"),
)


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of an object, or what is known of a value that is none."""

    name: str
    type: str
    required: bool
    default: str = ""
    bounds: str = ""
    what: str = ""


def rows_of(schema: Json) -> list[Field]:
    """The fields of a schema; none where it says nothing."""
    definitions = schema.get("$defs")
    definitions = definitions if isinstance(definitions, Mapping) else {}
    whole = _resolved(schema, definitions)
    if "properties" in whole:
        return list(_fields(whole, definitions, "", ()))
    if not set(whole) - {"$defs", "title", "description", "$schema"} or whole == {"type": "object"}:
        return []
    return [_field("", whole, definitions, required=True)]


def _fields(
    schema: Json, definitions: Json, path: str, through: tuple[str, ...]
) -> Iterator[Field]:
    properties, required = schema.get("properties"), schema.get("required") or []
    if not isinstance(properties, Mapping) or len(through) >= _DEEPEST:
        return
    for name, inner in properties.items():
        if not isinstance(inner, Mapping):
            continue
        yield _field(f"{path}{name}", inner, definitions, required=name in required)
        for key, mark, below in _inside(inner, definitions):
            if not key or key not in through:
                yield from _fields(below, definitions, f"{path}{name}{mark}.", (*through, key))


def _inside(schema: Json, definitions: Json) -> Iterator[tuple[str, str, Json]]:
    """Objects in a value: the name of their type, how the path goes there, and what they are."""
    whole = _resolved(schema, definitions)
    for each in _choices(whole):
        inner = _resolved(each, definitions)
        if _is_json(items := inner.get("items")):
            yield str(items.get("$ref", "")), "[]", _resolved(items, definitions)
        elif "properties" in inner:
            yield str(each.get("$ref") or schema.get("$ref") or ""), "", inner


def _field(name: str, given: Json, definitions: Json, *, required: bool) -> Field:
    import msgspec

    whole = _resolved(given, definitions)
    default = given.get("default", whole.get("default"))
    has_default = "default" in given or "default" in whole
    return Field(
        name=name,
        type=_type(given, definitions),
        required=required,
        default=msgspec.json.encode(default).decode() if has_default else "",
        bounds=", ".join(_bounds(whole, definitions)),
        what=str(given.get("description") or whole.get("description") or ""),
    )


def _type(given: Json, definitions: Json, depth: int = 0) -> str:  # noqa: PLR0911 (one a kind)
    import msgspec

    if depth > _DEEPEST:
        return "…"
    whole = _resolved(given, definitions)
    if choices := whole.get("anyOf") or whole.get("oneOf"):
        named = [_type(each, definitions, depth + 1) for each in choices if _is_json(each)]
        return " or ".join(dict.fromkeys(named))
    if isinstance(options := whole.get("enum"), list):
        return ", ".join(msgspec.json.encode(option).decode() for option in options)
    if "const" in whole:
        return msgspec.json.encode(whole["const"]).decode()
    kind = whole.get("type", "any JSON")
    if isinstance(kind, list):
        return " or ".join(map(str, kind))
    if kind == "array" and _is_json(items := whole.get("items")):
        return f"list of {_type(items, definitions, depth + 1)}"
    if kind == "object" and _is_json(values := whole.get("additionalProperties")):
        return f"object of {_type(values, definitions, depth + 1)}"
    return {"string": "text"}.get(str(kind), str(kind))


def _is_json(value: Any) -> TypeGuard[Json]:
    return isinstance(value, Mapping)


def _bounds(whole: Json, definitions: Json) -> Iterator[str]:
    for each in _choices(whole):
        resolved = _resolved(each, definitions)
        for name, words in _BOUNDS:
            if name in resolved:
                yield words.format(resolved[name])
        if _is_json(items := resolved.get("items")):
            inner = ", ".join(_bounds(_resolved(items, definitions), {}))
            if inner:
                yield f"each {inner}"


def _choices(whole: Json) -> list[Json]:
    several = whole.get("anyOf") or whole.get("oneOf")
    if not isinstance(several, list):
        return [whole]
    return [each for each in several if _is_json(each)]


def _resolved(schema: Json, definitions: Json) -> Json:
    """What a reference leads to; a circle of nothing but references is nothing."""
    seen: set[str] = set()
    while isinstance(target := schema.get("$ref"), str):
        known = definitions.get(target.removeprefix("#/$defs/"))
        if target in seen or not isinstance(known, Mapping):
            return {}
        seen.add(target)
        schema = known
    return schema
