"""One search over many nodes: choose, scatter, gather until the deadline, rank as one index.

A node that is dead, hung or wrong costs the others nothing: its shards are named with the reason,
and the answer goes out with what came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from mesh.core.merge import Ranking, rank
from mesh.core.route_table import Holder, RouteTable, refusal
from mesh.errors import DeadlineExceededError, InvalidError, MeshError, UnavailableError
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
)

_LEAST_FETCH_S = 0.1
"""Long texts of the final hits get at least this long, even if that is past the deadline."""


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

    async def search(self, request: SearchRequest, table: RouteTable) -> SearchResult:
        """Scatter, gather, rank; never later than the request's `timeout_ms`, give or take a loop.

        Raises:
            InvalidError: What the mesh or every node asked refuses.
            UnavailableError: `require` is not met; names the shards.
        """
        began = self._clock.monotonic()
        options = request.options
        give_up = began + options.timeout_ms / 1000
        chosen = plan(table, request)
        parts, reports = await self._scatter(request, chosen, give_up)
        reports = sorted(
            [*chosen.reports, *reports], key=lambda report: (report.collection, report.shard)
        )
        self._require(request, reports)
        ranking = rank(
            parts,
            mode=options.mode,
            limit=request.limit,
            strategy=options.strategy,
            deduplicate=options.deduplicate,
            explain=options.explain,
        )
        texts = await self._texts(ranking, give_up)
        reports = _without_texts(reports, ranking, texts)
        took_ms = (self._clock.monotonic() - began) * 1000
        return search_result(
            ranking, texts=texts, reports=reports, strategy=options.strategy, duration_ms=took_ms
        )

    async def _scatter(
        self, request: SearchRequest, chosen: Plan, give_up: float
    ) -> tuple[list[Candidates], list[ShardReport]]:
        left_s = give_up - self._clock.monotonic()
        tasks = {
            node: asyncio.create_task(self._ask(node, holders, request, left_s))
            for node, holders in chosen.asked.items()
        }
        if not tasks:
            return [], []
        try:
            await asyncio.wait(tasks.values(), timeout=left_s)
        finally:
            for task in tasks.values():
                task.cancel()
        parts: list[Candidates] = []
        reports: list[ShardReport] = []
        refusals: list[InvalidError] = []
        outcomes = await asyncio.gather(*tasks.values(), return_exceptions=True)
        for (node, holders), outcome in zip(chosen.asked.items(), outcomes, strict=True):
            match outcome:
                case Candidates():
                    parts.append(msgspec.structs.replace(outcome, node=node))
                    reports += _answered(holders, outcome, filtered=bool(request.options.filters))
                case InvalidError():
                    refusals.append(outcome)
                    reports += [_report(holder, "skipped", str(outcome)) for holder in holders]
                case DeadlineExceededError() | asyncio.CancelledError():
                    reports += [
                        _report(holder, "timed_out", "no answer in time") for holder in holders
                    ]
                case MeshError():
                    reports += [_report(holder, "failed", str(outcome)) for holder in holders]
                case BaseException():
                    raise outcome
        if refusals and not parts and all(report.status == "skipped" for report in reports):
            raise refusals[0]  # else one that did not answer may know what others refuse
        return parts, reports

    async def _ask(
        self, node: str, holders: Sequence[Holder], request: SearchRequest, timeout_s: float
    ) -> Candidates:
        mine = [holder.info.name for holder in holders]
        options = msgspec.structs.replace(request.options, collections=mine, nodes=None)
        asked = msgspec.structs.replace(request, options=options, candidates=True)
        return await self._caller.node(node, "search", asked, Candidates, timeout_s)

    def _require(self, request: SearchRequest, reports: Sequence[ShardReport]) -> None:
        shards = coverage(reports)
        counted = shards.total - shards.skipped
        need = {"any": min(1, counted), "quorum": counted // 2 + 1, "all": counted}
        if shards.ok >= need[request.options.require] or not counted:
            return
        missing = "; ".join(
            f"{report.collection} on {report.node}: {report.reason}"
            for report in reports
            if report.status in {"failed", "timed_out"}
        )
        raise UnavailableError(
            f"{shards.ok} of {counted} shards answered, "
            f"{request.options.require} required: {missing}",
            retry_after_ms=1000,
        )

    async def _texts(self, ranking: Ranking, give_up: float) -> dict[TextKey, str]:
        """Long texts of the final hits; one that does not come in time is missing."""
        missing = missing_texts(ranking)
        if not missing:
            return {}
        left_s = max(give_up - self._clock.monotonic(), _LEAST_FETCH_S)
        found = await asyncio.gather(
            *(
                self._fetch(node, collection, ids, left_s)
                for (node, collection), ids in missing.items()
            )
        )
        return {key: text for texts in found for key, text in texts.items()}

    async def _fetch(
        self, node: str, collection: str, ids: list[str], timeout_s: float
    ) -> dict[TextKey, str]:
        request = FetchRequest(collection=collection, ids=ids)
        try:
            answer = await self._caller.node(node, "fetch", request, FetchResult, timeout_s)
        except MeshError:
            return {}
        return {(node, collection, document.id): document.content for document in answer.documents}


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
    reports: Sequence[ShardReport], ranking: Ranking, texts: Mapping[TextKey, str]
) -> list[ShardReport]:
    """The reports, `failed` where a hit's text is missing: its content is empty."""
    lost = {
        shard
        for shard, ids in missing_texts(ranking).items()
        if any((*shard, name) not in texts for name in ids)
    }
    return [
        msgspec.structs.replace(report, status="failed", reason="its text did not come in time")
        if (report.node, report.collection) in lost
        else report
        for report in reports
    ]


def _report(holder: Holder, status: str, reason: str, took_ms: float | None = None) -> ShardReport:
    return ShardReport(
        collection=holder.info.name,
        shard=holder.info.shard,
        node=holder.node.slug,
        status=status,
        reason=reason,
        took_ms=took_ms,
    )
