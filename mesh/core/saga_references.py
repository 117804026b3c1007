"""Texts in a saga's parameters that stand for parts of earlier results: `${reserve.order_id}`.

A reference is a whole text, so that what it stands for keeps its type. What a result puts in is
never read as a reference itself: texts in it that look like one get a `$` more, which `plain` takes
away again when the parameters are sent. People write such texts the same way: `$${…}` is `${…}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mesh.errors import InvalidError

_REFERENCE = re.compile(r"\$\{([A-Za-z0-9_-]{1,64})((?:\.[^.{}]+)*)\}")
_ESCAPED = re.compile(r"\$+\{")
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")


class Reference(NamedTuple):
    """A part of the result of `step`; no `path`: all of it."""

    step: str
    path: tuple[str, ...]


class Found(NamedTuple):
    """A text that is, or seems to be, a reference."""

    where: str
    """In the parameters: `.items[0].id`."""
    text: str
    reference: Reference | None
    """None: the text begins like one and is none, or holds one among other words."""


def references(value: Any, where: str = "") -> Iterator[Found]:
    """All of them in `value`, depth first."""
    match value:
        case str():
            if value.startswith("${"):
                yield Found(where, value, _read(value))
            elif not _ESCAPED.match(value) and _REFERENCE.search(value):
                yield Found(where, value, None)
        case dict():
            for name, inner in value.items():
                yield from references(inner, f"{where}.{name}")
        case list():
            for number, inner in enumerate(value):
                yield from references(inner, f"{where}[{number}]")


def is_known(value: Any) -> bool:
    """Whether nothing in `value` waits for a result."""
    return all(found.reference is None for found in references(value))


def fill(value: Any, step: str, result: Any) -> Any:
    """`value` with the parts of this step's result in their places.

    Raises:
        InvalidError: The result has no such part.
    """

    def part(text: str) -> Any:
        reference = _read(text)
        if reference is None or reference.step != step:
            return text
        return _changed(_part(reference, text, result), _escaped)

    return _changed(value, part)


def plain(value: Any) -> Any:
    """`value` as it is sent: `$${…}` becomes `${…}`."""
    return _changed(value, lambda text: text[1:] if text.startswith("$$") and _is(text) else text)


def _escaped(text: str) -> str:
    return f"${text}" if _is(text) else text


def _is(text: str) -> bool:
    return _ESCAPED.match(text) is not None


def _read(text: str) -> Reference | None:
    found = _REFERENCE.fullmatch(text)
    return Reference(found[1], tuple(found[2].split(".")[1:])) if found else None


def _part(reference: Reference, text: str, result: Any) -> Any:
    value = result
    for name in reference.path:
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and _INDEX.fullmatch(name) and int(name) < len(value):
            value = value[int(name)]
        else:
            raise InvalidError(f"{text}: the result of {reference.step!r} has no {name!r} there")
    return value


def _changed(value: Any, change: Callable[[str], Any]) -> Any:
    match value:
        case str():
            return change(value)
        case dict():
            return {name: _changed(inner, change) for name, inner in value.items()}
        case list():
            return [_changed(inner, change) for inner in value]
        case _:
            return value
