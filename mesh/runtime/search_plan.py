"""Whom a search asks for what: every shard once, of each the replicas that may be asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mesh.core.data_versions import Shard, Stamp
from mesh.core.route_table import Holder, RouteTable, refusal
from mesh.errors import InvalidError
from mesh.runtime.peers import Group
from mesh.wire.messages import RouteNode, SearchRequest, ShardReport

_SEARCH = "search"


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


@dataclass(slots=True, eq=False)
class Plan:
    """Whom to ask for which collections, and which shards cannot be asked."""

    parts: list[Part]
    reports: list[ShardReport]
    """Of the shards that are not asked."""
    fingerprints: frozenset[str]
    """Of the embedders behind what is asked, as far as it is known."""
    by_function: bool
    """A function of its author's searches a part of it."""
    shards: tuple[Shard, ...] = field(init=False)
    """What is asked, and whom."""
    absent: tuple[tuple[str, str, str], ...] = field(init=False)
    """Collection, shard and status of what is not."""
    stamped: tuple[int, Stamp | None] | None = None
    """The state of the data, as of which turn of it."""

    def __post_init__(self) -> None:
        self.shards = tuple(
            Shard(place.collection, place.shard, part.searched.slugs)
            for part in self.parts
            for place in part.places
        )
        self.absent = tuple(
            (report.collection, report.shard, report.status) for report in self.reports
        )


def plan(table: RouteTable, request: SearchRequest) -> Plan:
    """Every shard once; one without a usable replica is reported as failed, one whose nodes do not
    search as skipped.

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
    fingerprints: set[str] = set()
    by_function = False
    for collection in dict.fromkeys(wanted):
        for shard, replicas in table.shards(collection).items():
            named = [
                holder
                for holder in replicas
                if options.nodes is None or holder.node.slug in options.nodes
            ]
            if not named:
                continue  # not among the nodes the caller wants
            chosen = _whole([holder for holder in named if searches(holder.node)])
            place = Place(collection, shard, (chosen or named)[0].node.slug)
            if not chosen:
                reports.append(report(place, place.node, "skipped", "its node does not search"))
            elif why := refusal(chosen[0].node):
                reports.append(report(place, place.node, "failed", why))
            else:
                asked.setdefault(_slugs(chosen), []).append(place)
                fingerprints.update(holder.info.fingerprint for holder in chosen)
                by_function |= any(holder.info.data_version <= 0 for holder in chosen)
    return Plan(_parts(asked), reports, frozenset(fingerprints - {""}), by_function)


def _whole(holders: list[Holder]) -> list[Holder]:
    """Those that answer with both legs, where one of them can be asked; else all."""
    whole = [one for one in holders if not (one.info.outdated or refusal(one.node))]
    return whole if whole and any(one.info.outdated for one in holders) else holders


def searches(node: RouteNode) -> bool:
    """Whether it offers searches; one that says nothing of what it offers does."""
    return not node.capabilities or _SEARCH in node.capabilities


def report(
    place: Place, node: str, status: str, reason: str, took_ms: float | None = None
) -> ShardReport:
    """How a shard's part of a search went."""
    return ShardReport(
        collection=place.collection,
        shard=place.shard,
        node=node,
        status=status,
        reason=reason,
        took_ms=took_ms,
    )


def _slugs(holders: Sequence[Holder]) -> tuple[str, ...]:
    return tuple(sorted(holder.node.slug for holder in holders))


def _parts(asked: dict[tuple[str, ...], list[Place]]) -> list[Part]:
    uses = Counter(slug for slugs in asked for slug in slugs)
    return [
        Part(
            places,
            Group(slugs, _SEARCH),
            Group(slugs, "fetch"),
            f".{number}" if any(uses[slug] > 1 for slug in slugs) else "",
        )
        for number, (slugs, places) in enumerate(asked.items())
    ]


def _refuse_unknown(option: str, unknown: set[str], known: Iterable[str]) -> None:
    if unknown:
        message = f"unknown {option[:-1]} {', '.join(map(repr, sorted(unknown)))}; there are: " + (
            ", ".join(sorted(known)) or "none yet"
        )
        raise InvalidError(message, fields={f"options.{option}": [message]})
