from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from mesh.adapters.nats.bus import _checked
from mesh.core import permissions
from mesh.errors import InvalidError
from mesh.wire import subjects

BAD = ["", "*", ">", "a.b", "a b", "a*", "ä", "x" * 65, "a\n", "\x00", "$SRV"]

BUILDERS = {
    "rpc node": lambda name: subjects.rpc(name, "search", "ops"),
    "rpc verb": lambda name: subjects.rpc("crm", name, "ops"),
    "rpc caller": lambda name: subjects.rpc("crm", "search", name),
    "act action": lambda name: subjects.act("crm", name, "ops"),
    "hb": subjects.heartbeat,
    "evt": lambda name: subjects.event(name, "x"),
    "master": lambda name: subjects.master("nodes", name),
    "history": lambda name: subjects.history(name, "index", "accepted"),
}


def test_every_subject_has_its_place():
    assert subjects.rpc("crm", "search", "ops") == "mesh.v1.rpc.crm.search.ops"
    assert subjects.act("crm", "refund", "ops") == "mesh.v1.act.crm.refund.ops"
    assert subjects.reply("crm", "ops", "c0", "1f") == "mesh.v1.re.crm.ops.c0.1f"
    assert subjects.heartbeat("crm") == "mesh.v1.hb.crm"
    assert subjects.event("crm", "draining") == "mesh.v1.evt.crm.draining"
    assert subjects.master("nodes", "ops") == "mesh.v1.master.nodes.ops"
    assert subjects.history("crm", "index", "accepted") == "mesh.v1.history.crm.index.accepted"


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("build", list(BUILDERS.values()), ids=list(BUILDERS))
def test_name_that_would_widen_a_subject_is_refused(build, bad):
    with pytest.raises(InvalidError):
        build(bad)


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB b 0", "a\t"])
def test_what_the_broker_would_take_for_something_else_is_no_subject(subject):
    with pytest.raises(InvalidError, match="not a subject"):
        _checked(subject)


def test_names_of_our_own_processes_are_taken():
    assert {"master", "gateway", "bridge"} <= subjects.RESERVED


@pytest.mark.parametrize("name", [*sorted(subjects.RESERVED), f"join-{'0a' * 16}"])
def test_reserved_names_are_for_nobody(name):
    for written in (name, name.upper(), name.title()):
        with pytest.raises(InvalidError, match="reserved"):
            subjects.free_name(written)
    assert subjects.free_name(f"{name}-x") == f"{name}-x"


def test_no_name_that_may_be_taken_is_one_to_join_under():
    assert permissions.is_joiner(f"join-{'0a' * 16}")
    assert subjects.free_name("join-us") == "join-us"
    assert not permissions.is_joiner("join-us")


@pytest.mark.parametrize(
    ("name", "slug"),
    [("crm", "crm"), ("CRM East", "crm-east"), ("  A__b!!c ", "a__b-c"), ("Übersee", "bersee")],
)
def test_slug_of_a_display_name(name, slug):
    assert subjects.slug_of(name) == slug


@pytest.mark.parametrize("name", ["", "!!!", "Master", "日本"])
def test_name_that_leaves_no_slug_is_refused(name):
    with pytest.raises(InvalidError):
        subjects.slug_of(name)


@given(st.text(max_size=80))
def test_a_slug_is_always_a_token_and_stable(name):
    try:
        slug = subjects.slug_of(name)
    except InvalidError:
        return
    assert subjects.token(slug) == slug
    assert subjects.slug_of(slug) == slug


def test_parts_reads_what_the_others_write():
    assert subjects.parts("mesh.v1.hb.crm") == ("hb", "crm")
    for bad in ("mesh.v2.hb.crm", "x.mesh.v1.hb", "mesh.v1.", "mesh.v1.hb.*"):
        with pytest.raises(InvalidError):
            subjects.parts(bad)
