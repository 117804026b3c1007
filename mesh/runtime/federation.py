"""One search over many nodes: choose, scatter, gather until the deadline, rank as one index.

A node that is dead, hung or wrong costs the others nothing: its shards are named with the reason,
and the answer goes out with what came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from mesh.core.merge import rank
from mesh.core.route_table import Holder, RouteTable, refusal
from mesh.errors import (
    DeadlineExceededError,
    ForbiddenError,
    InvalidError,
    MeshError,
    UnavailableError,
)
from mesh.ports import Clock
from mesh.runtime.caller import Caller
from mesh.runtime.results import TextKey, coverage, missing_texts, search_result
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


@dataclass(frozen=True, slots=True)
class Plan:
    """Whom to ask for which collections, and which shards cannot be asked."""

    asked: dict[str, list[Holder]]
    """By node."""
    reports: list[ShardReport]
    """Of the shards that are not asked."""


def plan(table: RouteTable, request: SearchRequest) -> Plan:
    """One replica of every shard; a shard without a usable one is reported as failed.

    Raises:
        InvalidError: A collection or node that the mesh does not know.
    """
    options = request.options
    wanted = table.collections() if options.collections is None else options.collections
    known = set(table.collections())
    _refuse_unknown("collections", set(wanted) - known, known)
    _refuse_unknown("nodes", set(options.nodes or ()) - set(table.nodes), table.nodes)
    asked: dict[str, list[Holder]] = {}
    reports: list[ShardReport] = []
    for collection in dict.fromkeys(wanted):
        for replicas in table.shards(collection).values():
            chosen = [
                holder
                for holder in replicas
                if options.nodes is None or holder.node.slug in options.nodes
            ]
            if not chosen:
                continue  # not among the nodes the caller wants
            best = chosen[0]
            if why := refusal(best.node):
                reports.append(_report(best, "failed", why))
            else:
                asked.setdefault(best.node.slug, []).append(best)
    return Plan(asked, reports)


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
        parts, reports = await self._scatter(request, chosen, give_up)
        reports += chosen.reports
        reports.sort(key=_place)
        shards = coverage(reports)
        _require(request, shards)
        ranking = rank(
            parts,
            mode=options.mode,
            limit=request.limit,
            strategy=options.strategy,
            deduplicate=options.deduplicate,
            explain=options.explain,
        )
        texts: dict[TextKey, str] = {}
        if missing := missing_texts(ranking):
            texts = await self._texts(request, missing, give_up)
            shards = coverage(_without_texts(reports, missing, texts))
        took_ms = (self._clock.monotonic() - began) * 1000
        return search_result(
            ranking, texts=texts, shards=shards, strategy=options.strategy, duration_ms=took_ms
        )

    def _plan(self, request: SearchRequest, table: RouteTable) -> Plan:
        """`plan`, made once for as long as the table stays."""
        if table is not self._table or len(self._plans) >= _MOST_PLANS:
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
    ) -> tuple[list[Candidates], list[ShardReport]]:
        left_s = give_up - self._clock.monotonic()
        asking = [
            self._ask(node, holders, request, left_s) for node, holders in chosen.asked.items()
        ]
        # One answer is awaited as it is: a task for it costs a tenth of the whole search.
        outcomes = [await asking[0]] if len(asking) == 1 else await asyncio.gather(*asking)
        parts: list[Candidates] = []
        reports: list[ShardReport] = []
        refusals: list[InvalidError] = []
        for holders, outcome in zip(chosen.asked.values(), outcomes, strict=True):
            match outcome:
                case Candidates():
                    parts.append(outcome)
                    reports += _answered(holders, outcome, filtered=bool(request.options.filters))
                case InvalidError():
                    refusals.append(outcome)
                    reports += [_report(holder, "skipped", str(outcome)) for holder in holders]
                case DeadlineExceededError():
                    reports += [
                        _report(holder, "timed_out", "no answer in time") for holder in holders
                    ]
                case MeshError():
                    reports += [_report(holder, "failed", str(outcome)) for holder in holders]
        if refusals and not parts and all(report.status == "skipped" for report in reports):
            raise refusals[0]  # else one that did not answer may know what others refuse
        if outcomes and all(isinstance(outcome, ForbiddenError) for outcome in outcomes):
            raise ForbiddenError(
                "this takes the scope 'search'; search:COLLECTION works over HTTP only"
            )
        return parts, reports

    async def _ask(
        self, node: str, holders: Sequence[Holder], request: SearchRequest, timeout_s: float
    ) -> Candidates | MeshError:
        """What a node answered, or what became of it."""
        mine = [holder.info.name for holder in holders]
        options = msgspec.structs.replace(request.options, collections=mine, nodes=None)
        asked = msgspec.structs.replace(request, options=options, candidates=True)
        try:
            part = await self._caller.node(node, "search", asked, Candidates, timeout_s)
        except DeadlineExceededError as error:
            self._caller.give_up(node, request.id)
            return error
        except asyncio.CancelledError:
            self._caller.give_up(node, request.id)
            raise
        except MeshError as error:
            return error
        return part if part.node == node else msgspec.structs.replace(part, node=node)

    async def _texts(
        self,
        request: SearchRequest,
        missing: Mapping[tuple[str, str], list[str]],
        give_up: float,
    ) -> dict[TextKey, str]:
        """Long texts of the final hits; one that does not come in time is missing."""
        left_s = max(give_up - self._clock.monotonic(), _LEAST_FETCH_S)
        found = await asyncio.gather(
            *(
                self._fetch(request, node, collection, ids, left_s)
                for (node, collection), ids in missing.items()
            )
        )
        return {key: text for texts in found for key, text in texts.items()}

    async def _fetch(
        self, request: SearchRequest, node: str, collection: str, ids: list[str], timeout_s: float
    ) -> dict[TextKey, str]:
        asked = FetchRequest(
            id=request.id,
            trace=request.trace,
            on_behalf=request.on_behalf,
            collection=collection,
            ids=ids,
        )
        try:
            answer = await self._caller.node(node, "fetch", asked, FetchResult, timeout_s)
        except (asyncio.CancelledError, DeadlineExceededError) as error:
            self._caller.give_up(node, request.id)
            if isinstance(error, DeadlineExceededError):
                return {}
            raise
        except MeshError:
            return {}
        return {(node, collection, document.id): document.content for document in answer.documents}


def _require(request: SearchRequest, shards: Shards) -> None:
    counted = shards.total - shards.skipped
    need = {"any": min(1, counted), "quorum": counted // 2 + 1, "all": counted}
    if shards.ok >= need[request.options.require] or not counted:
        return
    missing = "; ".join(
        f"{report.collection} on {report.node}: {report.reason}"
        for report in shards.details
        if report.status in {"failed", "timed_out"}
    )
    raise UnavailableError(
        f"{shards.ok} of {counted} shards answered, {request.options.require} required: {missing}",
        retry_after_ms=1000,
    )


def _answered(holders: Sequence[Holder], part: Candidates, *, filtered: bool) -> list[ShardReport]:
    came = {hits.collection for hits in part.shards}
    absent = ("skipped", "it cannot be filtered") if filtered else ("failed", "it is gone there")
    reports = []
    for holder in holders:
        if (why := part.failed.get(holder.info.name)) is not None:
            reports.append(_report(holder, "failed", why))
        elif holder.info.name in came:
            reports.append(_report(holder, "ok", "", part.took_ms))
        else:
            reports.append(_report(holder, *absent))
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


def _report(holder: Holder, status: str, reason: str, took_ms: float | None = None) -> ShardReport:
    return ShardReport(
        collection=holder.info.name,
        shard=holder.info.shard,
        node=holder.node.slug,
        status=status,
        reason=reason,
        took_ms=took_ms,
    )
