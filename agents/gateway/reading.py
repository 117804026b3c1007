"""From bytes to a body; where it is refused, everything that is wrong with it is said at once."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from mesh import bootstrap
from mesh.errors import BadRequestError, InvalidError

T = TypeVar("T")

_MOST_UNKNOWN = 100
"""Unknown fields that are named."""


def read(payload: bytes, kind: type[T]) -> T:
    """The body of a request.

    Raises:
        BadRequestError: Not JSON.
        InvalidError: JSON, but not a `kind`; `fields` names each field that is wrong.
    """
    try:
        return bootstrap.decode(payload, kind)
    except InvalidError as error:
        try:
            return _read_again(payload, kind, error)
        except RecursionError:
            raise BadRequestError("the body is nested too deeply") from None


def _read_again(payload: bytes, kind: type[T], error: InvalidError) -> T:
    try:
        given = bootstrap.decode(payload, object)
    except InvalidError:
        name = next(_beyond(json.loads(payload), ""), "body")
        message = "the number is out of range"
        raise InvalidError(f"{name}: {message}", fields={name: [message]}) from error
    with contextlib.suppress(InvalidError):
        return bootstrap.decode(msgspec.json.encode(_whole(given)), kind)
    found = dict(_wrong(given, kind, "")) if isinstance(given, dict) else {}
    if not found:
        raise error
    message = "; ".join(f"{name}: {text}" for name, text in found.items())
    raise InvalidError(message, fields={k: [v] for k, v in found.items()}) from error


def _beyond(value: Any, path: str) -> Iterator[str]:
    """Where a number is that no float can hold."""
    match value:
        case float() if not math.isfinite(value):
            yield path or "body"
        case dict():
            for name, inner in value.items():
                yield from _beyond(inner, f"{path}.{name}"[:200].lstrip("."))
        case list():
            for number, inner in enumerate(value):
                yield from _beyond(inner, f"{path}[{number}]"[:200])


def _whole(value: Any) -> Any:
    """In JSON 1.0 is the integer 1; for the decoder it is none."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {name: _whole(inner) for name, inner in value.items()}
        case list():
            return [_whole(inner) for inner in value]
        case _:
            return value


def _wrong(given: dict[str, Any], kind: Any, path: str) -> Iterator[tuple[str, str]]:
    """Field and message of each mistake; one for each field, in a nested body for each of its."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    unknown = (name for name in given if name not in fields)
    for name in itertools.islice(unknown, _MOST_UNKNOWN):
        yield path + name[:200], "is not known here"
    for name, field in fields.items():
        if name not in given:
            if field.required:
                yield path + name, "is missing"
            continue
        try:
            bootstrap.decode(msgspec.json.encode(given[name]), field.type)
        except InvalidError as error:
            if _is_struct(field.type) and isinstance(given[name], dict):
                yield from _wrong(given[name], field.type, f"{path}{name}.")
                continue
            for where, (message, *_) in error.fields.items():
                inside = "" if where == "body" else f".{where}"
                yield (path + name + inside).replace(".[", "["), message


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
