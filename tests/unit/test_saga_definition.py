"""What a saga may look like, and what its references stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.saga_definition import check_definition, digest_of
from mesh.core.saga_references import fill, is_known, plain, references
from mesh.errors import InvalidError
from mesh.wire import codec
from mesh.wire.messages import SagaDefinition


def defined(*steps, **fields) -> SagaDefinition:
    named = [{"name": f"s{at}", "action": "do"} | step for at, step in enumerate(steps)]
    return codec.convert({"steps": named} | fields, SagaDefinition)


def wrong(*steps, **fields) -> dict[str, tuple[str, ...]]:
    with pytest.raises(InvalidError) as caught:
        check_definition(defined(*steps, **fields))
    return dict(caught.value.fields)


def test_what_makes_sense_passes():
    check_definition(
        defined(
            {"compensate": {"action": "undo", "params": {"order": "${s0.order}"}}},
            {"params": {"a": ["${s0}", {"b": "${s0.lines.0.id}"}], "c": "$${s9}", "d": "5 ${}"}},
            {"final": True, "params": {"text": "costs $5 {really}"}},
            {"final": True},
        )
    )


@pytest.mark.parametrize(
    ("steps", "field", "words"),
    [
        ([{"name": "a"}, {"name": "a"}], "steps[1].name", "two steps"),
        ([{"final": True}, {}], "steps[1].final", "no way back"),
        ([{"final": True, "compensate": {"action": "undo"}}], "steps[0].compensate", "never"),
        ([{"params": {"x": "${s0}"}}], "steps[0].params.x", "a later step"),
        ([{"params": {"x": "${s1.a}"}}, {}], "steps[0].params.x", "a later step"),
        ([{}, {"params": {"x": "${order.id}"}}], "steps[1].params.x", "no step"),
        ([{}, {"params": {"x": [1, "order ${s0.id}"]}}], "steps[1].params.x[1]", "and no more"),
        ([{}, {"params": {"x": "${s0."}}], "steps[1].params.x", "and no more"),
        (
            [{"compensate": {"action": "undo", "params": {"x": "${s1}"}}}, {}],
            "steps[0].compensate.params.x",
            "a later step",
        ),
    ],
)
def test_what_makes_none_is_named(steps, field, words):
    found = wrong(*steps)
    assert list(found) == [field]
    assert words in found[field][0]


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "\x1b[31m"])
def test_a_name_is_printable(name):
    assert wrong({}, name=name) == {"name": ("must be printable",)}


def test_everything_that_is_wrong_is_said_at_once():
    found = wrong({"params": {"a": "${x}", "b": "${y}"}}, {"name": "s0"})
    assert list(found) == ["steps[0].params.a", "steps[0].params.b", "steps[1].name"]


def test_it_may_not_be_too_large():
    assert "262144" in wrong({"params": {"x": "x" * 270_000}})["steps"][0]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"steps": []}, "steps"),
        ({"steps": [{"name": "a", "action": "b"}] * 65}, "steps"),
        ({"steps": [{"name": "a b", "action": "b"}]}, "steps[0].name"),
        ({"steps": [{"name": "a"}]}, "steps[0].action"),
        ({"steps": [{"name": "a", "action": "b", "compensation": {}}]}, "steps[0].compensation"),
        ({"steps": [{"name": "a", "action": "b", "timeout_s": 0}]}, "steps[0].timeout_s"),
        ({"id": "a.b", "steps": [{"name": "a", "action": "b"}]}, "id"),
        ({"id": "*", "steps": [{"name": "a", "action": "b"}]}, "id"),
    ],
)
def test_a_form_that_does_not_fit_is_named(body, field):
    with pytest.raises(InvalidError) as caught:
        codec.convert(body, SagaDefinition)
    assert list(caught.value.fields) == [field]


def test_equal_sagas_have_equal_digests_whatever_their_ids():
    one = defined({"params": {"a": 1, "b": 2}}, id="x")
    assert digest_of(one) == digest_of(defined({"params": {"b": 2, "a": 1}}, id="y"))
    assert digest_of(one) != digest_of(defined({"params": {"a": 1, "b": 3}}))


# -- references ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${s}", {"a": [1, {"b": None}], "x-y": "z"}),
        ("${s.a}", [1, {"b": None}]),
        ("${s.a.1.b}", None),
        ("${s.x-y}", "z"),
    ],
)
def test_a_reference_keeps_the_type_of_what_it_stands_for(text, value):
    result = {"a": [1, {"b": None}], "x-y": "z"}
    assert fill({"at": [text]}, "s", result) == {"at": [value]}
    assert not is_known({"at": [text]})
    assert fill(text, "another", result) == text


@pytest.mark.parametrize("text", ["${s.b}", "${s.a.2}", "${s.a.-1}", "${s.a.01}", "${s.a.0.c}"])
def test_a_part_that_is_not_there_is_an_error(text):
    with pytest.raises(InvalidError, match="has no"):
        fill(text, "s", {"a": [1, {"b": 2}]})


_TEXTS = st.text("${}s.a", max_size=8)
_VALUES = st.recursive(
    _TEXTS | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
)


@given(_VALUES)
def test_nothing_in_a_result_is_read_as_a_reference(result):
    filled = fill({"x": "${s}"}, "s", result)
    assert is_known(filled)
    assert not [found for found in references(filled) if found.reference]
    assert fill(filled, "s", "other") == filled
    assert plain(filled) == {"x": result}


def test_who_writes_a_dollar_more_means_the_text():
    assert plain({"a": "$${s.x}", "b": "$$${s}", "c": "$$5", "d": "${s}"}) == {
        "a": "${s.x}",
        "b": "$${s}",
        "c": "$$5",
        "d": "${s}",
    }
