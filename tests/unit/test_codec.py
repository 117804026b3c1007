from __future__ import annotations

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from mesh import errors
from mesh.errors import BadRequestError, InvalidError, MeshError, OverloadedError
from mesh.wire import codec
from mesh.wire.messages import (
    ActionRequest,
    ErrorReply,
    FetchRequest,
    Heartbeat,
    PingResult,
    Range,
    SearchRequest,
    UserCreate,
)


def test_search_from_a_bare_client():
    request = codec.decode(b'{"query":"late invoice","newer_field":1}', SearchRequest)
    assert (request.query, request.limit, request.options.mode) == ("late invoice", 10, "hybrid")


def test_filters_are_values_lists_or_ranges():
    body = b'{"query":"x","options":{"filters":{"a":{"gte":3},"b":[1,"c"],"d":true,"e":null}}}'
    assert codec.decode(body, SearchRequest).options.filters == {
        "a": Range(gte=3),
        "b": [1, "c"],
        "d": True,
        "e": None,
    }


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"nope", b'{"query":"x"} {}'])
def test_what_is_not_json_is_a_bad_request(body):
    with pytest.raises(BadRequestError):
        codec.decode(body, SearchRequest)


def test_nesting_without_end_is_a_bad_request():
    with pytest.raises(BadRequestError):
        codec.decode(b'{"action":"a","params":{"a":' + b"[" * 100_000, ActionRequest)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "query"),
        (b"[]", "body"),
        (b'{"query":""}', "query"),
        (b'{"query":7}', "query"),
        (b'{"query":"x","limit":0}', "limit"),
        (b'{"query":"x","limit":101}', "limit"),
        (b'{"query":"x","limit":"5"}', "limit"),
        (b'{"query":"x","options":{"mode":"magic"}}', "options.mode"),
        (b'{"query":"x","options":{"threshold":1.5}}', "options.threshold"),
        (b'{"query":"x","options":{"collections":["a b"]}}', "options.collections[0]"),
        (b'{"query":"x","options":{"nodes":["*"]}}', "options.nodes[0]"),
        (b'{"query":"x","options":{"filters":{"a":{"gtx":1}}}}', "options.filters[...].gtx"),
    ],
)
def test_wrong_field_is_named(body, field):
    with pytest.raises(InvalidError) as caught:
        codec.decode(body, SearchRequest)
    assert list(caught.value.fields) == [field]
    assert field in str(caught.value)


@given(st.binary(max_size=200))
def test_junk_is_always_one_of_our_errors(junk):
    for kind in (SearchRequest, Heartbeat):
        try:
            codec.decode(junk, kind)
        except MeshError as error:
            assert error.code in (400, 422)


def test_ok_reply_carries_its_result():
    result = PingResult(node="crm", incarnation=7)
    assert codec.result_of(codec.ok(result), PingResult) == result


def test_error_survives_the_bus():
    refusal = OverloadedError("full", retry_after_ms=50)
    with pytest.raises(OverloadedError, match="full") as caught:
        codec.result_of(codec.encode(codec.error_reply(refusal)), PingResult)
    assert (caught.value.retryable, caught.value.retry_after_ms) == (True, 50)


def test_error_of_a_newer_peer_falls_back_on_its_code():
    reply = codec.encode(ErrorReply(code=409, kind="something_new", message="m"))
    with pytest.raises(errors.ConflictError, match="m"):
        codec.result_of(reply, PingResult)


def test_every_error_kind_is_told_apart():
    kinds = [
        value.kind
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, MeshError) and value is not MeshError
    ]
    assert len(kinds) == len(set(kinds))


def test_wire_structs_take_unknown_fields_and_default_new_ones():
    """A mesh is updated one process at a time."""
    for name, kind in vars(codec).items():
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and name.endswith("Reply"):
            assert not kind.__struct_config__.forbid_unknown_fields


def test_a_scope_that_cannot_be_is_told_which_there_are():
    with pytest.raises(InvalidError, match="must be search, search:COLLECTION, actions, actions"):
        codec.decode(b'{"name": "app", "scopes": ["everything"]}', UserCreate)
    with pytest.raises(InvalidError, match="must be a name"):
        codec.decode(b'{"name": "a b", "scopes": ["search"]}', UserCreate)


def test_a_text_has_characters_and_a_list_entries():
    with pytest.raises(InvalidError, match=r"query: must have at most 4096 characters"):
        codec.decode(b'{"query": "%b"}' % (b"q" * 4097), SearchRequest)
    with pytest.raises(InvalidError, match=r"ids: must have at most \d+ entries"):
        codec.decode(b'{"collection": "c", "ids": [%b"x"]}' % (b'"x",' * 100_000), FetchRequest)


def test_who_hears_of_a_failed_attempt_knows_which_it_was():
    outcome = ErrorReply(code=500, kind="state", message="the disk is full", attempt=3)
    assert codec.as_error(outcome).attempt == 3
    with pytest.raises(MeshError) as failed:
        codec.result_of(codec.encode(outcome), int)
    assert failed.value.attempt == 3
    assert codec.error_reply(failed.value).attempt == 0, "it is not the outcome of who passes it on"
