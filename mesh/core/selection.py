"""Which replicas of a shard may be asked now, and why the others not.

In tiers: healthy ones; those that are suspect or overloaded; those whose breaker is open; those
where nobody listened a moment ago. Only the best tier that has somebody is asked. A replica whose
breaker waits for a probe gets the next first attempt, alone: while there are others to repeat the
call at, a probe costs nobody an answer, and a replica that has recovered is back soon whatever the
balancer thinks of its past.

Breakers eject at most half of the replicas that could be asked while another one's is closed;
beyond that, those that opened last stay, since the few that are left might not bear the load of
all. They stay as a reserve: calls go to them once the closed ones have as many in flight as they
may have, or have been asked already. In turn with the others they would fail calls for which there
is room elsewhere. Source: Envoy, outlier detection (`max_ejection_percent`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from mesh.core.breaker import Breaker
from mesh.core.peer_load import PeerLoad
from mesh.core.route_table import refusal
from mesh.types import BreakerState, Health, Status
from mesh.wire.messages import RouteNode

Skip = tuple[str, str]
"""Slug, and why it is not asked."""

AWAY = "nobody listened there a moment ago"
TRIED = "asked already"
_BEST, _DOUBTFUL, _RESERVE, _AWAY = range(4)

# Looking up a member of an enum takes as long as all the rest of a check.
_HEALTHY, _ACTIVE, _CLOSED = Health.HEALTHY, Status.ACTIVE, BreakerState.CLOSED


class Candidate(NamedTuple):
    """A replica, as its caller knows it."""

    node: RouteNode
    load: PeerLoad
    breaker: Breaker | None
    """Of the verb; None: it has none."""
    away_until: float = 0.0
    """Until then somebody else is asked, if there is anybody."""


def usable(
    candidates: Sequence[Candidate],
    now: float,
    *,
    max_in_flight: int,
    tried: Collection[str] = (),
) -> tuple[Sequence[Candidate], list[Skip]]:
    """Those to choose from now (possibly none), and the others with reasons.

    One that is returned may be asked also where its breaker gives no permit: it stays in rotation
    then, and the call is made with `breaker.exempt()`.

    Args:
        candidates: All replicas of a shard.
        now: Monotonic seconds.
        max_in_flight: Calls that a caller may have in flight to one node.
        tried: Slugs that this call has been at already.
    """
    fine: list[Candidate] = []
    odd: list[Candidate] = []
    skips: list[Skip] = []
    for candidate in candidates:
        node, load, breaker, away_until = candidate
        if (
            node.health is _HEALTHY
            and node.status is _ACTIVE
            and (breaker is None or breaker.state is _CLOSED)
            and now >= away_until
            and load.node.count < max_in_flight
            and node.slug not in tried
        ):
            fine.append(candidate)
        elif why := refusal(node):
            skips.append((node.slug, why))
        else:
            odd.append(candidate)
    if not odd:
        return fine, skips
    return _sorted_out(fine, odd, skips, now, max_in_flight=max_in_flight, tried=tried)


def broken(candidates: Sequence[Candidate], now: float) -> list[Candidate]:
    """Those that could be asked if it were not for their breakers, which admit nobody."""
    return [
        candidate
        for candidate in candidates
        if candidate.breaker is not None
        and not candidate.breaker.admits(now)
        and not refusal(candidate.node)
    ]


def ejected(out: Sequence[Candidate], askable: int) -> Sequence[Candidate]:
    """Those that breakers take out of rotation while another one's is closed.

    Args:
        out: Those whose breakers admit nobody.
        askable: How many could be asked if it were not for breakers, `out` counted in.
    """
    most = askable // 2
    if len(out) <= most:
        return out
    return sorted(out, key=_opened_at)[:most]


def _sorted_out(
    fine: list[Candidate],
    odd: list[Candidate],
    skips: list[Skip],
    now: float,
    *,
    max_in_flight: int,
    tried: Collection[str],
) -> tuple[Sequence[Candidate], list[Skip]]:
    """`odd`: those that the route table allows, but something else is wrong with."""
    out = _ejected_of([*fine, *odd], now)
    tiers: tuple[list[Candidate], ...] = (fine, [], [], [])
    for candidate in odd:
        why = _hindrance(candidate, max_in_flight, tried, out)
        if why:
            skips.append((candidate.node.slug, why))
        else:
            tiers[_tier(candidate, now)].append(candidate)
    best = next((tier for tier in tiers if tier), tiers[_BEST])
    for tier in tiers:
        if tier is not best:
            skips.extend((candidate.node.slug, _doubt(candidate, now)) for candidate in tier)
    if best is tiers[_BEST] and not tried:
        probed = next((candidate for candidate in best if _awaits_probe(candidate, now)), None)
        if probed is not None:
            why = f"{probed.node.slug} is probed"
            skips.extend((other.node.slug, why) for other in best if other is not probed)
            return [probed], skips
    return best, skips


def _hindrance(
    candidate: Candidate, max_in_flight: int, tried: Collection[str], out: Collection[str]
) -> str:
    slug = candidate.node.slug
    if slug in tried:
        return TRIED
    if slug in out and candidate.breaker is not None:
        return _circuit(candidate.breaker)
    if candidate.load.node.count >= max_in_flight:
        return f"{candidate.load.node.count} calls to it in flight"
    return ""


def _ejected_of(askable: Sequence[Candidate], now: float) -> Collection[str]:
    out: Sequence[Candidate] = broken(askable, now)
    if any(
        candidate.breaker is None or candidate.breaker.state is BreakerState.CLOSED
        for candidate in askable
    ):
        out = ejected(out, len(askable))
    return {candidate.node.slug for candidate in out}


def _awaits_probe(candidate: Candidate, now: float) -> bool:
    breaker = candidate.breaker
    return breaker is not None and breaker.state is not BreakerState.CLOSED and breaker.admits(now)


def _tier(candidate: Candidate, now: float) -> int:
    if now < candidate.away_until:
        return _AWAY
    if candidate.breaker is not None and not candidate.breaker.admits(now):
        return _RESERVE
    return _BEST if candidate.node.health is Health.HEALTHY else _DOUBTFUL


def _doubt(candidate: Candidate, now: float) -> str:
    """Why another tier goes before this one's."""
    tier = _tier(candidate, now)
    if tier == _RESERVE and candidate.breaker is not None:
        return _circuit(candidate.breaker)
    return AWAY if tier == _AWAY else f"{candidate.node.health.value}; others are not"


def _circuit(breaker: Breaker) -> str:
    reason = f": {breaker.reason}" if breaker.reason else ""
    return f"circuit {breaker.state.value.replace('_', ' ')}{reason}"


def _opened_at(candidate: Candidate) -> float:
    return candidate.breaker.opened_at if candidate.breaker is not None else 0.0
