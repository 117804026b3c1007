from __future__ import annotations

import io
import sys

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from cli.meshctl.arguments import FLAGS, VALUED, filters, hoist, json_object, parameters, since
from mesh import messages

NOW = 1_767_323_045_000  # 2026-01-02T03:04:05Z


@pytest.mark.parametrize(
    ("typed", "common", "rest"),
    [
        (["nodes", "list", "--json"], ["--json"], ["nodes", "list"]),
        (["--json", "nodes", "list"], ["--json"], ["nodes", "list"]),
        (["nodes", "--url", "nats://a", "list"], ["--url", "nats://a"], ["nodes", "list"]),
        (["search", "q", "--state-dir=x"], ["--state-dir=x"], ["search", "q"]),
        (["search", "--", "--json"], [], ["search", "--", "--json"]),
        (["nodes", "list", "--creds"], ["--creds"], []),
        ([], [], []),
    ],
)
def test_common_options_are_taken_from_anywhere(typed, common, rest):
    assert hoist(typed) == (common, rest)


def test_the_url_after_nodes_update_is_the_nodes_own():
    typed = ["--url", "nats://mesh", "nodes", "update", "crm", "--url", "http://crm", "--json"]

    assert hoist(typed) == (
        ["--url", "nats://mesh", "--json"],
        ["nodes", "update", "crm", "--url", "http://crm"],
    )
    assert hoist(["nodes", "update", "crm", "--url=http://crm"])[0] == []


@given(st.lists(st.sampled_from(["nodes", "list", "x", "--limit", "5", "--json", "--debug"])))
def test_hoisting_loses_and_reorders_nothing_else(typed):
    common, rest = hoist(typed)

    assert rest == [word for word in typed if word not in FLAGS | VALUED]
    assert sorted([*common, *rest]) == sorted(typed)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (["lang=en"], {"lang": "en"}),
        (["year=2024"], {"year": 2024}),
        (["price=1.5"], {"price": 1.5}),
        (["open=true"], {"open": True}),
        (['year="2024"'], {"year": "2024"}),
        (['note="a, b"'], {"note": "a, b"}),
        (["zip=007"], {"zip": "007"}),
        (["lang=en,de, fr"], {"lang": ["en", "de", "fr"]}),
        (['x=1,"1",true'], {"x": [1, "1", True]}),
        (["name="], {"name": ""}),
        (["url=a=b"], {"url": "a=b"}),
        (["year>=2020"], {"year": messages.Range(gte=2020)}),
        (["year>=2020", "year<2024"], {"year": messages.Range(gte=2020, lt=2024)}),
        (["at>2026-01-02"], {"at": messages.Range(gt="2026-01-02")}),
    ],
)
def test_filters_are_typed(written, meant):
    assert filters(written) == meant


@pytest.mark.parametrize(
    "written",
    [
        ["lang"],
        ["=en"],
        ["lang=en", "lang=de"],
        ["year>=1", "year>=2"],
        ["year>=1", "year=2"],
        ["year=2", "year>=1"],
        ["year>1,2"],
        ["open>true"],
        ['note="open'],
        ['note="a"b'],
    ],
)
def test_filters_that_cannot_be_are_refused(written):
    with pytest.raises(typer.BadParameter):
        filters(written)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("90s", NOW - 90_000),
        ("1h", NOW - 3_600_000),
        ("2d", NOW - 2 * 86_400_000),
        ("2026-01-02", NOW - (3 * 3600 + 4 * 60 + 5) * 1000),
        ("2026-01-02T03:04:05Z", NOW),
        ("2026-01-02T04:04:05+01:00", NOW),
        ("9999999999w", 0),
    ],
)
def test_since(text, meant):
    assert since(text, NOW) == meant


@pytest.mark.parametrize("text", ["", "yesterday", "1y", "-1h"])
def test_since_refuses_the_rest(text):
    with pytest.raises(typer.BadParameter):
        since(text, NOW)


def test_parameters_come_from_json_a_file_or_standard_input(tmp_path, monkeypatch):
    file = tmp_path / "params.json"
    file.write_text('{"a": 2}')
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"a": 3}'))

    assert parameters('{"a": 1}') == {"a": 1}
    assert parameters(f"@{file}") == {"a": 2}
    assert parameters("@-") == {"a": 3}


@pytest.mark.parametrize("text", ["", "{", "[1]", '"a"', "null", "@/does/not/exist"])
def test_parameters_that_are_no_object_are_refused(text):
    with pytest.raises(typer.BadParameter):
        parameters(text)


def test_deep_json_is_refused():
    with pytest.raises(typer.BadParameter):
        json_object("[" * 100_000, "--params")
