"""One search over many nodes: choose, scatter, gather until the deadline, rank as one index.

A node that is dead, hung or wrong costs the others nothing: its shards are named with the reason,
and the answer goes out with what came.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import msgspec

from mesh.core.merge import rank
from mesh.core.route_table import RouteTable, refusal
from mesh.errors import (
    CircuitOpenError,
    DeadlineExceededError,
    ForbiddenError,
    InvalidError,
    MeshError,
    UnavailableError,
)
from mesh.ports import Clock
from mesh.runtime.caller import Caller
from mesh.runtime.peers import Group
from mesh.runtime.results import (
    TextKey,
    coverage,
    how_it_went,
    missing_texts,
    search_result,
)
from mesh.types import SearchMode
from mesh.wire.messages import (
    Candidates,
    FetchRequest,
    FetchResult,
    SearchRequest,
    SearchResult,
    ShardReport,
    Shards,
)

_LEAST_FETCH_S = 0.1
"""Long texts of the final hits get at least this long, even if that is past the deadline."""
_MOST_PLANS = 256
_Names = tuple[str, ...] | None
_Outcome = tuple["Part", Candidates | MeshError]
"""What was asked for, and what came of it."""


class Place(NamedTuple):
    """A shard of a collection, and who is named for it where nobody answers."""

    collection: str
    shard: str
    node: str


@dataclass(frozen=True, slots=True)
class Part:
    """Shards that the same replicas hold: one request, to one of these."""

    places: list[Place]
    searched: Group
    fetched: Group
    suffix: str
    """Of the request's id, where a node may be asked for another part as well: who is told to stop
    one of them goes on with the other.
    """

    @property
    def collections(self) -> list[str]:
        """What is asked for."""
        return [place.collection for place in self.places]


@dataclass(frozen=True, slots=True)
class Plan:
    """Whom to ask for which collections, and which shards cannot be asked."""

    parts: list[Part]
    reports: list[ShardReport]
    """Of the shards that are not asked."""


def plan(table: RouteTable, request: SearchRequest) -> Plan:
    """Every shard once; one without a usable replica is reported as failed.

    Raises:
        InvalidError: A collection or node that the mesh does not know.
    """
    options = request.options
    wanted = table.collections() if options.collections is None else options.collections
    known = set(table.collections())
    _refuse_unknown("collections", set(wanted) - known, known)
    _refuse_unknown("nodes", set(options.nodes or ()) - set(table.nodes), table.nodes)
    asked: dict[tuple[str, ...], list[Place]] = {}
    reports: list[ShardReport] = []
    for collection in dict.fromkeys(wanted):
        for shard, replicas in table.shards(collection).items():
            chosen = [
                holder
                for holder in replicas
                if options.nodes is None or holder.node.slug in options.nodes
            ]
            if not chosen:
                continue  # not among the nodes the caller wants
            if any(holder.info.outdated for holder in chosen):
                whole = [
                    holder
                    for holder in chosen
                    if not (holder.info.outdated or refusal(holder.node))
                ]
                chosen = whole or chosen
            best = chosen[0].node
            place = Place(collection, shard, best.slug)
            if why := refusal(best):
                reports.append(_report(place, best.slug, "failed", why))
            else:
                slugs = tuple(sorted(holder.node.slug for holder in chosen))
                asked.setdefault(slugs, []).append(place)
    uses = Counter(slug for slugs in asked for slug in slugs)
    parts = [
        Part(
            places,
            Group(slugs, "search"),
            Group(slugs, "fetch"),
            f".{number}" if any(uses[slug] > 1 for slug in slugs) else "",
        )
        for number, (slugs, places) in enumerate(asked.items())
    ]
    return Plan(parts, reports)


def _refuse_unknown(option: str, unknown: set[str], known: Iterable[str]) -> None:
    if unknown:
        message = f"unknown {option[:-1]} {', '.join(map(repr, sorted(unknown)))}; there are: " + (
            ", ".join(sorted(known)) or "none yet"
        )
        raise InvalidError(message, fields={f"options.{option}": [message]})


class Federation:
    """Searches over all nodes, for one client."""

    def __init__(self, caller: Caller, clock: Clock) -> None:
        self._caller = caller
        self._clock = clock
        self._table: RouteTable | None = None
        self._plans: dict[tuple[_Names, _Names], Plan] = {}
        """Of this table, by the collections and nodes asked for."""

    async def search(self, request: SearchRequest, table: RouteTable) -> SearchResult:
        """Scatter, gather, rank; never later than the request's `timeout_ms`, give or take a loop.
        Nodes that have not answered when this ends, or is cancelled, are told to stop.

        Raises:
            InvalidError: What the mesh or every node asked refuses.
            ForbiddenError: No node may be asked.
            UnavailableError: `require` is not met; names the shards.
        """
        began = self._clock.monotonic()
        options = request.options
        give_up = began + options.timeout_ms / 1000
        chosen = self._plan(request, table)
        outcomes = await self._scatter(request, chosen, give_up)
        _refuse_what_all_refuse([part for _, part in outcomes])
        reports = _reports(outcomes, options.mode, filtered=bool(options.filters)) + chosen.reports
        reports.sort(key=_place)
        shards = coverage(reports)
        _require(request, shards, [part for _, part in outcomes if isinstance(part, MeshError)])
        ranking = rank(
            [part for _, part in outcomes if isinstance(part, Candidates)],
            mode=options.mode,
            limit=request.limit,
            strategy=options.strategy,
            deduplicate=options.deduplicate,
            explain=options.explain,
        )
        texts: dict[TextKey, str] = {}
        if missing := missing_texts(ranking):
            texts = await self._texts(request, missing, outcomes, give_up)
            shards = coverage(_without_texts(reports, missing, texts))
        return search_result(
            ranking,
            texts=texts,
            shards=shards,
            strategy=options.strategy,
            duration_ms=(self._clock.monotonic() - began) * 1000,
            id=request.id,
        )

    def _plan(self, request: SearchRequest, table: RouteTable) -> Plan:
        """`plan`, made once for as long as the table stays."""
        if table is not self._table or len(self._plans) >= _MOST_PLANS:
            self._caller.adopt(table)
            self._table = table
            self._plans = {}
        options = request.options
        key = _names(options.collections), _names(options.nodes)
        known = self._plans.get(key)
        if known is None:
            known = self._plans[key] = plan(table, request)
        return known

    async def _scatter(
        self, request: SearchRequest, chosen: Plan, give_up: float
    ) -> list[_Outcome]:
        left_s = give_up - self._clock.monotonic()
        asking = [self._ask(part, request, left_s) for part in chosen.parts]
        # One answer is awaited as it is: a task for it costs a tenth of the whole search.
        outcomes = [await asking[0]] if len(asking) == 1 else await asyncio.gather(*asking)
        return list(zip(chosen.parts, outcomes, strict=True))

    async def _ask(
        self, part: Part, request: SearchRequest, timeout_s: float
    ) -> Candidates | MeshError:
        """What a node answered, or what became of it."""
        options = msgspec.structs.replace(request.options, collections=part.collections, nodes=None)
        asked = msgspec.structs.replace(
            request, id=request.id + part.suffix, options=options, candidates=True
        )
        try:
            node, found = await self._caller.any(
                part.searched, asked, Candidates, timeout_s, trace=request.id
            )
        except MeshError as error:
            return error
        return found if found.node == node else msgspec.structs.replace(found, node=node)

    async def _texts(
        self,
        request: SearchRequest,
        missing: Mapping[tuple[str, str], list[str]],
        outcomes: Sequence[_Outcome],
        give_up: float,
    ) -> dict[TextKey, str]:
        """Long texts of the final hits; one that does not come in time is missing."""
        left_s = max(give_up - self._clock.monotonic(), _LEAST_FETCH_S)
        holders = {
            (found.node, place.collection): part.fetched
            for part, found in outcomes
            if isinstance(found, Candidates)
            for place in part.places
        }
        found = await asyncio.gather(
            *(
                self._fetch(request, holders[shard], shard, ids, left_s)
                for shard, ids in missing.items()
                if shard in holders  # a node that answers what it was not asked is not asked again
            )
        )
        return {key: text for texts in found for key, text in texts.items()}

    async def _fetch(
        self,
        request: SearchRequest,
        holders: Group,
        shard: tuple[str, str],
        ids: list[str],
        timeout_s: float,
    ) -> dict[TextKey, str]:
        """From the node that found them; another replica has them as well."""
        node, collection = shard
        asked = FetchRequest(
            id=f"{request.id}.{node}.{collection}",  # to be stopped apart from its siblings
            trace=request.trace,
            on_behalf=request.on_behalf,
            collection=collection,
            ids=ids,
        )
        try:
            _, answer = await self._caller.any(
                holders, asked, FetchResult, timeout_s, prefer=node, trace=request.id
            )
        except MeshError:
            return {}
        return {(node, collection, document.id): document.content for document in answer.documents}


def _reports(
    outcomes: Sequence[_Outcome], mode: SearchMode, *, filtered: bool
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
        reports += [_report(place, place.node, status, why) for place in part.places]
    return reports


def _refuse_what_all_refuse(outcomes: Sequence[Candidates | MeshError]) -> None:
    if outcomes and all(isinstance(outcome, InvalidError) for outcome in outcomes):
        raise cast("InvalidError", outcomes[0])  # one that is silent may know what others refuse
    if outcomes and all(isinstance(outcome, ForbiddenError) for outcome in outcomes):
        raise ForbiddenError(
            "this takes the scope 'search'; search:COLLECTION works over HTTP only"
        )


def _require(request: SearchRequest, shards: Shards, errors: Sequence[MeshError]) -> None:
    counted = shards.total - shards.skipped
    need = {"any": min(1, counted), "quorum": counted // 2 + 1, "all": counted}
    if shards.ok >= need[request.options.require] or not counted:
        return
    missing = "; ".join(
        f"{report.collection} on {report.node}: {report.reason}"
        for report in shards.details
        if report.status in {"failed", "timed_out"}
    )
    open_everywhere = errors and all(isinstance(error, CircuitOpenError) for error in errors)
    waits = [error.retry_after_ms for error in errors if error.retry_after_ms is not None]
    raise (CircuitOpenError if open_everywhere else UnavailableError)(
        f"{shards.ok} of {counted} shards answered, {request.options.require} required: {missing}",
        retry_after_ms=min(waits, default=1000),
    )


def _answered(
    part: Part, found: Candidates, mode: SearchMode, *, filtered: bool
) -> list[ShardReport]:
    came = {hits.collection: hits for hits in found.shards}
    absent = ("skipped", "it cannot be filtered") if filtered else ("failed", "it is gone there")
    reports = []
    for place in part.places:
        if (why := found.failed.get(place.collection)) is not None:
            reports.append(_report(place, found.node, "failed", why))
        elif (hits := came.get(place.collection)) is not None:
            reports.append(_report(place, found.node, *how_it_went(hits, mode), found.took_ms))
        else:
            reports.append(_report(place, found.node, *absent))
    return reports


def _without_texts(
    reports: Sequence[ShardReport],
    missing: Mapping[tuple[str, str], list[str]],
    texts: Mapping[TextKey, str],
) -> list[ShardReport]:
    """The reports, `failed` where a hit's text is missing: its content is empty."""
    lost = {
        shard for shard, ids in missing.items() if any((*shard, name) not in texts for name in ids)
    }
    return [
        msgspec.structs.replace(report, status="failed", reason="its text did not come in time")
        if (report.node, report.collection) in lost
        else report
        for report in reports
    ]


def _names(names: Sequence[str] | None) -> _Names:
    return None if names is None else tuple(names)


def _place(report: ShardReport) -> tuple[str, str]:
    return report.collection, report.shard


def _report(
    place: Place, node: str, status: str, reason: str, took_ms: float | None = None
) -> ShardReport:
    return ShardReport(
        collection=place.collection,
        shard=place.shard,
        node=node,
        status=status,
        reason=reason,
        took_ms=took_ms,
    )
