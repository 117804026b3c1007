from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.config import BreakerConfig
from mesh.core import selection
from mesh.core.breaker import Breaker, Outcome
from mesh.core.peer_load import PeerLoad
from mesh.core.selection import Candidate, broken, ejected, usable
from mesh.types import BreakerState, Health, Status
from mesh.wire.messages import BreakerWord, RouteNode

NOW = 100.0


def candidate(slug, *, opened=None, away_until=0.0, in_flight=0, **fields):
    """`opened`: seconds at which its breaker opened, for 30 of them."""
    breaker = Breaker(BreakerConfig())
    if opened is not None:
        for _ in range(5):
            breaker.settle(breaker.acquire(opened), Outcome.FAILURE, opened, 0.0)
    load = PeerLoad(slug)
    for _ in range(in_flight):
        load.sent(NOW)
    node = RouteNode(slug=slug, incarnation=1, **{"health": Health.HEALTHY, **fields})
    return Candidate(node, load, breaker, away_until)


def ask(*candidates, now=NOW, tried=()):
    chosen, skips = usable(candidates, now, max_in_flight=4, tried=tried)
    names = [one.node.slug for one in chosen]
    assert sorted(names + [slug for slug, _ in skips]) == sorted(
        one.node.slug for one in candidates
    )
    assert all(why for _, why in skips)
    return names, dict(skips)


def test_all_that_are_well_may_be_asked():
    assert ask(candidate("a"), candidate("b"), candidate("c")) == (["a", "b", "c"], {})
    assert usable([], NOW, max_in_flight=4) == ([], [])


def test_one_without_a_breaker_may_be_asked():
    assert ask(candidate("a")._replace(breaker=None)) == (["a"], {})


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"status": Status.MAINTENANCE}, "status is maintenance"),
        ({"health": Health.UNREACHABLE, "reason": "silent"}, "unreachable: silent"),
        ({"health": Health.STALLED}, "stalled"),
        ({"health": Health.DRAINING}, "draining"),
    ],
    ids=["maintenance", "unreachable", "stalled", "draining"],
)
def test_what_the_table_refuses_is_never_asked(fields, why):
    assert ask(candidate("a", **fields), candidate("b")) == (["b"], {"a": why})
    assert ask(candidate("a", **fields)) == ([], {"a": why})


@pytest.mark.parametrize("health", [Health.SUSPECT, Health.OVERLOADED])
def test_the_doubtful_are_asked_where_there_is_nobody_better(health):
    doubtful = candidate("a", health=health)
    names, skips = ask(doubtful, candidate("b"))
    assert names == ["b"]
    assert health.value in skips["a"]
    assert ask(doubtful) == (["a"], {})
    assert ask(doubtful, candidate("b"), tried=("b",))[0] == ["a"]


def test_where_nobody_listened_comes_last_and_for_a_while_only():
    away, doubtful = candidate("a", away_until=NOW + 0.2), candidate("b", health=Health.SUSPECT)
    assert ask(away, doubtful, candidate("c")) == (
        ["c"],
        {"a": selection.AWAY, "b": "suspect; others are not"},
    )
    assert ask(away, doubtful)[0] == ["b"]
    assert ask(away)[0] == ["a"]
    assert ask(away, candidate("c"), now=NOW + 0.2)[0] == ["a", "c"]


def test_one_that_was_tried_or_is_full_is_not_asked_again():
    full = candidate("a", in_flight=4)
    names, skips = ask(full, candidate("b"), candidate("c"), tried={"b"})
    assert names == ["c"]
    assert skips == {"a": "4 calls to it in flight", "b": selection.TRIED}
    assert ask(full)[0] == []


def test_a_broken_one_is_left_out_and_says_why():
    names, skips = ask(candidate("a", opened=90), candidate("b"), candidate("c"))
    assert names == ["b", "c"]
    assert skips == {"a": "circuit open: 5 failures in a row"}
    assert ask(candidate("a", opened=90))[0] == []


