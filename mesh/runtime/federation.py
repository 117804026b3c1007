"""One search over many nodes: choose, scatter, gather until the deadline, rank as one index.

A node that is dead, hung or wrong costs the others nothing: its shards are named with the reason,
and the answer goes out with what came. What was asked of the same data before, or is being asked
now, is not asked again (see `answer_cache`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from mesh.core.merge import rank
from mesh.core.route_table import RouteTable
from mesh.errors import DeadlineExceededError, MeshError
from mesh.ports import Clock
from mesh.runtime.answer_cache import AnswerCache, Place
from mesh.runtime.caller import Caller
from mesh.runtime.common_embedder import CommonEmbedder, compared, mixes, needs_comparison
from mesh.runtime.long_texts import long_texts
from mesh.runtime.results import TextKey, coverage, lacks_a_leg, missing_texts, search_result
from mesh.runtime.search_plan import Part, Plan, plan
from mesh.runtime.shard_reports import (
    Outcome,
    refuse_what_all_refuse,
    reports_of,
    require,
    without_texts,
)
from mesh.runtime.shared_searches import SharedSearches
from mesh.wire.messages import (
    Candidates,
    FoundCandidates,
    SearchRequest,
    SearchResult,
    ShardReport,
)

_GRACE_S = 0.015
"""Who has been asked answers, or is known not to have, so long after the deadline at the latest:
timers come late, and a broker that hangs has to be found out."""
_FETCH_GRACE_S = 0.035
"""Long texts of the final hits may come so long after it."""
_MOST_COMPARING_S = 0.15
_MOST_PLANS = 256
_Names = tuple[str, ...] | None


class Federation:
    """Searches over all nodes, for one client."""

    def __init__(
        self,
        caller: Caller,
        clock: Clock,
        cache: AnswerCache | None = None,
        common: CommonEmbedder | None = None,
    ) -> None:
        """Args:
        caller: Asks.
        clock: Time.
        cache: Of answers; None: every search asks the nodes.
        common: Makes cosines of different embedders comparable; None: nothing does.
        """
        self._caller = caller
        self._common = common
        self._clock = clock
        self._cache = cache
        if cache is not None:
            self._shared = SharedSearches(cache, clock, self._scattered)
        self._table: RouteTable | None = None
        self._plans: dict[tuple[_Names, _Names], Plan] = {}
        """Of this table, by the collections and nodes asked for."""
        self._late: set[asyncio.Task[Candidates | MeshError]] = set()
        """Requests whose search has gone out without them."""

    async def search(self, request: SearchRequest, table: RouteTable) -> SearchResult:
        """Scatter, gather, rank; at most 50 ms later than the request's `timeout_ms`, whatever
        hangs. Nodes that have not answered when this ends, or is cancelled, are told to stop.

        Raises:
            InvalidError: What the mesh or every node asked refuses.
            ForbiddenError: No node may be asked.
            UnavailableError: `require` is not met; names the shards.
        """
        began = self._clock.monotonic()
        chosen = self._plan(request, table)
        if self._cache is not None:
            place = self._cache.place(request, chosen, began)
            if (question := self._cache.flight(request, chosen, place)) is not None:
                return await self._shared.answer(request, chosen, place, question, began)
        return await self._scattered(request, chosen, None, began)

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

    # -- of the nodes ------------------------------------------------------------------------------

    async def _scattered(
        self, request: SearchRequest, chosen: Plan, place: Place | None, began: float
    ) -> SearchResult:
        options = request.options
        give_up = began + options.timeout_ms / 1000
        mixed = self._common is not None and mixes(chosen.fingerprints, options)
        if mixed and self._common is not None:
            self._common.prepare()
        until = give_up - _comparing_s(options.timeout_ms / 1000) if mixed else give_up
        outcomes = await self._scatter(request, chosen, until, mixed=mixed)
        refuse_what_all_refuse([part for _, part in outcomes])
        reports = reports_of(outcomes, options.mode, filtered=bool(options.filters))
        reports += chosen.reports
        reports.sort(key=_place)
        shards = coverage(reports)
        errors = [part for _, part in outcomes if isinstance(part, MeshError)]
        require(request, shards, errors)
        parts = [part for _, part in outcomes if isinstance(part, Candidates)]
        one_leg = lacks_a_leg(reports)
        keep = place is not None
        if mixed or needs_comparison(parts, options):
            parts, scaled, hurried = await compared(self._common, request, parts, give_up)
            keep = keep and not (scaled or hurried)
            if scaled:
                reports = [_scaled(report, scaled) for report in reports]
                shards = coverage(reports)
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
            left_s = give_up + _FETCH_GRACE_S - self._clock.monotonic()
            texts = await long_texts(self._caller, request, missing, outcomes, left_s)
            shards = coverage(without_texts(reports, missing, texts))
            if options.require != "any":  # for it a hit without its text is better than none
                require(request, shards, errors)
        answer = search_result(
            ranking,
            texts=texts,
            shards=shards,
            strategy=options.strategy,
            duration_ms=(self._clock.monotonic() - began) * 1000,
            one_leg=one_leg,
            id=request.id,
        )
        if keep and place is not None and self._cache is not None:
            self._cache.keep(place, answer, parts, began)
        return answer

    async def _scatter(
        self, request: SearchRequest, chosen: Plan, until: float, *, mixed: bool
    ) -> list[Outcome]:
        """What came of each part by then (monotonic s)."""
        left_s = until - self._clock.monotonic()
        if mixed and request.options.threshold is not None:
            # A threshold is a cosine of one embedder: who has another cannot cut by it.
            options = msgspec.structs.replace(request.options, threshold=0.0)
            request = msgspec.structs.replace(request, options=options)
        asking = [self._ask(part, request, left_s, mixed=mixed) for part in chosen.parts]
        if not asking:
            return []
        if len(asking) == 1:
            # One answer is awaited as it is: a task for it costs a tenth of the whole search.
            try:
                async with asyncio.timeout(left_s + _GRACE_S):
                    return [(chosen.parts[0], await asking[0])]
            except TimeoutError:
                return [(chosen.parts[0], DeadlineExceededError())]
        tasks = [asyncio.ensure_future(coroutine) for coroutine in asking]
        try:
            done, late = await asyncio.wait(tasks, timeout=left_s + _GRACE_S)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        for task in late:  # it ends by itself, and tells its breaker why
            self._late.add(task)
            task.add_done_callback(self._late.discard)
        return [
            (part, task.result() if task in done else DeadlineExceededError())
            for part, task in zip(chosen.parts, tasks, strict=True)
        ]

    async def _ask(
        self, part: Part, request: SearchRequest, timeout_s: float, *, mixed: bool
    ) -> Candidates | MeshError:
        """What a node answered, or what became of it."""
        options = msgspec.structs.replace(
            request.options, collections=part.collections, nodes=None, cache=True
        )
        asked = msgspec.structs.replace(
            request,
            id=request.id + part.suffix,
            options=options,
            candidates=True,
            texts=None if mixed else request.limit,
        )
        try:
            node, found = await self._caller.any(
                part.searched, asked, FoundCandidates, timeout_s, trace=request.id
            )
        except MeshError as error:
            return error
        return found if found.node == node else msgspec.structs.replace(found, node=node)


def _names(names: Sequence[str] | None) -> _Names:
    return None if names is None else tuple(names)


def _comparing_s(timeout_s: float) -> float:
    """Of a search's time that nodes do not get: what they found is still to be compared."""
    return min(timeout_s / 4, _MOST_COMPARING_S)


def _scaled(report: ShardReport, why: str) -> ShardReport:
    """Who answered by words alone has no cosines that could be scaled."""
    if report.status != "ok" or report.reason:
        return report
    return msgspec.structs.replace(report, reason=why)


def _place(report: ShardReport) -> tuple[str, str]:
    return report.collection, report.shard
