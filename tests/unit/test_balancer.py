from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.config import RoutingConfig
from mesh.core import balancer as rules
from mesh.core.balancer import Balancer
from mesh.core.peer_load import PeerLoad

STRATEGIES = ("p2c", "round_robin", "least_connections", "weighted", "response_time", "random")
WEIGHTS = st.lists(st.integers(1, 9), min_size=2, max_size=7)


def peers_of(*weights):
    return [PeerLoad(f"n{number}", weight=weight) for number, weight in enumerate(weights)]


def busy(peer, calls, ms, now=0.0):
    peer.returned(peer.sent(now - ms / 1000), now, counts=True)
    for _ in range(calls):
        peer.sent(now)
    return peer


def chance_of(seed=1):
    return random.Random(seed).random


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_whoever_is_alone_is_chosen_and_nobody_of_none(strategy):
    balancer = Balancer(strategy)
    assert balancer.pick(peers_of(1), 0.0, chance_of()) == (0, -1)
    with pytest.raises(ValueError, match="nobody"):
        balancer.pick([], 0.0, chance_of())


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(seed=st.integers(0, 1000), count=st.integers(2, 40))
def test_every_pick_is_somebody_and_in_the_long_run_everybody(strategy, seed, count):
    balancer, chance = Balancer(strategy), chance_of(seed)
    peers = peers_of(*[1] * count)
    picked = {balancer.pick(peers, 0.0, chance).index for _ in range(count * 20)}
    assert picked == set(range(count))


def test_strategies_are_those_that_can_be_configured_and_no_others():
    assert RoutingConfig().strategy == "p2c"
    with pytest.raises(ValueError, match="no strategy 'best'; there are: p2c, round_robin"):
        Balancer("best")


@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(0.1, 500)), min_size=2, max_size=20),
    st.integers(0, 10_000),
)
def test_p2c_never_takes_the_worse_of_its_two(loads, seed):
    peers = [
        busy(peer, *load) for peer, load in zip(peers_of(*[1] * len(loads)), loads, strict=True)
    ]
    balancer, chance = Balancer("p2c"), chance_of(seed)
    for _ in range(20):
        pick = balancer.pick(peers, 0.5, chance)
        assert pick.index != pick.rival
        assert 0 <= pick.rival < len(peers)
        assert peers[pick.index].cost(0.5) <= peers[pick.rival].cost(0.5)


@pytest.mark.parametrize("count", [2, 3, 10, 40])
def test_p2c_draws_every_pair_alike(count):
    peers = peers_of(*[1] * count)
    pairs = Counter()
    steps = count * (count - 1)
    for step in range(steps):
        pick = rules._p2c(peers, 0.0, lambda at=step: (at + 0.5) / steps)
        pairs[frozenset(pick)] += 1
    assert len(pairs) == steps // 2
    assert set(pairs.values()) == {2}


def test_the_greatest_chance_is_still_within():
    peers = peers_of(*[1] * 7)
    for strategy in STRATEGIES:
        pick = Balancer(strategy).pick(peers, 0.0, lambda: 1 - 2**-53)
        assert 0 <= pick.index < 7


@given(WEIGHTS, st.integers(1, 4))
def test_weighted_is_exactly_proportional_over_every_cycle(weights, cycles):
    balancer, peers = Balancer("weighted"), peers_of(*weights)
    for _ in range(cycles):
        counts = Counter(balancer.pick(peers, 0.0, chance_of()).index for _ in range(sum(weights)))
        assert [counts[index] for index in range(len(weights))] == weights


def test_weighted_is_smooth():
    balancer, peers = Balancer("weighted"), peers_of(5, 1, 1)
    order = "".join("abc"[balancer.pick(peers, 0.0, chance_of()).index] for _ in range(7))
    assert order == "aabacaa", "as nginx has it"


@given(WEIGHTS, st.integers(0, 10_000))
def test_weighted_owes_nobody_more_than_a_few_calls_when_peers_come_and_go(weights, seed):
    """What a replica gets is its share of the calls that it could have had, give or take."""
    balancer, everybody, rng = Balancer("weighted"), peers_of(*weights), random.Random(seed)
    due, got = Counter(), Counter()
    present = list(range(len(weights)))
    for _ in range(150):
        if rng.random() < 0.5:
            present = sorted(rng.sample(range(len(weights)), rng.randint(2, len(weights))))
        total = sum(weights[index] for index in present)
        for index in present:
            due[index] += weights[index] / total
        pick = balancer.pick([everybody[index] for index in present], 0.0, rng.random)
        got[present[pick.index]] += 1
    for index in range(len(weights)):
        assert abs(due[index] - got[index]) < len(weights)


def test_weighted_follows_a_weight_that_changes():
    balancer, peers = Balancer("weighted"), peers_of(1, 1)
    for _ in range(10):
        balancer.pick(peers, 0.0, chance_of())
    peers[0].weight = 3
    counts = Counter(balancer.pick(peers, 0.0, chance_of()).index for _ in range(40))
    assert counts == {0: 30, 1: 10}


@given(st.integers(2, 20), st.integers(1, 5))
def test_round_robin_takes_turns(count, rounds):
    balancer, peers = Balancer("round_robin"), peers_of(*range(1, count + 1))
    order = [balancer.pick(peers, 0.0, chance_of()).index for _ in range(count * rounds)]
    assert order == list(range(count)) * rounds


def test_round_robin_goes_on_with_who_waited_longest_when_peers_come_and_go():
    balancer, (a, b, c) = Balancer("round_robin"), peers_of(1, 1, 1)
    order = [
        peers[balancer.pick(peers, 0.0, chance_of()).index].slug
        for peers in ([a, b], [a, b], [a, b, c], [a, b, c], [b, c], [a, b, c])
    ]
    assert order == ["n0", "n1", "n2", "n0", "n1", "n2"]


def test_least_connections_takes_the_idlest_for_its_weight():
    peers = peers_of(1, 1, 4)
    for _ in range(2):
        peers[0].sent(0.0)
        peers[2].sent(0.0)
    peers[1].sent(0.0)
    pick = Balancer("least_connections").pick(peers, 0.0, chance_of())
    assert pick.index == 2, "3/4 is less than 2/1 and 3/1"


def test_response_time_takes_the_fastest_and_tries_who_is_unknown():
    peers = [busy(peer, 0, ms) for peer, ms in zip(peers_of(1, 1, 1), (9, 3, 6), strict=True)]
    balancer = Balancer("response_time")
    assert {balancer.pick(peers, 0.0, chance_of(seed)).index for seed in range(20)} == {1}
    peers.append(PeerLoad("new"))
    assert balancer.pick(peers, 0.0, chance_of()).index == 3


def test_equals_share():
    peers = peers_of(1, 1, 1)
    for strategy in ("least_connections", "response_time"):
        chance = chance_of()
        picked = Counter(Balancer(strategy).pick(peers, 0.0, chance).index for _ in range(300))
        assert min(picked.values()) > 60


@pytest.mark.parametrize("strategy", ["weighted", "round_robin"])
def test_what_is_remembered_is_bounded(strategy):
    balancer = Balancer(strategy)
    for number in range(rules._REMEMBERED * 2):
        peers = [PeerLoad(f"x{number}"), PeerLoad(f"y{number}")]
        balancer.pick(peers, 0.0, chance_of())
    assert len(balancer._owed) <= rules._REMEMBERED + 2
    assert len(balancer._chosen_at) <= rules._REMEMBERED + 2
