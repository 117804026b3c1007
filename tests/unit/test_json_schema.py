"""Parameters checked by the masters: never more strictly than by the node, nor at any cost."""

from __future__ import annotations

import time
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.adapters.json_schema import compile_schema
from mesh.core.plain_schema import check_plain
from mesh.errors import InvalidError
from mesh.wire import codec
from mesh.wire.messages import Document, SearchRequest, Token


class Line(msgspec.Struct, forbid_unknown_fields=True):
    cents: int
    note: str | None = None


class Tree(msgspec.Struct):
    name: str
    left: Tree | None = None
    right: Tree | None = None
    others: list[Tree] = []


class Card(msgspec.Struct, tag="card"):
    number: str


class Transfer(msgspec.Struct, tag="transfer"):
    iban: str


class Refund(msgspec.Struct):
    order: Token
    lines: list[Line] = []
    kind: Literal["full", "part"] = "full"
    tree: Tree | None = None
    extra: dict[str, float] = {}
    pair: tuple[int, str] | None = None
    pay: Card | Transfer | None = None
    at: float | str = 0


def schema(kind: Any) -> dict[str, Any]:
    return msgspec.json.decode(msgspec.json.encode(msgspec.json.schema(kind)))


@pytest.mark.parametrize(
    ("params", "misfits"),
    [
        ({}, {"order": ["is missing"]}),
        ({"order": 5}, {"order": ["expected str, got int"]}),
        ({"order": "a", "lines": [{"cents": 1}, {}]}, {"lines[1].cents": ["is missing"]}),
        (
            {"order": "a", "lines": [{"cents": "1", "x": 1}]},
            {"lines[0].cents": ["expected int, got str"], "lines[0].x": ["is not known here"]},
        ),
        ({"order": "a", "kind": "none"}, {"kind": ["cannot be 'none'"]}),
        ({"order": "a", "extra": {"b": None}}, {"extra.b": ["expected float, got null"]}),
        ({"order": "a", "at": []}, {"at": ["expected float | str, got array"]}),
    ],
)
def test_what_does_not_fit_is_named_in_words(params, misfits):
    assert compile_schema(schema(Refund))(params) == misfits


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"order": "a b"}, "order"),
        ({"order": "a", "pair": [1]}, "pair"),
        ({"order": "a", "tree": {"name": "r", "left": {"name": 1}}}, "tree"),
        ({"order": "a", "pay": {"type": "card"}}, "pay"),
        ({"order": "a", "lines": {}}, "lines"),
    ],
)
def test_what_does_not_fit_in_some_other_way_is_named_too(params, field):
    assert list(compile_schema(schema(Refund))(params)) == [field]


def test_what_fits_fits():
    params = {
        "order": "o-1",
        "lines": [{"cents": 1, "note": None}],
        "tree": {"name": "r", "left": {"name": "l", "others": [{"name": "x"}]}},
        "extra": {"a": 1},
        "pair": [1, "a"],
        "pay": {"type": "card", "number": "4"},
        "unknown": "a Struct ignores it",
    }
    codec.convert(params, Refund)
    assert compile_schema(schema(Refund))(params) == {}


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.sampled_from(["", "a"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["order", "cents", "note", "name", "left", "type", "number", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
FIELDS = [
    "lines",
    "kind",
    "tree",
    "extra",
    "pair",
    "pay",
    "at",
    "limit",
    "options",
    "content",
    "id",
]
shaped = st.fixed_dictionaries(
    {"order": st.just("a") | values, "query": st.just("q") | values},
    optional=dict.fromkeys(FIELDS, values),
)
CHECKS = {kind: compile_schema(schema(kind)) for kind in (Refund, SearchRequest, Document)}


@pytest.mark.parametrize("kind", CHECKS)
@given(shaped)
def test_nothing_is_refused_that_the_node_would_take(kind, params):
    try:
        codec.convert(params, kind)
    except InvalidError:
        return
    assert CHECKS[kind](params) == {}


# -- schemas of strangers --------------------------------------------------------------------------


def doubling(steps: int, keyword: str) -> dict[str, Any]:
    """Each definition asks for the one before it twice."""
    definitions: dict[str, Any] = {"d0": {"type": "integer"}}
    for number in range(1, steps):
        again = {"$ref": f"#/$defs/d{number - 1}"}
        definitions[f"d{number}"] = {keyword: [again, again]}
    return {"$ref": f"#/$defs/d{steps - 1}", "$defs": definitions}


def nested(depth: int) -> dict[str, Any]:
    one: dict[str, Any] = {}
    for _ in range(depth):
        one = {"properties": {"a": one}}
    return one


A = {"$ref": "#/$defs/a"}
B = {"$ref": "#/$defs/b"}


BAD = [
    doubling(40, "allOf"),
    doubling(40, "anyOf"),
    nested(100),
    nested(300),
    {"properties": {f"p{n}": {} for n in range(3000)}},
    {"$ref": "http://127.0.0.1:9/schema.json"},
    {"$ref": "file:///etc/passwd"},
    {"$ref": "#/$defs/none"},
    {"$ref": "#"},
    {"$ref": 7},
    A | {"$defs": {"a": A}},
    A | {"$defs": {"a": {"anyOf": [A]}}},
    A | {"$defs": {"a": {"items": {"anyOf": [A, A]}}}},
    A | {"$defs": {"a": {"items": B}, "b": {"anyOf": [A, A]}}},
    A | {"$defs": {"a": {"items": {"anyOf": [A]} | A}}},
    {"$dynamicRef": "#x"},
    {"patternProperties": {"(a+)+$": {}}},
    {"if": {}, "then": {}},
    {"type": "nonsense"},
    {"type": 7},
    {"properties": 7},
    {"properties": {"a": 7}},
    {"anyOf": [None]},
    {"$defs": 7},
    {"minimum": "seven"},
    {"pattern": "("},
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_schema_that_cannot_be_trusted_is_no_check(bad):
    with pytest.raises(InvalidError):
        compile_schema(bad)


def test_a_pattern_that_would_take_for_ever_does_not():
    check = compile_schema({"properties": {"a": {"pattern": "^(?=(a+)+$)"}}})
    began = time.process_time()
    assert check({"a": "a" * 50 + "b"})
    assert time.process_time() - began < 1


def test_what_contains_itself_costs_what_the_value_is_long():
    check_plain(schema(Tree))
    check = compile_schema(schema(Tree))
    tree: dict[str, Any] = {"name": "leaf"}
    for _ in range(150):
        tree = {"name": "x", "left": tree, "right": {"name": "y"}}
    began = time.process_time()
    assert check(tree) == {}
    assert time.process_time() - began < 1


keywords = st.sampled_from(["$ref", "$defs", "a", "anyOf", "items", "properties", "type", "enum"])
garbage = st.recursive(
    st.none() | st.integers() | st.sampled_from(["#/$defs/a", "#", "object"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keywords, inner, max_size=3),
    max_leaves=20,
)


@given(st.dictionaries(keywords, garbage, max_size=3))
def test_whatever_a_node_says_the_check_ends(said):
    try:
        check = compile_schema(said)
    except InvalidError:
        return
    check({"a": [1, {"a": {}}]})
