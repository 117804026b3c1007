"""What a `HistoryQuery` asks, in SQL."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from mesh.adapters.sql import models
from mesh.types import ActionState
from mesh.wire.messages import HistoryQuery

_actions = models.actions
_OPEN = (ActionState.QUEUED, ActionState.ACCEPTED, ActionState.RUNNING)

Condition = sa.ColumnElement[bool]


def conditions(query: HistoryQuery, *, is_sqlite: bool) -> Condition:
    """What rows must be."""
    wanted: list[Condition] = [
        column == value
        for column, value in (
            (_actions.c.id, query.action_id),
            (_actions.c.node, query.node),
            (_actions.c.action, query.action),
            (_actions.c.caller, query.caller),
            (_actions.c.state, query.state),
        )
        if value
    ]
    if query.since:
        wanted.append(_actions.c.accepted_at >= query.since)
    if query.until:
        wanted.append(_actions.c.accepted_at < query.until)
    if query.after is not None:
        wanted.append(_actions.c.sequence > query.after)
    if query.id_prefix:
        wanted.append(begins_with(query.id_prefix, is_sqlite=is_sqlite))
    return sa.and_(sa.true(), *wanted)


def begins_with(prefix: str, *, is_sqlite: bool) -> Condition:
    """Ids that begin so, found by their index; no character stands for another."""
    column = _actions.c.id
    if is_sqlite:  # compares bytes, but not in LIKE
        return sa.and_(column >= prefix, column < prefix[:-1] + chr(ord(prefix[-1]) + 1))
    return column.startswith(prefix, autoescape=True)


def order_of(query: HistoryQuery) -> tuple[sa.ColumnElement[Any], ...]:
    """Newest first; of changes the oldest."""
    if query.after is not None:
        return (_actions.c.sequence,)
    return (_actions.c.accepted_at.desc(), _actions.c.id.desc(), _actions.c.node)


def has_ended() -> Condition:
    """Nothing more is to come by itself."""
    return sa.and_(_actions.c.state.not_in(_OPEN), _actions.c.final)
