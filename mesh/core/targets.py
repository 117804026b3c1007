"""Whom an action goes to, chosen from the route table before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mesh.core.route_table import RouteTable, preference, refusal
from mesh.errors import (
    BadRequestError,
    InvalidError,
    MeshError,
    NotFoundError,
    UnavailableError,
)
from mesh.types import Status
from mesh.wire import subjects
from mesh.wire.messages import RouteNode

_OF_ONE_COPY = {"sync": "is to be made equal", "reembed": "is to embed it anew"}
"""The actions on a shard that are not for all of its replicas alike, and what they do to one."""
LONGEST_ID = 200
"""Characters of an action's id."""

Targets = dict[str, MeshError | None]
"""By slug, in order: None, or why the node is not even asked."""


def one(table: RouteTable, action: str, params: Mapping[str, Any], node: str | None) -> str:
    """The node that runs an action: the one that is named, else the only one that qualifies, where
    the replicas of a shard count as one.

    Raises:
        BadRequestError: The named node, or nobody, offers the action, or not exactly one node
            qualifies.
        NotFoundError: Unknown node.
        UnavailableError: It is not active; or nobody named it and it cannot be asked now.
    """
    if node is not None:
        named = _known(table, node, "node")
        if inactive := _inactive(named):
            raise inactive
        # Of a node that has never been there, nobody knows what it offers.
        if named.actions and action not in named.actions:
            raise BadRequestError(
                f"unknown action {action!r}; {named.slug} offers: "
                + ", ".join(sorted(named.actions))
            )
        return named.slug
    able = _able(table, action)
    held = params.get("collection")
    holders = [holder for holder in table.holders(str(held)) if action in holder.node.actions]
    # Health comes after the choice of a shard: a write meant for a node that is away must not go
    # to one of another shard and begin a second collection of that name there.
    shards = _by_shard((_shard_of(node), node) for node in able)
    if holders:
        shards = _by_shard((holder.info.shard, holder.node) for holder in holders)
    if len(shards) > 1:
        choice = [holder.node for holder in holders] or able
        raise BadRequestError(
            f"{len(choice)} nodes {'hold' if holders else 'offer'} "
            f"{held if holders else action!r}; say which: " + _names(choice)
        )
    [replicas] = shards.values()
    if action in _OF_ONE_COPY and len(replicas) > 1:
        raise BadRequestError(f"say which node {_OF_ONE_COPY[action]}: {_names(replicas)}")
    chosen = _best(replicas, str(held))
    if away := _away(chosen):
        raise away
    return chosen.slug


def several(
    table: RouteTable,
    action: str,
    *,
    nodes: Sequence[str] | None,
    all: bool,  # noqa: A002
    collection: str | None,
) -> Targets:
    """The nodes a fan-out goes to. Named ones are asked whatever their health, once each; of `all`
    and of a collection's holders, one per shard, those that cannot be asked now come with the
    reason.

    Raises:
        InvalidError: Not exactly one of `nodes`, `all` and `collection`; unknown collection.
        NotFoundError: Unknown node in `nodes`.
        BadRequestError: Nobody offers the action; or `index` for a collection of several holders.
        UnavailableError: None of those that offer it is active.
    """
    given = {"nodes": nodes is not None, "all": all, "collection": collection is not None}
    if sum(given.values()) != 1:
        message = "give exactly one of nodes, all and collection"
        named = [name for name, is_given in given.items() if is_given] or list(given)
        raise InvalidError(message, fields={name: [message] for name in named})
    if nodes is not None:
        if not nodes:
            message = "must have at least 1 entry"
            raise InvalidError(f"nodes: {message}", fields={"nodes": [message]})
        listed = [_known(table, name, "nodes") for name in nodes]
        return {node.slug: _inactive(node) for node in listed}
    if collection is not None:
        return {node.slug: _away(node) for node in _one_of_each_shard(table, action, collection)}
    active = [node for node in _able(table, action) if node.status is Status.ACTIVE]
    if not active:
        raise UnavailableError(f"no node that offers {action!r} is active")
    return {node.slug: _away(node) for node in active}


