"""What became of each shard that a search asked, in words and in errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import msgspec

from mesh.errors import (
    CircuitOpenError,
    DeadlineExceededError,
    ForbiddenError,
    InvalidError,
    MeshError,
    UnavailableError,
)
from mesh.runtime.results import TextKey, how_it_went
from mesh.runtime.search_plan import Part, report
from mesh.types import SearchMode
from mesh.wire.messages import Candidates, SearchRequest, ShardReport, Shards

Outcome = tuple[Part, Candidates | MeshError]
"""What was asked for, and what came of it."""


def reports_of(
    outcomes: Sequence[Outcome], mode: SearchMode, *, filtered: bool
) -> list[ShardReport]:
    reports: list[ShardReport] = []
    for part, outcome in outcomes:
        match outcome:
            case Candidates():
                reports += _answered(part, outcome, mode, filtered=filtered)
                continue
            case InvalidError():
                status, why = "skipped", str(outcome)
            case DeadlineExceededError():
                status, why = "timed_out", "no answer in time"
            case _:
                status, why = "failed", str(outcome)
        reports += [report(place, place.node, status, why) for place in part.places]
    return reports


def refuse_what_all_refuse(outcomes: Sequence[Candidates | MeshError]) -> None:
    if outcomes and all(isinstance(outcome, InvalidError) for outcome in outcomes):
        raise cast("InvalidError", outcomes[0])  # one that is silent may know what others refuse
    if outcomes and all(isinstance(outcome, ForbiddenError) for outcome in outcomes):
        raise ForbiddenError(
            "this takes the scope 'search'; search:COLLECTION works over HTTP only"
        )


def require(request: SearchRequest, shards: Shards, errors: Sequence[MeshError]) -> None:
    counted = shards.total - shards.skipped
    need = {"any": min(1, counted), "quorum": counted // 2 + 1, "all": counted}
    if shards.ok >= need[request.options.require] or not counted:
        return
    missing = "; ".join(
        f"{one.collection} on {one.node}: {one.reason}"
        for one in shards.details
        if one.status in {"failed", "timed_out"}
    )
    open_everywhere = errors and all(isinstance(error, CircuitOpenError) for error in errors)
    waits = [error.retry_after_ms for error in errors if error.retry_after_ms is not None]
    error = (CircuitOpenError if open_everywhere else UnavailableError)(
        f"{shards.ok} of {counted} shards answered, {request.options.require} required: {missing}",
        retry_after_ms=min(waits, default=1000),
    )
    error.shards = shards
    raise error


def _answered(
    part: Part, found: Candidates, mode: SearchMode, *, filtered: bool
) -> list[ShardReport]:
    came = {hits.collection: hits for hits in found.shards}
    absent = ("skipped", "it cannot be filtered") if filtered else ("failed", "it is gone there")
    reports = []
    for place in part.places:
        if (why := found.failed.get(place.collection)) is not None:
            reports.append(report(place, found.node, "failed", why))
        elif (hits := came.get(place.collection)) is not None:
            lacking = "skipped", "it lacks a column of the filter"
            how = lacking if hits.unmatched else how_it_went(hits, mode)
            reports.append(report(place, found.node, *how, found.took_ms))
        else:
            reports.append(report(place, found.node, *absent))
    return reports


def without_texts(
    reports: Sequence[ShardReport],
    missing: Mapping[tuple[str, str], list[str]],
    texts: Mapping[TextKey, str],
) -> list[ShardReport]:
    """The reports, `failed` where a hit's text is missing: its content is empty."""
    lost = {
        shard for shard, ids in missing.items() if any((*shard, name) not in texts for name in ids)
    }
    return [
        msgspec.structs.replace(one, status="failed", reason="its text did not come in time")
        if (one.node, one.collection) in lost
        else one
        for one in reports
    ]
