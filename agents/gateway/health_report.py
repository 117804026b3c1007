"""How the mesh sees a node, from its record and its route."""

from __future__ import annotations

from agents.gateway import reports
from mesh import messages
from mesh.types import BreakerState

_WORST_LAST = (BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN)


def own_status(record: messages.NodeRecord, route: messages.RouteNode | None) -> reports.OwnStatus:
    """The health report of a node.

    Args:
        record: What the masters know.
        route: What callers go by; None: they have not heard of it yet.
    """
    return reports.OwnStatus(
        node=identity_of(record),
        status=record.status,
        health=record.health,
        circuit_breaker=_breaker(record, {} if route is None else route.breakers),
        load=reports.Load(
            in_flight=record.in_flight,
            queued=record.queued,
            lag_ms=record.lag_ms,
            weight=record.weight,
            verbs=record.verbs,
        ),
        response_time_ms=record.response_time_ms,
        last_ping_at=record.last_ping_at,
    )


def _breaker(
    record: messages.NodeRecord, words: dict[str, messages.BreakerWord]
) -> reports.CircuitBreaker:
    worst = (
        max((_WORST_LAST.index(word.state), verb) for verb, word in words.items())
        if words
        else None
    )
    word = None if worst is None else words[worst[1]]
    shut = word is not None and word.state is not BreakerState.CLOSED
    return reports.CircuitBreaker(
        state=BreakerState.CLOSED if word is None else word.state,
        failure_count=record.failures,
        reason=word.reason if word is not None and shut else "",
        verbs={
            verb: reports.VerbBreaker(state=word.state, until=word.until, reason=word.reason)
            for verb, word in sorted(words.items())
        },
    )


def identity_of(record: messages.NodeRecord) -> reports.NodeIdentity:
    """What names a node."""
    return reports.NodeIdentity(id=record.id, slug=record.slug, name=record.name)
