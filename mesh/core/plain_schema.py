"""Which JSON Schemas of strangers may be checked in a process that others wait for.

A schema is a program: with `allOf` and `$ref` a hundred bytes can ask for 2^40 steps. What is
taken here needs steps in proportion to the value, times at most what the schema writes out: no
keywords but those that types come with, and where a definition contains itself, only one way from
a value to each of its parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mesh.errors import InvalidError

_MOST_STEPS = 2000
"""Subschemas, each counted as often as it is reached."""
_MOST_DEPTH = 64
_MOST_DEFINITIONS = 200
_DEFINITION = "#/$defs/"
_OF_OBJECTS = ("properties", "additionalProperties", "propertyNames")
_OF_ARRAYS = ("items", "prefixItems")
_INSIDE = frozenset({"$ref", "anyOf", *_OF_OBJECTS, *_OF_ARRAYS})
_PLAIN = frozenset(
    {"$comment", "$defs", "$schema", "const", "contentEncoding", "default", "deprecated"}
    | {"description", "discriminator", "enum", "examples", "exclusiveMaximum", "exclusiveMinimum"}
    | {"format", "maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength"}
    | {"minProperties", "minimum", "multipleOf", "pattern", "readOnly", "required", "title"}
    | {"type", "writeOnly"}
)


def check_plain(schema: Mapping[str, Any]) -> None:
    """Raises InvalidError: it is no such schema."""
    _Walk(schema).enter(schema, frozenset(), 0)


class _Walk:
    def __init__(self, root: Mapping[str, Any]) -> None:
        definitions = root.get("$defs", {})
        if not isinstance(definitions, Mapping) or len(definitions) > _MOST_DEFINITIONS:
            raise InvalidError("the schema's definitions are too many, or none")
        self._definitions = definitions
        within = _within({name: _refs(one) for name, one in definitions.items()})
        self._cyclic = {name for name, seen in within.items() if name in seen}
        self._endless = {name for name, seen in within.items() if self._cyclic & (seen | {name})}
        self._entered: set[str] = set()
        """Of the cyclic ones."""
        self._left = _MOST_STEPS

    def enter(self, schema: Any, here: frozenset[str], depth: int) -> None:
        """`here`: the definitions that led to it without going into the value."""
        self._left -= 1
        if self._left < 0 or depth > _MOST_DEPTH:
            raise InvalidError("the schema is too large to be checked here")
        if isinstance(schema, bool):
            return
        if not isinstance(schema, Mapping):
            raise InvalidError("the schema holds something that is none")
        if strange := schema.keys() - _PLAIN - _INSIDE:
            raise InvalidError(f"the schema uses {min(strange)!r}, which is not checked here")
        self._check_ways(schema)
        for each in _listed(schema, "anyOf"):
            self.enter(each, here, depth + 1)
        for keyword in (*_OF_OBJECTS, *_OF_ARRAYS):
            for each in _listed(schema, keyword):
                self.enter(each, frozenset(), depth + 1)
        if (ref := schema.get("$ref")) is not None:
            self._follow(ref, here, depth)

    def _follow(self, ref: Any, here: frozenset[str], depth: int) -> None:
        name = _name_of(ref)
        if name not in self._definitions or name in here:
            raise InvalidError(f"the schema refers to {str(ref)[:80]!r}, which is not checked here")
        if name in self._cyclic:
            if name in self._entered:
                return
            self._entered.add(name)
        self.enter(self._definitions[name], here | {name}, depth + 1)

    def _check_ways(self, schema: Mapping[str, Any]) -> None:
        """One way at most leads on to what contains itself: two would double with each level."""
        ways: list[Any] = [{"$ref": schema["$ref"]}] if "$ref" in schema else []
        ways += _listed(schema, "anyOf")
        ways += [
            [each for keyword in keywords for each in _listed(schema, keyword)]
            for keywords in (_OF_OBJECTS, _OF_ARRAYS)
        ]
        if sum(not self._endless.isdisjoint(_refs(way)) for way in ways) > 1:
            raise InvalidError("the schema contains itself in more than one way")


def _listed(schema: Mapping[str, Any], keyword: str) -> list[Any]:
    """The subschemas of a keyword."""
    value = schema.get(keyword, [])
    if keyword == "properties" and isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list) else [value]


def _name_of(ref: Any) -> str:
    """Empty: it is no definition's."""
    is_one = isinstance(ref, str) and ref.startswith(_DEFINITION)
    return ref.removeprefix(_DEFINITION) if is_one else ""


def _refs(value: Any) -> set[str]:
    """Definitions that a schema, or anything in it, names."""
    return {_name_of(ref) for ref in _found(value, 0)}


def _found(value: Any, depth: int) -> Iterator[Any]:
    if depth > 2 * _MOST_DEPTH:
        raise InvalidError("the schema is too deep to be checked here")
    if isinstance(value, Mapping):
        if "$ref" in value:
            yield value["$ref"]
        for each in value.values():
            yield from _found(each, depth + 1)
    elif isinstance(value, list):
        for each in value:
            yield from _found(each, depth + 1)


def _within(refs: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Definitions that one leads to, by its name."""
    found = {}
    for name in refs:
        seen: set[str] = set()
        ahead = [name]
        while ahead:
            for each in refs.get(ahead.pop(), set()) - seen:
                seen.add(each)
                ahead.append(each)
        found[name] = seen
    return found
