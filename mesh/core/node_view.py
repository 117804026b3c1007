"""What a master knows of every registered node: one record each, kept from what operators say, what
the nodes tell and what probes find.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from mesh.core.ewma import ewma
from mesh.core.health_events import NEVER_HEARD, NOT_HEARD_YET
from mesh.core.reported_load import ReportedLoad
from mesh.errors import NotFoundError
from mesh.types import Health, Status
from mesh.wire.messages import (
    Changed,
    Heartbeat,
    NodeLoad,
    NodeRecord,
    NodesQuery,
    NodeStats,
    RouteNode,
)

_SMOOTHING = 0.2
"""Share of the newest probe in the response time: the last nine make 86 % of it."""

_WORTH_SAVING = 0.5
"""Change of the response time, relative, that is worth a write: it is measured again soon."""

_NAMED_AT_MOST = 20


class NodeView:
    """The records of one master. `routes()` is the part that callers get to see.

    `moved` is set whenever a route changes, `loads_moved` where it is only how busy a node is;
    whoever publishes routes clears them.
    """

    def __init__(self) -> None:
        self._records: dict[str, NodeRecord] = {}
        self._ordered: list[str] | None = None
        """Slugs, sorted when they are next needed."""
        self._loads: dict[str, ReportedLoad] = {}
        self._routes: dict[str, RouteNode] = {}
        self._unsaved: set[str] = set()
        self._saved_ms: dict[str, float] = {}
        self.moved = False
        self.loads_moved = False

    # -- reading ---------------------------------------------------------------------------------

    def __contains__(self, slug: str) -> bool:
        return slug in self._records

    def records(self) -> list[NodeRecord]:
        """All, in order of their slugs."""
        if self._ordered is None:
            self._ordered = sorted(self._records)
        return [self._records[slug] for slug in self._ordered]

    def __iter__(self) -> Iterator[NodeRecord]:
        """All, in no order: for what is done many times a second."""
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def get(self, slug: str) -> NodeRecord | None:
        """The record of a slug, or None."""
        return self._records.get(slug)

    def find(self, name: str) -> NodeRecord:
        """The node with this slug or id.

        Raises:
            NotFoundError: It names the nodes that there are.
        """
        record = self._records.get(name)
        if record is None:
            record = next((node for node in self._records.values() if node.id == name), None)
        if record is None:
            raise NotFoundError(f"no node {name[:80]!r}; {self._there_are()}")
        return record

    def select(self, query: NodesQuery) -> list[NodeRecord]:
        """Nodes that match all fields given, in order of their slugs.

        Raises:
            NotFoundError: `query.node` names no node.
        """
        found = [self.find(query.node)] if query.node else self.records()
        return [
            record
            for record in found
            if query.status in (None, record.status) and query.type in ("", record.type)
        ]

    def routes(self) -> list[RouteNode]:
        """One route per node."""
        return list(self._routes.values())

    def stats(self, *, blind: bool) -> NodeStats:
        """Counts over all nodes; a document that replicas share counts once."""
        records = self._records.values()
        statuses = Counter(record.status for record in records)
        times = [r.response_time_ms for r in records if r.response_time_ms is not None]
        rows: dict[tuple[str, str], int] = {}
        for record in records:
            for info in record.collections:
                shard = (info.name, info.shard)
                rows[shard] = max(rows.get(shard, 0), info.rows)
        return NodeStats(
            total=len(self._records),
            active=statuses[Status.ACTIVE],
            inactive=statuses[Status.INACTIVE],
            error=statuses[Status.ERROR],
            healthy=sum(
                record.status is Status.ACTIVE and record.health is Health.HEALTHY
                for record in records
            ),
            avg_response_time_ms=sum(times) / len(times) if times else None,
            by_type=dict(sorted(Counter(record.type for record in records).items())),
            by_health=dict(sorted(Counter(str(record.health) for record in records).items())),
            collections=len({name for name, _ in rows}),
            documents=sum(rows.values()),
            blind=blind,
        )

    def _there_are(self) -> str:
        slugs = sorted(self._records)
        if not slugs:
            return "no node is registered yet"
        more = len(slugs) - _NAMED_AT_MOST
        return "there are: " + ", ".join(slugs[:_NAMED_AT_MOST]) + (", …" if more > 0 else "")

    # -- what happens to the registry ------------------------------------------------------------

    def load(self, records: Iterable[NodeRecord]) -> None:
        """Take over what the database has; unreachable until something else is heard."""
        self._ordered = None
        for record in records:
            self._loads[record.slug] = ReportedLoad()
            self._records[record.slug] = msgspec.structs.replace(
                record,
                health=Health.UNREACHABLE,
                reason=NOT_HEARD_YET if record.incarnation else NEVER_HEARD,
            )
            if record.response_time_ms is not None:
                self._saved_ms[record.slug] = record.response_time_ms
            self._reroute(record.slug)

    def change(self, record: NodeRecord, *, at: int) -> NodeRecord:
        """Take over what an operator changed (as the database has it now), at unix ms `at`."""
        changed = self._replace(
            record.slug,
            name=record.name,
            url=record.url,
            type=record.type,
            status=record.status,
            description=record.description,
            capabilities=record.capabilities,
            domains=record.domains,
            keywords=record.keywords,
            metadata=record.metadata,
            weight=record.weight,
            updated_at=at,
        )
        self._unsaved.add(record.slug)
        return changed

    def remove(self, slug: str) -> None:
        """Forget a node."""
        self._records.pop(slug, None)
        self._ordered = None
        self._loads.pop(slug, None)
        self._saved_ms.pop(slug, None)
        self._unsaved.discard(slug)
        if self._routes.pop(slug, None) is not None:
            self.moved = True

    def unsaved(self) -> list[NodeRecord]:
        """Records that the database does not have as they are now."""
        return [self._records[slug] for slug in sorted(self._unsaved)]

    def saved(self, record: NodeRecord) -> None:
        """The database has `record`; what has changed since is still unsaved."""
        if record.response_time_ms is not None:
            self._saved_ms[record.slug] = record.response_time_ms
        if self._records.get(record.slug) is record:
            self._unsaved.discard(record.slug)

    # -- what is seen of the nodes ---------------------------------------------------------------

    def heard(self, beat: Heartbeat) -> None:
        """Take over what a node says of itself; an older life says nothing."""
        record = self._records.get(beat.node)
        if record is None or beat.incarnation < record.incarnation:
            return
        slug = record.slug
        if beat.incarnation > record.incarnation:
            self._loads[slug] = ReportedLoad()
        load = self._loads[slug].heard(beat)
        lasting = (beat.incarnation, beat.version, beat.collections, beat.actions, beat.shard)
        known = (record.incarnation, record.version, record.collections, record.actions)
        if lasting != (*known, record.shard):
            self._unsaved.add(slug)
            record = msgspec.structs.replace(
                record,
                incarnation=beat.incarnation,
                version=beat.version,
                collections=beat.collections,
                actions=beat.actions,
                shard=beat.shard,
            )
            self._records[slug] = _with_figures(record, beat)
            self._reroute(slug)
            return
        self._records[slug] = _with_figures(record, beat)
        route = self._routes[slug]
        if load is not route.load:
            self._routes[slug] = msgspec.structs.replace(route, load=load)
            self.loads_moved = True

    def collection_changed(self, slug: str, event: Changed) -> None:
        """A collection that is known has new data; a new one comes with the next heartbeat, which
        tells its embedder too.
        """
        record = self._records.get(slug)
        if record is None or event.incarnation != record.incarnation:
            return
        collections = [
            msgspec.structs.replace(info, data_version=event.data_version, rows=event.rows)
            if (info.name, info.shard) == (event.collection, event.shard)
            else info
            for info in record.collections
        ]
        if collections != record.collections:
            self._unsaved.add(slug)
            self._replace(slug, collections=collections)

    def set_health(self, slug: str, health: Health, reason: str) -> None:
        """What the failure detector declares."""
        if slug in self._records:
            self._replace(slug, health=health, reason=reason)

    def probed(self, slug: str, *, took_ms: float | None, at: int) -> None:
        """A probe was answered after `took_ms` at unix ms `at`; None: it failed."""
        record = self._records.get(slug)
        if record is None:
            return
        if took_ms is None:
            self._records[slug] = msgspec.structs.replace(record, failures=record.failures + 1)
            self._unsaved.add(slug)
            return
        mean_ms = ewma(record.response_time_ms, took_ms, _SMOOTHING)
        saved_ms = self._saved_ms.get(slug)
        if (
            record.failures
            or saved_ms is None
            or abs(mean_ms - saved_ms) > _WORTH_SAVING * saved_ms
        ):
            self._unsaved.add(slug)
        self._records[slug] = msgspec.structs.replace(
            record, response_time_ms=round(mean_ms, 3), last_ping_at=at, failures=0
        )  # callers do not route by it

    def _replace(self, slug: str, **changes: Any) -> NodeRecord:
        record = msgspec.structs.replace(self._records[slug], **changes)
        self._records[slug] = record
        self._reroute(slug)
        return record

    def _reroute(self, slug: str) -> None:
        route = route_of(self._records[slug], self._loads[slug].load)
        if self._routes.get(slug) != route:
            self._routes[slug] = route
            self.moved = True


def _with_figures(record: NodeRecord, beat: Heartbeat) -> NodeRecord:
    return msgspec.structs.replace(
        record,
        lag_ms=beat.lag_ms,
        in_flight=beat.in_flight,
        queued=beat.queued,
        verbs=beat.verbs,
    )


def route_of(record: NodeRecord, load: NodeLoad) -> RouteNode:
    """The part of a record that callers route by; breakers are somebody else's to add."""
    return RouteNode(
        slug=record.slug,
        name=record.name,
        status=record.status,
        health=record.health,
        reason=record.reason,
        incarnation=record.incarnation,
        type=record.type,
        weight=record.weight,
        capabilities=record.capabilities,
        collections=record.collections,
        actions=[action.name for action in record.actions],
        load=load,
        shard=record.shard,
    )
