import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core.documents import (
    MAX_METADATA_BYTES,
    batch,
    check,
    content_hash,
    from_json,
    last_wins,
    merged,
)
from mesh.errors import InvalidError
from mesh.wire.messages import MAX_BATCH, MAX_CONTENT_CHARS, Document


def read(raw):
    return from_json(raw, new_id="new")


def numbered():
    numbers = itertools.count()
    return lambda: f"new{next(numbers)}"


def refusal(function, *args, **kwargs):
    with pytest.raises(InvalidError) as caught:
        function(*args, **kwargs)
    return caught.value.fields


def test_all_keys_have_a_place():
    raw = {"id": "a", "content": "text", "metadata": {"x": 1, "y": 2}, "x": 9, "tags": ["t"]}
    assert read(raw) == Document(id="a", content="text", metadata={"x": 1, "y": 2, "tags": ["t"]})


@pytest.mark.parametrize(
    ("raw", "expected"), [({}, "new"), ({"id": None}, "new"), ({"id": 7}, "7"), ({"id": "x"}, "x")]
)
def test_ids(raw, expected):
    assert read({"content": "text", **raw}).id == expected


def test_content_is_made_of_the_usual_fields_title_first():
    raw = {"body": "Body.", "title": "Title", "name": "Name", "text": "Title", "description": " D "}
    made = read({**raw, "author": "me"})
    assert made.content == "Title\nName\nD\nBody."
    assert made.metadata == {"title": "Title", "name": "Name", "author": "me"}


def test_with_content_the_other_fields_are_metadata():
    made = read({"content": "text", "body": "b", "title": "t"})
    assert made == Document(id="new", content="text", metadata={"body": "b", "title": "t"})


def test_fields_that_are_no_text_do_not_become_content():
    assert read({"title": 7, "text": "x"}).metadata == {"title": 7}


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ("text", "document"),
        (None, "document"),
        ({}, "document.content"),
        ({"title": "  "}, "document.content"),
        ({"content": ""}, "document.content"),
        ({"content": " \n", "body": "there"}, "document.content"),
        ({"content": 7}, "document.content"),
        ({"content": "x" * (MAX_CONTENT_CHARS + 1)}, "document.content"),
        ({"content": "\ud800"}, "document.content"),
        ({"content": "x", "id": ""}, "document.id"),
        ({"content": "x", "id": True}, "document.id"),
        ({"content": "x", "id": 1.5}, "document.id"),
        ({"content": "x", "id": ["a"]}, "document.id"),
        ({"content": "x", "id": "i" * 513}, "document.id"),
        ({"content": "x", "id": 10**600}, "document.id"),
        ({"content": "x", "id": "\ud800"}, "document.id"),
        ({"content": "x", "metadata": [1]}, "document.metadata"),
        ({"content": "x", "metadata": "m"}, "document.metadata"),
        ({"content": "x", "a": float("nan")}, "document.metadata"),
        ({"content": "x", "a": {"b": float("inf")}}, "document.metadata"),
        ({"content": "x", "a": "\ud800"}, "document.metadata"),
        ({"content": "x", "a": {1: 2}}, "document.metadata"),
        ({"content": "x", "a": object()}, "document.metadata"),
        ({"content": "x", "a": 10**5000}, "document.metadata"),
        ({"content": "x", "a": "y" * MAX_METADATA_BYTES}, "document.metadata"),
    ],
)
def test_what_cannot_be_stored(raw, field):
    assert list(refusal(read, raw)) == [field]


def test_metadata_too_deep():
    deep = value = {}
    for _ in range(40):
        value["x"] = value = {}
    assert list(refusal(read, {"content": "x", "deep": deep})) == ["document.metadata"]


def test_batch_gives_missing_ids_and_the_last_of_equal_ids():
    raw = [{"id": 1, "content": "old"}, {"content": "x"}, {"id": "1", "content": "new"}]
    documents = batch(raw, new_id=numbered())
    assert [(d.id, d.content) for d in documents] == [("1", "new"), ("new1", "x")]


def test_batch_names_each_document_it_refuses():
    raw = [{"content": "x"}, 7, {"content": " "}, {"id": "ok", "content": "y"}]
    fields = refusal(batch, raw, new_id=numbered())
    assert list(fields) == ["documents[1]", "documents[2].content"]


def test_batch_does_not_list_thousands_of_errors():
    assert len(refusal(batch, [{}] * MAX_BATCH, new_id=numbered())) == 20


@pytest.mark.parametrize("raw", [None, {}, "x", [], [{"content": "x"}] * (MAX_BATCH + 1)])
def test_what_is_no_batch(raw):
    assert list(refusal(batch, raw, new_id=numbered())) == ["documents"]


def test_last_wins_keeps_the_first_place():
    found = last_wins(Document(id=i, content=c) for i, c in (("a", "1"), ("b", "2"), ("a", "3")))
    assert [(d.id, d.content) for d in found] == [("a", "3"), ("b", "2")]


OLD = Document(id="a", content="old", metadata={"keep": 1, "change": 1, "gone": 1, "null": None})


def test_merged():
    new = merged(OLD, {"content": "new", "change": 2, "gone": None, "metadata": {"add": [1]}})
    assert new == Document(
        id="a", content="new", metadata={"keep": 1, "change": 2, "null": None, "add": [1]}
    )
    assert merged(OLD, {}) == OLD
    assert merged(OLD, {"id": "a"}) == OLD


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"id": "b"}, "fields.id"),
        ({"content": " "}, "fields.content"),
        ({"content": None}, "fields.content"),
        ({"metadata": 7}, "fields.metadata"),
        ({"x": float("nan")}, "fields.metadata"),
        ("x", "fields"),
    ],
)
def test_what_cannot_be_merged(fields, field):
    assert list(refusal(merged, OLD, fields)) == [field]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
metadata = st.dictionaries(st.text(max_size=4), json_values, max_size=5)


@settings(deadline=None)
@given(st.text(min_size=1, max_size=20), metadata)
def test_hash_depends_on_what_is_said_not_on_the_order_of_keys(content, data):
    digest = content_hash(content, data)
    assert len(digest) == 32
    assert digest == content_hash(content, dict(reversed(data.items())))
    stored = msgspec.json.decode(msgspec.json.encode(data))
    assert digest == content_hash(content, stored)
    assert digest != content_hash(content + "x", data)
    assert digest != content_hash(content, {**data, "another": 1})


@settings(deadline=None)
@given(st.one_of(json_values, metadata))
def test_any_json_is_a_document_or_refused(raw):
    try:
        document = read(raw)
    except InvalidError as error:
        assert error.fields
    else:
        check(document)
