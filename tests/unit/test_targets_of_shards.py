"""Replicas of one shard are one holder: a write goes to one, and reaches the others by itself."""

from __future__ import annotations

import pytest

from mesh.core import targets
from mesh.core.route_table import RouteTable
from mesh.errors import BadRequestError, UnavailableError
from mesh.types import Health
from mesh.wire.messages import CollectionInfo, RouteNode

ACTIONS = ["index", "delete", "sync", "reembed"]


def node(slug, shard, *collections, health=Health.HEALTHY, outdated=False):
    return RouteNode(
        slug=slug,
        shard=shard,
        health=health,
        actions=ACTIONS,
        collections=[
            CollectionInfo(name=name, shard=shard, outdated=outdated) for name in collections
        ],
    )


def table(*nodes):
    return RouteTable(epoch=1, version=1, nodes=nodes)


def one(nodes, action="index", collection="notes", target=None):
    return targets.one(table(*nodes), action, {"collection": collection}, target)


def by_collection(nodes, action="delete"):
    return targets.several(table(*nodes), action, nodes=None, all=False, collection="notes")


REPLICAS = [node("b", "s", "notes"), node("a", "s", "notes"), node("c", "s", "notes")]


def test_the_first_healthy_replica_takes_a_write():
    assert one(REPLICAS) == "a"
    away = node("a", "s", "notes", health=Health.UNREACHABLE)
    busy = node("b", "s", "notes", health=Health.SUSPECT)
    assert one([away, busy, REPLICAS[2]]) == "c"
    assert one([away, busy]) == "b"
    with pytest.raises(UnavailableError):
        one([away])


def test_a_replica_that_was_named_takes_it():
    assert one(REPLICAS, target="c") == "c"


def test_a_new_replica_that_holds_nothing_yet_makes_no_second_target():
    assert one([*REPLICAS, node("0", "s")]) == "a"
    assert one([node("b", "s"), node("a", "s")], collection="new") == "a"


def test_two_shards_are_two_targets():
    with pytest.raises(BadRequestError, match="hold 'notes'; say which: a, b, x"):
        one([*REPLICAS[:2], node("x", "t", "notes")])
    with pytest.raises(BadRequestError, match="offer 'index'; say which"):
        one([*REPLICAS, node("x", "t")], collection="new")


def test_a_write_is_not_given_to_another_shard_because_its_own_is_away():
    away = [node(slug, "s", "notes", health=Health.UNREACHABLE) for slug in "ab"]
    with pytest.raises(UnavailableError):
        one([*away, node("x", "t")])


def test_a_fan_out_by_collection_goes_to_one_replica_of_each_shard():
    assert by_collection([*REPLICAS, node("x", "t", "notes")]) == {"a": None, "x": None}
    assert by_collection(REPLICAS, "index") == {"a": None}
    with pytest.raises(BadRequestError, match="2 shards"):
        by_collection([*REPLICAS, node("x", "t", "notes")], "index")


def test_sync_is_about_a_copy_and_not_about_a_shard():
    with pytest.raises(BadRequestError, match="say which node is to be made equal"):
        one(REPLICAS, action="sync")
    assert one(REPLICAS, action="sync", target="b") == "b"
    assert list(by_collection(REPLICAS, "sync")) == ["a", "b", "c"]


def test_reembed_is_about_a_copy_too():
    with pytest.raises(BadRequestError, match="say which node is to embed it anew: a, b, c"):
        one(REPLICAS, action="reembed")
    assert one(REPLICAS, action="reembed", target="b") == "b"
    assert one([REPLICAS[0]], action="reembed") == "b"
    assert list(by_collection(REPLICAS, "reembed")) == ["a", "b", "c"]


def test_a_copy_that_waits_to_be_embedded_anew_takes_no_write_if_another_can():
    outdated = node("a", "s", "notes", outdated=True)
    assert one([outdated, REPLICAS[0]]) == "b"
    busy = node("b", "s", "notes", health=Health.SUSPECT)
    assert one([outdated, busy]) == "b"
    away = node("b", "s", "notes", health=Health.UNREACHABLE)
    assert one([outdated, away]) == "a"  # which says what is to be done
    assert by_collection([outdated, REPLICAS[0]]) == {"b": None}
