from __future__ import annotations

import random

import pytest

from mesh.core.node_view import NodeView
from mesh.errors import NotFoundError
from mesh.types import Health, Status
from mesh.wire.messages import (
    ActionInfo,
    Changed,
    CollectionInfo,
    Heartbeat,
    NodeLoad,
    NodeRecord,
    NodesQuery,
    VerbStats,
)

NOTES = CollectionInfo(name="notes", shard="crm", rows=3, data_version=1, fingerprint="f")


def record(slug: str = "crm", **fields: object) -> NodeRecord:
    return NodeRecord(**{"id": f"id-{slug}", "slug": slug, "name": slug.upper()} | fields)


def beat(**fields: object) -> Heartbeat:
    return Heartbeat(
        **{"node": "crm", "incarnation": 5, "sequence": 1, "collections": [NOTES]} | fields
    )


@pytest.fixture
def view() -> NodeView:
    view = NodeView()
    view.load([record()])
    view.moved = False
    return view


def test_what_the_database_says_of_health_is_not_believed():
    view = NodeView()
    view.load([record(health=Health.HEALTHY), record("b", incarnation=3)])
    assert [(one.health, one.reason) for one in view.records()] == [
        (Health.UNREACHABLE, "not heard yet"),
        (Health.UNREACHABLE, "never heard"),
    ]


def test_a_node_is_found_by_slug_and_by_id(view):
    assert view.find("crm") == view.find("id-crm")
    assert "crm" in view
    with pytest.raises(NotFoundError, match="no node 'crn'; there are: crm"):
        view.find("crn")
    with pytest.raises(NotFoundError, match="no node is registered yet"):
        NodeView().find("x")


def test_selection_matches_all_that_is_asked(view):
    view.load([record("b", status=Status.MAINTENANCE), record("c", type="bridge")])
    assert [one.slug for one in view.select(NodesQuery())] == ["b", "c", "crm"]
    assert [one.slug for one in view.select(NodesQuery(status=Status.MAINTENANCE))] == ["b"]
    assert [one.slug for one in view.select(NodesQuery(type="bridge"))] == ["c"]
    assert view.select(NodesQuery(node="b", type="bridge")) == []
    with pytest.raises(NotFoundError):
        view.select(NodesQuery(node="nobody"))


def test_a_heartbeat_is_taken_over_and_saved_only_where_it_lasts(view):
    view.heard(beat(lag_ms=3.0, actions=[ActionInfo(name="refund")]))
    route = view.routes()[0]
    assert (route.collections, route.actions, route.incarnation) == ([NOTES], ["refund"], 5)
    assert view.moved
    [unsaved] = view.unsaved()
    view.saved(unsaved)
    view.moved = False
    view.heard(beat(lag_ms=9.0, actions=[ActionInfo(name="refund")], in_flight=4, sequence=2))
    known = view.find("crm")
    assert (known.lag_ms, known.in_flight) == (9.0, 4)
    assert view.unsaved() == []
    assert view.loads_moved, "callers route by load"
    view.loads_moved = False
    view.heard(beat(lag_ms=1.0, actions=[ActionInfo(name="refund")], in_flight=3, sequence=3))
    assert view.find("crm").in_flight == 3
    assert not view.loads_moved, "but not by what hardly changed"
    assert not view.moved, "nor by lag"


def test_load_is_told_coarsely_and_a_new_life_starts_without_any(view):
    search = {"search": VerbStats(count=9, ewma_ms=12.345)}
    view.heard(beat(in_flight=4, queued=1, verbs=search))
    assert view.routes()[0].load == NodeLoad(busy=8, search_ms=12.0)
    assert view.find("crm").verbs == search
    view.heard(beat(incarnation=6))
    assert view.routes()[0].load == NodeLoad()


def test_a_steady_mesh_says_nothing_new(view):
    rng = random.Random(1)
    view.heard(beat())
    changes = 0
    for sequence in range(2, 602):
        took = VerbStats(count=sequence, ewma_ms=rng.uniform(9.0, 11.0))
        view.loads_moved = False
        view.heard(beat(sequence=sequence, in_flight=rng.choice([3, 4, 5]), verbs={"search": took}))
        changes += view.loads_moved
    assert changes <= 2, "the first figures, and no more"
    for sequence in range(602, 620):
        view.heard(beat(sequence=sequence))
    assert view.routes()[0].load.busy == 0


def test_probes_are_nothing_that_callers_route_by(view):
    view.probed("crm", took_ms=10.0, at=1)
    view.probed("crm", took_ms=None, at=2)
    assert not view.moved


