import math

import pytest

from mesh.core.filters import (
    MAX_VALUES,
    Between,
    Equals,
    Missing,
    OneOf,
    conditions,
    parse,
    plan,
)
from mesh.errors import InvalidError
from mesh.wire.messages import Range

COLUMNS = {"author": "text", "year": "number", "draft": "boolean"}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ()),
        ({"id": "7"}, (Equals("id", "7"),)),
        ({"author": "O'Reilly; DROP TABLE"}, (Equals("author", "O'Reilly; DROP TABLE"),)),
        ({"year": 2024, "draft": False}, (Equals("year", 2024.0), Equals("draft", value=False))),
        ({"year": [1, 2.5]}, (OneOf("year", (1.0, 2.5), or_missing=False),)),
        ({"author": ["a", None]}, (OneOf("author", ("a",), or_missing=True),)),
        ({"author": None}, (Missing("author"),)),
        ({"year": {"gte": 2000, "lt": 2010}}, (Between("year", None, 2000.0, 2010.0, None),)),
        ({"author": Range(gt="a")}, (Between("author", "a", None, None, None),)),
    ],
)
def test_what_fits(filters, expected):
    assert conditions(filters, COLUMNS) == expected


@pytest.mark.parametrize(
    ("filters", "field", "message"),
    [
        ({"autor": "x"}, "filters.autor", "unknown column 'autor'; known: author, draft, id, year"),
        ({"year": "2024"}, "filters.year", 'expected a number, got "2024"'),
        ({"year": True}, "filters.year", "expected a number, got true"),
        ({"year": 10**400}, "filters.year", "the number is out of range"),
        ({"year": math.nan}, "filters.year", "the number is out of range"),
        ({"author": 7}, "filters.author", "expected text, got 7"),
        ({"author": "\ud800"}, "filters.author", "half a surrogate pair is no text"),
        ({"year": "\ud800"}, "filters.year", 'expected a number, got "\\ud800"'),
        ({"author": "x" * 5000}, "filters.author", "5000 characters; at most 4096"),
        ({"draft": 1}, "filters.draft", "expected true or false, got 1"),
        ({"draft": {"gt": 0}}, "filters.draft", "holds true or false, which have no range"),
        ({"id": 7}, "filters.id", "expected text, got 7"),
        ({"author": []}, "filters.author", "a list of 0 values; 1 to 1000 can be"),
        ({"year": [0] * (MAX_VALUES + 1)}, "filters.year", "a list of 1001 values; 1 to 1000"),
        ({"year": {}}, "filters.year", "a range needs at least one of gt, gte, lt and lte"),
        ({"year": {"gt": "a"}}, "filters.year", 'expected a number, got "a"'),
    ],
)
def test_what_does_not_fit(filters, field, message):
    with pytest.raises(InvalidError) as caught:
        conditions(filters, COLUMNS)
    assert list(caught.value.fields) == [field]
    assert caught.value.fields[field][0].startswith(message)
    assert field in str(caught.value)


@pytest.mark.parametrize("value", [{"like": "x"}, {"gt": [1]}, [[1]], [{"gt": 1}], object(), b"x"])
def test_what_is_no_filter(value):
    with pytest.raises(InvalidError) as caught:
        parse({"year": value})
    assert list(caught.value.fields) == ["filters.year"]


def test_every_misfit_is_told_at_once():
    with pytest.raises(InvalidError) as caught:
        conditions({"a": 1, "year": "x", "draft": True}, COLUMNS)
    assert sorted(caught.value.fields) == ["filters.a", "filters.year"]


def test_too_many_columns():
    with pytest.raises(InvalidError, match="33 columns; at most 32"):
        parse({f"c{number}": 1 for number in range(33)})


def test_several_collections_one_of_which_has_the_column():
    found = plan({"year": 2024}, [{"author": "text"}, COLUMNS, {"year": "text"}])
    assert found == [None, (Equals("year", 2024.0),), None]


def test_several_collections_each_filter_has_to_hold():
    found = plan({"year": 1, "author": "x"}, [{"year": "number"}, COLUMNS])
    assert found == [None, (Equals("year", 1.0), Equals("author", "x"))]


def test_several_collections_none_of_which_has_the_column():
    with pytest.raises(InvalidError) as caught:
        plan({"size": 1}, [{"author": "text"}, {"year": "number"}])
    assert caught.value.fields == {
        "filters.size": ("unknown column 'size'; known: author, id, year",)
    }


def test_several_collections_where_it_fits_none():
    with pytest.raises(InvalidError) as caught:
        plan({"year": "x"}, [{"author": "text"}, {"year": "number"}])
    assert any('expected a number, got "x"' in m for m in caught.value.fields["filters.year"])


def test_no_collections_no_complaint():
    assert plan({"anything": 1}, []) == []
