"""What filters may say, and what they mean: wire values against typed columns become conditions.

A column is a scalar metadata key; `id` is one everywhere. Conditions are values, never text of a
query language, so nothing a caller sends can be anything but data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from mesh.errors import InvalidError
from mesh.wire.messages import Filter, Range

Kind = Literal["text", "number", "boolean"]
Value = str | float | bool

ID = "id"
MAX_COLUMNS = 32
MAX_VALUES = 1000
MAX_TEXT_CHARS = 4096
_MAX_LISTED = 20


class Equals(NamedTuple):
    """The column holds this value."""

    column: str
    value: Value


class OneOf(NamedTuple):
    """The column holds one of these values, or (`or_missing`) none at all."""

    column: str
    values: tuple[Value, ...]
    or_missing: bool


class Between(NamedTuple):
    """The column's value lies within bounds; None: no bound. Text compares by code point."""

    column: str
    gt: Value | None
    gte: Value | None
    lt: Value | None
    lte: Value | None


class Missing(NamedTuple):
    """The document has no value there, or null."""

    column: str


Condition = Equals | OneOf | Between | Missing


def parse(filters: Mapping[str, Any]) -> dict[str, Filter]:
    """Filters from plain JSON values (or already typed ones).

    Raises:
        InvalidError: Something that is no value, list of values or range, or too much of it.
    """
    if len(filters) > MAX_COLUMNS:
        raise _refused("filters", f"{len(filters)} columns; at most {MAX_COLUMNS}")
    parsed: dict[str, Filter] = {}
    for column, value in filters.items():
        try:
            parsed[column] = msgspec.convert(value, Filter)
        except msgspec.ValidationError:
            message = (
                "expected a value, a list of values, or an object with gt, gte, lt or lte "
                "(text, numbers, true or false)"
            )
            raise _refused(f"filters.{column}", message) from None
    return parsed


def conditions(filters: Mapping[str, Any], columns: Mapping[str, Kind]) -> tuple[Condition, ...]:
    """Check filters against one collection's columns; all conditions must hold.

    Args:
        filters: Column to value, list or range.
        columns: Metadata columns and their kinds; `id` is known without being among them.

    Raises:
        InvalidError: Unknown column, or a value that does not fit; `fields` says for each.
    """
    compiled: list[Condition] = []
    refused: dict[str, list[str]] = {}
    for column, value in parse(filters).items():
        try:
            compiled.append(_condition(column, value, _kind(column, columns)))
        except _MisfitError as misfit:
            refused[f"filters.{column}"] = [str(misfit)]
    if refused:
        raise InvalidError(_summary(refused), fields=refused)
    return tuple(compiled)


def plan(
    filters: Mapping[str, Any], collections: Sequence[Mapping[str, Kind]]
) -> list[tuple[Condition, ...] | None]:
    """Check filters against several collections searched together.

    A filter has to fit one of them; in the others nothing can match.

    Args:
        filters: Column to value, list or range.
        collections: Each collection's columns and their kinds.

    Returns:
        Conditions per collection, same order; None where nothing can match.

    Raises:
        InvalidError: A filter that fits none of the collections.
    """
    parsed = parse(filters)
    compiled: list[list[Condition] | None] = [[] for _ in collections]
    refused: dict[str, list[str]] = {}
    for column, value in parsed.items():
        misfits: list[str] = []
        for place, columns in enumerate(collections):
            so_far = compiled[place]
            try:
                condition = _condition(column, value, _kind(column, columns))
            except _MisfitError as misfit:
                misfits.append(str(misfit))
                compiled[place] = None
            else:
                if so_far is not None:
                    so_far.append(condition)
        if misfits and len(misfits) == len(collections):
            known = any(column in columns for columns in collections)
            refused[f"filters.{column}"] = (
                list(dict.fromkeys(misfits)) if known else [_unknown(column, collections)]
            )
    if refused:
        raise InvalidError(_summary(refused), fields=refused)
    return [None if found is None else tuple(found) for found in compiled]


class _MisfitError(Exception):
    """Why one filter cannot be."""


def _kind(column: str, columns: Mapping[str, Kind]) -> Kind:
    if column == ID:
        return "text"
    try:
        return columns[column]
    except KeyError:
        raise _MisfitError(_unknown(column, [columns])) from None


def _condition(column: str, value: Filter, kind: Kind) -> Condition:
    """The condition for one column.

    Raises:
        _MisfitError
    """
    match value:
        case None:
            return Missing(column)
        case Range():
            return _between(column, value, kind)
        case list():
            if not 1 <= len(value) <= MAX_VALUES:
                raise _MisfitError(f"a list of {len(value)} values; 1 to {MAX_VALUES} can be")
            values = tuple(_fit(item, kind) for item in value if item is not None)
            return OneOf(column, values, or_missing=len(values) < len(value))
        case _:
            return Equals(column, _fit(value, kind))


def _between(column: str, value: Range, kind: Kind) -> Between:
    if kind == "boolean":
        raise _MisfitError("holds true or false, which have no range")
    bounds = [
        None if bound is None else _fit(bound, kind)
        for bound in (value.gt, value.gte, value.lt, value.lte)
    ]
    if all(bound is None for bound in bounds):
        raise _MisfitError("a range needs at least one of gt, gte, lt and lte")
    return Between(column, *bounds)


def _fit(value: str | float | bool, kind: Kind) -> Value:
    """The value as the column stores it.

    Raises:
        _MisfitError
    """
    match kind, value:
        case "boolean", bool():
            return value
        case "number", bool():
            pass
        case "number", int() | float():
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if not math.isfinite(number):
                raise _MisfitError("the number is out of range")
            return number
        case "text", str():
            if len(value) > MAX_TEXT_CHARS:
                raise _MisfitError(f"{len(value)} characters; at most {MAX_TEXT_CHARS}")
            if any("\ud800" <= char <= "\udfff" for char in value):
                raise _MisfitError("half a surrogate pair is no text")
            return value
    expected = {"text": "text", "number": "a number", "boolean": "true or false"}[kind]
    raise _MisfitError(f"expected {expected}, got {_shown(value)}")


def _shown(value: object) -> str:
    return json.dumps(value)[:80]


def _unknown(column: str, collections: Sequence[Mapping[str, Kind]]) -> str:
    known = sorted({ID}.union(*collections))
    listed = ", ".join(known[:_MAX_LISTED]) + (", …" if len(known) > _MAX_LISTED else "")
    return f"unknown column {column[:80]!r}; known: {listed}"


def _summary(refused: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{field}: {messages[0]}" for field, messages in refused.items())


def _refused(field: str, message: str) -> InvalidError:
    return InvalidError(f"{field}: {message}", fields={field: [message]})