def test_the_order_of_records_follows_who_comes_and_goes(view):
    assert len(view) == 1
    view.load([record("a")])
    assert [one.slug for one in view.records()] == ["a", "crm"]
    view.remove("crm")
    assert [one.slug for one in view.records()] == [one.slug for one in view] == ["a"]


def test_an_older_life_says_nothing(view):
    view.heard(beat())
    view.heard(beat(incarnation=4, collections=[]))
    assert view.find("crm").collections == [NOTES]


def test_what_changed_while_it_was_being_saved_stays_unsaved(view):
    view.heard(beat())
    [unsaved] = view.unsaved()
    view.heard(beat(version="2", sequence=2))
    view.saved(unsaved)
    assert [one.version for one in view.unsaved()] == ["2"]


def test_a_changed_collection_is_routed_by_at_once(view):
    view.heard(beat())
    view.moved = False
    event = Changed(incarnation=5, collection="notes", shard="crm", data_version=2, rows=4)
    view.collection_changed("crm", event)
    assert view.moved
    [info] = view.routes()[0].collections
    assert (info.data_version, info.rows, info.fingerprint) == (2, 4, "f")


@pytest.mark.parametrize(
    "event",
    [
        Changed(incarnation=4, collection="notes", shard="crm", data_version=9, rows=9),
        Changed(incarnation=5, collection="other", shard="crm", data_version=9, rows=9),
    ],
)
def test_a_change_of_an_older_life_or_of_what_is_not_known_waits(view, event):
    view.heard(beat())
    view.collection_changed("crm", event)
    view.collection_changed("nobody", event)
    assert view.find("crm").collections == [NOTES]


def test_probes_make_the_response_time_and_count_failures_in_a_row(view):
    view.probed("crm", took_ms=10.0, at=1)
    view.probed("crm", took_ms=20.0, at=2)
    assert view.find("crm").response_time_ms == 12.0
    assert view.find("crm").last_ping_at == 2
    view.probed("crm", took_ms=None, at=3)
    view.probed("crm", took_ms=None, at=4)
    assert (view.find("crm").failures, view.find("crm").last_ping_at) == (2, 2)
    view.probed("crm", took_ms=12.0, at=5)
    assert view.find("crm").failures == 0
    view.probed("nobody", took_ms=1.0, at=6)


def test_a_response_time_that_hardly_moved_is_not_worth_a_write(view):
    view.probed("crm", took_ms=10.0, at=1)
    view.saved(view.unsaved()[0])
    view.probed("crm", took_ms=12.0, at=2)
    assert view.unsaved() == []
    view.probed("crm", took_ms=50.0, at=3)
    assert len(view.unsaved()) == 1


def test_an_operators_change_leaves_what_is_seen_alone(view):
    view.heard(beat())
    view.set_health("crm", Health.HEALTHY, "")
    changed = view.change(record(status=Status.MAINTENANCE, weight=3.0), at=77)
    assert (changed.status, changed.weight, changed.updated_at) == (Status.MAINTENANCE, 3.0, 77)
    assert (changed.health, changed.collections) == (Health.HEALTHY, [NOTES])
    assert [one.updated_at for one in view.unsaved()] == [77]


def test_a_removed_node_leaves_nothing(view):
    view.heard(beat())
    view.remove("crm")
    assert (view.records(), view.routes(), view.unsaved()) == ([], [], [])
    assert view.moved
    view.heard(beat())
    view.set_health("crm", Health.HEALTHY, "")
    assert view.records() == []


def test_statistics_count_a_shard_once():
    def holder(slug: str, shard: str, rows: int, **fields: object) -> NodeRecord:
        infos = [CollectionInfo(name="notes", shard=shard, rows=rows)]
        return record(slug, collections=infos, **fields)

    view = NodeView()
    view.load(
        [
            holder("a", "x", 5, response_time_ms=2.0),
            holder("b", "x", 6, response_time_ms=4.0),
            holder("c", "y", 10, status=Status.INACTIVE, type="bridge"),
            holder("d", "z", 0, status=Status.ERROR),
            record("e", status=Status.MAINTENANCE),
        ]
    )
    for slug in "ac":
        view.set_health(slug, Health.HEALTHY, "")
    stats = view.stats(blind=True)
    assert (stats.total, stats.active, stats.inactive, stats.error) == (5, 2, 1, 1)
    assert stats.healthy == 1, "c is healthy, but not active"
    assert stats.avg_response_time_ms == 3.0
    assert stats.by_type == {"bridge": 1, "child": 4}
    assert stats.by_health == {"healthy": 2, "unreachable": 3}
    assert (stats.collections, stats.documents) == (1, 16)
    assert stats.blind
    assert NodeView().stats(blind=False).avg_response_time_ms is None
