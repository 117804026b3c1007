"""Which of several replicas to ask.

`p2c`: the cheaper of two drawn at random (see `mesh.core.peer_load` for the cost). `weighted`:
smooth weighted round robin. Each call owes every replica that could have had it its share, and goes
to the one that is owed most: over a cycle exactly in proportion, well mixed, and fair in the long
run also where replicas come and go between calls. `round_robin`: whoever was chosen longest ago.
`least_connections`: fewest own calls in flight for its weight. `response_time`: lately fastest.
`random`: any.

Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10),
2001; nginx, `ngx_http_upstream_round_robin` (smooth weighted); Ajtai et al., "Fairness in
Scheduling", J. Algorithms 29(2), 1998 (the bound where replicas come and go).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mesh.core.peer_load import PeerLoad
from mesh.types import Strategy

Chance = Callable[[], float]

_REMEMBERED = 4096
"""Replicas; beyond it, those that cannot be chosen now start afresh."""


class Pick(NamedTuple):
    """Places in the sequence that was given; `rival` is the one it was compared with, -1: all."""

    index: int  # type: ignore[assignment]  # nobody looks for a value in a pick
    rival: int


_ONLY = Pick(0, -1)
_FEW = 16
_PICKS = [[Pick(one, two) for two in range(_FEW)] for one in range(_FEW)]
"""Those of up to so many replicas, made once: they are the same again and again."""


class Balancer:
    """One strategy and what it remembers, by slug. Not thread-safe."""

    __slots__ = ("_choose", "_chosen_at", "_count", "_owed", "strategy")

    def __init__(self, strategy: Strategy) -> None:
        """Raises:
        ValueError: No such strategy.
        """
        strategies: dict[str, Callable[[Sequence[PeerLoad], float, Chance], Pick]] = {
            "p2c": _p2c,
            "round_robin": self._round_robin,
            "least_connections": _least_connections,
            "weighted": self._weighted,
            "response_time": _response_time,
            "random": _random,
        }
        if strategy not in strategies:
            raise ValueError(f"no strategy {strategy!r}; there are: {', '.join(strategies)}")
        self.strategy = strategy
        self._choose = strategies[strategy]
        self._owed: dict[str, float] = {}
        """Calls that a replica should have had, less those that it has."""
        self._chosen_at: dict[str, int] = {}
        self._count = 0

    def pick(self, peers: Sequence[PeerLoad], now: float, chance: Chance) -> Pick:
        """One of `peers`, which are not empty.

        Args:
            peers: All that may be asked, in any order.
            now: Monotonic seconds.
            chance: Draws from [0, 1).

        Raises:
            ValueError: `peers` is empty.
        """
        if len(peers) == 1:
            return _ONLY
        if not peers:
            raise ValueError("there is nobody to choose from")
        return self._choose(peers, now, chance)

    def _round_robin(self, peers: Sequence[PeerLoad], _now: float, _chance: Chance) -> Pick:
        chosen_at = self._chosen_at
        index, longest = 0, self._count + 1
        for place, peer in enumerate(peers):
            at = chosen_at.get(peer.slug, 0)
            if at < longest:
                index, longest = place, at
        self._count += 1
        chosen_at[peers[index].slug] = self._count
        if len(chosen_at) > _REMEMBERED:
            self._chosen_at = {
                peer.slug: chosen_at[peer.slug] for peer in peers if peer.slug in chosen_at
            }
        return Pick(index, -1)

    def _weighted(self, peers: Sequence[PeerLoad], _now: float, _chance: Chance) -> Pick:
        owed = self._owed
        total = 0.0
        for peer in peers:
            total += peer.weight
        index, most = 0, float("-inf")
        for place, peer in enumerate(peers):
            due = owed.get(peer.slug, 0.0) + peer.weight / total
            owed[peer.slug] = due
            if due > most:
                index, most = place, due
        owed[peers[index].slug] = most - 1.0
        if len(owed) > _REMEMBERED:
            self._owed = {peer.slug: owed[peer.slug] for peer in peers}
        return Pick(index, -1)


def _p2c(peers: Sequence[PeerLoad], now: float, chance: Chance) -> Pick:
    others = len(peers) - 1
    drawn = int(chance() * (others + 1) * others)  # one draw for both
    one = drawn // others
    two = drawn - one * others
    if two >= one:
        two += 1
    if peers[one].cost(now) > peers[two].cost(now):
        one, two = two, one
    return _PICKS[one][two] if others < _FEW else Pick(one, two)


def _least_connections(peers: Sequence[PeerLoad], _now: float, chance: Chance) -> Pick:
    return _least(peers, chance, lambda peer: (peer.in_flight + 1) / peer.weight)


def _response_time(peers: Sequence[PeerLoad], now: float, chance: Chance) -> Pick:
    return _least(peers, chance, lambda peer: peer.time_ms(now))


def _random(peers: Sequence[PeerLoad], _now: float, chance: Chance) -> Pick:
    return Pick(int(chance() * len(peers)), -1)


def _least(peers: Sequence[PeerLoad], chance: Chance, measure: Callable[[PeerLoad], float]) -> Pick:
    """The least one; among equals, the first one from a place drawn at random."""
    first = int(chance() * len(peers))
    index, least = first, measure(peers[first])
    for place in (*range(first + 1, len(peers)), *range(first)):
        measured = measure(peers[place])
        if measured < least:
            index, least = place, measured
    return Pick(index, -1)
