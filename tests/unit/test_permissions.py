"""The table of who may say and hear what; that the broker enforces it is tested with a broker."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from mesh.core import permissions as table
from mesh.errors import InvalidError
from mesh.wire import subjects

JOINER = f"join-{'0f' * 16}"
BAD_NAMES = ["", "*", ">", "a.b", "a b", "crm*", "x" * 65, "crm\n", "$SYS", "master", "gateway"]
PARTS = st.sampled_from(["a", "b", "*"])
SUBJECTS = st.builds(
    lambda parts, tail: ".".join([*parts, *tail]),
    st.lists(PARTS, min_size=1, max_size=3),
    st.sampled_from([(), (">",)]),
)

MAY_PUBLISH = {
    "node": (
        table.of_node("crm"),
        [
            subjects.heartbeat("crm"),
            subjects.event("crm", "draining"),
            subjects.reply("crm", "ops", "c0", "1"),
            subjects.history("crm", "index", "accepted"),
            subjects.master("ping", "crm"),
            subjects.rpc("docs", "export", "crm"),
            "mesh.v1.re.srv.ops.c0.1",
        ],
        [
            subjects.heartbeat("docs"),
            subjects.heartbeat("crm2"),
            subjects.reply("docs", "ops", "c0", "1"),
            subjects.reply("master", "ops", "c0", "1"),
            subjects.event("master", "breakers-reset"),
            subjects.rpc("docs", "drain", "master"),
            subjects.outcome("docs"),
            subjects.outcome("crm"),
            subjects.history("docs", "index", "accepted"),
            subjects.master("register", "crm"),
            subjects.master("ping", "docs"),
            subjects.rpc("docs", "search", "crm"),
            subjects.act("docs", "refund", "crm"),
            subjects.rpc("docs", "ping", "crm"),
            subjects.REVOKED,
            subjects.ROUTES,
            subjects.audit("node-joined"),
            "$JS.API.STREAM.DELETE.MESH_HISTORY",
            "$JS.API.CONSUMER.MSG.NEXT.MESH_QUEUE.crm",
            "$JS.ACK.MESH_QUEUE.crm.1.2.3.4.5",
            "$SYS.REQ.USER.AUTH",
            ">",
            "mesh.v1.>",
        ],
    ),
    "application": (
        table.of_user("app", ["search", "actions:refund"]),
        [
            subjects.rpc("crm", "search", "app"),
            subjects.rpc("crm", "fetch", "app"),
            subjects.rpc("crm", "ping", "app"),
            subjects.act("crm", "refund", "app"),
            subjects.master("nodes", "app"),
        ],
        [
            subjects.rpc("gateway", "cache", "app"),
            subjects.rpc("crm", "search", "ops"),
            subjects.rpc("crm", "export", "app"),
            subjects.rpc("crm", "drain", "app"),
            subjects.outcome("ops"),
            subjects.master("breakers-reset", "app"),
            subjects.act("crm", "index", "app"),
            subjects.act("crm", "refund", "ops"),
            subjects.master("register", "app"),
            subjects.master("history", "app"),
            subjects.heartbeat("app"),
            subjects.event("app", "draining"),
            subjects.reply("app", "ops", "c0", "1"),
        ],
    ),
    "administrator": (
        table.of_user("ops", ["admin"]),
        [subjects.master(verb, "ops") for verb in ("register", "remove", "audit", "history")]
        + [subjects.master(verb, "ops") for verb in ("drain", "breakers-reset", "explain")]
        + [subjects.rpc("gateway", "cache", "ops")],
        [
            subjects.master("register", "gateway"),
            subjects.rpc("crm", "search", "ops"),
            subjects.rpc("crm", "cache", "ops"),
            subjects.rpc("gateway", "cache", "app"),
            subjects.rpc("gateway", "other", "ops"),
            subjects.reply("gateway", "ops", "c0", "1"),
            subjects.rpc("crm", "drain", "ops"),
            subjects.rpc("crm", "drain", "master"),
            subjects.event("master", "breakers-reset"),
            subjects.act("crm", "index", "ops"),
        ],
    ),
    "gateway": (
        table.of_gateway(),
        [
            subjects.rpc("crm", "search", "gateway"),
            subjects.act("crm", "anything", "gateway"),
            subjects.master("register", "gateway"),
            subjects.rpc("gateway", "cache", "gateway"),
            subjects.reply("gateway", "ops", "c0", "1"),
        ],
        [
            subjects.reply("crm", "ops", "c0", "1"),
            subjects.master("register", "master"),
            subjects.heartbeat("gateway"),
            subjects.rpc("crm", "drain", "gateway"),
            subjects.event("master", "breakers-reset"),
            subjects.REVOKED,
            "$JS.API.INFO",
        ],
    ),
    "joiner": (
        table.of_joiner(JOINER),
        [subjects.master("join", JOINER)],
        [
            subjects.master("join", "crm"),
            subjects.master("ping", JOINER),
            subjects.rpc("crm", "ping", JOINER),
            "$SRV.PING",
        ],
    ),
}


@pytest.mark.parametrize("who", MAY_PUBLISH)
def test_each_says_what_it_may_and_nothing_else(who):
    granted, allowed, refused = MAY_PUBLISH[who]
    assert [one for one in allowed if not table.may_publish(granted, one)] == []
    assert [one for one in refused if table.may_publish(granted, one)] == []


@pytest.mark.parametrize(
    ("granted", "name"),
    [
        (table.of_node("crm"), "crm"),
        (table.of_user("app", ["search", "actions", "admin"]), "app"),
        (table.of_gateway(), "gateway"),
        (table.of_joiner(JOINER), JOINER),
    ],
    ids=["node", "user", "gateway", "joiner"],
)
def test_each_hears_its_own_answers_and_nobody_elses(granted, name):
    assert table.may_subscribe(granted, f"mesh.v1.re.*.{name}.c0.*")
    for other in ("mesh.v1.re.*.docs.>", "mesh.v1.re.>", "mesh.v1.>", ">", "mesh.v1.master.*.*"):
        assert not table.may_subscribe(granted, other)
    for other in ("mesh.v1.rpc.docs.>", "mesh.v1.hb.*", "mesh.v1.audit.>", "$JS.>", "$SYS.>"):
        assert not table.may_subscribe(granted, other)
    is_node = name == "crm"
    assert table.may_subscribe(granted, "mesh.v1.rpc.crm.>") == is_node
    assert table.may_subscribe(granted, subjects.ROUTES) == (name != JOINER)


@pytest.mark.parametrize("scopes", [[], ["search:notes"]])
def test_nobody_has_an_empty_list(scopes):
    """To nats-server that means everything."""
    for granted in (table.of_user("app", scopes), table.of_joiner(JOINER), table.of_node("crm")):
        assert granted.publish
        assert granted.subscribe
    assert not table.may_publish(table.of_user("app", scopes), subjects.rpc("a", "search", "app"))


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_could_be_more_than_one_gets_nothing(name):
    for of in (table.of_node, table.of_joiner, lambda bad: table.of_user(bad, ["search"])):
        with pytest.raises(InvalidError):
            of(name)


@pytest.mark.parametrize(
    "name", ["join-", JOINER[:-1], JOINER + "0", JOINER.upper(), "crm", f" {JOINER}", JOINER + "\n"]
)
def test_only_random_names_join(name):
    assert not table.is_joiner(name)
    with pytest.raises(InvalidError):
        table.of_joiner(name)


def test_an_action_that_is_a_wildcard_gets_nothing():
    with pytest.raises(InvalidError):
        table.of_user("app", ["actions:*"])


@given(SUBJECTS, st.lists(st.sampled_from("abc"), min_size=1, max_size=5))
def test_what_covers_a_wildcard_covers_all_it_stands_for(pattern, tokens):
    subject = ".".join(tokens)
    for asked in (pattern, "a.>", "a.*", "*.b", ">"):
        if table.covers(pattern, asked) and table.covers(asked, subject):
            assert table.covers(pattern, subject)
    assert table.covers(pattern, pattern)
    assert table.covers(">", subject)


@pytest.mark.parametrize(
    ("pattern", "subject", "covered"),
    [
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.*", "a", False),
        ("a.*", "a.>", False),
        ("a.>", "a.*", True),
        ("a.>", "a", False),
        ("a.b", "a.*", False),
        ("a.*.c", "a.>", False),
        ("*", ">", False),
    ],
)
def test_wildcards_are_compared_as_the_broker_does(pattern, subject, covered):
    assert table.covers(pattern, subject) is covered