def test_at_most_half_are_ejected_while_another_is_closed_and_the_last_ones_stay_in_reserve():
    opened = [candidate(f"b{at}", opened=float(at)) for at in (95, 85, 90)]
    why = "circuit open: 5 failures in a row"
    names, skips = ask(*opened, candidate("ok"))
    assert names == ["ok"], "it has room"
    assert skips == {"b95": why, "b85": why, "b90": why}
    assert ask(*opened, candidate("ok", in_flight=4))[0] == ["b95"]
    assert ask(*opened, candidate("ok"), tried=["ok"])[0] == ["b95"]
    assert ask(*opened, candidate("ok", away_until=NOW + 1))[0] == ["b95"]
    assert ask(*opened, candidate("ok", health=Health.SUSPECT))[0] == ["ok"]
    assert ask(*opened)[0] == [], "where none is closed, nobody is spared"


def test_one_in_reserve_gives_no_permit_but_an_exempt_one():
    stays = candidate("b", opened=95)
    full = candidate("ok", in_flight=4)
    chosen, _ = usable([candidate("a", opened=90), stays, full], NOW, max_in_flight=4)
    assert chosen == [stays]
    assert stays.breaker.acquire(NOW) is None
    assert not stays.breaker.settle(stays.breaker.exempt(), Outcome.SUCCESS, NOW, 0.0)


def test_a_node_is_full_by_all_that_this_caller_asks_of_it():
    busy = candidate("a", in_flight=3)
    PeerLoad("a", node=busy.load.node).sent(NOW)
    assert ask(busy) == ([], {"a": "4 calls to it in flight"})


def test_a_replica_that_waits_for_a_probe_gets_the_next_first_attempt_alone():
    due = candidate("a", opened=60)
    names, skips = ask(candidate("b"), due, candidate("c"))
    assert names == ["a"]
    assert skips == {"b": "a is probed", "c": "a is probed"}
    assert sorted(ask(candidate("b"), due, candidate("c"), tried=["b"])[0]) == ["a", "c"]
    for _ in range(2):
        assert due.breaker.acquire(NOW)
    assert ask(candidate("b"), due, candidate("c"))[0] == ["b", "c"], "probes are out"


def test_a_doubtful_replica_is_not_probed_while_others_are_well():
    due = candidate("a", opened=60, health=Health.SUSPECT)
    assert ask(candidate("b"), due)[0] == ["b"]


def test_half_open_by_the_masters_word_for_others_is_left_out():
    other = candidate("a")
    word = BreakerWord(state=BreakerState.HALF_OPEN, turn=1, reason="probing")
    other.breaker.adopt(word, until=NOW + 1, probes=0, now=NOW)
    assert ask(other, candidate("b")) == (["b"], {"a": "circuit half open: probing"})


def test_whose_breakers_are_in_the_way():
    both = [candidate("a", opened=90), candidate("b", opened=80)]
    gone = candidate("c", opened=75, health=Health.UNREACHABLE)
    assert broken([candidate("d"), *both, gone], NOW) == both
    assert broken([candidate("d"), candidate("e", opened=60)], NOW) == [], "one may be probed"


KINDS = st.builds(
    dict,
    opened=st.one_of(st.none(), st.floats(71, 99)),
    away_until=st.sampled_from([0.0, NOW + 1]),
    in_flight=st.sampled_from([0, 4]),
    health=st.sampled_from(list(Health)),
)


@given(st.lists(KINDS, max_size=8), st.sets(st.integers(0, 7)))
def test_whatever_is_wrong_the_promises_hold(kinds, tried):
    candidates = [candidate(f"n{number}", **kind) for number, kind in enumerate(kinds)]
    slugs = {f"n{number}" for number in tried}
    names, _ = ask(*candidates, tried=slugs)
    by_slug = {one.node.slug: one for one in candidates}
    asked = [by_slug[name] for name in names]
    assert not slugs & set(names)
    assert all(one.load.in_flight < 4 for one in asked)
    healths = {one.node.health for one in asked}
    assert healths <= {Health.HEALTHY, Health.SUSPECT, Health.OVERLOADED}
    askable = [one for one in candidates if not selection.refusal(one.node)]
    closed = [one for one in askable if one.breaker.state is BreakerState.CLOSED]
    perfect = [
        one
        for one in closed
        if one.node.health is Health.HEALTHY
        and one.node.slug not in slugs
        and not one.load.in_flight
        and not one.away_until
    ]
    assert all(one in asked for one in perfect)
    if not closed:
        assert not asked
    broken = [one for one in askable if one.breaker.state is not BreakerState.CLOSED]
    assert len(ejected(broken, len(askable))) <= len(askable) / 2
