"""No name that is checked by a pattern may end in a newline: it would be another name to whoever
compares, and the same to whoever prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import msgspec.inspect
import pytest

from mesh import config
from mesh.errors import InvalidError
from mesh.wire import codec, messages
from mesh.wire.messages import TokenIssue

GOOD = ["", "crm", "search", "actions:x", "0" * 64, "http://a", "https://a:1/b?c", "2m", "/api/v1"]


def patterns_of(value: Any, seen: set[int]) -> Iterator[str]:
    """All of a type, as msgspec sees it."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, msgspec.inspect.StrType):
        if value.pattern is not None:
            yield value.pattern
    elif isinstance(value, tuple):
        for inner in value:
            yield from patterns_of(inner, seen)
    elif isinstance(value, msgspec.inspect.Type | msgspec.inspect.Field):
        for name in value.__struct_fields__:
            yield from patterns_of(getattr(value, name), seen)


STRUCTS = [
    kind
    for module in (messages, config)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
]
PATTERNS = sorted(set(patterns_of(msgspec.inspect.multi_type_info(STRUCTS), set())))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_last_newline_is_refused(pattern):
    good = [value for value in GOOD if re.search(pattern, value)]
    assert good, "one of GOOD must fit"
    assert [value for value in good if re.search(pattern, value + "\n")] == []


def test_all_patterns_are_seen():
    assert len(PATTERNS) == 12


@pytest.mark.parametrize("subject", ["crm\n", "master\n"])
def test_a_reserved_name_does_not_get_past_by_a_newline(subject):
    with pytest.raises(InvalidError):
        codec.convert({"subject": subject, "scopes": ["search"]}, TokenIssue)
