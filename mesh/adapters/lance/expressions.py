"""Conditions as LanceDB expressions: column references and literals, never strings of SQL."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import assert_never

from lancedb.expr import Expr, col, lit

from mesh.adapters.lance.schema import column_name, listed_key
from mesh.core.filters import Between, Condition, Equals, Missing, OneOf


def each(conditions: Sequence[Condition]) -> list[Expr]:
    """One expression per condition."""
    return [_expression(condition) for condition in conditions]


def ids(values: Iterable[str]) -> Expr:
    """Rows with one of these ids; at least one."""
    return col("id").isin([lit(value) for value in values])


def chosen(matching: Expr | None, names: Sequence[str]) -> Expr:
    """Rows with one of the ids, if any are given, that match, if there is something to match; one
    of both has to be there.
    """
    parts = [] if matching is None else [matching]
    return all_of([ids(names), *parts] if names else parts)


def all_of(parts: Sequence[Expr]) -> Expr:
    """All parts, at least one, joined by AND."""
    return functools.reduce(Expr.and_, parts)


def _expression(condition: Condition) -> Expr:
    match condition:
        case Equals(column, value):
            return _column(column).eq(lit(value))
        case OneOf(column, values, or_missing):
            chosen = [_column(column).isin([lit(value) for value in values])] if values else []
            if or_missing:
                chosen.append(_missing(column))
            return functools.reduce(Expr.or_, chosen)
        case Between():
            return _between(condition)
        case Missing(column):
            return _missing(column)
        case _:
            assert_never(condition)


def _between(condition: Between) -> Expr:
    column = _column(condition.column)
    bounds = [
        (Expr.gt, condition.gt),
        (Expr.gte, condition.gte),
        (Expr.lt, condition.lt),
        (Expr.lte, condition.lte),
    ]
    return all_of([compare(column, lit(bound)) for compare, bound in bounds if bound is not None])


def _missing(column: str) -> Expr:
    # The expression API has no IS NULL; every row lists the keys it has.
    if column == "id":
        return lit(False)
    return ~col("keys").contains(lit(listed_key(column)))


def _column(column: str) -> Expr:
    return col("id") if column == "id" else col(column_name(column))
