"""`mesh.ports.CompileSchema` on jsonschema-rs: nothing is fetched, no pattern takes for ever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import jsonschema_rs
from jsonschema_rs import Draft202012Validator, FancyRegexOptions, ValidationError

from mesh.core.plain_schema import check_plain
from mesh.errors import InvalidError
from mesh.ports import Check, Misfits

_MOST_MISFITS = 20
_PATTERNS = FancyRegexOptions(backtrack_limit=10_000, size_limit=1 << 20, dfa_size_limit=1 << 20)
_TYPES = {"integer": "int", "number": "float", "string": "str", "boolean": "bool"}


def compile_schema(schema: Mapping[str, Any]) -> Check:
    """A check of a JSON Schema (2020-12).

    Raises:
        InvalidError: It is no schema, or one that cannot be checked here.
    """
    check_plain(schema)
    try:
        validator = Draft202012Validator(
            dict(schema), validate_formats=False, pattern_options=_PATTERNS, offline=True
        )
    except (ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        raise InvalidError(f"no JSON Schema: {str(error).partition(chr(10))[0]}") from error

    def check(params: Mapping[str, Any]) -> Misfits:
        misfits: Misfits = {}
        for error in islice(validator.iter_errors(params), _MOST_MISFITS):
            for path, message in _told(error):
                misfits.setdefault(path, []).append(message)
        return misfits

    return check


def _told(error: ValidationError) -> Iterator[tuple[str, str]]:
    """Where, and what is wrong, as a node would say it."""
    kind, at = error.kind.as_dict(), list(error.instance_path)
    match error.kind.name:
        case "required":
            yield _path([*at, kind["property"]]), "is missing"
        case "additionalProperties" | "unevaluatedProperties":
            for name in kind["unexpected"]:
                yield _path([*at, name]), "is not known here"
        case _:
            yield _path(at), _message(error, kind)


_LIMITS = {
    "minimum": "must be at least {limit}",
    "maximum": "must be at most {limit}",
    "exclusiveMinimum": "must be more than {limit}",
    "exclusiveMaximum": "must be less than {limit}",
    "minLength": "must have at least {limit} characters",
    "minItems": "must have at least {limit} entries",
    "minProperties": "must have at least {limit} entries",
    "maxLength": "must have at most {limit} characters",
    "maxItems": "must have at most {limit} entries",
    "maxProperties": "must have at most {limit} entries",
}


def _message(error: ValidationError, kind: Mapping[str, Any]) -> str:
    name = error.kind.name
    if name == "minLength" and kind["limit"] == 1:
        return "must not be empty"
    if name in _LIMITS:
        return _LIMITS[name].format(limit=kind["limit"])
    if wanted := _wanted(error):
        return f"expected {' | '.join(wanted)}, got {_type_of(error.instance)}"
    if name == "enum":
        return f"cannot be {error.instance!r:.80}"
    if name == "pattern":
        return f"must match {kind['pattern']!r:.200}"
    return error.message[:200]


def _wanted(error: ValidationError) -> list[str]:
    """Types of which it should be one; empty: that is not what is wrong."""
    if error.kind.name == "type":
        return [_TYPES.get(name, name) for name in error.kind.as_dict()["types"]]
    if error.kind.name != "anyOf":
        return []
    wanted: list[str] = []
    for alternative in error.kind.as_dict()["context"]:
        if len(alternative) != 1 or alternative[0].kind.name != "type":
            return []
        wanted += [one for one in _wanted(alternative[0]) if one not in wanted]
    return wanted


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case Mapping():
            return "object"
        case list() | tuple():
            return "array"
        case _:
            return type(value).__name__


def _path(keys: Sequence[str | int]) -> str:
    parts = (f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return "".join(parts).removeprefix(".")[:150]
