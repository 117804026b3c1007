"""What JSON has for a value of a Parquet column; a column it has nothing for is refused by name.

| column | in the document |
|---|---|
| text, true/false, whole numbers | the same |
| float | a number; NaN and infinities: no value |
| decimal | a number where its precision is at most 15 digits, else text |
| date, time, timestamp | ISO 8601, to the microsecond; one with a time zone in UTC |
| duration | seconds |
| binary | base64 |
| list, struct, map with text keys | array, object |
| null | no value |
"""

from __future__ import annotations

import base64
import datetime as dt
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa
from pyarrow import types

Kind = Any
"""A pyarrow DataType; their stubs have a class of its own for each, with what only it has."""
_EXACT_DIGITS = 15
"""Decimal digits that a float64 holds whatever they are."""

Plain = Callable[[Any], Any]
"""From what pyarrow gives for a value (never None) to JSON; raises ValueError."""


class UnsupportedError(Exception):
    """A column of a kind that has no place in a document."""


def readable(kind: Kind, name: str) -> Kind:
    """What to cast a column to, so that Python has a type for its values; they stay what they are,
    but for times finer than a microsecond, which are cut.

    Raises:
        UnsupportedError: JSON has nothing for it; `name` says where it is.
    """
    if isinstance(kind, pa.BaseExtensionType) and not _is_uuid(kind):
        return readable(kind.storage_type, name)
    if types.is_dictionary(kind):
        return readable(kind.value_type, name)
    if types.is_nested(kind):
        return _readable_nested(kind, name)
    if types.is_temporal(kind):
        return _readable_time(kind, name)
    if not _is_plain(kind):
        raise _unsupported(kind, name)
    return kind


def _readable_time(kind: Kind, name: str) -> Kind:
    unit = getattr(kind, "unit", "")
    coarse = "us" if unit == "ns" else unit
    if types.is_timestamp(kind):
        return pa.timestamp(coarse, "UTC" if kind.tz else None)
    if types.is_duration(kind):
        return pa.duration(coarse)
    if types.is_date(kind) or types.is_time32(kind):
        return kind
    if types.is_time64(kind):
        return pa.time64(coarse)
    raise _unsupported(kind, name)


def _readable_nested(kind: Kind, name: str) -> Kind:
    if types.is_struct(kind):
        fields = [kind.field(at) for at in range(kind.num_fields)]
        names = [field.name for field in fields]
        if len(set(names)) < len(names):
            raise UnsupportedError(f"column {name!r} has several fields of one name")
        return pa.struct(
            [(field.name, readable(field.type, f"{name}.{field.name}")) for field in fields]
        )
    if types.is_map(kind):
        if not _is_text(key := readable(kind.key_type, f"{name}.key")):
            raise UnsupportedError(f"column {name!r} is a map whose keys are {kind.key_type}")
        return pa.map_(key, readable(kind.item_type, f"{name}.value"))
    if _is_list(kind):
        return pa.large_list(readable(kind.value_type, f"{name}[]"))
    raise _unsupported(kind, name)


def _unsupported(kind: Kind, name: str) -> UnsupportedError:
    return UnsupportedError(f"column {name!r} is {kind}, which a document cannot hold")


def plain(kind: Kind) -> Plain:
    """For the values of a column of a readable kind."""
    if types.is_nested(kind):
        return _plain_nested(kind)
    for belongs, make in _PLAIN:
        if belongs(kind):
            return make(kind)
    return lambda value: value


def _plain_nested(kind: Kind) -> Plain:
    if types.is_struct(kind):
        return _object({kind.field(at).name: kind.field(at).type for at in range(kind.num_fields)})
    if types.is_map(kind):
        item = _or_none(plain(kind.item_type))
        return lambda pairs: {key: item(value) for key, value in pairs}
    entry = _or_none(plain(kind.value_type))
    return lambda values: [entry(value) for value in values]


def plain_id(kind: Kind, name: str) -> Plain:
    """For the column of ids: text, whole numbers, UUIDs.

    Raises:
        UnsupportedError
    """
    if types.is_integer(kind) or _is_uuid(kind):
        return str
    return _text(kind, name, "text or whole numbers")


def plain_text(kind: Kind, name: str) -> Plain:
    """For a column of text; some writers say binary.

    Raises:
        UnsupportedError
    """
    return _text(kind, name, "text")


def _text(kind: Kind, name: str, wanted: str) -> Plain:
    if not (_is_text(kind) or _is_binary(kind) or types.is_null(kind)):
        raise UnsupportedError(f"column {name!r} is {kind}, and has to be {wanted}")
    return lambda value: value if isinstance(value, str) else value.decode()


def _decimal(kind: Kind) -> Plain:
    if kind.precision > _EXACT_DIGITS:
        return lambda value: format(value, "f")
    number: Callable[[Decimal], float] = float if kind.scale > 0 else int
    return number


def _object(kinds: dict[str, Kind]) -> Plain:
    fields = {name: _or_none(plain(kind)) for name, kind in kinds.items()}
    return lambda value: {name: field(value[name]) for name, field in fields.items()}


def _or_none(convert: Plain) -> Plain:
    return lambda value: None if value is None else convert(value)


def _is_plain(kind: Kind) -> bool:
    return (
        types.is_null(kind)
        or types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or _is_text(kind)
        or _is_binary(kind)
        or _is_uuid(kind)
    )


def _is_text(kind: Kind) -> bool:
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_binary(kind: Kind) -> bool:
    return (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def _is_list(kind: Kind) -> bool:
    return (
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )


def _is_uuid(kind: Kind) -> bool:
    return isinstance(kind, pa.UuidType)


_PLAIN: tuple[tuple[Callable[[Kind], bool], Callable[[Kind], Plain]], ...] = (
    (types.is_floating, lambda _kind: lambda value: value if math.isfinite(value) else None),
    (types.is_decimal, _decimal),
    (types.is_duration, lambda _kind: dt.timedelta.total_seconds),
    (types.is_temporal, lambda _kind: lambda value: value.isoformat()),
    (_is_binary, lambda _kind: lambda value: base64.b64encode(value).decode()),
    (_is_uuid, lambda _kind: str),
)
"""What is not the same in JSON as in Python, first match first."""
