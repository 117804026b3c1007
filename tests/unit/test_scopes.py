"""What a scope allows, and what it does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.scopes import (
    allows,
    allows_some_action,
    allows_some_search,
    readable_actions,
    searchable_collections,
)

SCOPES = st.sampled_from(
    ["search", "search:notes", "admin", "actions", "actions:refund", "actions:index"]
)


@pytest.mark.parametrize(
    ("scopes", "needed", "allowed"),
    [
        (["search"], "search", True),
        (["search"], "admin", False),
        (["search"], "actions", False),
        (["admin"], "admin", True),
        (["admin"], "search", False),
        (["admin"], "actions:refund", False),
        (["actions"], "actions", True),
        (["actions"], "actions:refund", True),
        (["actions:refund"], "actions:refund", True),
        (["actions:refund"], "actions:refunds", False),
        (["actions:refund"], "actions:ref", False),
        (["actions:refund"], "actions", False),
        (["actions"], "actions:", False),
        (["actions"], "actionsrefund", False),
        (["actions"], "", False),
        (["search"], "search:notes", True),
        (["search:notes"], "search:notes", True),
        (["search:notes"], "search:note", False),
        (["search:notes"], "search", False),
        (["search"], "search:", False),
        (["admin"], "admin:x", False),
        ([], "search", False),
    ],
)
def test_a_scope_allows_what_it_names(scopes, needed, allowed):
    assert allows(scopes, needed) is allowed
    assert allows(frozenset(scopes), needed) is allowed


@pytest.mark.parametrize(
    ("scopes", "some"),
    [
        (["actions"], True),
        (["search", "actions:refund"], True),
        (["search", "admin"], False),
        (["actionsrefund"], False),
        ([], False),
    ],
)
def test_who_may_run_some_action(scopes, some):
    assert allows_some_action(scopes) is some


@given(st.sets(SCOPES), SCOPES, SCOPES)
def test_more_scopes_never_allow_less(scopes, more, needed):
    assert not allows(scopes, needed) or allows(scopes | {more}, needed)


@pytest.mark.parametrize(
    ("scopes", "names"),
    [
        (["actions", "actions:refund"], None),
        (["search", "actions:refund", "actions:index"], {"refund", "index"}),
        (["search", "admin"], set()),
        ([], set()),
    ],
)
def test_one_reads_of_what_one_may_run(scopes, names):
    assert readable_actions(scopes) == names


@given(st.sets(SCOPES))
def test_whoever_may_run_one_action_may_run_some(scopes):
    assert allows_some_action(scopes) or not allows(scopes, "actions:refund")


@pytest.mark.parametrize(
    ("scopes", "names"),
    [
        (["search", "search:notes"], None),
        (["search:notes", "search:crm.Customer", "actions:x"], {"notes", "crm.Customer"}),
        (["actions", "admin"], set()),
    ],
)
def test_one_searches_what_one_is_let(scopes, names):
    assert searchable_collections(scopes) == names
    assert allows_some_search(scopes) is (names is None or bool(names))