def check_id(action_id: str) -> None:
    """What an executor takes as an action's id.

    Raises:
        InvalidError
    """
    if not 0 < len(action_id) <= LONGEST_ID or not action_id.isprintable():
        message = f"an id has 1 to {LONGEST_ID} printable characters"
        raise InvalidError(message, fields={"id": [message]})


def ids(fan_out_id: str, slugs: Iterable[str]) -> dict[str, str]:
    """Each node's own action id: the same fan-out asked again runs nowhere twice.

    Raises:
        InvalidError: One would be too long, or is not printable.
    """
    made = {slug: f"{fan_out_id}.{slug}" for slug in slugs}
    for slug, action_id in made.items():
        if len(action_id) > LONGEST_ID:
            most = LONGEST_ID - len(slug) - 1
            message = f"is longer than {most} characters, which leaves no room for {slug!r}"
            raise InvalidError(f"id: {message}", fields={"id": [message]})
        check_id(action_id)
    return made


def _able(table: RouteTable, action: str) -> list[RouteNode]:
    able = [node for node in table.nodes.values() if action in node.actions]
    if not able:
        offered = sorted({name for node in table.nodes.values() for name in node.actions})
        raise BadRequestError(f"no node offers {action!r}; actions: {', '.join(offered) or 'none'}")
    return able


def _one_of_each_shard(table: RouteTable, action: str, collection: str) -> list[RouteNode]:
    """A write reaches the other replicas by itself."""
    _able(table, action)
    shards = _by_shard((holder.info.shard, holder.node) for holder in table.holders(collection))
    if not shards:
        message = f"unknown collection {collection!r}; there are: " + (
            ", ".join(table.collections()) or "none yet"
        )
        raise InvalidError(message, fields={"collection": [message]})
    if action in _OF_ONE_COPY:
        return [node for replicas in shards.values() for node in replicas]
    holders = [_best(replicas, collection) for replicas in shards.values()]
    if action == "index" and len(holders) > 1:
        raise BadRequestError(
            f"{len(holders)} shards of {collection!r} are there, and each would store the same "
            f"documents; say which node: {_names(holders)}"
        )
    return holders


def _by_shard(holders: Iterable[tuple[str, RouteNode]]) -> dict[str, list[RouteNode]]:
    found: dict[str, list[RouteNode]] = {}
    for shard, node in holders:
        found.setdefault(shard, []).append(node)
    return found


def _shard_of(node: RouteNode) -> str:
    return node.shard or next((info.shard for info in node.collections), node.slug)


def _best(replicas: Iterable[RouteNode], collection: str) -> RouteNode:
    """Of one shard: the first by name of those that are best to ask, and of these one whose copy
    can be written, if there is any.
    """

    def order(node: RouteNode) -> tuple[bool, bool, int, str]:
        outdated = any(info.outdated for info in node.collections if info.name == collection)
        return bool(refusal(node)), outdated, preference(node), node.slug

    return min(replicas, key=order)


def _known(table: RouteTable, node: str, field: str) -> RouteNode:
    subjects.token(node, field)
    route = table.node(node)
    if route is None:
        there = ", ".join(table.nodes) or "none"
        raise NotFoundError(f"unknown node {node!r}; there are: {there}")
    return route


def _inactive(node: RouteNode) -> UnavailableError | None:
    if node.status is Status.ACTIVE:
        return None
    return UnavailableError(f"node {node.slug!r} is {node.status.value}")


def _away(node: RouteNode) -> UnavailableError | None:
    if reason := refusal(node):
        return UnavailableError(f"node {node.slug!r} cannot be asked now: {reason}")
    return None


def _names(nodes: Iterable[RouteNode]) -> str:
    return ", ".join(node.slug for node in nodes)
